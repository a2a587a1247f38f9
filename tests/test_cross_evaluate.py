"""The table of sources and targets, and what evaluate adds to a plain ranking."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from dgnet_fast import cross_evaluate, evaluate
from dgnet_fast.checkpoints.loading import load_for_use
from dgnet_fast.data.datasets import dataset_of
from dgnet_fast.metrics import (
    evaluate_retrieval,
    evaluate_scores,
    evaluate_single_shot,
    expand_queries,
    k_reciprocal_scores,
    symmetric_features,
)
from dgnet_fast.report.rank_list import MARKS, tile_origin
from dgnet_fast.report.tables import read_tables
from dgnet_fast.retrieval.extractor import Extractor
from dgnet_fast.retrieval.scoring import Ranking, retrieval_sets, score_retrieval
from tests.tiny_run import draw_people, tiny_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("run") / "first")[1]


@pytest.fixture(scope="module")
def sets(run):
    """The tiny run's features, and its encoder and data."""
    model, _ = load_for_use(run)
    dataset, extractor = dataset_of(model.config), Extractor.of(model.appearance_encoder, model.config)
    return retrieval_sets(extractor, dataset), extractor, dataset


def test_rows_are_what_the_metrics_say(sets):
    (found, extractor, dataset) = sets
    asked, gallery = found["single"], found["gallery"]
    scores = score_retrieval(
        extractor,
        dataset,
        ranking=Ranking(expand=True, rerank=True, single_shot=5, k1=5, k2=2, neighbours=3),
    )
    labels = (asked.ids, asked.cameras, gallery.ids, gallery.cameras)
    q, g = symmetric_features(asked.features), symmetric_features(gallery.features)
    expanded = expand_queries(q, g, neighbours=3)
    assert list(scores) == [
        "single",
        "single, AQE",
        "single, re-ranked",
        "single, AQE, re-ranked",
        "single-shot",
    ]
    assert scores["single"] == evaluate_retrieval(*asked, *gallery)
    assert scores["single, AQE"] == evaluate_scores(expanded @ g.T, *labels)
    assert scores["single, re-ranked"] == evaluate_scores(k_reciprocal_scores(q, g, k1=5, k2=2), *labels)
    assert scores["single, AQE, re-ranked"] == evaluate_scores(
        k_reciprocal_scores(expanded, g, k1=5, k2=2), *labels
    )
    assert scores["single-shot"] == evaluate_single_shot(q @ g.T, *labels, repeats=5)
    assert len({one.mAP for name, one in scores.items() if name != "single-shot"}) == 4


def test_evaluate_adds_rows_and_a_rank_list(run, sets, tmp_path, capsys):
    found, _, dataset = sets
    out, sheet = tmp_path / "scores.json", tmp_path / "ranks.png"
    words = ["--rerank", "--aqe", "--single-shot", "--repeats", "5", "--no-multi-query", "--device", "cpu"]
    drawn = ["--rank-list", str(sheet), "--rank-list-queries", "3"]
    assert evaluate.main([str(run), *words, *drawn, "--json", str(out)]) == 0
    first, second = read_tables(out)
    assert [row[0] for row in first["rows"]] == [
        "single query", "single query, AQE", "single query, re-ranked", "single query, AQE, re-ranked",
    ]  # fmt: skip
    assert second["columns"] == ["", "Rank-1", "Rank-5", "Rank-10", "Rank-20"]
    assert "mean over 5 galleries" in second["notes"][1]
    assert "re-ranked" in capsys.readouterr().out
    picture = np.asarray(Image.open(sheet))
    asked, gallery = found["single"], found["gallery"]
    chosen = [0, round((len(asked.ids) - 1) / 2), len(asked.ids) - 1]
    scores = symmetric_features(asked.features) @ symmetric_features(gallery.features).T
    for r, index in enumerate(chosen):
        same = gallery.ids == asked.ids[index]
        junk = same & (gallery.cameras == asked.cameras[index]) | (gallery.ids == -1)
        order = [k for k in np.argsort(-scores[index].numpy()) if not junk[k]]
        for rank in range(1, 11):
            left, top = tile_origin(r, rank)
            place = order[rank - 1]
            assert tuple(picture[top - 2, left - 2]) == MARKS["right" if same[place] else "wrong"]
            shown = Image.fromarray(dataset.gallery.load(place)).resize((64, 128), Image.Resampling.BICUBIC)
            np.testing.assert_array_equal(picture[top : top + 128, left : left + 64], np.asarray(shown))


