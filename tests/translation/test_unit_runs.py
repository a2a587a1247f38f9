"""The commands around UNIT: training, resuming, translating, and what they refuse."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from dgnet_fast import transfer, translate, unit
from dgnet_fast.checkpoints.unit import load_unit, read_unit
from dgnet_fast.data import load_dataset
from dgnet_fast.data.cache import cached_pictures
from dgnet_fast.data.drawn.cities import CityPedestrians
from dgnet_fast.data.files import unlabelled
from dgnet_fast.data.pictures import open_pictures
from dgnet_fast.models.unit import Vgg16
from dgnet_fast.translation.batches import DomainBatches, to_network, to_pictures
from dgnet_fast.translation.checks import check_table, looks_like
from dgnet_fast.translation.scores import Look, truth
from dgnet_fast.translation.sets import read_translated
from tests.tiny_unit import tiny_config

SMALL = """
    --gen.dim 4 --gen.n-res 1 --gen.n-downsample 1 --dis.dim 4 --dis.n-layer 2 --synthetic-ids 3 --synthetic-test-ids 2
    --synthetic-views 4 --crop-image-height 32 --crop-image-width 16 --batch-size 2 --device cpu --data-cache off
    --image-display-iter 2 --snapshot-save-iter 2 --log-iter 1 --display-size 2 --num-workers 1 --muon 20
""".split()


def run(*argv: str) -> int:
    return unit.main([*argv, *SMALL, "--quiet"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of four steps between the built-in cities."""
    folder = tmp_path_factory.mktemp("unit") / "run"
    assert run("--out", str(folder), "--max-iter", "4") == 0
    return folder


def test_a_run_leaves_everything_that_it_promises(finished):
    names = {p.name for p in finished.iterdir()}
    assert {"config.yaml", "environment.json", "metrics.jsonl", "results.json", "report.html"} <= names
    (table,) = json.loads((finished / "results.json").read_text())["tables"]
    assert len(table["rows"]) == 6 and all(np.isfinite(row[1:]).all() for row in table["rows"])
    assert {p.name for p in (finished / "samples").glob("*.png")} == {
        "step_00000002.png",
        "step_00000004.png",
    }
    page = (finished / "report.html").read_text()
    assert "back again in their own" in page and "Reconstruction losses" in page


def test_a_stopped_run_goes_on_with_the_same_bits(finished, tmp_path):
    folder = tmp_path / "run"
    assert run("--out", str(folder), "--max-iter", "4", "--max-steps", "2") == 0
    assert unit.main(["--resume", "--out", str(folder), "--quiet"]) == 0
    ours, theirs = (read_unit(f / "checkpoints" / "step_00000004.pt") for f in (folder, finished))
    assert all(torch.equal(v, theirs["model"][k]) for k, v in ours["model"].items())


def test_the_perceptual_loss_takes_its_weights_from_a_file(tmp_path, capsys):
    """A file as the public code caches it, with drawn values: the term has its size, and no checkpoint holds them."""
    state, generator = {}, torch.Generator().manual_seed(0)
    with torch.device("meta"):
        shapes = Vgg16().state_dict()
    for name, value in shapes.items():
        spread = (2 / value[0].numel()) ** 0.5 if value.ndim > 1 else 0.1
        state[name.removeprefix("convs.")] = spread * torch.randn(value.shape, generator=generator)
    path, folder = tmp_path / "vgg16.weight", tmp_path / "run"
    torch.save(state, path)
    options = ["--vgg-w", "0.5", "--vgg-weights", str(path), "--max-iter", "2", "--max-steps", "1"]
    assert run("--out", str(folder), *options) == 0
    (line,) = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert 0 < line["vgg"] < 4  # the mean square difference of features with variance 1
    saved = read_unit(folder / "checkpoints" / "step_00000001.pt")
    assert saved["config"]["vgg_weights"] == str(path) and not any("perceptual" in k for k in saved["model"])
    path.unlink()
    assert unit.main(["--resume", "--out", str(folder), "--quiet"]) == 1
    assert "vgg16.weight" in capsys.readouterr().err


