"""The training loop: steps, logs, sample pictures, checkpoints and signals."""

from __future__ import annotations

import contextlib
import logging
import resource
import signal
import statistics
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from dgnet_fast.checkpoints.runs import keep_best, save_run
from dgnet_fast.config import Config
from dgnet_fast.data import TrainBatches, WithMore
from dgnet_fast.distributed import processes
from dgnet_fast.models.dgnet import DGNet
from dgnet_fast.report.log import RunLog, read_metrics
from dgnet_fast.training.alarm import DivergenceAlarm
from dgnet_fast.training.average import WeightAverage
from dgnet_fast.training.compiling import COMPILING
from dgnet_fast.training.guard import Skips, StepResult
from dgnet_fast.training.optim import Optimisers, Precision
from dgnet_fast.training.schedule import learning_rates, weights_at
from dgnet_fast.training.step import TrainingStep

EVALUATION = "eval"
"""Name of the phase in the log for the scores during training."""


class Stopped(Exception):
    """A signal asked the run to stop. Everything up to step ``self.step`` is saved; ``self.signal`` is the signal's
    number.
    """

    def __init__(self, step: int, number: int = signal.SIGTERM) -> None:
        super().__init__(f"stopped after step {step}")
        self.step, self.signal = step, number


class Diverged(Exception):
    """Too many consecutive steps had a non-finite loss."""


