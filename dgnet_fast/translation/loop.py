"""The training loop of UNIT: steps, logs, sample pictures, checkpoints and signals."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

from dgnet_fast.checkpoints.unit import save_unit
from dgnet_fast.report.log import RunLog
from dgnet_fast.training.compiling import COMPILING
from dgnet_fast.training.loop import StopSignal, report_skips
from dgnet_fast.translation.batches import DomainBatches
from dgnet_fast.translation.step import UnitStep


def train_unit(
    step_function: UnitStep,
    batches: DomainBatches,
    log: RunLog,
    folder: Path,
    *,
    first_step: int,
    last_step: int,
    sample: Callable[[int], None] | None = None,
    stop: StopSignal,
) -> int:
    """Train from ``first_step`` to ``last_step`` and return the number of steps done.

    ``sample(step)`` is called every ``image_display_iter`` steps. Checkpoints go to ``folder/checkpoints`` every
    ``snapshot_save_iter`` steps, at the end, and when a signal stops the run (Stopped). A step with a non-finite loss is
    skipped and named; after ``max_bad_steps`` in a row Diverged is raised. If the step defers its checks (on CUDA), losses
    are read only when something is written.
    """
    model, guard = step_function.model, step_function.guard
    config, parts = model.config, model.config.accumulate
    checkpoints = folder / "checkpoints"
    sample_every = min(config.image_display_iter, config.image_save_iter)

    def save(done: int) -> None:
        save_unit(
            checkpoints, done, model, step_function.optimisers, step_function.precision,
            keep=config.keep_checkpoints,
        )  # fmt: skip

    for step in range(first_step, last_step):
        pair = step_function.plan(step)
        result = step_function([batches.batch(step * parts + k, pair) for k in range(parts)], step)
        done = step + 1
        log_due = done % config.log_iter == 0 or done == last_step
        if not guard.deferred or log_due or done % config.max_bad_steps == 0 or log.due(done):
            terms = result.terms
            scalars = {name: statistics.fmean(v) if isinstance(v, list) else v for name, v in terms.items()}
            skips = guard.skips()
            if skips.skipped:
                log.write(done, scalars | {"skipped": float(skips.skipped)})
                report_skips(log, skips, done, config.max_bad_steps, checkpoints)
            elif log_due:
                log.write(done, scalars)
            log.leave_out(COMPILING.taken())
            log.progress(done, scalars)
        if sample is not None and (done % sample_every == 0 or done == last_step):
            sample(done)
        ends = stop.due()
        if ends or done % config.snapshot_save_iter == 0 or done == last_step:
            save(done)
        if ends:
            raise stop.stopped(done)
    return max(first_step, last_step)
