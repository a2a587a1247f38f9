"""The profile of the step benchmark: what counts as busy, and what it says of a step on a CPU."""

from __future__ import annotations

import pytest

from benchmarks import step
from benchmarks.step import busy_time, kind_of, main
from dgnet_fast.training.schedule import weights_at
from tests.tiny import ALL_TERMS, tiny_config


def test_busy_time_counts_overlaps_once():
    assert busy_time([(0, 10), (5, 12), (20, 30), (21, 22), (30, 31)]) == 23
    assert busy_time([(4, 6), (0, 2)]) == 4
    assert busy_time([]) == 0


def test_kinds_of_work():
    names = {
        "dgnet_fast::conv3x3_backward": "conv3x3",
        "dgnet_fast::adain_act": "norms",
        "dgnet_fast::loss_l1_backward": "losses",
        "aten::copy_": "copies and fills",
        "GeneratedBackwardFor_dgnet_fast_conv3x3_default": "conv3x3",
    }
    assert {name: kind_of(name) for name in names} == names
    assert kind_of("aten::something_new") == "other"


@pytest.mark.thorough
@pytest.mark.slow
def test_where_the_time_of_a_step_goes(capsys):
    assert main(["--profile", "--device", "cpu", "--batch", "2", "--height", "80", "--width", "40"]) == 0
    parts, kinds = capsys.readouterr().out.strip().split("\n\n")
    rows = [line.split(" | ") for table in (parts, kinds) for line in table.splitlines()[2:]]
    assert all(float(seconds) >= 0 for _, seconds, _ in rows)
    named = {name.removeprefix("| ") for name, *_ in rows}
    assert named >= {"identity_part", "reconstruction_part", "forward_pass", "real_part", "optimisers"}
    assert named >= {"other convolutions", "norms", "copies and fills"}


def test_the_step_of_a_preset(capsys):
    """Its networks, its further pictures and, where nobody names one, its size."""
    words = ["--device", "cpu", "--rounds", "1", "--batch", "2", "--preset", "small"]
    config = step.step_config(step.parser().parse_args(words))
    batch = step.random_batch(config, 0, "cpu")
    assert batch.x.shape == (2, 2, 3, 64, 32) and batch.erasing_boxes is None
    assert batch.more is not None and batch.more.shape == (2, 16, 3, 64, 32)
    before = step.step_config(step.parser().parse_args([*words, "--ramps", "before"]))
    assert not any(weights_at(before, 100)) and all(weights_at(config, 0))
    assert main(words) == 0
    assert "median" in capsys.readouterr().out
    assert main([*words, "--plain"]) == 2
    assert "with --plain or --public allowed: paper" in capsys.readouterr().err


def test_gains_by_part(monkeypatch):
    """Each part is timed twice, the second time by what torch.compile made of it: all eight, those too that a run leaves as
    they are on a CPU.
    """
    config = tiny_config(teacher="given", **ALL_TERMS)
    compiled = []
    monkeypatch.setattr(step, "step_config", lambda args: config)
    monkeypatch.setattr(step.runner, "compile_part", lambda part: compiled.append(part.__name__) or part)
    args = step.parser().parse_args(["--device", "cpu"])
    measured = step.Runner(args)
    found = measured.gains(1)
    assert set(compiled) <= set(found) and len(compiled) == 8
    assert all(eager > 0 and fast > 0 for eager, fast in found.values())
    measured.side = None  # the plain step, say
    with pytest.raises(ValueError, match="allowed: ours"):
        measured.gains(1)
