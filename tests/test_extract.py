"""Extractor and the extract command."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from PIL import Image

import dgnet_fast
from dgnet_fast import extract
from dgnet_fast.checkpoints.loading import load_for_use
from dgnet_fast.data import normalize
from dgnet_fast.metrics import evaluate_retrieval
from dgnet_fast.retrieval.features import extract_features
from tests.tiny_run import draw_people, tiny_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("run"))[1]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return draw_people(tmp_path_factory.mktemp("pictures") / "people")


@pytest.fixture(scope="module")
def extractor(run):
    return dgnet_fast.Extractor(run, batch=5, device="cpu")


@pytest.fixture(scope="module")
def features(run, pictures):
    """The features, from their definition."""
    model, _ = load_for_use(run)
    resized = [
        np.asarray(Image.open(p).convert("RGB").resize((24, 40), Image.Resampling.BICUBIC)) for p in pictures
    ]
    batch = normalize(torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2))
    return extract_features(model.appearance_encoder, batch)


def close(ours, expected):
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


def test_files_and_folders(extractor, pictures, features):
    assert features.shape == (12, 32) and features.std(dim=0).mean() > 1e-3
    close(extractor(pictures), features)
    close(extractor(pictures[0].parent), features)
    close(extractor(str(pictures[3])), features[3:4])
    close(extractor([pictures[0].parent, pictures[2]]), features)  # no repetition


def test_arrays_tensors_and_pil(extractor, pictures, features):
    images = [Image.open(p).convert("RGB") for p in pictures]
    arrays = np.stack([np.asarray(image) for image in images])
    tensors = torch.from_numpy(arrays).permute(0, 3, 1, 2)
    close(extractor(images), features)
    close(extractor(images[1]), features[1:2])
    close(extractor(arrays), features)
    close(extractor(arrays[4]), features[4:5])
    close(extractor(tensors), features)
    close(extractor(tensors[0].float() / 255), features[:1])
    close(extractor([images[0], pictures[1], arrays[2:4], tensors[4:]]), features)
    close(extractor(image for image in images), features)


def test_grey_and_transparent_pictures(extractor):
    grey = Image.new("L", (24, 40), 77)
    close(
        extractor([grey, grey.convert("LA"), np.full((40, 24, 3), 77, np.uint8)]).std(dim=0), torch.zeros(32)
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((4, 4), np.uint8), r"uint8 of shape \(4, 4\); expected uint8 RGB of shape \(H, W, 3\)"),
        (np.zeros((4, 4, 3), np.float32), "an array of pictures is float32"),
        (torch.zeros(4, 4, 3), r"shape \(4, 4, 3\); expected \(3, H, W\)"),
        (torch.full((3, 4, 4), -0.5), "values outside 0..1; do not normalise"),
        (torch.full((3, 4, 4), torch.nan), "values outside 0..1"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), "is torch.int64; expected uint8"),
        ([], "no pictures to extract"),
        (7, "a picture is a int; expected a path"),
        ("/nowhere/a.jpg", "no such file or folder: /nowhere/a.jpg"),
    ],
)
def test_refuses(extractor, given, message):
    with pytest.raises(ValueError, match=message):
        extractor(given)


def test_unit_vectors_rank_as_evaluate_does(extractor, features):
    ids, cameras = np.repeat([1, 2, 3, 4], 3), np.full(12, -1)
    sets = (features[:4], ids[:4], cameras[:4], features[4:], ids[4:], cameras[4:])
    ids[:4] = ids[8:]  # so that there are matches
    unit = extractor.to_unit(features)
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(12))
    plain = evaluate_retrieval(unit[:4], *sets[1:3], unit[4:], *sets[4:], second_half_weight=1)
    assert plain == evaluate_retrieval(*sets)


def test_the_fingerprint_is_the_models(run, extractor, tmp_path):
    assert dgnet_fast.Extractor(run, device="cpu").fingerprint == extractor.fingerprint
    assert len(extractor.fingerprint) == 16
    other = tiny_run(tmp_path, scale=1.001)[1]
    assert dgnet_fast.Extractor(other, device="cpu").fingerprint != extractor.fingerprint


def test_other_styles(tmp_path, pictures):
    extractor = dgnet_fast.Extractor(tiny_run(tmp_path, ID_style="PCB")[1], device="cpu")
    features = extractor(pictures[:2])
    assert features.shape == (2, 1024) and extractor.second_half_weight == 1
    close(extractor.to_unit(features), features / 2)  # four parts of unit length


def test_npz(run, pictures, features, tmp_path, capsys, extractor):
    out = tmp_path / "features.npz"
    assert extract.main([str(run), str(pictures[0].parent), "--out", str(out)]) == 0
    assert f"12 features of 32 numbers, model {extractor.fingerprint}" in capsys.readouterr().out
    with np.load(out) as content:
        close(torch.from_numpy(content["features"]), features)
        assert content["paths"].tolist() == [str(p) for p in pictures]
        assert str(content["fingerprint"]) == extractor.fingerprint


def test_parquet(run, pictures, features, tmp_path, extractor):
    parquet = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "features.parquet"
    assert extract.main([str(run), *map(str, pictures[:3]), "--out", str(out)]) == 0
    table = parquet.read_table(out)
    assert table["path"].to_pylist() == [str(p) for p in pictures[:3]]
    close(torch.tensor(table["feature"].to_pylist()), features[:3])
    assert table.schema.metadata[b"fingerprint"].decode() == extractor.fingerprint


def one_line(capsys, words):
    """The line that a failing command ends with."""
    assert extract.main([str(word) for word in words]) == 1
    out, err = capsys.readouterr()
    assert not out and "Traceback" not in err
    return err.splitlines()[-1]


def test_mistakes_are_one_line_and_leave_files_alone(run, pictures, tmp_path, capsys, monkeypatch):
    out = tmp_path / "x.npz"
    command = ["--out", out]
    broken = tmp_path / "broken" / "a.jpg"
    broken.parent.mkdir()
    broken.write_bytes(b"no picture")
    (tmp_path / "empty").mkdir()
    assert "no such file or folder" in one_line(capsys, [run, tmp_path / "absent", *command])
    assert "no images in" in one_line(capsys, [run, tmp_path / "empty", *command])
    assert f"cannot read image {broken}" in one_line(capsys, [run, broken.parent, pictures[0], *command])
    assert "--batch is 0" in one_line(capsys, [run, pictures[0], *command, "--batch", 0])
    absent = [tmp_path / "no", pictures[0], "--out", out]
    assert "no such checkpoint" in one_line(capsys, absent)
    wrong = ["--out", tmp_path / "x.txt"]
    assert "allowed: a name ending in .npz or .parquet" in one_line(capsys, [run, pictures[0], *wrong])
    nowhere = ["--out", tmp_path / "no" / "x.npz"]
    assert "there is no folder" in one_line(capsys, [run, pictures[0], *nowhere])
    assert not out.exists()
    out.write_text("mine")
    assert "exists; give another name, or --overwrite" in one_line(capsys, [run, pictures[0], *command])
    assert "cannot read" in one_line(capsys, [run, broken, *command, "--overwrite"])
    assert out.read_text() == "mine" and [p.name for p in tmp_path.iterdir() if p.is_file()] == ["x.npz"]
    assert (
        extract.main(
            [str(w) for w in [run, broken.parent, pictures[0], *command, "--overwrite", "--skip-unreadable"]]
        )
        == 0
    )
    assert "left out 1 of 2; first: cannot read image" in capsys.readouterr().err
    with np.load(out) as content:
        assert content["paths"].tolist() == [str(pictures[0])]
    assert "none of the 1 pictures can be read" in one_line(
        capsys, [run, broken, *command, "--overwrite", "--skip-unreadable"]
    )
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    table = ["--out", tmp_path / "x.parquet"]
    assert "needs pyarrow, which is not installed: pip install" in one_line(
        capsys, [run, pictures[0], *table]
    )
