"""Steps of the tiny DG-Net as one process of several: ``python -m tests.distributed.steps OUT WHAT...`` writes OUT/RANK.pt.

The test runs the same function as one process, whose batch is that of all of them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dgnet_fast.data import Batch
from dgnet_fast.distributed import processes
from dgnet_fast.report.files import LOCK, locked
from dgnet_fast.training.step import TrainingStep
from tests.tiny import ALL_TERMS, tiny_batch, tiny_config, tiny_model, tiny_step

MINE = 4
"""Pictures a stream of each process. BatchNorm over two makes +1 and -1 of any difference: its gradient is rounding, and over
three E_a's still differs by 5e-10 after three steps."""
STEPS = 3
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "all terms, erasing": (1, {**ALL_TERMS, "erasing_p": 0.5, "use_encoder_again": 1}),
    "E_s held, no teacher yet": (1, {"use_encoder_again": -1, "recon_s_w": 0.5, "max_iter": 9}),
    # at ten times this rate rounding grows fifty-fold a step, to 1.3e-10 in the third step's gradients
    "code attached": (1, {**ALL_TERMS, "ID_style": "normal", "lr2": 2e-4}),
    "accumulation": (2, {**ALL_TERMS}),
    "synced BatchNorm": (1, {**ALL_TERMS, "sync_bn": True}),
    "synced BatchNorm of all real pictures": (
        1,
        {**ALL_TERMS, "sync_bn": True, "bn_together": True, "real_batch": 4},
    ),
}
"""Batches a step, and options."""


def part_of(batch: Batch, rank: int, size: int) -> Batch:
    """The share of one process."""
    return Batch(*(None if t is None else t.chunk(size, dim=1)[rank] for t in batch))


def train(case: str, size: int) -> dict[str, Any]:
    """Three steps in float64: terms, summed gradients, weights and running statistics. ``size``: processes whose
    batches are one, of which this is one if there are more.
    """
    accumulate, options = CASES[case]
    rank, here = processes.part()
    parts = 1 if here > 1 or options.get("sync_bn") else size
    options = {
        "teacher": "auto",
        "batch_size": MINE * size // here,
        "bn_parts": parts,
        "accumulate": accumulate,
    } | options
    config = tiny_config(**options)
    whole = tiny_config(**options | {"batch_size": MINE * size, "bn_parts": 1})
    model = tiny_model(config, teachers=1, dtype=torch.float64)
    step = tiny_step(model)
    seen: dict[str, Any] = {"terms": [], "gradients": gradients_of(step)}
    for number in range(STEPS):
        batches = [tiny_batch(whole, 10 * number + k, torch.float64) for k in range(accumulate)]
        seen["terms"].append(step([part_of(one, rank, here) for one in batches], number).terms)
    return seen | {"state": {k: v.clone() for k, v in model.state_dict().items()}}


def gradients_of(step: TrainingStep) -> list[list[Tensor | None]]:
    """A list that grows by an optimiser's gradients, summed over the processes, whenever one moves."""
    seen: list[list[Tensor | None]] = []

    def note(optimiser: torch.optim.Optimizer, *_: Any) -> None:
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        seen.append([None if p.grad is None else p.grad.clone() for p in parameters])

    for _, optimiser in step.optimisers.named():
        optimiser.register_step_pre_hook(note)
    return seen


def repeat(steps: int, **options: Any) -> dict[str, Any]:
    """The first step's gradients and the last state, in float32 with dropout, on other pictures in each process."""
    rank, size = processes.part()
    config = tiny_config(batch_size=2, teacher="auto", **ALL_TERMS | options)
    model = tiny_model(config, teachers=1)
    step = tiny_step(model, dropout=True)
    whole, seen = tiny_config(batch_size=2 * size), gradients_of(step)
    for number in range(steps):
        step([part_of(tiny_batch(whole, number), rank, size)], number)
    return {"gradients": seen[:3], "state": model.state_dict()}


def skip() -> dict[str, Any]:
    """A step of two whose second process alone has a picture that is not finite."""
    rank, size = processes.part()
    config = tiny_config(batch_size=MINE, teacher="auto", **ALL_TERMS)
    model = tiny_model(config, teachers=1)
    step, batch = tiny_step(model), tiny_batch(tiny_config(batch_size=MINE * size))
    mine = part_of(batch, rank, size)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    bad = mine._replace(x=mine.x.clone().fill_(float("nan"))) if rank else mine
    result = step([bad], 0)
    same = all(
        torch.equal(v, before[k]) for k, v in model.state_dict().items() if not k.startswith("teachers.")
    )
    after = step([mine], 1)
    return {"non_finite": result.non_finite, "unchanged": same, "then": after.non_finite}


REPEATED: dict[str, tuple[int, dict[str, Any]]] = {
    "50 steps": (50, {}),
    "bf16 sums": (1, {"send_gradients": "bf16"}),
    "as is": (1, {}),
}
"""Steps, and options, of `repeat`."""


def holding(folder: Path) -> dict[str, str]:
    """What becomes of locks: one of a folder that the test holds, and one of a folder that is free."""
    found = {}
    for name in ("held", "free"):
        try:
            with processes.held_by_first(locked(folder / name)):
                found[name] = (folder / name / LOCK).read_text()
                processes.barrier()
        except ValueError as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def found_of(what: str, folder: Path) -> dict[str, Any]:
    """What a case gives in this process."""
    if what == "locks":
        return holding(folder)
    if what == "skip":
        return skip()
    if what in REPEATED:
        steps, options = REPEATED[what]
        return repeat(steps, **options)
    return train(what, processes.size())


def main(out: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    with processes.joined():
        torch.save({name: found_of(name, out) for name in names}, out / f"{processes.rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
