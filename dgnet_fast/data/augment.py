"""Normalisation, flips, crops and random erasing of whole uint8 batches, on any device."""

from __future__ import annotations

import os

import numpy as np
import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_ERASING_TRIES = 100


def _channel_constants(images: Tensor) -> tuple[Tensor, Tensor]:
    if images.dim() < 3 or images.shape[-3] != 3:
        raise ValueError(f"images must be (..., 3, H, W), got {tuple(images.shape)}")
    mean = torch.tensor(IMAGENET_MEAN, dtype=torch.float32, device=images.device).view(3, 1, 1)
    std = torch.tensor(IMAGENET_STD, dtype=torch.float32, device=images.device).view(3, 1, 1)
    return mean, std


def normalizing_constants() -> tuple[list[float], list[float]]:
    """What `normalize` subtracts from 0..255, and then multiplies by, for each channel; float32 values."""
    mean, std = (torch.tensor(values, dtype=torch.float32) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (255 * mean).tolist(), (1 / (255 * std)).tolist()


def normalize(images: Tensor) -> Tensor:
    """(images / 255 - mean) / std with ImageNet's mean and std; uint8 (..., 3, H, W) to float32."""
    if images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8, got {images.dtype}")
    mean, std = _channel_constants(images)
    return images.float().sub_(255 * mean).mul_(1 / (255 * std))


def denormalize(images: Tensor) -> Tensor:
    """The inverse of `normalize`, rounded and clamped: float (..., 3, H, W) to uint8."""
    if not images.is_floating_point():
        raise ValueError(f"images must be floating point, got {images.dtype}")
    mean, std = _channel_constants(images)
    return (images.float() * (255 * std) + 255 * mean).round_().clamp_(0, 255).to(torch.uint8)


def flip_pad_crop(
    images: Tensor, indices: Tensor, flip: Tensor, top: Tensor, left: Tensor, pad: int
) -> Tensor:
    """Pictures `indices` of `images`, flipped where told, edge-padded by `pad` and cropped back to size: (n,
    C, H, W).

    `images` (N, C, H, W) contiguous; `indices` int64 (n,); `flip` bool (n,); `top`, `left` int64 (n,) in
    0..2*pad, the crop's corner in the padded picture. All on one device. Rows are gathered from the whole
    data set and then columns from the rows, so neither the chosen, the flipped nor the padded pictures are
    ever built (2.6 ms for 32 pictures of 256x128 on a CPU core).
    """
    _, channels, height, width = images.shape
    device = images.device
    rows = (torch.arange(-pad, height - pad, device=device) + top[:, None]).clamp_(0, height - 1)
    columns = (torch.arange(-pad, width - pad, device=device) + left[:, None]).clamp_(0, width - 1)
    columns = torch.where(flip[:, None], width - 1 - columns, columns)
    planes = indices[:, None] * channels + torch.arange(channels, device=device)
    rows = planes[:, :, None] * height + rows[:, None]
    chosen = (
        images.view(-1, width).index_select(0, rows.view(-1)).view(len(indices), channels * height, width)
    )
    return chosen.gather(2, columns[:, None].expand_as(chosen)).view(-1, channels, height, width)


def assemble(
    images: Tensor,
    indices: Tensor,
    flip: Tensor,
    top: Tensor,
    left: Tensor,
    pad: int,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """`flip_pad_crop` and `normalize` in one: uint8 (N, 3, H, W) to `dtype` (n, 3, H, W), contiguous.

    `indices`, `flip` (0 or 1), `top` and `left` int64 (n,); `dtype` float32, bfloat16 or float16. On a CUDA
    device that is one Triton kernel (`kernels/assemble.py`), elsewhere, and with DGNET_FAST_IMPL=reference, the
    two functions; the values are the same to the last bit.
    """
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"dtype must be float32, bfloat16 or float16, got {dtype}")
    if images.is_cuda and os.environ.get("DGNET_FAST_IMPL") != "reference":
        # imports triton: only where it serves; for pyright, which does not know that setup.py installs kernels/ there
        from dgnet_fast.kernels import assemble as kernels  # pyright: ignore[reportMissingImports]

        offset, scale = normalizing_constants()
        with torch.cuda.device_of(images):
            return kernels.forward(images, indices, flip, top, left, pad, offset, scale, dtype)
    return normalize(flip_pad_crop(images, indices, flip.bool(), top, left, pad)).to(dtype)


def random_erasing_boxes(
    rng: np.random.Generator, count: int, height: int, width: int, probability: float
) -> np.ndarray:
    """Rectangles to erase, int64 (count, 4) of (top, left, height, width); all 0 where a sample keeps its
    picture.

    With `probability` each sample draws an area of 2 to 40 % of the picture and an aspect ratio of 0.3 to
    1/0.3 until the rectangle fits (at most 100 times, then it stays whole), and a uniform place for it.
    """
    boxes = np.zeros((count, 4), dtype=np.int64)
    pending = np.flatnonzero(rng.random(count) < probability)
    for _ in range(_ERASING_TRIES):
        if not len(pending):
            break
        area = rng.uniform(0.02, 0.4, len(pending)) * (height * width)
        aspect = rng.uniform(0.3, 1 / 0.3, len(pending))
        tall = np.rint(np.sqrt(area * aspect)).astype(np.int64)
        wide = np.rint(np.sqrt(area / aspect)).astype(np.int64)
        fits = (tall < height) & (wide < width) & (tall > 0) & (wide > 0)
        chosen, tall, wide = pending[fits], tall[fits], wide[fits]
        place = rng.random((2, len(chosen)))
        top = (place[0] * (height - tall + 1)).astype(np.int64)
        left = (place[1] * (width - wide + 1)).astype(np.int64)
        boxes[chosen] = np.stack([top, left, tall, wide], axis=1)
        pending = pending[~fits]
    return boxes


def erase(images: Tensor, boxes: Tensor) -> Tensor:
    """`images` (N, C, H, W) with the rectangles `boxes` (N, 4) of (top, left, height, width) set to 0, the
    mean colour after normalisation. Height 0 erases nothing. Out of place, without a host synchronisation.
    """
    if images.dim() != 4 or boxes.shape != (images.shape[0], 4):
        raise ValueError(
            f"expected images (N, C, H, W) and boxes (N, 4), got {tuple(images.shape)}, {tuple(boxes.shape)}"
        )
    rows = torch.arange(images.shape[2], device=images.device)[None]
    columns = torch.arange(images.shape[3], device=images.device)[None]
    top, left, height, width = (boxes[:, i : i + 1] for i in range(4))
    in_rows = (rows >= top) & (rows < top + height)
    in_columns = (columns >= left) & (columns < left + width)
    return images.masked_fill((in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0)