@pytest.fixture(scope="module")
def veri(tmp_path_factory):
    """A fake VeRi-776 of drawn people."""
    root = tmp_path_factory.mktemp("veri")
    for path in draw_people(root / "all", people=6, shots=4):
        person, camera, shot = path.stem.split("_")
        half = "image_train" if int(person) <= 2 else "image_query" if int(shot) % 10 == 0 else "image_test"
        place = root / half / f"{person}_c00{camera[1]}_{shot}_0.png"
        place.parent.mkdir(exist_ok=True)
        path.rename(place)
    return root


def test_sources_and_targets(run, veri, tmp_path, capsys):
    other = tiny_run(tmp_path / "second", scale=1.3)[1]
    out = tmp_path / "matrix.json"
    words = ["--source", run, "--source", other, "--target", "synthetic", "--target", f"veri776={veri}"]
    more = [
        "--rerank",
        "--k1",
        5,
        "--k2",
        2,
        "--single-shot",
        "--repeats",
        3,
        "--device",
        "cpu",
        "--json",
        out,
    ]
    assert cross_evaluate.main([str(word) for word in [*words, *more]]) == 0
    plain, ranked, single = read_tables(out)
    assert plain["columns"] == [
        "source",
        "synthetic Rank-1",
        "synthetic mAP",
        "veri776 Rank-1",
        "veri776 mAP",
    ]
    assert ranked["title"].endswith(", re-ranked") and single["columns"][1:] == [
        "synthetic Rank-1",
        "veri776 Rank-1",
    ]
    assert [row[0] for row in plain["rows"]] == ["first", "second"]
    capsys.readouterr()
    for row, again, source in zip(plain["rows"], ranked["rows"], (run, other), strict=True):
        one = tmp_path / "one.json"
        options = [
            "--data",
            "veri776",
            "--root",
            str(veri),
            "--rerank",
            "--k1",
            "5",
            "--k2",
            "2",
            "--device",
            "cpu",
        ]
        assert evaluate.main([str(source), *options, "--json", str(one)]) == 0
        (expected,) = read_tables(one)
        names = expected["columns"]
        for cells, line in ((row, expected["rows"][0]), (again, expected["rows"][1])):
            values = dict(zip(names, line, strict=True))
            assert cells[3:] == [values["Rank-1"], values["mAP"]]
    assert plain["rows"][0][1:] != plain["rows"][1][1:]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--target", "veri"], "--target is 'veri'; allowed: NAME=DIR, NAME one of synthetic"),
        (["--target", "veri776"], "--target is 'veri776'; allowed: synthetic alone, or NAME=DIR"),
        (["--target", "synthetic=x"], "allowed: synthetic alone"),
        (["--target", "veri776=/nowhere"], "missing folder /nowhere"),
        (["--target", "synthetic", "--target", "synthetic"], "given twice"),
        (["--target", "synthetic", "--source", "nowhere"], "no such checkpoint: nowhere"),
        (["--target", "synthetic", "--k1", "0"], "--k1 is 0; allowed: at least 1"),
        (["--target", "synthetic", "--lambda", "2"], "--lambda is 2.0; allowed: 0 to 1"),
        (["--target", "synthetic", "--repeats", "0"], "--repeats is 0"),
        (["--target", "synthetic", "--aqe-alpha", "-1"], "--aqe-alpha is -1.0; allowed: at least 0"),
    ],
)
def test_mistakes(run, capsys, words, problem):
    assert cross_evaluate.main(["--source", str(run), *words]) == 1
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and problem in err
