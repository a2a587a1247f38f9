"""The picture of a report: bars of speed-up, roofline points, and cost curves where they were measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

from benchmarks.report import Row, median, speedups  # noqa: E402

MARKERS = {"fp32": "o", "bf16": "s"}
MOST_BARS = 80
SECTIONS = ("step", "module", "op", "data", "evaluation")


def chosen_bars(rows: list[Row]) -> list[tuple[Row, float]]:
    """(row, speed-up over the first baseline of its group), steps and modules first, group by group.

    Where there are too many to read, operators show forward + backward only.
    """
    groups = list(dict.fromkeys((row["section"], row["group"]) for row in rows))
    groups.sort(key=lambda group: SECTIONS.index(group[0]) if group[0] in SECTIONS else len(SECTIONS))
    pairs = [(row, next(iter(gain.items()))) for row, gain in zip(rows, speedups(rows), strict=True) if gain]
    found = [(row, factor) for row, (name, factor) in pairs if row["name"] != name]
    found.sort(key=lambda pair: groups.index((pair[0]["section"], pair[0]["group"])))
    if len(found) > MOST_BARS:
        found = [pair for pair in found if pair[0]["section"] != "op" or pair[0]["group"].endswith(" both")]
    return found[:MOST_BARS]


def bars(axes: Axes, chosen: list[tuple[Row, float]]) -> None:
    """Speed-ups of `chosen_bars`."""
    values = [factor for _, factor in chosen]
    colours = ["#9aa5b1" if row["baseline"] else "#1f5fa8" for row, _ in chosen]
    axes.barh(range(len(values)), values, color=colours)
    labels = [f"{row['group']}: {row['name']} {row['dtype']}" for row, _ in chosen]
    axes.set_yticks(range(len(values)), labels, fontsize=6)
    axes.set_ylim(len(values) - 0.4, -0.6)
    axes.axvline(1, color="black", linewidth=0.8)
    for place, value in enumerate(values):
        axes.text(value, place, f" {value:.2f}", va="center", fontsize=6)
    axes.set_xlabel("times faster than the first baseline of its group (grey: other baselines)")


def roofline(axes: Axes, rows: list[Row], ceilings: dict[str, float]) -> None:
    """FLOP/s against FLOPs per byte under the measured ceilings; least work, so caches can lift points above."""
    points = [row for row in rows if row.get("bytes") and row.get("flops")]
    if not points or not ceilings.get("copy"):
        axes.set_axis_off()
        return
    intensities = [row["flops"] / row["bytes"] for row in points]
    low, high = min(intensities) / 2, max(intensities) * 2
    grid = [low * (high / low) ** (k / 100) for k in range(101)]
    for name, peak in ceilings.items():
        if name.startswith("matmul"):
            reach = [min(peak, i * ceilings["copy"]) / 1e9 for i in grid]
            axes.plot(grid, reach, linewidth=1, label=f"ceiling {name.split()[1]}")
    colours = plt.get_cmap("tab10")
    names = list(dict.fromkeys(row["name"] for row in points))
    for row, intensity in zip(points, intensities, strict=True):
        colour = colours(names.index(row["name"]) % 10)
        rate = row["flops"] / median(row) / 1e9
        axes.scatter(intensity, rate, s=12, color=colour, marker=MARKERS.get(row["dtype"], "x"))
    for place, name in enumerate(names):
        axes.scatter([], [], s=12, color=colours(place % 10), label=name)
    axes.set(xscale="log", yscale="log", xlabel="FLOPs per byte", ylabel="GFLOP/s (circle fp32, square bf16)")
    axes.legend(fontsize=6)


def curves(axes: Axes, rows: list[Row], unit: str) -> None:
    """Milliseconds a picture against batch or picture size, one line an implementation."""
    for label in dict.fromkeys(f"{row['name']} {row['dtype']}" for row in rows):
        line = [row for row in rows if f"{row['name']} {row['dtype']}" == label]
        axes.plot(
            [r["x"] for r in line], [1e3 * median(r) / r["batch"] for r in line], marker="o", label=label
        )
    axes.set(xscale="log", xlabel=unit, ylabel="ms a picture of the batch")
    if rows:
        axes.legend(fontsize=6)


def draw(results: dict[str, Any], path: Path) -> None:
    """Write the picture of a results file to `path` (PNG)."""
    rows, ceilings = results["rows"], results["ceilings"]
    plots = [row for row in rows if row["section"] in ("batch", "size")]
    compared = [row for row in rows if row["section"] not in ("batch", "size")]
    chosen = chosen_bars(compared)
    heights = [max(4.0, 0.2 * len(chosen))] + [4.0] * bool(plots)
    figure, grid = plt.subplots(
        len(heights), 2, figsize=(16, sum(heights) + 1), height_ratios=heights, squeeze=False
    )
    bars(grid[0][0], chosen)
    roofline(grid[0][1], compared, ceilings)
    for axes, section, unit in zip(
        grid[-1] if plots else (), ("batch", "size"), ("batch size", "pixels a picture"), strict=False
    ):
        curves(axes, [row for row in plots if row["section"] == section], unit)
    machine = results["machine"]
    figure.suptitle(f"{machine['name']}, {machine['date']}", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
