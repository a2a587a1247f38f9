"""Pictures in any form that a program has them in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dgnet_fast.data.files import picture_files, unlabelled
from dgnet_fast.data.reading import as_rgb, resized


def pictures_of(pictures: Any, height: int, width: int) -> Tensor:
    """Pictures in any form that `images_of` reads as one tensor uint8 (N, 3, height, width), resized bicubically.

    Raises ValueError if there is no picture, or if one cannot be read or is of another kind.
    """
    rows = [torch.from_numpy(resized(one, height, width).copy()) for one in images_of(pictures)]
    if not rows:
        raise ValueError("no pictures")
    return torch.stack(rows).permute(0, 3, 1, 2)


def images_of(pictures: Any) -> Iterator[Image.Image]:
    """RGB pictures of any accepted input, lists of mixed kinds included. Raises ValueError that names the place in a list of
    a picture that cannot be read or is of another kind.
    """
    if isinstance(pictures, Image.Image):
        yield as_rgb(pictures)
    elif isinstance(pictures, (str, Path)):
        split = unlabelled(picture_files([pictures]))
        for index in range(len(split)):
            yield Image.fromarray(split.load(index))
    elif isinstance(pictures, np.ndarray):
        if pictures.dtype != np.uint8 or pictures.ndim not in (3, 4) or pictures.shape[-1] != 3:
            raise ValueError(
                f"an array of pictures is {pictures.dtype} of shape {pictures.shape}; "
                "expected uint8 RGB of shape (H, W, 3) or (N, H, W, 3)"
            )
        for array in pictures if pictures.ndim == 4 else [pictures]:
            yield Image.fromarray(np.ascontiguousarray(array)) if array.size else Image.new("RGB", (0, 0))
    elif isinstance(pictures, Tensor):
        yield from images_of(_array_of(pictures))
    elif isinstance(pictures, Iterable) and not isinstance(pictures, (bytes, bytearray)):
        for place, picture in enumerate(pictures):
            try:
                yield from images_of(picture)
            except (ValueError, OSError) as error:  # Pillow reads a file when its picture is used
                raise ValueError(f"picture {place}: {error}") from error
    else:
        raise ValueError(
            f"a picture is a {type(pictures).__name__}; expected a path, a PIL picture, a NumPy array or a tensor"
        )


def _array_of(tensor: Tensor) -> np.ndarray:
    """A tensor of pictures as uint8 (..., H, W, 3)."""
    tensor = tensor.detach().cpu()
    if tensor.ndim not in (3, 4) or tensor.shape[-3] != 3:
        raise ValueError(
            f"a tensor of pictures has shape {tuple(tensor.shape)}; expected (3, H, W) or (N, 3, H, W)"
        )
    if tensor.is_floating_point():
        if tensor.numel() and not (0 <= float(tensor.min()) and float(tensor.max()) <= 1):
            raise ValueError(
                "a floating-point tensor of pictures has values outside 0..1; do not normalise it"
            )
        tensor = (tensor.float() * 255).round().to(torch.uint8)
    elif tensor.dtype != torch.uint8:
        raise ValueError(f"a tensor of pictures is {tensor.dtype}; expected uint8 or floating point in 0..1")
    return tensor.movedim(-3, -1).numpy()