def test_a_translated_data_set_keeps_names_people_and_cameras(finished, tmp_path):
    root = tmp_path / "market"
    rng = np.random.default_rng(0)
    names = ["0002_c1s1_000451_03.jpg", "0002_c2s1_000452_01.jpg", "0007_c3s2_000001_02.jpg"]
    for part in ("bounding_box_train", "query", "bounding_box_test"):
        (root / part).mkdir(parents=True)
        for name in names:
            Image.fromarray(rng.integers(0, 255, (32, 16, 3), dtype=np.uint8)).save(root / part / name)
    out = tmp_path / "out"
    argv = [str(finished), "market1501", "--root", str(root), "--out", str(out), "--device", "cpu", "--quiet"]
    assert translate.main(argv) == 0
    made = load_dataset("market1501", str(out))
    again = load_dataset("csv", str(out / "dataset.csv"))
    assert made.train.ids.tolist() == [2, 2, 7] and made.train.cameras.tolist() == [1, 2, 3]
    # a CSV file numbers its identities anew and keeps their names
    assert again.class_names == ["2", "7"] and again.train.cameras.tolist() == [1, 2, 3]
    assert [n.rpartition("/")[2] for n in made.query.names] == [n.replace(".jpg", ".png") for n in names]
    model, _ = load_unit(finished)
    before = load_dataset("market1501", str(root)).train.load(0)
    x = to_network(torch.from_numpy(before.copy()).permute(2, 0, 1)[None])
    wanted = to_pictures(model.translate(x, 0, 1))[0].permute(1, 2, 0).numpy()
    assert (
        np.abs(made.train.load(0).astype(int) - wanted).max() <= 1
    )  # another memory order of the convolutions
    gone = out / "query" / names[0].replace(".jpg", ".png")
    content = gone.read_bytes()
    gone.unlink()
    assert translate.main(argv) == 0 and gone.read_bytes() == content
    with open(out / "manifest.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9 and {(r["origin"], r["target"]) for r in rows} == {("synthetic-a", "synthetic-b")}
    assert translate.main([*argv, "--file-type", "jpg"]) == 1  # another set


def test_a_model_of_cameras_translates_to_every_other_one(tmp_path):
    folder, out = tmp_path / "run", tmp_path / "out"
    assert run("--out", str(folder), "--cameras", "synthetic:train", "--max-iter", "2") == 0
    model, _ = load_unit(folder)
    cameras = len(model.encoders)
    assert cameras == len(model.decoders) > 2
    argv = [
        str(folder),
        "synthetic:train",
        "--to-domain",
        "all",
        "--out",
        str(out),
        "--device",
        "cpu",
        "--quiet",
    ]
    assert translate.main(argv) == 0
    made = read_translated(out)
    assert len(made) == 12 * (cameras - 1)
    assert all(f"_fake_{c}to" in name for name, c in zip(made.names, made.cameras, strict=True))


def test_the_truth_is_drawn_as_the_other_city_shows_it():
    config = tiny_config(crop_image_height=32, crop_image_width=16).data_config()
    pictures = open_pictures("synthetic-a:query", config).choose([3])
    drawn = pictures.split.source.source
    place = int(pictures.split.source.indices[3])
    who = int(drawn.identities[place]), int(drawn.views[place]), int(drawn.cameras[place])
    own, other = (torch.from_numpy(CityPedestrians(0, c).draw(*who, 32, 16)).permute(2, 0, 1) for c in "ab")
    assert torch.equal(pictures.decode(32, 16)[0], own)
    assert torch.equal(truth(pictures, Look("b", None))[0], other) and not torch.equal(own, other)


def test_the_people_of_the_cities_are_different():
    one, other = (
        load_dataset(f"synthetic-{c}", views_per_identity=4, train_identities=2, test_identities=2)
        for c in "ab"
    )
    assert one.train.ids.tolist() == other.train.ids.tolist()
    assert not set(one.gallery.identities) & set(other.gallery.identities)
    assert not set(one.gallery.views) & set(other.gallery.views)


def test_batches_are_functions_of_the_step():
    pictures = [torch.randint(0, 256, (n, 3, 8, 4), dtype=torch.uint8) for n in (5, 7)]
    batches = DomainBatches(pictures, batch_size=2, seed=3)
    first = [batches.batch(k, (0, 1)).x for k in range(6)]
    again = DomainBatches(pictures, batch_size=2, seed=3)
    assert all(torch.equal(again.batch(k, (0, 1)).x, first[k]) for k in (5, 0, 3))
    assert len({*np.concatenate([batches.indices(k, 1) for k in range(3)]).tolist()}) == 6


def test_mapped_pictures_of_the_next_step_are_expected(tmp_path, monkeypatch):
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    mapped = cached_pictures(unlabelled([tmp_path / "one.png"] * 9), 8, 4, tmp_path / "c")
    expected = []
    monkeypatch.setattr(type(mapped), "expect", lambda self, indices: expected.append(indices.tolist()))
    plain = torch.zeros(9, 3, 8, 4, dtype=torch.uint8)
    batches = DomainBatches([plain, mapped], batch_size=2)
    batches.batch(0, (0, 1))
    assert expected == [batches.indices(1, 1).tolist()]
    DomainBatches([plain, mapped, plain], batch_size=2).batch(0, (0, 1))  # nobody knows the next pair
    assert len(expected) == 1


def test_pictures_survive_the_network_s_scale():
    x = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_pictures(to_network(x)), x)


def test_a_classifier_tells_two_looks_apart():
    generator = torch.Generator().manual_seed(0)
    dark, bright = (torch.randint(a, a + 100, (40, 3, 16, 8), generator=generator).byte() for a in (0, 100))
    assert looks_like(dark, dark, bright) == 0 and looks_like(bright, dark, bright) == 1


class MeanColour(torch.nn.Module):
    """In place of Inception."""

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return pictures.to(torch.float32).mean(dim=[2, 3])


