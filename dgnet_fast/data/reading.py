"""The one way in which a picture is read as RGB, from files, from bytes and from pictures in memory."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
"""Pillow's modes of grey pictures with 16 bits a pixel."""
TOO_DEEP = ("I", "F")
"""Modes of 32 bits a pixel, whose range nobody states."""


def as_rgb(image: Image.Image) -> Image.Image:
    """A Pillow picture as RGB with 8 bits a channel, turned as its EXIF orientation says.

    16 bits of grey are scaled to 8. Raises ValueError for 32 bits a pixel, whose range is not known.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode in TOO_DEEP:
        raise ValueError(f"it has 32 bits a pixel (mode {image.mode}); allowed: 8 or 16")
    if image.mode in SIXTEEN_BITS:
        image = Image.fromarray((np.asarray(image).astype(np.uint32) / 257).round().astype(np.uint8))
    return image.convert("RGB")


def read_picture(source: str | Path | bytes, name: str | None = None) -> Image.Image:
    """The RGB picture in a file, or in bytes that are called ``name``.

    Raises ValueError that names the picture if it is no picture, is damaged, or has another format (`as_rgb`).
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            return as_rgb(image)
    except (
        OSError,
        SyntaxError,
        ValueError,
        Image.DecompressionBombError,
    ) as error:  # Pillow's, for damaged files
        reason = "it is no image, or a damaged one" if isinstance(error, UnidentifiedImageError) else error
        raise ValueError(f"cannot read image {name or source}: {reason}") from error


def resized(image: Image.Image, height: int, width: int) -> np.ndarray:
    """An RGB picture resized bicubically, as DG-Net does: uint8 (height, width, 3)."""
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image)
