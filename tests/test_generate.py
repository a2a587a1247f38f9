"""Pictures, grids, figures and sets from a checkpoint: equal to the model's own swaps, and safe against kills."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from dgnet_fast import generate
from dgnet_fast.config import Config
from dgnet_fast.data import denormalize, normalize
from dgnet_fast.data.pictures import NOBODY, Pictures, open_pictures
from dgnet_fast.generation.codes import CodeStore, Swapper, appearance_codes, interpolate, reconstructions
from dgnet_fast.generation.figures import draw_figure
from dgnet_fast.generation.pairs import all_pairs, random_pairs, spread
from dgnet_fast.generation.sets import read_description, read_manifest, write_set
from dgnet_fast.report.grid import cell_origin
from tests.tiny_run import fails, tiny_run

SIZE = 40, 24
GALLERY = "synthetic:gallery"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("generate") / "run")


@pytest.fixture
def pictures(run):
    return open_pictures(GALLERY, run[0].config).choose(range(6))


@pytest.fixture
def folder(pictures, tmp_path):
    """Six pictures as files, three people with a folder each."""
    for k, picture in enumerate(pictures.decode(*SIZE)):
        path = tmp_path / "people" / f"p{k // 2}" / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(path)
    return tmp_path / "people"


def swap(model, appearance, structure):
    """The model's own swap of uint8 (3, H, W), without stores and batches."""
    return denormalize(model.swap(normalize(appearance[None]), normalize(structure[None])))[0]


def read(path):
    return torch.from_numpy(np.asarray(Image.open(path)).copy()).permute(2, 0, 1)


def close(found, wanted):
    """Equal but for rounding: another batch size sums in another order."""
    return found.shape == wanted.shape and int((found.int() - wanted.int()).abs().max()) <= 1


def test_pair_is_the_models_swap(run, folder, tmp_path, capsys):
    model, path = run
    one, other = folder / "p0" / "0.png", folder / "p2" / "5.png"
    words = ["pair", path, "--appearance", one, "--structure", other, "--out", tmp_path / "new" / "swap.png"]
    assert generate.main([str(w) for w in words]) == 0
    assert close(read(tmp_path / "new" / "swap.png"), swap(model, read(one), read(other)))
    assert capsys.readouterr().out.strip() == str(tmp_path / "new" / "swap.png")
    assert "exists already" in fails(capsys, generate.main, words)


def test_swapper_equals_single_swaps_however_little_it_keeps(run, pictures):
    model, decoded = run[0], pictures.decode(*SIZE)
    swapper = Swapper(model, pictures, pictures)
    swapper.structure.limit = swapper.appearance.limit = 1  # one code stays
    pairs = all_pairs(pictures, pictures)
    made = torch.cat([swapper(pairs[:7]), swapper(pairs[7:])])
    for picture, (i, j) in zip(made, pairs, strict=True):
        assert close(picture, swap(model, decoded[i], decoded[j]))
    assert pairs[:3].tolist() == [[0, 0], [1, 0], [2, 0]] and len(pairs) == 36


def test_store_encodes_each_picture_once(run, pictures):
    calls = []

    def encode(model, part):
        calls.append(len(part))
        return appearance_codes(model, part)

    store = CodeStore(run[0], pictures, encode)
    first = store.get([3, 1, 3])
    assert first[0].equal(first[2]) and not first[0].equal(first[1])
    assert store.get([1, 2])[0].equal(first[1])
    assert calls == [8, 8]  # passes of one size, so that a set can be continued bit by bit


def test_set_and_its_manifest(run, tmp_path, capsys):
    model, path = run
    words = ["set", path, "--source", GALLERY, "--count", 9, "--out", tmp_path / "set", "--batch", 4]
    assert generate.main([str(w) for w in words]) == 0
    rows = read_manifest(tmp_path / "set")
    source = open_pictures(GALLERY, model.config)
    decoded = source.decode(*SIZE)
    assert len(rows) == 9 and len({row.file for row in rows}) == 9
    for row in rows:
        i, j = row.appearance_index, row.structure_index
        assert (row.appearance, row.structure) == (source.split.names[i], source.split.names[j])
        assert (row.appearance_id, row.structure_id) == (source.people[i], source.people[j])
        assert row.appearance_id != row.structure_id or row.appearance_id == NOBODY
        assert row.appearance_camera == source.split.cameras[i] and row.seed == 0
        assert close(read(tmp_path / "set" / row.file), swap(model, decoded[i], decoded[j]))
    assert {row.checkpoint for row in rows} == {read_description(tmp_path / "set")["checkpoint"]}
    assert "9 pictures made" in capsys.readouterr().out
    assert generate.main([str(w) for w in words]) == 0
    assert capsys.readouterr().out.startswith("0 pictures made") and read_manifest(tmp_path / "set") == rows


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_killed_set_continues_to_the_same_files(run, pictures, tmp_path):
    pairs = random_pairs(pictures, pictures, 10, seed=3)
    options = {"seed": 3, "checkpoint": "f" * 16, "file_type": "jpg", "batch": 3}
    write_set(tmp_path / "whole", Swapper(run[0], pictures, pictures), pictures, pictures, pairs, **options)

    class Killed(Swapper):
        calls = 0

        def __call__(self, part):
            self.calls += 1
            if self.calls == 3:
                raise KeyboardInterrupt
            return super().__call__(part)

    broken = tmp_path / "broken"
    with pytest.raises(KeyboardInterrupt):
        write_set(broken, Killed(run[0], pictures, pictures), pictures, pictures, pairs, **options)
    rows = read_manifest(broken)
    assert len(rows) == 6
    with open(broken / "manifest.csv", "a") as file:
        file.write("pictures/half a li")  # as a kill in the middle of a line leaves it
    (broken / rows[0].file).unlink()
    swapper = Swapper(run[0], pictures, pictures)
    assert write_set(broken, swapper, pictures, pictures, pairs, **options) == (5, 5)
    assert contents(broken) == contents(tmp_path / "whole")


