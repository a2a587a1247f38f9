"""The one way in which a picture is read as RGB, from files, from bytes and from pictures in memory."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "PPM")
"""Pillow's names of the formats that are read. Its readers of rare formats are not asked: damaged files make some of
them fail in unforeseen ways.
"""
LARGEST = 50_000_000
"""Pixels of a picture; more are refused from the header, before anything is decoded. 50 million take 0.15 GB as RGB."""
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
"""Pillow's modes of grey pictures with 16 bits a pixel."""
TOO_DEEP = ("I", "F")
"""Modes of 32 bits a pixel, whose range nobody states."""


def as_rgb(image: Image.Image) -> Image.Image:
    """A Pillow picture as RGB with 8 bits a channel, turned as its EXIF orientation says.

    16 bits of grey are scaled to 8. Raises ValueError for 32 bits a pixel, whose range is not known.
    """
    if not image.width * image.height:
        return Image.new("RGB", image.size)
    image = ImageOps.exif_transpose(image)
    if image.mode in TOO_DEEP:
        raise ValueError(f"it has 32 bits a pixel (mode {image.mode}); allowed: 8 or 16")
    if image.mode in SIXTEEN_BITS:
        image = Image.fromarray((np.asarray(image).astype(np.uint32) / 257).round().astype(np.uint8))
    return image.convert("RGB")


def _webp_size(start: bytes) -> tuple[int, int]:
    """Width and height in the extended header of a WebP file, whose reader allocates the picture when it is opened;
    (0, 0) for other files.
    """
    if start[:4] != b"RIFF" or start[8:16] != b"WEBPVP8X":
        return 0, 0
    return 1 + int.from_bytes(start[24:27], "little"), 1 + int.from_bytes(start[27:30], "little")


def _check_size(size: tuple[int, int], largest: int) -> None:
    if size[0] * size[1] > largest:
        raise ValueError(f"it has {size[0]}x{size[1]} pixels; allowed: at most {largest / 1e6:.3g} million")


def read_picture(
    source: str | Path | bytes, name: str | None = None, *, largest: int = LARGEST
) -> Image.Image:
    """The RGB picture in a file, or in bytes that are called ``name``.

    Raises ValueError that names the picture if it is no picture, is damaged, has another format (`as_rgb`), or has more
    than ``largest`` pixels, which its header says before anything is decoded.
    """
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
            _check_size(_webp_size(file.read(30)), largest)
            file.seek(0)
            with Image.open(file, formats=FORMATS) as image:
                _check_size(image.size, largest)
                return as_rgb(image)
    except UnidentifiedImageError as error:
        reason = "it is no image, or a damaged one"
        raise ValueError(f"cannot read image {name or source}: {reason}") from error
    except OSError as error:
        raise ValueError(f"cannot read image {name or source}: {error.strerror or error}") from error
    except Exception as error:  # the decoders of damaged files raise errors of many kinds
        reason = str(error) or type(error).__name__
        raise ValueError(f"cannot read image {name or source}: {reason}") from error


def resized(image: Image.Image, height: int, width: int) -> np.ndarray:
    """An RGB picture resized bicubically, as DG-Net does: uint8 (height, width, 3)."""
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image)
