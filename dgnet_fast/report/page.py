"""`report.html`: one run on one page that needs no other files and that any browser shows without a network."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Callable
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from dgnet_fast.report.curves import EVALUATION, TITLES, save_curves
from dgnet_fast.report.files import write_text
from dgnet_fast.report.log import MACHINE_FILE, METRICS_FILE, format_duration, read_metrics
from dgnet_fast.report.style import STYLE
from dgnet_fast.report.tables import read_tables, table_cells

LEGEND = "legend.txt"
"""File beside the samples that says what they show, where they are no swaps."""
SWAPS = "First row: the pictures that give the appearance. First column: those that give the structure. All others are generated."
_SAMPLE = re.compile(r"step_(\d+)\.png")
_SKELETON = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} – dgnet_fast report</title>
<style>
{style}
</style>
</head>
<body>
<header><h1>{title}</h1>
<p>{summary}</p>
<nav aria-label="Sections">{links}</nav></header>
<main>
{sections}
</main>
</body>
</html>
"""


def write_report(run_folder: str | os.PathLike[str], *, max_samples: int = 12) -> Path:
    """Write `report.html` into a run folder, from those parts of the run that are there.

    Reads `config.yaml`, `environment.json`, `results.json` (tables, see `dgnet_fast.report.tables`), `metrics.jsonl`,
    `machine.jsonl`, `samples/step_XXXXXXXX.png` and `visual/`. If there is a `metrics.jsonl`, `curves/*.png` are drawn
    again. If a part is missing (because a run stopped early) or cannot be read, the page says
    so, and which command makes it. Pictures are inside the page; it loads nothing and has no script.

    Args:
        run_folder: an existing folder.
        max_samples: largest number of sample pictures on the page, evenly spread over the run, with the first and the
            last.

    Returns:
        The path of `report.html`.

    Raises:
        ValueError: the folder does not exist, or `max_samples` is below 1.
    """
    folder = Path(run_folder)
    if not folder.is_dir():
        raise ValueError(f"there is no run folder {str(run_folder)!r}")
    if max_samples < 1:
        raise ValueError(f"max_samples is {max_samples}; it must be at least 1")
    parts: dict[str, Callable[[], str | None]] = {
        "Results": lambda: _results(folder),
        "Samples": lambda: _samples(folder, max_samples),
        "Ranking": lambda: _ranking(folder),
        "Features": lambda: _features(folder),
        "Curves": lambda: _curves(folder),
        "Environment": lambda: _environment(folder),
        "Configuration": lambda: _config(folder),
    }
    sections, links = [], []
    for name, build in parts.items():
        anchor = name.lower()
        try:
            body = build() or _missing(name, folder)
        except (
            ValueError,
            OSError,
            RecursionError,
        ) as error:  # one broken file must not cost the reader the rest of the page
            body = f'<p class="missing">The {anchor} could not be read: {escape(str(error))}</p>'
        links.append(f'<a href="#{anchor}">{name}</a>')
        sections.append(
            f'<section id="{anchor}" aria-labelledby="{anchor}-title">\n'
            f'<h2 id="{anchor}-title">{name}</h2>\n{body}\n</section>'
        )
    page = _SKELETON.format(
        title=escape(folder.resolve().name),
        summary=escape(_summary(folder)),
        style=STYLE,
        links=" ".join(links),
        sections="\n".join(sections),
    )
    path = folder / "report.html"
    write_text(path, page)
    return path


COMMANDS = {
    "Results": "dgnet-fast train --resume --out {run}",
    "Samples": "dgnet-fast train --resume --out {run}",
    "Ranking": "dgnet-fast visualize {run}",
    "Features": "dgnet-fast visualize {run}",
    "Curves": "dgnet-fast train --resume --out {run}",
}
"""The command that fills a section which is empty."""


