"""The report of a benchmark session: Markdown, JSON and PNG from its rows.

    python -m benchmarks.report benchmarks/results/NAME.json      # writes NAME.md and NAME.png anew

A results file holds `machine` (what it ran on), `ceilings` (copy in bytes/s, matmul in FLOP/s by dtype),
`notes`, and `rows`. A row holds
    section     op, module, step, data, evaluation, batch or size
    group       rows with the same group are compared with each other
    name        the implementation measured
    baseline    whether speed-ups over it are reported
    dtype, layout, batch
    seconds     of every round
and, where they apply, `bytes` and `flops` (the least work known for the call, the same for every row of a
group: each input read once, each output written once), `limit` (the ceilings that bound it: copy and/or
matmul DTYPE), `peak_bytes`, `items` (pictures or features a call makes), `x` (place on a plot).
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

Row = dict[str, Any]

SECTIONS = {
    "op": "Operators",
    "module": "Modules, forward and backward at training shapes",
    "step": "Training step",
    "data": "Data pipeline",
    "evaluation": "Evaluation",
    "batch": "Cost against batch size",
    "size": "Cost against picture size",
}


def median(row: Row) -> float:
    """Median seconds of a row's rounds."""
    return statistics.median(row["seconds"])


def speedups(rows: list[Row]) -> list[dict[str, float]]:
    """For every row, {name of baseline: how many times faster than it}, baselines of its own group only."""
    groups: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for row in rows:
        if row["baseline"]:
            groups[row["section"], row["group"]][row["name"]] = median(row)
    return [
        {name: base / median(row) for name, base in groups[row["section"], row["group"]].items()}
        for row in rows
    ]


def shares(row: Row, ceilings: dict[str, float]) -> dict[str, float]:
    """Share of each of the row's limits that its least work reaches: {'copy': 0.81, 'matmul bf16': 0.35}."""
    work = {"copy": row.get("bytes"), "matmul": row.get("flops")}
    found = {}
    for limit in row.get("limit", []):
        amount = work[limit.split()[0]]
        if amount and ceilings.get(limit):
            found[limit] = amount / median(row) / ceilings[limit]
    return found


def _number(value: float | None, digits: int = 3) -> str:
    if value is None:
        return ""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}" if value < 100 else f"{value:.0f}"


def _rate(amount: float | None, seconds: float) -> str:
    return "" if not amount else _number(amount / seconds / 1e9)


def _memory(row: Row, rows: list[Row]) -> str:
    """Peak in MB and its share of the first baseline's of the group."""
    if not row.get("peak_bytes"):
        return ""
    text = _number(row["peak_bytes"] / 1e6)
    for other in rows:
        if other["group"] == row["group"] and other["baseline"] and other.get("peak_bytes"):
            return f"{text} ({100 * row['peak_bytes'] / other['peak_bytes']:.0f} %)"
    return text


def section_table(rows: list[Row], ceilings: dict[str, float]) -> list[str]:
    """Markdown table of one section's rows, group by group; a speed-up column for each baseline in it."""
    order = list(dict.fromkeys(row["group"] for row in rows))
    rows = sorted(rows, key=lambda row: order.index(row["group"]))
    gains = speedups(rows)
    names = list(dict.fromkeys(row["name"] for row in rows if row["baseline"]))
    has = {key: any(row.get(key) for row in rows) for key in ("bytes", "flops", "peak_bytes", "items")}
    head = ["case", "implementation", "dtype", "layout", "median ms", "rounds"]
    head += ["GB/s", "% of copy"] * has["bytes"] + ["GFLOP/s", "% of matmul"] * has["flops"]
    head += (
        ["per s"] * has["items"]
        + ["peak MB (of the first)"] * has["peak_bytes"]
        + [f"× {name}" for name in names]
    )
    lines = ["| " + " | ".join(head) + " |", "|" + "|".join(["---"] * 4 + ["--:"] * (len(head) - 4)) + "|"]
    previous = None
    for row, gain in zip(rows, gains, strict=True):
        seconds, share = median(row), shares(row, ceilings)
        percent = {limit.split()[0]: f"{100 * value:.0f} %" for limit, value in share.items()}
        cells = [row["group"] if row["group"] != previous else "", row["name"], row["dtype"], row["layout"]]
        cells += [_number(1e3 * seconds, 4), str(len(row["seconds"]))]
        if has["bytes"]:
            cells += [_rate(row.get("bytes"), seconds), percent.get("copy", "")]
        if has["flops"]:
            cells += [_rate(row.get("flops"), seconds), percent.get("matmul", "")]
        if has["items"]:
            cells.append(_number(row["items"] / seconds) if row.get("items") else "")
        if has["peak_bytes"]:
            cells.append(_memory(row, rows))
        cells += [f"{gain[name]:.2f}" if name in gain else "" for name in names]
        lines.append("| " + " | ".join(cells) + " |")
        previous = row["group"]
    return lines