class StopSignal:
    """While this is active, the first SIGINT, SIGTERM or SIGHUP sets ``requested``, and the loop saves and ends; a
    second signal acts at once. A signal that is ignored (nohup) stays ignored. Outside of the main thread, where Python
    handles no signals, it does nothing.

    Loops ask `due` after every step. Where several processes are one run, a signal to any of them stops all of them after
    the same step: the one after that in which the first of them knew.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.requested = False
        self.number: int = signal.SIGTERM
        self._before: dict[int, Any] = {}
        self._asked: Callable[[], bool] | None = None

    def due(self) -> bool:
        """Whether to save and to end now. All processes ask after the same steps."""
        if processes.size() == 1:
            return self.requested
        # the answer to the question of the step before: nobody waits for it
        answer, self._asked = self._asked, processes.any_of(self.requested)
        return answer is not None and answer()

    def __enter__(self) -> StopSignal:
        self._install()
        return self

    def _install(self) -> None:
        main = threading.current_thread() is threading.main_thread()
        for number in self.SIGNALS if main and not self.requested else ():
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue
            self._before[number] = signal.signal(number, self._handle)

    def _handle(self, number: int, frame: object) -> None:
        self.requested, self.number = True, number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """A context in which a signal acts at once, for work of which nothing needs to be saved."""
        self._restore()
        try:
            yield
        finally:
            self._install()

    def stopped(self, step: int) -> Stopped:
        """The exception that ends the run after ``step``."""
        return Stopped(step, self.number)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
        if self._asked is not None and kind is None:
            self._asked()
        self._asked = None


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: of the tensors on a CUDA device, otherwise the largest resident set so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def scalars_of(result: StepResult, config: Config, step: int) -> dict[str, float]:
    """The values that a step writes to the log: the mean of every term over the two streams, as papers give it, and the
    present values of the ramped weights and of the learning rates.

    The totals are the values that are minimised, and in these the streams are added: ``total`` is twice the weighted
    sum of the means.
    """
    scalars = {name: statistics.fmean(v) if isinstance(v, list) else v for name, v in result.terms.items()}
    return scalars | weights_at(config, step)._asdict() | learning_rates(config, step)


def report_skips(log: RunLog, skips: Skips, done: int, limit: int, checkpoints: Path) -> None:
    """Log the steps skipped since the last reading. Raises Diverged after ``limit`` of them in a row."""
    names = ", ".join(skips.names)
    if skips.longest >= limit:
        place = "the last at" if skips.row else "before"
        raise Diverged(
            f"{skips.longest} steps in a row had non-finite losses ({names}), {place} step {done}; nothing was updated in them. "
            f"The last good state is in {checkpoints}. Try --amp off, lower learning rates or --max-bad-steps"
        )
    steps = (
        f"step {done} skipped"
        if skips.skipped == 1 == skips.row
        else f"{skips.skipped} steps up to {done} skipped"
    )
    log.note(f"{steps}: {names} not finite ({skips.row} in a row, the run stops at {limit})")


def train(
    model: DGNet,
    batches: TrainBatches | WithMore,
    optimisers: Optimisers,
    precision: Precision,
    log: RunLog,
    folder: Path,
    class_names: list[str],
    *,
    first_step: int = 0,
    last_step: int | None = None,
    sample: Callable[[int], None] | None = None,
    evaluate: Callable[[], dict[str, float]] | None = None,
    stop: StopSignal,
    average: WeightAverage | None = None,
) -> int:
    """Train from ``first_step`` to ``last_step`` (default: ``max_iter``) and return the number of steps done.

    With ``average``, sample pictures and scores use the averaged weights, and checkpoints hold these too.

    If a loss begins to diverge, a line of the log says so (`dgnet_fast.training.alarm`).

    ``evaluate()`` is called every ``eval_iter`` steps. Its scores go to the phase "eval" of the log, and the
    checkpoint with the best ``mAP`` is kept as ``best.pt`` beside the newest checkpoints. It is selected on the data
    that ``evaluate`` scores, so its scores on the same data are no test result.

    ``sample(step)`` is called every ``image_display_iter`` steps to write a grid of pictures. Checkpoints go to
    ``folder/checkpoints`` every ``snapshot_save_iter`` steps, at the end, and when a signal stops the run
    (Stopped). A step with a non-finite loss is skipped and named; after ``max_bad_steps`` in a row Diverged
    is raised. If the step defers its checks (on CUDA), losses and skipped steps are read only when something is
    written and every ``max_bad_steps`` steps; Diverged is then raised up to that many steps later.
    """
    config = model.config
    last_step = config.max_iter if last_step is None else last_step
    step_function = TrainingStep(model, optimisers, precision)
    checkpoints = folder / "checkpoints"
    sample_every = min(config.image_display_iter, config.image_save_iter)
    parts = config.accumulate
    alarm, best = DivergenceAlarm(), -1.0
    # of a run that goes on: the alarm knows what it would know without the break
    for record in [] if log.silent else read_metrics(log.path):
        if record["phase"] == "train" and "skipped" not in record:
            alarm.observe(record["step"], record)
        best = max(best, record.get("mAP", -1.0)) if record["phase"] == EVALUATION else best

    def save(done: int) -> Path | None:
        return None if log.silent else save_run(
            checkpoints, done, model, optimisers, precision, class_names,
            keep=config.keep_checkpoints, average=average.state_dict() if average else None,
        )  # fmt: skip

    averaged = average.in_place if average else contextlib.nullcontext
    for step in range(first_step, last_step):
        result = step_function([batches.batch(step * parts + k) for k in range(parts)], step)
        if average is not None:
            average.update(step)
        done = step + 1
        log_due = done % config.log_iter == 0 or done == last_step
        by_clock = processes.size() == 1 and log.due(done)  # else all processes read after the same steps
        if not step_function.guard.deferred or log_due or done % config.max_bad_steps == 0 or by_clock:
            scalars = scalars_of(result, config, step)
            skips = step_function.guard.skips()
            if skips.skipped:
                log.write(done, scalars | {"skipped": float(skips.skipped)})
                report_skips(log, skips, done, config.max_bad_steps, checkpoints)
            elif log_due:
                log.write(done, scalars)
                log.write_machine(done, peak_memory(precision.device))
                for text in alarm.observe(done, scalars):
                    log.note(f"step {done}: {text}")
            log.leave_out(COMPILING.taken())
            log.progress(done, scalars)
        if sample is not None and not log.silent and (done % sample_every == 0 or done == last_step):
            with averaged():
                sample(done)
        saved = None
        if evaluate is not None and config.eval_iter and done % config.eval_iter == 0:
            with averaged():
                scores = evaluate()
            if not log.silent and scores["mAP"] > best:
                best, saved = scores["mAP"], save(done)
                assert saved is not None
                keep_best(saved)
            log.write(done, scores, phase=EVALUATION)
            log.note(
                f"step {done}: " + "  ".join(f"{name} {value:.4g}" for name, value in scores.items()),
                level=logging.INFO,
            )
        if stop.due():
            if not saved:
                save(done)
            raise stop.stopped(done)
        if saved is None and (done % config.snapshot_save_iter == 0 or done == last_step):
            save(done)
    return max(first_step, last_step)