def _missing(section: str, folder: Path) -> str:
    text = f"This run has left no {section.lower()} so far."
    if section in COMMANDS:
        text += f" This command makes what belongs here: <code>{escape(COMMANDS[section].format(run=folder))}</code>"
    return f'<p class="missing">{text}</p>'


def _summary(folder: Path) -> str:
    """The line under the title: steps, time, memory, precision, device and date, as far as they are known."""
    try:
        steps = [record["step"] for record in read_metrics(folder / METRICS_FILE)]
    except (ValueError, OSError, RecursionError):
        steps = []
    environment: dict[str, Any] = {}
    try:
        environment = dict(json.loads((folder / "environment.json").read_text(encoding="utf-8")))
    except (ValueError, TypeError, OSError, RecursionError):
        pass  # the section on the environment says so
    facts = [f"last logged step {max(steps)}" if steps else "no step logged", *_machine(folder)]
    facts.append(str(environment.get("precision", "")))
    facts += [", ".join(map(str, environment.get("gpus") or [])) or str(environment.get("cpu", ""))]
    if "date" in environment:
        facts.append(f"started {_readable(str(environment['date']))}")
    return " · ".join(fact for fact in facts if fact)


def _readable(date: str) -> str:
    """A date of ISO 8601 to the minute, with its zone; any other text as it is."""
    try:
        return datetime.fromisoformat(date).strftime("%Y-%m-%d %H:%M %Z").rstrip()
    except ValueError:
        return date


def _machine(folder: Path) -> list[str]:
    """Mean seconds a step, time of all steps, and peak memory, from `machine.jsonl`."""
    try:
        records = read_metrics(folder / MACHINE_FILE)
    except (ValueError, OSError):
        return []
    if not records:
        return []
    before, seconds = 0, 0.0
    for record in records:
        seconds += (record["step"] - before) * record["seconds_per_step"]
        before = record["step"]
    peak = max(record["memory_gb"] for record in records)
    return [
        f"{seconds / max(before, 1):.3g} s a step, {format_duration(seconds)} in all",
        f"peak memory {peak:.2f} GB",
    ]


def _results(folder: Path) -> str | None:
    path = folder / "results.json"
    return "\n".join(_table(table) for table in read_tables(path)) if path.exists() else None


def _table(table: dict[str, Any]) -> str:
    cells = table_cells(table)
    kinds = [' class="number"' if number else "" for number in cells.numeric]
    head = "".join(f'<th scope="col"{k}>{escape(c)}</th>' for c, k in zip(cells.columns, kinds, strict=True))
    rows = []
    for name, *values in cells.rows:
        row = "".join(f"<td{k}>{escape(v)}</td>" for v, k in zip(values, kinds[1:], strict=True))
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{row}</tr>')
    caption = f"<caption><span>{escape(cells.title)}</span></caption>" if cells.title else ""
    said = f'\n<p class="verdict">{escape(cells.verdict)}</p>' if cells.verdict else ""
    notes = "".join(f"<li>{escape(note)}</li>" for note in cells.notes)
    return (
        f'<div class="scroll"><table>{caption}\n<thead><tr>{head}</tr></thead>\n<tbody>'
        + "\n".join(rows)
        + "</tbody></table></div>"
        + said
        + (f'\n<ul class="notes">{notes}</ul>' if notes else "")
    )


