"""Rank lists as a picture: each row is a query with its results, and right and wrong results are marked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from dgnet_fast.report.grid import text_picture

MARKS = {
    "right": (24, 128, 56),
    "wrong": (200, 40, 40),
    "same camera": (120, 120, 120),
    "": (215, 220, 226),
}
"""Colour of each mark's frame; '' is for unknown labels."""

HEIGHT, WIDTH = 128, 64
BORDER = 4
GAP = 6
CAPTION = 16
_PAPER = (255, 255, 255)


class Ranked(NamedTuple):
    """A result: its picture (uint8 (H, W, 3) RGB, or None if it cannot be shown), its caption and its mark."""

    picture: np.ndarray | None
    caption: str
    mark: str


class RankedRow(NamedTuple):
    """A query (uint8 (H, W, 3) RGB, or None where it cannot be shown), its caption and its results, best first."""

    picture: np.ndarray | None
    caption: str
    results: list[Ranked]


def tile_origin(row: int, column: int) -> tuple[int, int]:
    """(left, top) of the picture in `row` at rank `column` (0: the query)."""
    tile_width, tile_height = WIDTH + 2 * BORDER, HEIGHT + 2 * BORDER
    left = GAP + column * (tile_width + GAP) + (2 * GAP if column else 0) + BORDER
    top = CAPTION + GAP + row * (tile_height + 2 * CAPTION + GAP) + CAPTION + BORDER
    return left, top


def rank_list(rows: Sequence[RankedRow]) -> Image.Image:
    """A picture of queries (left) and their results by rank. The frames are green for right, red for wrong, grey
    for the same person in the query's own camera, and pale if labels are unknown.

    Pictures are shown 64×128, above each row the query's caption, below each result its own; `tile_origin`
    gives the place of each. Raises ValueError without rows and on an unknown mark.
    """
    if not rows:
        raise ValueError("a rank list needs at least one query")
    for row in rows:
        for result in row.results:
            if result.mark not in MARKS:
                raise ValueError(f"mark is {result.mark!r}; allowed: {', '.join(map(repr, MARKS))}")
    ranks = max(len(row.results) for row in rows)
    right, bottom = tile_origin(len(rows) - 1, ranks)
    sheet = Image.new("RGB", (right + WIDTH + BORDER + GAP, bottom + HEIGHT + BORDER + CAPTION + GAP), _PAPER)
    for rank in range(1, ranks + 1):
        sheet.paste(text_picture(f"{rank}", 11), (tile_origin(0, rank)[0], 2))
    sheet.paste(text_picture("query", 11), (tile_origin(0, 0)[0], 2))
    for r, row in enumerate(rows):
        left, top = tile_origin(r, 0)
        sheet.paste(
            text_picture(row.caption, 10, sheet.width - left - GAP), (left, top - CAPTION - BORDER + 2)
        )
        _paste(sheet, row.picture, (left, top))
        for rank, result in enumerate(row.results, start=1):
            left, top = tile_origin(r, rank)
            frame = (left - BORDER, top - BORDER, left + WIDTH + BORDER, top + HEIGHT + BORDER)
            sheet.paste(MARKS[result.mark], frame)
            _paste(sheet, result.picture, (left, top))
            sheet.paste(text_picture(result.caption, 10, WIDTH), (left, top + HEIGHT + BORDER + 1))
    return sheet


def _paste(sheet: Image.Image, picture: np.ndarray | None, origin: tuple[int, int]) -> None:
    if picture is None:
        sheet.paste(_PAPER, (*origin, origin[0] + WIDTH, origin[1] + HEIGHT))
        sheet.paste(text_picture("missing", 10, WIDTH), (origin[0] + 8, origin[1] + HEIGHT // 2))
        return
    tile = Image.fromarray(np.ascontiguousarray(picture))
    if tile.size != (WIDTH, HEIGHT):
        tile = tile.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    sheet.paste(tile, origin)
