"""Triton body of `dgnet_fast.data.augment.assemble`: gather, flip, edge-pad, crop and normalise in one launch.

One program makes BLOCK pixels of a picture, all three channels: the places that pixels come from are worked out
once. Device memory traffic is the minimum, each byte of the chosen pictures read once (they overlap their crop but
for the border) and each value written once: 5 bytes a value in float32, 3 in bfloat16.

The difference from 255 * mean and the product with 1 / (255 * std) are rounded as PyTorch rounds them, so results
equal `normalize`'s to the last bit; there is no sum after the product that could be fused.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def assemble_pictures(
    images_ptr, indices_ptr, flip_ptr, top_ptr, left_ptr, out_ptr,
    offset0, offset1, offset2, scale0, scale1, scale2, pad,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    picture = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = pixel < HEIGHT * WIDTH
    top, left = tl.load(top_ptr + picture).to(tl.int32), tl.load(left_ptr + picture).to(tl.int32)
    row = tl.minimum(tl.maximum(pixel // WIDTH + top - pad, 0), HEIGHT - 1)
    column = tl.minimum(tl.maximum(pixel % WIDTH + left - pad, 0), WIDTH - 1)
    column = tl.where(tl.load(flip_ptr + picture) != 0, WIDTH - 1 - column, column)
    source = images_ptr + tl.load(indices_ptr + picture) * (3 * HEIGHT * WIDTH) + row * WIDTH + column
    target = out_ptr + picture * (3 * HEIGHT * WIDTH) + pixel
    for channel in tl.static_range(3):
        if channel == 0:
            offset, scale = offset0, scale0
        elif channel == 1:
            offset, scale = offset1, scale1
        else:
            offset, scale = offset2, scale2
        value = tl.load(source + channel * (HEIGHT * WIDTH), mask, other=0).to(tl.float32)
        value = (value - offset) * scale
        tl.store(target + channel * (HEIGHT * WIDTH), value.to(out_ptr.dtype.element_ty), mask)


def forward(
    images: Tensor,
    indices: Tensor,
    flip: Tensor,
    top: Tensor,
    left: Tensor,
    pad: int,
    offset: list[float],
    scale: list[float],
    dtype: torch.dtype,
) -> Tensor:
    """`assemble` for contiguous tensors: images uint8 (N, 3, H, W), the four others int64 (n,)."""
    _, channels, height, width = images.shape
    assert channels == 3 and images.is_contiguous() and height * width < 2**30
    assert all(t.dtype == torch.int64 and t.is_contiguous() for t in (indices, flip, top, left))
    out = torch.empty((len(indices), 3, height, width), dtype=dtype, device=images.device)
    block = min(BLOCK, triton.next_power_of_2(height * width))
    grid = (triton.cdiv(height * width, block), len(indices))
    assemble_pictures[grid](
        images, indices, flip, top, left, out, *offset, *scale, pad,
        HEIGHT=height, WIDTH=width, BLOCK=block, num_warps=4,
    )  # fmt: skip
    return out