def test_the_checks_compare_with_the_pictures_as_they_are():
    """Translated pictures that are the target's: their distance is that of the target's halves, not the source's."""
    generator = torch.Generator().manual_seed(0)
    dark, bright = (
        torch.randint(low, low + 50, (64, 3, 16, 8), generator=generator).byte() for low in (0, 100)
    )
    table = check_table(
        "", source=dark, translated=bright.flip(0), target=bright, features=MeanColour(), feature_name="FID", ranks=None
    )  # fmt: skip
    (name, as_it_is, translated, halves), (_, *taken) = table["rows"]
    assert name.startswith("FID to the target")
    # by hand: means 100 apart in three channels, covariances almost equal
    assert as_it_is == pytest.approx(3 * 100**2, rel=0.05) and translated < 1e-6 and halves < 10
    assert taken == [0, 100, 100]


def test_the_transfer_table_has_direct_transfer_beside_it(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DGNET_FAST_CACHE", "off")
    tiny = {"synthetic_ids": 3, "synthetic_test_ids": 2, "synthetic_views": 4, "crop_image_height": 32,
            "crop_image_width": 16, "ID_width": 2, "gen": {"id_dim": 64, "pad_type": "zero", "n_downsample": 1},
            "ID_blocks": [1, 1, 1, 1], "ID_features": 8, "teacher_batch": 4, "crop_pad": 1, "data_cache": "off"}  # fmt: skip
    monkeypatch.setattr(transfer, "preset", lambda name: json.loads(json.dumps(tiny)))
    out = tmp_path / "set"
    assert (
        translate.main([str(finished), "synthetic-a:train", "--out", str(out), "--device", "cpu", "--quiet"])
        == 0
    )
    argv = ["--from-data", "synthetic-a", "--to-data", "synthetic-b", "--translated", str(out), "--out", str(tmp_path / "t"),
            "--seeds", "0", "1", "--steps", "2", "--unit", str(finished), "--device", "cpu", "--quiet",
            "--inception", str(tmp_path / "mean.pt")]  # fmt: skip
    torch.jit.script(MeanColour()).save(str(tmp_path / "mean.pt"))
    assert transfer.main(argv) == 1  # before anything is trained
    assert "--trust-scripts" in capsys.readouterr().err and not (tmp_path / "t").exists()
    argv.append("--trust-scripts")
    assert transfer.main(argv) == 0
    table, checks = json.loads((tmp_path / "t" / "results.json").read_text())["tables"]
    assert [row[0] for row in table["rows"]] == [
        "chance", "direct transfer (source as it is)", "translated source", "source and translated"
    ]  # fmt: skip
    assert len(checks["rows"]) == 3 and checks["rows"][0][0].startswith("FID (legacy) to the target")
    before = (tmp_path / "t" / "cells.json").read_text()
    assert transfer.main(argv) == 0 and (tmp_path / "t" / "cells.json").read_text() == before
    capsys.readouterr()
    for change, message in (
        (["--steps", "3"], "another comparison"),
        (["--steps", "0"], "--steps is 0; allowed: at least 1"),
        (["--seeds", "1", "1"], "--seeds is [1, 1]; allowed: different numbers"),
        (["--unit", str(tmp_path / "no")], "no such checkpoint"),
        (["--to-data", "synthetic-c"], "data set is 'synthetic-c'; allowed:"),
    ):
        assert transfer.main([*argv, *change]) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--a", "synthetic-a:train"], "--b is missing"),
        (["--a", "nowhere", "--b", "synthetic-b:train"], "no such picture, folder or data set: 'nowhere'"),
        (["--a", "synthetic-a", "--b", "synthetic-b:train"], "names no split"),
        (["--a", "synthetic-a:train:camera=9", "--b", "synthetic-b:train"], "no picture of camera 9; there are cameras 1"),
        (["--a", "synthetic-a:train:cam=1", "--b", "synthetic-b:train"], "allowed: camera=N"),
        (["--cameras", "synthetic:train", "--a", "x"], "--cameras takes the place of --a and --b"),
        (["--vgg-w", "1"], "--vgg-weights FILE"),
        (["--vgg-w", "1", "--vgg-weights", "vgg16.t7"], "Torch7"),
        (["--gen.activ", "gelu"], "gen.activ is 'gelu'; allowed: relu"),
        (["--batch-size", "99"], "has 12 pictures and batch_size is 99"),
        (["--resume"], "--resume needs the run folder"),
        (["--preset", "paper"], "preset is 'paper'; allowed: small, pedestrians, public"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(argv, message, tmp_path, capsys):
    argv = argv if "--resume" in argv else [*argv, "--out", str(tmp_path / "run")]
    known = [] if "--batch-size" not in argv else [x for x in SMALL if x]
    options = known or SMALL
    assert unit.main([*options, *argv, "--quiet"]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["synthetic-a:train", "--to-domain", "c"],
            "--to-domain is 'c'; allowed: a (synthetic-a), b (synthetic-b)",
        ),
        ([], "SOURCE and --out DIR say what is translated"),
        (["synthetic-a:train", "--batch", "0"], "--batch is 0; allowed: at least 1"),
    ],
)
def test_bad_translations_are_one_line(finished, argv, message, tmp_path, capsys):
    out = ["--out", str(tmp_path / "o")] if argv else []
    assert translate.main([str(finished), *argv, *out, "--quiet"]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
