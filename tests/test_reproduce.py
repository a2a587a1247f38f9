"""The ablation as one command: its cells are the runs' own scores, it goes on after a stop, and refuses other runs."""

from __future__ import annotations

import re
import statistics

import pytest

from dgnet_fast import reproduce
from dgnet_fast.config import load_config
from dgnet_fast.report.tables import read_tables
from dgnet_fast.training.results import BASELINE
from tests.tiny import arguments
from tests.tiny_run import fails
from tests.training.test_run import OPTIONS


def words(folder, seeds=2, **changes):
    return ["ablation", "--out", str(folder), "--seeds", str(seeds), *arguments(OPTIONS | changes)]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablation")
    assert reproduce.main(words(folder)) == 0
    return folder


def test_the_cells_are_the_runs_scores(done):
    (table,) = read_tables(done / "ablation.json")
    rows = {row[0]: row[1:] for row in table["rows"]}
    assert list(rows) == ["teacher", BASELINE, *reproduce.FEATURES]
    own = []
    for seed in (0, 1):
        retrieval = read_tables(done / f"seed_{seed}" / "results.json")[0]["rows"]
        own.append([row for row in retrieval if row[0] == "DG-Net"][0])
    mean, deviation = (f([row[4] for row in own]) for f in (statistics.mean, statistics.stdev))
    found = re.fullmatch(r"([0-9.]+) ± ([0-9.]+)", rows["both"][1])
    assert float(found[1]) == pytest.approx(mean, abs=0.11) and float(found[2]) == pytest.approx(
        deviation, abs=0.11
    )
    assert re.search(
        "(better than|worse than|within noise of) the baseline trained as long", table["notes"][-1]
    )
    assert "| both |" in (done / "ablation.md").read_text()


def test_finished_seeds_are_read_and_not_trained_again(done, monkeypatch, capsys):
    monkeypatch.setattr("dgnet_fast.training.run.run_training", lambda *a, **k: 1 / 0)
    before = (done / "ablation.md").read_text()
    assert reproduce.main(words(done)) == 0
    assert (done / "ablation.md").read_text() == before and "Ablation (synthetic)" in capsys.readouterr().out


def test_other_options_are_refused(done, capsys):
    (done / "seed_0" / reproduce.CELLS).rename(done / "kept.json")
    try:
        line = fails(capsys, reproduce.main, [*words(done, lr2=0.5), "--quiet"])
        assert "seed_0 holds a run with lr2 " in line and "and not 0.5" in line
    finally:
        (done / "kept.json").rename(done / "seed_0" / reproduce.CELLS)
    assert "the ablation needs the baseline" in fails(capsys, reproduce.main, words(done, baseline=False))
    assert "--seeds is 0" in fails(capsys, reproduce.main, words(done, seeds=0))


def test_the_control_starts_where_its_run_did(done, capsys):
    assert reproduce.main([*words(done), "--control"]) == 0
    (table,) = read_tables(done / "ablation.json")
    rows = [row[0] for row in table["rows"]]
    controls = [f"{reproduce.CONTROL}: {name}" for name in reproduce.FEATURES]
    assert rows == ["teacher", BASELINE, *reproduce.FEATURES, *controls]
    assert re.match("both: .*itself without learning from generated pictures, ", table["notes"][-1])
    assert re.match("both: .*the baseline trained as long, ", table["notes"][-2])
    for seed in (0, 1):
        own = done / f"seed_{seed}"
        assert (own / "control" / "teacher.pt").read_bytes() == (own / "teacher.pt").read_bytes()
        options = load_config(own / "control" / "config.yaml")
        assert not options.train_on_generated and not options.baseline
        assert not (own / "control" / "baseline.pt").exists()
    assert reproduce.main([*words(done), "--control"]) == 0  # finished ones are read
    assert table == read_tables(done / "ablation.json")[0]
