"""The log of a run: `metrics.jsonl`, TensorBoard, and lines that show the progress on the terminal.

`metrics.jsonl` holds one JSON object in each line: `{"step": 120, "phase": "train", "total": 12.3, …}`. JSON has no
NaN and no infinity, so these are written as the strings "NaN", "Infinity" and "-Infinity"; `read_metrics`
turns them back into floats.
"""

from __future__ import annotations

import json
import logging
import math
import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TextIO

from tqdm import tqdm

from dgnet_fast.report.files import atomically, naming
from dgnet_fast.report.progress import on_terminal
from dgnet_fast.report.trackers import Tracker

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
MACHINE_FILE = "machine.jsonl"
"""Seconds and memory, in a file of their own: `metrics.jsonl` is the same for every run of the same options."""
TENSORBOARD_FOLDER = "tensorboard"
MAIN_TERMS = ("total", "dis_total", "adv", "recon_x", "recon_x_cyc", "id", "teacher")
_OWN_KEYS = ("step", "phase")
_RECENT = 50  # intervals behind the seconds per step


LONGEST_SILENCE = 30.0
"""Seconds without a progress line, after which the next step prints one."""


class RunLog:
    """Writes what a run measures. The run may be killed and resumed at any moment.

    Args:
        run_folder: created if missing; `metrics.jsonl` is appended to and TensorBoard events go to
            `tensorboard/`.
        total_steps: steps of the whole run, for the share done and the time left.
        tensorboard: also write TensorBoard events (the package is imported at the first write). If it is not
            installed, one line says so, and everything else is written.
        stream: where progress lines are written, as plain lines without control characters. None means a progress
            bar on a terminal, and otherwise the log of the package (logger `dgnet_fast`).
        trackers: further places that get the scalars of `metrics.jsonl`; see `dgnet_fast.report.trackers`.
        every: number of steps between two progress lines; calls of `progress` at other steps print nothing. The first
            step and the last step of the run always print, and so does a step half a minute after the last line.
        main_terms: the scalars that a progress line shows, in this order. If none of them is given to `progress`, it
            shows the first six scalars that it is given.
        clock: a monotonic clock in seconds.
        silent: write and print nothing, for a run of several processes of which one has the log.

    Raises:
        ValueError: `total_steps` or `every` below 1.
    """

    _no_tensorboard_said: ClassVar[bool] = False

    def __init__(
        self,
        run_folder: str | os.PathLike[str],
        total_steps: int,
        *,
        tensorboard: bool = True,
        trackers: Sequence[Tracker] = (),
        stream: TextIO | None = None,
        every: int = 1,
        main_terms: Sequence[str] = MAIN_TERMS,
        clock: Callable[[], float] = time.perf_counter,
        silent: bool = False,
    ) -> None:
        for name, value in (("total_steps", total_steps), ("every", every)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        self.folder, self.silent = Path(run_folder), silent
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / METRICS_FILE
        self.total_steps = total_steps
        self.every = every
        self._stream = stream
        self._bar: tqdm | None = None
        self._main_terms = tuple(main_terms)
        self._clock = clock
        self._want_tensorboard = tensorboard
        self._tensorboard: Any = None
        self._trackers = tuple(trackers)
        self._purge_step: int | None = None
        self._intervals: deque[float] = deque(maxlen=_RECENT)
        self._last = (0, clock())  # step and time of the last call of progress
        self._left_out = 0.0  # seconds since then that are no part of a step
        self._printed_at = -math.inf
        if silent:
            self._file = open(os.devnull, "a", encoding="utf-8")
            return
        if self.path.exists() and not _ends_with_newline(self.path):
            _keep_lines(self.path, lambda record: True)  # a run killed in the middle of a write
        self._file = self.path.open("a", encoding="utf-8")

    def write(self, step: int, scalars: Mapping[str, float], phase: str = "train") -> None:
        """Append one line to `metrics.jsonl`, flush it, and send the scalars to TensorBoard as `phase/name`.

        Raises:
            ValueError: a scalar is named `step` or `phase`, or is no number.
        """
        if self.silent:
            return
        values = {}
        for name, value in scalars.items():
            if name in _OWN_KEYS:
                raise ValueError(f"a scalar is named {name!r}; {_OWN_KEYS} are the log's own keys")
            try:
                values[name] = float(value)
            except (TypeError, ValueError) as error:
                raise ValueError(f"scalar {name!r} is {value!r}; expected a number") from error
        record = {"step": int(step), "phase": phase} | {name: _to_json(v) for name, v in values.items()}
        with naming(self.path):
            self._file.write(json.dumps(record, allow_nan=False) + "\n")
            self._file.flush()
        if self._want_tensorboard and (writer := self._writer()):
            for name, value in values.items():
                writer.add_scalar(f"{phase}/{name}", value, int(step))
        for tracker in self._trackers:
            tracker.write(int(step), {f"{phase}/{name}": value for name, value in values.items()})

    def write_machine(self, step: int, memory: int) -> None:
        """Append the seconds per step (median of the recent ones) and the peak memory (in bytes) to `machine.jsonl`."""
        seconds = self.seconds_per_step
        if not math.isfinite(seconds):
            return
        record = {
            "step": int(step),
            "phase": "machine",
            "seconds_per_step": round(seconds, 6),
            "memory_gb": memory / 1e9,
        }
        with (self.folder / MACHINE_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def due(self, step: int) -> bool:
        """Whether `progress` would print at this step. Ask this before you read scalars from a GPU."""
        waited = self._clock() - self._printed_at
        return waited >= LONGEST_SILENCE or step % self.every == 0 or step >= self.total_steps

    def progress(self, step: int, scalars: Mapping[str, float]) -> None:
        """Print `step/total`, the share done, seconds per step, time left and the main loss terms, when due.

        `step` counts the steps done, so that `total_steps` is the end. Seconds per step are the median over
        the
        recent intervals between calls: pauses for evaluation or pictures do not move it, nor what `leave_out` names.
        """
        if self.silent:
            return
        now = self._clock()
        last_step, last_time = self._last
        if step > last_step:
            self._intervals.append(max(now - last_time - self._left_out, 0) / (step - last_step))
            self._left_out = 0.0
        self._last = (step, now)
        if self._stream is None and on_terminal():
            self._draw(step, scalars)
            return
        if not self.due(step):
            return
        self._printed_at = now
        total, seconds = self.total_steps, self.seconds_per_step
        parts = [f"step {step:>{len(str(total))}}/{total}", f"{step / total:6.1%}"]
        if self._intervals:
            parts.append(f"{seconds:.3g} s/step")
            parts.append(f"ETA {format_duration(seconds * max(total - step, 0))}")
        parts += [f"{name} {float(scalars[name]):.4g}" for name in self._shown(scalars)]
        self._line("  ".join(parts))

    def leave_out(self, seconds: float) -> None:
        """So much of the time since the last call of `progress` is no part of a step, such as compilation."""
        self._left_out += seconds

    def note(self, text: str, *, level: int = logging.WARNING) -> None:
        """Write one line of text between the progress lines."""
        if self.silent:
            return
        if self._stream is None:
            logger.log(level, text)
        else:
            self._line(text)

    def _line(self, text: str) -> None:
        if self._stream is None:
            logger.info(text)
        else:
            self._stream.write(text + "\n")
            self._stream.flush()

    def _draw(self, step: int, scalars: Mapping[str, float]) -> None:
        """The bar of a terminal, which always shows the step, and the terms of the last line that was due."""
        if self._bar is None:
            self._bar = tqdm(total=self.total_steps, initial=step, dynamic_ncols=True, unit="step")
        if self.due(step):
            self._bar.set_postfix_str(
                ", ".join(f"{n} {float(scalars[n]):.4g}" for n in self._shown(scalars)), False
            )
        self._bar.update(step - self._bar.n)

    def _shown(self, scalars: Mapping[str, float]) -> list[str]:
        return [name for name in self._main_terms if name in scalars] or list(scalars)[:6]

    @property
    def seconds_per_step(self) -> float:
        """Median of the recent intervals, NaN before the first."""
        return statistics.median(self._intervals) if self._intervals else math.nan

    def truncate_after(self, step: int) -> None:
        """Drop the lines of later steps, for a run resumed at `step`; the clock for the time left starts anew
        there.

        The file is replaced in one atomic move, so that an interrupted truncation leaves the old file whole.
        TensorBoard is told to hide later events.

        Raises:
            RuntimeError: something was already written to TensorBoard by this log.
        """
        if self.silent:
            return
        if self._tensorboard is not None:
            raise RuntimeError("truncate_after must come before the first write")
        self._file.close()
        for path in (self.path, self.folder / MACHINE_FILE):
            if path.exists():
                _keep_lines(path, lambda record: record["step"] <= step)
        self._file = self.path.open("a", encoding="utf-8")
        self._purge_step = step + 1
        self._intervals.clear()
        self._last, self._left_out = (step, self._clock()), 0.0
        self._printed_at = -math.inf

    def close(self) -> None:
        """Close the files. It may be called twice."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        with naming(self.path):
            self._file.close()
        for tracker in self._trackers:
            tracker.close()
        self._trackers = ()
        if self._tensorboard is not None:
            self._tensorboard.close()
            self._tensorboard = None

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _writer(self) -> Any:
        if self._tensorboard is None:
            try:
                from torch.utils.tensorboard import SummaryWriter  # seconds to import: only where it is used
            except ImportError:
                self._want_tensorboard = False
                if not RunLog._no_tensorboard_said:  # once: a run has a log for each of its trainings
                    RunLog._no_tensorboard_said = True
                    self.note(
                        "no TensorBoard events: pip install 'dgnet-fast[tensorboard]' (metrics.jsonl has the same)"
                    )
                return None
            self._tensorboard = SummaryWriter(
                str(self.folder / TENSORBOARD_FOLDER), purge_step=self._purge_step
            )
        return self._tensorboard


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`, in file order: `step` int, `phase` str, scalars float (NaN and inf
    included).

    An incomplete last line of a killed run is left out.

    Raises:
        ValueError: another line is no record, with its number.
    """
    return [
        {name: value if name in _OWN_KEYS else float(value) for name, value in record.items()}
        for _, record in _records(Path(path))
    ]


def format_duration(seconds: float) -> str:
    """`h:mm:ss`, rounded to the second: 3725 → "1:02:05"."""
    if not math.isfinite(seconds):
        return "?"
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}"


def _to_json(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _records(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Every complete line with its parsed record."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no log of a run: it is no text in UTF-8") from error
    records = []
    for number, line in enumerate(
        lines[:-1], start=1
    ):  # after the last newline: nothing, or a line cut short
        try:
            record = json.loads(line)
            if type(record["step"]) is not int or not isinstance(record["phase"], str):
                raise TypeError
            for name, value in record.items():
                if name not in _OWN_KEYS:
                    float(value)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise ValueError(f"{path}, line {number} is no record of a run: {line[:80]!r}") from error
        records.append((line, record))
    return records


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def _keep_lines(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Rewrite the file with the complete lines that `keep` accepts, atomically."""
    with atomically(path) as temporary:
        temporary.write_text(
            "".join(line + "\n" for line, record in _records(path) if keep(record)), encoding="utf-8"
        )
