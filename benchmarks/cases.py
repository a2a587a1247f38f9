"""DG-Net's real shapes, shared with tests. Pictures are 256x128, batch 8; a step decodes 48 at once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class AdainActCase(NamedTuple):
    """Where a network uses adain_act: shape of x (B, C, H, W) and which arguments it gives."""

    name: str
    shape: tuple[int, int, int, int]
    adaptive: bool
    negative_slope: float | None
    residual: bool


ADAIN_ACT = (
    AdainActCase("decoder_first", (8, 128, 64, 32), True, 0.2, False),
    AdainActCase("decoder_second", (8, 128, 64, 32), True, None, True),
    AdainActCase("decoder_step", (48, 128, 64, 32), True, 0.2, False),
    AdainActCase("structure_stem", (16, 16, 128, 64), False, 0.2, False),
    AdainActCase("structure_deep", (16, 64, 64, 32), False, 0.2, False),
)


def adain_act_inputs(
    case: AdainActCase,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    channels_last: bool = False,
    seed: int = 0,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """(x, scale, shift, residual) for a case: normal values, means away from zero, no gradients asked for."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    order = torch.channels_last if channels_last else torch.contiguous_format
    images = [draw(*case.shape) * 2 + draw(*case.shape[:2])[:, :, None, None]]
    if case.residual:
        images.append(draw(*case.shape))
    images = [image.to(device, dtype).contiguous(memory_format=order) for image in images]
    scale, shift = (draw(*case.shape[:2]).to(device) for _ in range(2)) if case.adaptive else (None, None)
    return images[0], scale, shift, images[1] if case.residual else None
