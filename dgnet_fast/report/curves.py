"""Curves of a run, as a few PNG files with one small panel for each scalar."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dgnet_fast.report.files import atomically
from dgnet_fast.report.log import MACHINE_FILE, read_metrics

if TYPE_CHECKING:  # a second to import: only where a curve is drawn
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# File → pattern of the scalars' names; the first that fits takes a scalar. What stands before a "/" in a name
# does not count.
GROUPS = {
    "weights": r".*_w$|(lr|learning_rate).*",
    "adversarial": r"total.*|adv.*|dis.*|gan.*|.*penalty.*",
    "identity": r"p?id(_.*)?$|recon_id.*|teacher.*|fine.*|kl.*",
    "reconstruction": r"recon_.*",
    "other": r".*",
}
EVALUATION = "evaluation"
TITLES = {
    "adversarial": "Total and adversarial losses",
    "reconstruction": "Reconstruction losses",
    "identity": "Identity and teacher losses",
    EVALUATION: "Scores on the test people",
    "machine": "Time and memory",
    "weights": "Loss weights and learning rates",
    "other": "Other measurements",
}
_COLUMNS = 2
_SMOOTHED_FROM = 100  # points; fewer are shown as they are
_LINE, _FAINT, _ALARM = "#1f5fa8", "#a9c4e4", "#c0392b"


def save_curves(metrics: str | os.PathLike[str], out_dir: str | os.PathLike[str]) -> list[Path]:
    """Draw every scalar of a `metrics.jsonl` over the steps, grouped into a few PNGs.

    Scalars of the phase "train" are grouped by name (see `GROUPS`); those of any other phase go to `evaluation.png`, and
    what `machine.jsonl` beside it holds to `machine.png`.
    If there are 100 points or more, the moving average over a 25th of the run is drawn over the raw values. An axis is
    logarithmic if its values are positive and span more than a factor of 200. Loss weights and learning rates have no
    noise, so neither is done for them. NaN and infinity are shown as red marks.

    Args:
        metrics: the file; it may be missing lines, phases or terms.
        out_dir: created if missing.

    Returns:
        The PNGs written, in the order in which to read them; none for a run without a scalar.

    Raises:
        FileNotFoundError: no such file. ValueError: a line is no record.
    """
    groups = _grouped(read_metrics(metrics))
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    machine = Path(metrics).with_name(MACHINE_FILE)
    if machine.exists():
        groups |= _grouped(read_metrics(machine))
    paths = []
    for name in TITLES:
        if name in groups:
            paths.append(out_dir / f"{name}.png")
            _draw(TITLES[name], groups[name], paths[-1], noisy=name != "weights")
    return paths


def _grouped(records: list[dict]) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Group → label → (steps, values)."""
    points: dict[tuple[str, str], dict[int, float]] = {}
    for record in records:
        phase, step = record["phase"], record["step"]
        for name, value in record.items():
            if name not in ("step", "phase"):
                points.setdefault((phase, name), {})[step] = value
    several = len({phase for phase, _ in points if phase not in ("train", "machine")}) > 1
    groups: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    for (phase, name), series in points.items():
        if phase == "train":
            short = name.rpartition("/")[2]
            group, label = next(g for g, pattern in GROUPS.items() if re.match(pattern, short)), name
        elif phase == "machine":
            group, label = (
                phase,
                {"seconds_per_step": "seconds a step", "memory_gb": "peak memory (GB)"}.get(name, name),
            )
        else:
            group, label = EVALUATION, f"{phase}: {name}" if several else name
        steps = np.array(sorted(series))
        groups.setdefault(group, {})[label] = steps, np.array([series[s] for s in steps.tolist()])
    return groups


def _draw(title: str, series: dict[str, tuple[np.ndarray, np.ndarray]], path: Path, *, noisy: bool) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, len(series))
    rows = math.ceil(len(series) / columns)
    figure = Figure(figsize=(3.3 * columns + 0.2, 1.75 * rows + 0.5), dpi=130)
    FigureCanvasAgg(figure)  # Agg by hand: pyplot's global backend and figure list stay the user's
    _place_panels(figure, rows, columns)
    figure.suptitle(title, fontsize=13, fontweight="bold", x=0.01, y=0.99, ha="left", va="top")
    last = max(int(steps[-1]) for steps, _ in series.values())
    first = min(int(steps[0]) for steps, _ in series.values())
    for position, (label, (steps, values)) in enumerate(series.items()):
        axes = figure.add_subplot(rows, columns, position + 1)
        _draw_panel(axes, label, steps, values, noisy)
        margin = 0.02 * (last - first) or 1  # panels of a figure share the range of steps
        axes.set_xlim(first - margin, last + margin)
        if position >= len(series) - columns:
            axes.set_xlabel("step", fontsize=9)
    with atomically(path, sync=False) as temporary:
        figure.savefig(temporary)


def _place_panels(figure: Figure, rows: int, columns: int) -> None:
    """Margins in inches. Matplotlib's own layout measures all texts and draws every figure twice, which takes twice the
    time of a figure.
    """
    width, height = figure.get_size_inches()
    left, right, top, bottom, between_columns, between_rows = 0.65, 0.15, 0.65, 0.45, 0.8, 0.5
    panel_width = (width - left - right - (columns - 1) * between_columns) / columns
    panel_height = (height - top - bottom - (rows - 1) * between_rows) / rows
    figure.subplots_adjust(
        left / width, bottom / height, 1 - right / width, 1 - top / height,
        wspace=between_columns / panel_width, hspace=between_rows / panel_height,
    )  # fmt: skip


def _draw_panel(axes: Axes, label: str, steps: np.ndarray, values: np.ndarray, noisy: bool) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    finite = np.isfinite(values)
    shown = np.where(finite, values, np.nan)
    good = values[finite]
    if not noisy or len(good) < _SMOOTHED_FROM:
        axes.plot(
            steps, shown, color=_LINE, linewidth=1.4, marker="o" if len(good) <= 30 else None, markersize=3
        )
    else:
        axes.plot(steps, shown, color=_FAINT, linewidth=0.6)
        axes.plot(steps[finite], _moving_average(good, len(good) // 50), color=_LINE, linewidth=1.4)
    if noisy and len(good) and good.min() > 0 and good.max() > 200 * good.min():
        axes.set_yscale("log")
    elif len(good):
        if np.ptp(good) <= 1e-6 * abs(good[0]):  # constant: no zoom into its rounding
            low, high = sorted((good[0] * 0.9, good[0] * 1.1)) if good[0] else (-0.1, 0.1)
            axes.set_ylim(low, high)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.6g}")
    if not finite.all():
        bad = steps[~finite]
        axes.plot(
            bad,
            np.full(len(bad), 0.03),
            "x",
            color=_ALARM,
            transform=axes.get_xaxis_transform(),
            clip_on=False,
        )
        label += f"   ({len(bad)} not finite)"
    latest = f"   last {good[-1]:.4g}" if len(good) else ""
    axes.set_title(label, y=1, fontsize=10, loc="left", color=_ALARM if not finite.all() else "black")
    axes.set_title(latest, y=1, fontsize=8, loc="right", color="#666666")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _moving_average(values: np.ndarray, radius: int) -> np.ndarray:
    """Mean over the neighbours up to `radius` on each side, over fewer at the ends."""
    total = np.concatenate(([0.0], np.cumsum(values, dtype=np.float64)))
    index = np.arange(len(values))
    low, high = np.maximum(index - radius, 0), np.minimum(index + radius + 1, len(values))
    return (total[high] - total[low]) / (high - low)
