"""The grid of swaps: each row is a structure, each column is an appearance, and each cell is the generated picture."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dgnet_fast.config.shown import one_line

MARGIN = 26  # above and left, for the captions
GAP = 4  # between pictures
HEADER_GAP = 12  # between the given pictures and the generated ones
_LABEL_HEIGHT = 16  # a line of text under a caption
_SHOWN_HEIGHT = 128  # pictures less high are enlarged to at least this
_INK = (45, 55, 72)
_PAPER = (255, 255, 255)


def cell_origin(
    row: int, column: int, height: int, width: int, *, scale: int = 1, labels: bool = False
) -> tuple[int, int]:
    """(left, top) in the grid of the picture at `row`, `column`; row 0 are the appearances, column 0 the
    structures.

    Args:
        height, width: of one picture, in pixels before scaling.
        scale: the grid's enlargement.
        labels: whether the grid has a line of labels per row and column.
    """
    margin = MARGIN + labels * _LABEL_HEIGHT
    left = margin + column * (width * scale + GAP) + (HEADER_GAP - GAP) * (column > 0)
    top = margin + row * (height * scale + GAP) + (HEADER_GAP - GAP) * (row > 0)
    return left, top


def image_grid(
    structures: Tensor | np.ndarray,
    appearances: Tensor | np.ndarray,
    cells: Tensor | np.ndarray,
    *,
    scale: int | None = None,
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
) -> Image.Image:
    """Lay out generated pictures under their appearances and beside their structures.

    Args:
        structures: uint8 (R, 3, H, W), the first column.
        appearances: uint8 (C, 3, H, W), the first row. The corner stays empty.
        cells: uint8 (R, C, 3, H, W); cell [r, c] has the structure of r and the appearance of c.
        scale: whole-number enlargement without interpolation; None takes the smallest that shows pictures at
            least 128 pixels high.
        row_labels, column_labels: short texts beside rows and above columns; cut to the picture's side.

    Returns:
        An RGB picture; `cell_origin` gives the position of each part.

    Raises:
        ValueError: dtypes, shapes or numbers of labels that do not fit, or a scale below 1.
    """
    structures, appearances, cells = (
        x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)
        for x in (structures, appearances, cells)
    )
    for name, array, rank in (
        ("structures", structures, 4),
        ("appearances", appearances, 4),
        ("cells", cells, 5),
    ):
        if array.dtype != np.uint8 or array.ndim != rank or array.shape[-3] != 3 or 0 in array.shape:
            raise ValueError(f"{name} are {array.dtype} of shape {array.shape}; expected uint8 (…, 3, H, W)")
    rows, columns = len(structures), len(appearances)
    picture = cells.shape[2:]
    if (
        cells.shape[:2] != (rows, columns)
        or structures.shape[1:] != picture
        or appearances.shape[1:] != picture
    ):
        raise ValueError(
            f"cells have shape {cells.shape}; with structures {structures.shape} and appearances "
            f"{appearances.shape} expected {(rows, columns, *structures.shape[1:])}"
        )
    for name, texts, count in (("row_labels", row_labels, rows), ("column_labels", column_labels, columns)):
        if texts is not None and len(texts) != count:
            raise ValueError(f"{name} has {len(texts)} entries for {count} pictures")
    height, width = picture[1:]
    zoom = -(-_SHOWN_HEIGHT // height) if scale is None else scale
    if zoom < 1:
        raise ValueError(f"scale is {zoom}; it must be a whole number of at least 1")

    labels = row_labels is not None or column_labels is not None

    def origin(row: int, column: int) -> tuple[int, int]:
        return cell_origin(row, column, height, width, scale=zoom, labels=labels)

    size = (width * zoom, height * zoom)
    right, bottom = origin(rows, columns)
    grid = Image.new("RGB", (right + size[0] + GAP, bottom + size[1] + GAP), _PAPER)
    placed = [((r + 1, 0), x) for r, x in enumerate(structures)]
    placed += [((0, c + 1), x) for c, x in enumerate(appearances)]
    placed += [((r + 1, c + 1), cells[r, c]) for r in range(rows) for c in range(columns)]
    for position, pixels in placed:
        tile = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
        grid.paste(tile.resize(size, Image.Resampling.NEAREST), origin(*position))

    left, top = origin(1, 1)
    captions = (
        text_picture("appearance →", 13),
        text_picture("structure →", 13).transpose(Image.Transpose.ROTATE_270),
    )
    grid.paste(captions[0], (left, (MARGIN - captions[0].height) // 2))
    grid.paste(captions[1], ((MARGIN - captions[1].width) // 2, top))
    for c, text in enumerate(column_labels or ()):
        label = text_picture(text, 10, size[0])
        grid.paste(label, (origin(0, c + 1)[0], MARGIN))
    for r, text in enumerate(row_labels or ()):
        label = text_picture(text, 10, size[1]).transpose(Image.Transpose.ROTATE_270)
        grid.paste(label, (MARGIN, origin(r + 1, 0)[1]))
    return grid


@cache
def _font(points: int) -> ImageFont.FreeTypeFont:
    # matplotlib brings DejaVu Sans along, so it is there on any machine; Pillow's own font has neither arrows nor
    # accents. Its file is found without importing matplotlib, which takes a second.
    spec = importlib.util.find_spec("matplotlib")
    assert spec is not None and spec.origin is not None
    path = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
    if not path.is_file():  # some distributions keep fonts elsewhere
        from matplotlib import font_manager

        path = font_manager.findfont("DejaVu Sans")
    return ImageFont.truetype(str(path), points)


def text_picture(text: str, points: int, longest: int | None = None) -> Image.Image:
    """One line of text as a picture, cut to `longest` pixels. What no line can show is escaped."""
    text = one_line(text)[:500]
    font = _font(points)
    ascent, descent = font.getmetrics()
    length = int(font.getlength(text)) + 1
    picture = Image.new("RGB", (min(length, longest or length), ascent + descent), _PAPER)
    ImageDraw.Draw(picture).text((0, 0), text, font=font, fill=_INK)
    return picture


SHOWN_HEIGHT = 128


def picture_rows(
    rows: Sequence[Sequence[Tensor]], captions: Sequence[str], *, breaks: Sequence[int] = ()
) -> Image.Image:
    """Rows of equally large uint8 pictures (3, H, W) under captions, with a wider gap before columns ``breaks``.

    Pictures less than 128 pixels high are enlarged by a whole number, without interpolation.
    """
    height, width = rows[0][0].shape[1:]
    scale = -(-SHOWN_HEIGHT // height)
    size = width * scale, height * scale
    lefts, left = [], GAP
    for column in range(len(captions)):
        left += (HEADER_GAP - GAP) * (column in breaks)
        lefts.append(left)
        left += size[0] + GAP
    page = Image.new("RGB", (left, MARGIN + len(rows) * (size[1] + GAP)), (255, 255, 255))
    for left, caption in zip(lefts, captions, strict=True):
        page.paste(text_picture(caption, 11, size[0]), (left, 6))
    for r, row in enumerate(rows):
        for left, picture in zip(lefts, row, strict=True):
            tile = Image.fromarray(np.ascontiguousarray(picture.cpu().permute(1, 2, 0).numpy()))
            page.paste(tile.resize(size, Image.Resampling.NEAREST), (left, MARGIN + r * (size[1] + GAP)))
    return page


def to_image(picture: Tensor) -> Image.Image:
    """A Pillow image of one uint8 picture (3, H, W)."""
    return Image.fromarray(np.ascontiguousarray(picture.cpu().permute(1, 2, 0).numpy()))
