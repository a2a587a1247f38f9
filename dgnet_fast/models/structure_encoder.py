"""Structure encoder E_s (paper section 3.1): one-channel picture → structure code."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dgnet_fast.config import GeneratorConfig
from dgnet_fast.models.layers import ConvBlock, ResidualBlock, chain, initialise
from dgnet_fast.models.typed import ModuleList

ASPP_DILATIONS = (3, 6, 9)


class Aspp(nn.Module):
    """Atrous spatial pyramid: a 1×1 branch and three dilated ones, concatenated and mixed by a 1×1
    convolution.

    (B, C, h, w) → (B, 2C, h, w).
    """

    def __init__(self, channels: int, *, activ: str, pad_type: str) -> None:
        super().__init__()
        width = channels // 2
        self.point = ConvBlock(channels, width, 1, norm="in", activ="none")
        self.reduce = ModuleList(
            ConvBlock(channels, width, 1, norm="in", activ=activ) for _ in ASPP_DILATIONS
        )
        self.dilated = ModuleList(
            ConvBlock(width, width, 3, 1, d, norm="in", activ="none", pad_type=pad_type, dilation=d)
            for d in ASPP_DILATIONS
        )
        self.fuse = ConvBlock(4 * width, 2 * channels, 1, norm="in", activ="none")

    def forward(self, x: Tensor) -> Tensor:
        branches = [self.point(x)]
        for reduce, dilated in zip(self.reduce, self.dilated, strict=True):
            branches.append(dilated(reduce(x, pad_result=dilated.reflection), padded=True))
        return self.fuse(torch.cat(branches, dim=1))


class StructureEncoder(nn.Module):
    """E_s: (B, 1, H, W) → (B, 8·dim, H/4, W/4) at the default two downsamplings.

    H and W are multiples of 2**n_downsample. No layer mixes samples, so any pictures may share a batch.
    """

    def __init__(self, config: GeneratorConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        common: dict[str, Any] = {"norm": "in", "activ": config.activ, "pad_type": config.pad_type}
        dim = config.dim
        stem = [ConvBlock(1, dim, 3, 2, 1, **common), ConvBlock(dim, 2 * dim, 3, 1, 1, **common)]
        dim *= 2
        for _ in range(config.n_downsample - 1):
            stem += [ConvBlock(dim, dim, 3, 1, 1, **common), ConvBlock(dim, 2 * dim, 3, 2, 1, **common)]
            dim *= 2
        self.stem = ModuleList(stem)
        self.residual = ModuleList(ResidualBlock(dim, **common) for _ in range(config.n_res))
        self.aspp = Aspp(dim, activ=config.activ, pad_type=config.pad_type)
        self.tanh = config.tanh
        self.channels = 2 * dim
        initialise(self, config.init, generator)

    def forward(self, x: Tensor) -> Tensor:
        x = self.aspp(chain([*self.stem, *self.residual], x))
        return torch.tanh(x) if self.tanh else x
