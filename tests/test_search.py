"""The search command and its index."""

from __future__ import annotations

import csv
import json
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from dgnet_fast import search
from dgnet_fast.report.rank_list import MARKS, tile_origin
from dgnet_fast.retrieval.extractor import Extractor
from dgnet_fast.retrieval.index import PictureIndex
from tests.tiny_run import draw_people, tiny_run

pytest.importorskip("faiss")
LABELS = ["--id-pattern", r"/(\d+)_", "--camera-pattern", r"_c(\d+)_"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("run"))[1]


@pytest.fixture
def gallery(tmp_path):
    return draw_people(tmp_path / "gallery")[0].parent


@pytest.fixture
def query(gallery, tmp_path):
    """Two pictures that are not in the gallery any more."""
    folder = tmp_path / "query"
    folder.mkdir()
    for name in ("0002_c1_0020.png", "0003_c2_0031.png"):
        (gallery / name).rename(folder / name)
    return folder


def command(run, *words):
    return search.main([str(run), "--device", "cpu", *map(str, words)])


def vectors_file(index):
    """The name of the file of vectors that an index lists."""
    return json.loads((index / "index.json").read_text())["vectors"]


def expected(run, queries, pictures):
    """Paths in order of score and the scores, from the definition."""
    extractor = Extractor(run, device="cpu")
    vectors = [extractor.to_unit(extractor(paths)).double().numpy() for paths in (queries, pictures)]
    scores = vectors[0] @ vectors[1].T
    order = np.argsort(-scores, axis=1)
    return [[str(pictures[k]) for k in row] for row in order], np.take_along_axis(scores, order, 1)


def rows_of(text):
    return list(csv.DictReader(text.splitlines()))


def test_results_are_the_nearest(run, gallery, query, capsys):
    pictures, queries = sorted(gallery.iterdir()), sorted(query.iterdir())
    assert command(run, "--gallery", gallery, "--query", query, "--top", 4) == 0
    rows = rows_of(capsys.readouterr().out)
    paths, scores = expected(run, queries, pictures)
    assert [row["path"] for row in rows] == paths[0][:4] + paths[1][:4]
    np.testing.assert_allclose([float(row["score"]) for row in rows], scores[:, :4].ravel(), atol=2e-5)
    assert [row["rank"] for row in rows] == list("12341234")
    assert {row["query"] for row in rows} == {str(p) for p in queries}
    assert {row["mark"] for row in rows} == {""}  # no labels were given


def test_marks_picture_and_json(run, gallery, query, tmp_path):
    out, sheet = tmp_path / "found.json", tmp_path / "ranks.png"
    assert command(run, "--gallery", gallery, "--query", query, "--top", 10, *LABELS,
                   "--out", out, "--rank-list", sheet) == 0  # fmt: skip
    content = json.loads(out.read_text())
    assert content["model"] == Extractor(run, device="cpu").fingerprint
    picture = np.asarray(Image.open(sheet))
    for r, one in enumerate(content["queries"]):
        identity, camera = one["query"].split("/")[-1].split("_")[:2]
        assert (one["identity"], f"c{one['camera']}") == (identity, camera)
        assert len(one["results"]) == 10
        for found in one["results"]:
            other, seen_by = found["path"].split("/")[-1].split("_")[:2]
            assert (found["identity"], f"c{found['camera']}") == (other, seen_by)
            same = "same camera" if seen_by == camera else "right"
            assert found["mark"] == (same if other == identity else "wrong")
            left, top = tile_origin(r, found["rank"])
            assert tuple(picture[top - 2, left - 2]) == MARKS[found["mark"]]
            shown = Image.open(found["path"]).convert("RGB").resize((64, 128), Image.Resampling.BICUBIC)
            np.testing.assert_array_equal(picture[top : top + 128, left : left + 64], np.asarray(shown))
    marks = {found["mark"] for one in content["queries"] for found in one["results"]}
    assert marks == {"right", "wrong", "same camera"}


def test_a_query_does_not_find_itself(run, gallery, capsys):
    name = sorted(gallery.iterdir())[0]
    assert command(run, "--gallery", gallery, "--query", name, "--top", 12) == 0
    rows = rows_of(capsys.readouterr().out)
    assert len(rows) == 11 and str(name) not in [row["path"] for row in rows]


def test_an_index_is_saved_and_added_to(run, gallery, query, tmp_path, capsys, monkeypatch):
    index, late = tmp_path / "people.index", tmp_path / "late"
    whole = sorted(gallery.iterdir())
    late.mkdir()
    moved = [late / p.name for p in whole[7:]]
    for place in moved:
        (gallery / place.name).rename(place)
    assert command(run, "--gallery", gallery, "--save", index, *LABELS) == 0
    assert sorted(p.name for p in index.iterdir()) == ["index.json", vectors_file(index)]
    extracted = []
    files = Extractor.files
    monkeypatch.setattr(
        Extractor, "files", lambda self, paths, **k: extracted.append(list(paths)) or files(self, paths, **k)
    )
    assert command(run, "--gallery", index, "--add", late, gallery, *LABELS) == 0
    assert extracted == [[str(p) for p in moved]]  # the old ones were not extracted again
    assert "7 pictures are in the index already" in capsys.readouterr().err
    assert sorted(p.name for p in index.iterdir()) == ["index.json", vectors_file(index)]
    assert command(run, "--gallery", index, "--query", query, "--top", 10, *LABELS) == 0
    rows = rows_of(capsys.readouterr().out)
    paths, scores = expected(run, sorted(query.iterdir()), [*sorted(gallery.iterdir()), *moved])
    assert [row["path"] for row in rows] == paths[0] + paths[1]
    np.testing.assert_allclose([float(row["score"]) for row in rows], scores.ravel(), atol=2e-5)
    assert {row["mark"] for row in rows} == {"right", "wrong", "same camera"}
    before = {p: p.read_bytes() for p in index.iterdir()}
    assert command(run, "--gallery", index, "--add", late) == 0  # nothing new, nothing written
    assert {p: p.read_bytes() for p in index.iterdir()} == before


