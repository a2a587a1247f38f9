"""Two processes of B pictures train what one process of 2 B trains."""

from __future__ import annotations

import pytest
import torch

from tests.distributed.launching import together
from tests.distributed.steps import CASES, train

BOUND = 1e-10


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("steps")
    together(["-m", "tests.distributed.steps", folder])
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def distance(one, other) -> float:
    """The largest difference of two tensors, against the size of the second where that is above 1."""
    return ((one - other).abs().max() / other.abs().max().clamp(min=1)).item() if one.numel() else 0.0


@pytest.mark.parametrize("case", CASES)
def test_two_processes_are_one_of_twice_the_batch(both, case):
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


@pytest.mark.parametrize("case", [*CASES, "50 steps", "bf16 sums"])
def test_the_processes_stay_bit_by_bit_the_same(both, case):
    one, other = (found[case].get("state", found[case]) for found in both)
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_sums_in_bf16_stay_near(both):
    start = train_start(both)
    for name, value in both[0]["as is"].items():
        moved = (value.double() - start[name].double()).norm()
        error = (both[0]["bf16 sums"][name].double() - value.double()).norm()
        assert error <= 0.2 * moved + 1e-6, name


def train_start(both):
    from tests.distributed.steps import repeat

    return repeat(0)


def test_a_loss_that_is_not_finite_in_one_process_skips_the_step_in_all(both):
    for found in both:
        assert found["skip"]["non_finite"] and found["skip"]["unchanged"] and not found["skip"]["then"]
    assert both[0]["skip"] == both[1]["skip"]