def _samples(folder: Path, most: int) -> str | None:
    found = [
        (int(m[1]), path)
        for path in (folder / "samples").glob("*.png")
        if (m := _SAMPLE.fullmatch(path.name))
    ]
    found.sort()
    if len(found) > most:
        kept = (
            [found[round(i * (len(found) - 1) / max(most - 1, 1))] for i in range(most)]
            if most > 1
            else found[-1:]
        )
        note = f"<p>{len(kept)} of {len(found)} pictures; the others are in <code>samples/</code>.</p>\n"
    else:
        kept, note = found, ""
    if not kept:
        return None
    words = folder / "samples" / LEGEND
    legend = f"<p>{escape(words.read_text(encoding='utf-8') if words.is_file() else SWAPS)}</p>\n"
    *before, (step, newest) = kept
    large = _figure(newest, f"Generated pictures at step {step}", f"Step {step}", "newest")
    if not before:
        return legend + large
    strip = [
        _enlarging(path, f"Generated pictures at step {step}", f"Step {step}")
        for step, path in reversed(before)
    ]
    return (
        f'{legend}<div class="samples">{large}\n<div class="before"><h3>Before</h3>\n{note}'
        "<p>A click makes a picture large, and another makes it small.</p>\n"
        '<div class="strip" tabindex="0" role="group" aria-label="Earlier samples">'
        + "\n".join(strip)
        + "</div></div></div>"
    )


def _ranking(folder: Path) -> str | None:
    """Rank lists of some queries, and the scores for each camera."""
    path = folder / "visual" / "rank_list.png"
    caption = "Queries (left) and their nearest gallery pictures; green is right, red is wrong"
    parts = [_enlarging(path, caption, caption)] if path.exists() else []
    tables = [table for path in (folder / "visual").glob("cameras.json") for table in read_tables(path)]
    parts += [f"<div>{_table(table)}</div>" for table in tables]
    return f'<div class="pair">{" ".join(parts)}</div>' if parts else None


def _features(folder: Path) -> str | None:
    """The map of features and the heads' activation maps, where they were made."""
    captions = {
        "embedding": "Features of gallery pictures; a colour a person, a marker a camera",
        "activation": "Where each head looks: class activation maps of the most likely training identity",
    }
    found = {folder / "visual" / f"{name}.png": caption for name, caption in captions.items()}
    return (
        "\n".join(_figure(path, caption, caption) for path, caption in found.items() if path.exists()) or None
    )


def _curves(folder: Path) -> str | None:
    if (folder / METRICS_FILE).exists():
        paths = save_curves(folder / METRICS_FILE, folder / "curves")
    else:
        paths = sorted((folder / "curves").glob("*.png"))
    figures = []
    for path in paths:
        figures.append(_enlarging(path, f"Curves over the steps: {TITLES.get(path.stem, path.stem)}"))
    if not figures:
        return None
    scored = any(path.stem == EVALUATION for path in paths)
    hint = (
        ""
        if scored
        else (
            '<p class="missing">No scores were logged over the steps. <code>dgnet-fast train --eval-iter 100</code> scores '
            "the model every 100 steps.</p>\n"
        )
    )
    return f'{hint}<div class="curves">' + "\n".join(figures) + "</div>"


def _environment(folder: Path) -> str | None:
    path = folder / "environment.json"
    if not path.exists():
        return None
    values = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise ValueError(f"{path.name} holds no mapping")
    rows = [f"<dt>{escape(str(name))}</dt><dd>{escape(_plain(value))}</dd>" for name, value in values.items()]
    return '<dl class="facts">' + "\n".join(rows) + "</dl>"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={item}" for name, item in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)


def _config(folder: Path) -> str | None:
    path = folder / "config.yaml"
    if not path.exists():
        return None
    text = escape(path.read_text(encoding="utf-8"))
    return f'<details><summary>config.yaml</summary>\n<pre tabindex="0"><code>{text}</code></pre></details>'


def _figure(path: Path, alt: str, caption: str, kind: str = "") -> str:
    chosen = f' class="{kind}"' if kind else ""
    return (
        f'<figure{chosen}><img alt="{escape(alt)}" src="{_data_url(path)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _enlarging(path: Path, alt: str, caption: str = "") -> str:
    """A small figure that a click makes large, and another click small again; no script is needed. A picture with a
    title of its own needs no caption.
    """
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return (
        f'<figure><label><input type="checkbox" aria-label="Enlarge: {escape(caption or alt)}">'
        f'<img alt="{escape(alt)}" src="{_data_url(path)}"></label>{below}</figure>'
    )


def _data_url(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
