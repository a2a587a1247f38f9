"""Result tables: read from `results.json` (and from every file of `--json`, which has the same form), and formatted as
text.

A table is `{"title": str, "columns": [str, …], "rows": [[name, value, …], …], "notes": [str, …]}`; `title`
and `notes` may be left out. `columns` heads every entry of a row, its name included; a row may have one entry
more than `columns`, and its name then has no heading. Values are numbers, text, or null for "not measured".
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

MISSING = "–"
TABLES = "tables"
"""The key of the list of tables in a JSON file."""


class Cells(NamedTuple):
    """A table whose every cell is text; `numeric` says which columns hold numbers."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    numeric: list[bool]
    notes: list[str]


def read_tables(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The tables of a `results.json`, which holds ``{"tables": [...]}``, a list of tables or one; each is checked.

    Raises:
        ValueError: not JSON, or not tables.
    """
    try:
        tables = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if isinstance(tables, dict) and TABLES in tables:
        tables = tables[TABLES]
    tables = tables if isinstance(tables, list) else [tables]
    for table in tables:
        table_cells(table)
    return tables


def format_table(table: Mapping[str, Any]) -> str:
    """A table as plain text: title, aligned columns (numbers to the right), notes.

    Numbers of a column that holds floats share their number of decimals, enough for four significant digits
    of each, at most four.

    Raises:
        ValueError: the mapping is no table, or a row does not fit its columns.
    """
    cells = table_cells(table)
    lines = [cells.columns, *cells.rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(line, widths, cells.numeric, strict=True)
        ).rstrip()
        for line in lines
    ]
    text.insert(1, "-" * (sum(widths) + 2 * (len(widths) - 1)))
    return "\n".join([cells.title] * bool(cells.title) + text + [f"  {note}" for note in cells.notes])


def markdown_table(table: Mapping[str, Any]) -> str:
    """A table as Markdown: title, rows, and the notes as a list.

    Raises:
        ValueError: as `format_table`.
    """
    cells = table_cells(table)
    rows = [cells.columns, ["--:" if number else "---" for number in cells.numeric], *cells.rows]
    lines = [f"## {cells.title}", ""] * bool(cells.title)
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([*lines, "", *(f"- {note}" for note in cells.notes)]) + "\n"


def table_cells(table: Mapping[str, Any]) -> Cells:
    """Check a table and turn every value into text."""
    if not isinstance(table, Mapping) or not all(
        isinstance(table.get(key), list) for key in ("columns", "rows")
    ):
        raise ValueError(
            f"a table is {str(table)[:80]!r}; expected a mapping with lists 'columns' and 'rows'"
        )
    title, rows = str(table.get("title", "")), table["rows"]
    columns = [str(column) for column in table["columns"]]
    if rows and all(isinstance(row, list) and len(row) == len(columns) + 1 for row in rows):
        columns.insert(0, "")
    for row in rows:
        if not isinstance(row, list) or len(row) != len(columns):
            raise ValueError(
                f"table {title!r} has {len(columns)} columns ({', '.join(columns)}) but a row {row!r}"
            )
    by_column = [list(values) for values in zip(*rows, strict=True)] or [[] for _ in columns]
    text = [_column_text(values) for values in by_column]
    return Cells(
        title,
        columns,
        [list(row) for row in zip(*text, strict=True)],
        [bool(values) and all(v is None or _is_number(v) for v in values) for values in by_column],
        [str(note) for note in table.get("notes") or []],
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _column_text(values: list[Any]) -> list[str]:
    decimals = max((_decimals(v) for v in values if isinstance(v, float)), default=0)
    return [_value_text(v, decimals) for v in values]


def _decimals(value: float) -> int:
    """Decimals that show four significant digits, at most four, without trailing zeros."""
    if not math.isfinite(value) or value == 0 or abs(value) >= 1e15:
        return 0
    wanted = min(max(3 - math.floor(math.log10(abs(value))), 0), 4)
    return len(f"{value:.{wanted}f}".rstrip("0").partition(".")[2])


def _value_text(value: Any, decimals: int) -> str:
    if value is None:
        return MISSING
    if isinstance(value, float) or (decimals and _is_number(value)):
        tiny = value != 0 and abs(value) < 1e-4
        return f"{value:.3g}" if tiny or abs(value) >= 1e15 else f"{value:.{decimals}f}"
    return str(value)