def test_another_set_is_refused_and_keeps_its_files(run, tmp_path, capsys):
    words = ["set", run[1], "--source", GALLERY, "--out", tmp_path / "set", "--count"]
    assert generate.main([str(w) for w in [*words, 3]]) == 0
    capsys.readouterr()
    before = contents(tmp_path / "set")
    assert "count is 3 there and 4 here" in fails(capsys, generate.main, [*words, 4])
    assert "seed is 0 there and 1 here" in fails(capsys, generate.main, [*words, 3, "--seed", 1])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "note.txt").write_text("mine")
    line = fails(
        capsys, generate.main, ["set", run[1], "--source", GALLERY, "--out", tmp_path / "other", "--count", 3]
    )
    assert "holds no generated set" in line
    assert contents(tmp_path / "set") == before and len(contents(tmp_path / "other")) == 1


def test_cross_of_two_folders(run, folder, tmp_path, capsys):
    words = ["cross", run[1], "--appearances", folder / "p0", "--structures", folder, "--out", tmp_path / "x"]
    assert generate.main([str(w) for w in words]) == 0
    rows = read_manifest(tmp_path / "x")
    assert [(r.appearance, r.structure) for r in rows[:3]] == [
        ("0.png", "p0/0.png"),
        ("1.png", "p0/0.png"),
        ("0.png", "p0/1.png"),
    ]
    assert len(rows) == 12 and {r.appearance_id for r in rows} == {NOBODY}
    assert {r.structure_id for r in rows} == {1, 2, 3}
    wanted = swap(run[0], read(folder / "p0" / "1.png"), read(folder / "p2" / "4.png"))
    row = next(r for r in rows if (r.appearance, r.structure) == ("1.png", "p2/4.png"))
    assert close(read(tmp_path / "x" / row.file), wanted)


def test_random_pairs():
    people = np.repeat([1, 2, 3], 4)
    few = Pictures("here", _Names(12), people)
    pairs = random_pairs(few, few, 96, seed=0)  # all there are
    assert len({tuple(p) for p in pairs.tolist()}) == 96
    assert (people[pairs[:, 0]] != people[pairs[:, 1]]).all()
    assert random_pairs(few, few, 20, seed=1).tolist() == random_pairs(few, few, 20, seed=1).tolist()
    assert random_pairs(few, few, 20, seed=1).tolist() != random_pairs(few, few, 20, seed=2).tolist()
    with pytest.raises(ValueError, match="count is 97; here and here give 96 pairs"):
        random_pairs(few, few, 97, seed=0)
    unknown = Pictures("there", _Names(12), np.full(12, NOBODY))
    assert len(random_pairs(unknown, unknown, 144, seed=0)) == 144


class _Names:
    def __init__(self, count):
        self.names = [str(k) for k in range(count)]

    def __len__(self):
        return len(self.names)


def test_spread_draws_different_people():
    source = Pictures("here", _Names(9), np.array([1, 1, 1, 2, 2, 3, NOBODY, NOBODY, 3]))
    chosen = spread(source, 9, seed=4)
    assert sorted(source.people[chosen].tolist()) == [NOBODY, NOBODY, 1, 2, 3]
    assert chosen == spread(source, 9, seed=4) and len(spread(source, 2, seed=4)) == 2
    assert 1 not in source.people[spread(source, 9, skip=[1])]


def test_interpolation_ends_in_the_two_swaps(run, pictures):
    model, (first, last, fixed) = run[0], pictures.decode(*SIZE)[:3]
    made = interpolate(model, first, last, fixed, 5)
    assert close(made[0], swap(model, first, fixed)) and close(made[-1], swap(model, last, fixed))
    code = appearance_codes(model, torch.stack([first, last])).mean(dim=0, keepdim=True)
    structure, _ = model.encode(normalize(fixed[None]))
    with torch.no_grad():
        assert close(made[2], denormalize(model.decode(structure, code))[0])
    moving = interpolate(model, first, last, fixed, 2, of="structure")
    assert close(moving[0], swap(model, fixed, first)) and close(moving[1], swap(model, fixed, last))
    with pytest.raises(ValueError, match="steps is 1; allowed: at least 2"):
        interpolate(model, first, last, fixed, 1)


