"""Two processes of B pictures train what one process of 2 B trains."""

from __future__ import annotations

import os

import pytest
import torch

from dgnet_fast.report.files import locked
from tests.distributed.launching import by_torchrun
from tests.distributed.steps import CASES, REPEATED, train

BOUND = 1e-10


FIRST = "all terms, erasing"
"""The case that each run of the tests takes; the others are those of `make thorough`."""
OTHERS = [case for case in CASES if case != FIRST]
thorough = pytest.mark.thorough


def found(folder, names):
    ended = by_torchrun(["-m", "tests.distributed.steps", folder, *names])
    assert ended.returncode == 0, ended.stderr[-2000:]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quick")
    with locked(folder / "held"):
        return found(folder, [FIRST, "skip", "locks"])


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    return found(tmp_path_factory.mktemp("others"), [*OTHERS, *REPEATED])


def distance(one, other) -> float:
    """The largest difference of two tensors, against the size of the second where that is above 1."""
    return ((one - other).abs().max() / other.abs().max().clamp(min=1)).item() if one.numel() else 0.0


def test_two_processes_are_one_of_twice_the_batch(quick):
    check_equal(quick, FIRST)


@thorough
@pytest.mark.parametrize("case", OTHERS)
def test_other_options_are_one_of_twice_the_batch_too(others, case):
    check_equal(others, case)


def check_equal(both, case):
    ours = train(case, size=2)
    theirs = both[0][case]
    for mine, other in zip(ours["terms"], theirs["terms"], strict=True):
        assert mine.keys() == other.keys()
        for name, value in mine.items():
            assert other[name] == pytest.approx(value, rel=BOUND, abs=BOUND), name
    assert len(ours["gradients"]) == len(theirs["gradients"]) == 9
    for mine, other in zip(ours["gradients"], theirs["gradients"], strict=True):
        for a, b in zip(mine, other, strict=True):
            assert (a is None) == (b is None)
            assert a is None or distance(b, a) <= BOUND
    assert ours["state"].keys() == theirs["state"].keys()
    for name, value in ours["state"].items():
        if name.endswith("num_batches_tracked"):
            continue  # counts what each process has seen
        assert distance(theirs["state"][name], value) <= BOUND, name


def test_the_processes_stay_bit_by_bit_the_same(quick):
    check_same(quick, FIRST)


@thorough
@pytest.mark.parametrize("case", [*OTHERS, "50 steps", "bf16 sums"])
def test_the_processes_stay_bit_by_bit_the_same_with_other_options(others, case):
    check_same(others, case)


def check_same(both, case):
    one, other = (found[case]["state"] for found in both)
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@thorough
def test_sums_in_bf16_stay_near(others):
    """D's gradients, E_a's, and E_s and G's: bf16 rounds each process's to 8 bits, and their sum once more."""
    errors = []
    plain, rounded = (others[0][case]["gradients"] for case in ("as is", "bf16 sums"))
    for mine, other in zip(plain, rounded, strict=True):
        ours, theirs = (torch.cat([g.flatten() for g in some if g is not None]) for some in (mine, other))
        errors.append(((theirs - ours).norm() / ours.norm()).item())
    assert 0 < errors[0] < 2**-8, errors
    assert all(0 < error < 0.03 for error in errors[1:]), (
        errors
    )  # after D's step, from what it learned of bf16 sums


def test_a_loss_that_is_not_finite_in_one_process_skips_the_step_in_all(quick):
    for one in quick:
        assert one["skip"]["non_finite"] and one["skip"]["unchanged"] and not one["skip"]["then"]
    assert quick[0]["skip"] == quick[1]["skip"]


def test_the_first_process_holds_the_lock_for_all_and_its_error_is_everybodys(quick):
    one, other = (found["locks"] for found in quick)
    assert one == other
    assert one["held"].startswith("InUse: ") and f"is in use by process {os.getpid()}" in one["held"]
    assert one["free"].startswith("process ") and f"process {os.getpid()}" not in one["free"]