def markdown(results: dict[str, Any], figure: str | None = None) -> str:
    """The whole report."""
    machine, ceilings = results["machine"], results["ceilings"]
    lines = [f"# Benchmarks: {machine['name']}, {machine['date']}", ""]
    lines += [
        f"- {key.replace('_', ' ')}: {value}" for key, value in machine.items() if key not in ("name", "date")
    ]
    lines += [
        "",
        "Ceilings measured in this run: " + "; ".join(_ceiling(n, v) for n, v in ceilings.items()) + ".",
    ]
    lines += ["", *(f"- {note}" for note in results["notes"])]
    lines += headline(results["rows"])
    if figure:
        lines += ["", f"![Speed-ups and roofline]({figure})"]
    sections = dict.fromkeys([*SECTIONS, *(row["section"] for row in results["rows"])])
    for section in sections:
        rows = [row for row in results["rows"] if row["section"] == section]
        if rows:
            title = SECTIONS.get(section, section.capitalize())
            lines += ["", f"## {title}", "", *section_table(rows, ceilings)]
    return "\n".join(lines) + "\n"


def headline(rows: list[Row]) -> list[str]:
    """What is asked first, where steps were measured: milliseconds, speed-up over each baseline, and peak memory."""
    steps = [row for row in rows if row["section"] == "step"]
    lines = []
    for row, gains in zip(steps, speedups(steps), strict=True):
        if not row["baseline"]:
            faster = "".join(f", {gain:.2f} times as fast as {name}" for name, gain in gains.items())
            memory = f", {row['peak_bytes'] / 1e9:.2f} GB" if row.get("peak_bytes") else ""
            lines.append(
                f"- {row['name']}, {row['dtype']} ({row['group']}): {_number(1e3 * median(row), 4)} ms a step{faster}{memory}"
            )
    return ["", "## In short", "", *lines] if lines else []


def _ceiling(name: str, value: float) -> str:
    unit = "GB/s (read + written)" if name == "copy" else "GFLOP/s"
    return f"{name} {_number(value / 1e9)} {unit}"


def write_json(results: dict[str, Any], path: Path) -> Path:
    """Write `path`.json (`path` has no suffix), a row a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.with_name(path.name + ".json")
    head = json.dumps({key: value for key, value in results.items() if key != "rows"}, indent=1)
    rows = ",\n".join(json.dumps(row) for row in results["rows"])
    file.write_text(f'{head.removesuffix("}").rstrip()},\n "rows": [\n{rows}\n]}}\n', encoding="utf-8")
    return file


def write_markdown(results: dict[str, Any], path: Path, figure: str | None = None) -> Path:
    """Write `path`.md (`path` has no suffix)."""
    file = path.with_name(path.name + ".md")
    file.write_text(markdown(results, figure), encoding="utf-8")
    return file


def write(results: dict[str, Any], path: Path) -> list[Path]:
    """Write `path`.json, .md and .png; the files written, without .png where matplotlib is not installed."""
    files = [write_json(results, path), *(path.with_name(path.name + suffix) for suffix in (".md", ".png"))]
    try:
        from benchmarks.figure import draw

        draw(results, files[2])
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        print("no figure: matplotlib is not installed (pip install matplotlib)", file=sys.stderr)
        del files[2]
    write_markdown(results, path, files[2].name if len(files) > 2 else None)
    return files


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or not Path(arguments[0]).is_file():
        print(
            f"usage: python -m benchmarks.report RESULTS.json (got {' '.join(arguments) or 'nothing'})",
            file=sys.stderr,
        )
        return 2
    path = Path(arguments[0])
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        print(f"{path} is not JSON: {error}", file=sys.stderr)
        return 2
    for file in write(results, path.with_suffix("")):
        print(file)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