def test_reconstructions(run, pictures):
    model, decoded = run[0], pictures.decode(*SIZE)
    made = reconstructions(model, decoded[:2], decoded[2:4])
    assert close(made[0, 0], swap(model, decoded[0], decoded[0]))
    assert close(made[1, 1], swap(model, decoded[3], decoded[1]))
    clothes, pose = swap(model, decoded[0], decoded[1]), swap(model, decoded[1], decoded[0])
    assert close(made[0, 2], swap(model, clothes, pose))


@pytest.mark.parametrize("name", ["swap", "interpolation", "structure-interpolation", "reconstruction"])
def test_figures(run, pictures, name):
    model = run[0]
    page = draw_figure(name, model, pictures, count=3, steps=3, seed=1)
    chosen = pictures.choose(spread(pictures, 3, 1)).decode(*SIZE)
    scale = 4  # 40 pixels high, shown at 160
    if name == "swap":
        left, top = cell_origin(3, 2, *SIZE, scale=scale)
        wanted = swap(model, chosen[1], chosen[2])
    else:
        left, top = 4, 26
        wanted = chosen[0] if name == "reconstruction" else chosen[2]  # the held picture stands first
    shown = np.asarray(page)[top : top + 160 : scale, left : left + 96 : scale]
    assert close(torch.from_numpy(shown.copy()).permute(2, 0, 1), wanted)


def test_grid(run, folder, tmp_path):
    words = ["grid", run[1], "--source", folder, "--limit", 2, "--out", tmp_path / "grid.png"]
    assert generate.main([str(w) for w in words]) == 0
    pictures = open_pictures(str(folder), run[0].config)
    chosen = pictures.choose(spread(pictures, 2, 0)).decode(*SIZE)
    left, top = cell_origin(1, 2, *SIZE, scale=4)
    shown = read(tmp_path / "grid.png")[:, top : top + 160 : 4, left : left + 96 : 4]
    assert close(shown, swap(run[0], chosen[1], chosen[0]))


def test_open_pictures(folder, run):
    found = open_pictures(str(folder), Config())
    assert found.split.names == [f"p{k // 2}/{k}.png" for k in range(6)]
    assert found.people.tolist() == [1, 1, 2, 2, 3, 3]
    single = open_pictures(str(folder / "p1" / "2.png"), Config())
    assert single.split.names == ["2.png"] and single.people.tolist() == [NOBODY]
    gallery = open_pictures(GALLERY, run[0].config)
    assert (gallery.split.ids >= 0).all() and (gallery.people[gallery.split.ids == 0] == NOBODY).all()


@pytest.mark.parametrize(
    "words, problem",
    [
        (["pair", "RUN", "--appearance", "no.jpg", "--structure", "no.jpg"], "no such picture: no.jpg"),
        (["pair", "RUN", "--appearance", "bad.jpg", "--structure", "bad.jpg"], "cannot read image bad.jpg"),
        (
            ["pair", "nowhere", "--appearance", "bad.jpg", "--structure", "bad.jpg"],
            "no such checkpoint: nowhere",
        ),
        (["grid", "RUN", "--source", "empty"], "no images in empty"),
        (["grid", "RUN"], "where from? give --source"),
        (["grid", "RUN", "--source", "synthetic"], "names no split; allowed: synthetic:train"),
        (["grid", "RUN", "--source", "synthetic:galery"], "names no split"),
        (["grid", "RUN", "--source", "nobody"], "no such picture, folder or data set: 'nobody'"),
        (["grid", "RUN", "--source", "market1501:gallery"], "give its folder with --root DIR"),
        (["grid", "RUN", "--source", "empty", "--limit", "0"], "--limit is 0; allowed: at least 1"),
        (["figure", "swap", "RUN", "--source", "one"], "has 1 person to draw"),
        (["figure", "swap", "RUN", "--seed", "-1"], "--seed is -1; allowed: at least 0"),
    ],
)
def test_mistakes_are_one_line(run, tmp_path, monkeypatch, capsys, words, problem):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    (tmp_path / "empty").mkdir()
    (tmp_path / "one").mkdir()
    Image.new("RGB", (24, 40)).save(tmp_path / "one" / "a.png")
    words = [str(run[1]) if w == "RUN" else w for w in words]
    assert problem in fails(capsys, generate.main, [*words, "--out", "made.png"])
    assert not (tmp_path / "made.png").exists()


def test_mistakes_in_out_and_mode(run, tmp_path, capsys):
    line = fails(capsys, generate.main, ["grid", run[1], "--source", GALLERY, "--out", tmp_path / "grid.gif"])
    assert "allowed: a name ending in .png, .jpg, .jpeg" in line
    assert "invalid choice" in fails(
        capsys, generate.main, ["figure", "nine", run[1], "--out", "x.png"], status=2
    )


def test_a_damaged_manifest_is_named(tmp_path):
    with pytest.raises(ValueError, match="there is no manifest.csv"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.csv").write_text("file,who\n")
    with pytest.raises(ValueError, match="no manifest of a generated set"):
        read_manifest(tmp_path)
    (tmp_path / "set.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(ValueError, match="does not describe a generated set"):
        read_description(tmp_path)