def test_an_interrupted_save_leaves_the_old_index(run, gallery, tmp_path, monkeypatch):
    index = tmp_path / "people.index"
    pictures = sorted(gallery.iterdir())
    assert command(run, "--gallery", *pictures[:5], "--save", index) == 0
    monkeypatch.setattr(PictureIndex.save.__globals__["json"], "dumps", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        command(run, "--gallery", index, "--add", *pictures[5:])
    monkeypatch.undo()
    assert len(PictureIndex.open(index, Extractor(run, device="cpu"))) == 5
    assert not list(index.glob(".*"))


def test_a_picture_that_is_gone_is_shown_as_missing(run, gallery, query, tmp_path):
    index, sheet = tmp_path / "people.index", tmp_path / "ranks.png"
    assert command(run, "--gallery", gallery, "--save", index) == 0
    shutil.rmtree(gallery)
    assert command(run, "--gallery", index, "--query", query, "--top", 2, "--rank-list", sheet) == 0
    left, top = tile_origin(0, 1)
    tile = np.asarray(Image.open(sheet))[top : top + 128, left : left + 64]
    assert 0.8 < (tile == 255).mean() < 1


def one_line(capsys, run, *words):
    assert command(run, *words) == 1
    out, err = capsys.readouterr()
    assert not out and "Traceback" not in err
    return err.splitlines()[-1]


def test_mistakes(run, gallery, query, tmp_path, capsys, monkeypatch):
    index = tmp_path / "people.index"
    assert command(run, "--gallery", gallery, "--save", index) == 0
    before = {p: p.read_bytes() for p in index.iterdir()}
    asked = ("--query", query)
    (tmp_path / "empty").mkdir()
    (tmp_path / "results.csv").write_text("mine")
    for words, problem in (
        (("--gallery", tmp_path / "no", *asked), "no such file or folder"),
        (("--gallery", tmp_path / "empty", *asked), "no images in"),
        (("--gallery", gallery), "nothing to do; give --query, --save or --add"),
        (("--gallery", gallery, "--query", tmp_path / "no.jpg"), "no such file or folder"),
        (("--gallery", gallery, *asked, "--top", 0), "--top is 0; allowed: at least 1"),
        (("--gallery", gallery, *asked, "--out", tmp_path / "x.txt"), "a name ending in .json or .csv"),
        (("--gallery", gallery, *asked, "--out", tmp_path / "results.csv"), "exists; give another name"),
        (("--gallery", gallery, "--save", index), "exists; give the name of a new folder"),
        (("--gallery", gallery, "--add", query), "--add needs a saved index"),
        (("--gallery", index, "--save", tmp_path / "y"), "is an index already"),
        (("--gallery", index, gallery, *asked), "add pictures to it with --add"),
        (("--gallery", index, "--add", query, "--rank-list", tmp_path / "p.png"), "give --query"),
        (("--gallery", gallery, *asked, "--id-pattern", "("), "is not a regular expression"),
        (("--gallery", gallery, *asked, "--id-pattern", "a"), "needs a group"),
        (("--gallery", gallery, *asked, "--camera-pattern", "(c.)"), "finds 'c1', which is no number"),
        (
            ("--gallery", index, *asked, "--second-half-weight", 1),
            "second-half weight 0.5, and this one has 1.0",
        ),
    ):
        assert problem in one_line(capsys, run, *words), words
    other = tiny_run(tmp_path / "other", scale=1.01)[1]
    assert "was made with model" in one_line(capsys, other, "--gallery", index, *asked)
    (query / "0009_c1_0000.png").write_bytes(b"no picture")
    assert "cannot read image" in one_line(capsys, run, "--gallery", index, *asked)
    assert "cannot read image" in one_line(capsys, run, "--gallery", index, "--add", query)
    assert {p: p.read_bytes() for p in index.iterdir()} == before
    assert (tmp_path / "results.csv").read_text() == "mine"
    assert command(run, "--gallery", index, *asked, "--skip-unreadable") == 0
    assert "left out 1 of 3" in capsys.readouterr().err
    (query / "0009_c1_0000.png").unlink()
    vectors = next(index.glob("vectors-*"))
    vectors.write_bytes(vectors.read_bytes()[:40])
    assert "is damaged: its checksum" in one_line(capsys, run, "--gallery", index, *asked)
    (index / "index.json").write_text('{"format": "other"}')
    assert "is not an index of dgnet_fast" in one_line(capsys, run, "--gallery", index, *asked)
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert "searching needs faiss, which is not installed: pip install" in one_line(
        capsys, run, "--gallery", gallery, *asked
    )


def test_vectors_that_do_not_fit_their_list(run, gallery, tmp_path, capsys):
    index = tmp_path / "people.index"
    assert command(run, "--gallery", gallery, "--save", index) == 0
    content = json.loads((index / "index.json").read_text())
    content["pictures"].pop()
    (index / "index.json").write_text(json.dumps(content))
    assert "is damaged: its checksum" in one_line(capsys, run, "--gallery", index, "--query", gallery)
    assert torch.get_num_threads() >= 1  # faiss left torch's threads alone
