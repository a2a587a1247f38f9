"""Multi-scale discriminator D (paper section 3.1; three equal nets on a picture pyramid)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgnet_fast.config import DiscriminatorConfig
from dgnet_fast.models.layers import ConvBlock, ResidualBlock, SelfAttention2d, chain, convolve, initialise
from dgnet_fast.models.typed import ModuleList

MAX_CHANNELS = 512


class ScaleDiscriminator(nn.Module):
    """One scale: (B, 3, H, W) → (B, 1, H/4, W/4) at the default two stride-2 layers, no output activation."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        common: dict[str, Any] = {
            "norm": config.norm,
            "activ": config.activ,
            "pad_type": config.pad_type,
            "twice_differentiable": True,
        }
        dim = config.dim
        stem = [
            ConvBlock(3, dim, 1, **common),
            ConvBlock(dim, dim, 3, 1, 1, **common),
            ConvBlock(dim, dim, 3, 2, 1, **common),
        ]
        for _ in range(config.n_layer - 1):
            wider = min(2 * dim, MAX_CHANNELS)
            stem += [ConvBlock(dim, dim, 3, 1, 1, **common), ConvBlock(dim, wider, 3, 2, 1, **common)]
            dim = wider
        self.stem = ModuleList(stem)
        self.attention_before = SelfAttention2d(dim) if config.non_local > 1 else None
        self.residual = ModuleList(ResidualBlock(dim, **common) for _ in range(config.n_res))
        self.attention_after = SelfAttention2d(dim) if config.non_local > 0 else None
        self.to_score = nn.Conv2d(dim, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.attention_before is None and len(self.residual) and self.residual[0].serves_two(x):
            x = chain([*self.stem, *self.residual], x)
        else:
            x = chain(self.stem, x)
            if self.attention_before is not None:
                x = self.attention_before(x)
            for block in self.residual:  # no chain: here a sum and its padding are two passes either way
                x = block(x)
        if self.attention_after is not None:
            x = self.attention_after(x)
        return convolve(self.to_score, x, twice=True)


class WassersteinDiscriminator(nn.Module):
    """``gan_type: wgan``: six 4×4 stride-2 convolutions and a 4×2 one; 256×128 pictures give one score each."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        common: dict[str, Any] = {
            "activ": config.activ,
            "pad_type": config.pad_type,
            "twice_differentiable": True,
        }
        dim = config.dim
        stem = [ConvBlock(3, dim, 4, 2, 1, **common)]
        for _ in range(5):
            wider = min(2 * dim, MAX_CHANNELS)
            stem.append(ConvBlock(dim, wider, 4, 2, 1, norm=config.norm, **common))
            dim = wider
        self.stem = ModuleList(stem)
        self.to_score = nn.Conv2d(dim, 1, (4, 2))

    def forward(self, x: Tensor) -> Tensor:
        return convolve(self.to_score, chain(self.stem, x), twice=True)


class Discriminator(nn.Module):
    """D: picture → one score map per scale. No layer mixes samples, so streams may share a batch; except with
    norm ``bn`` (`mixes_samples`), where a batch is what the public code gives it: one stream, real or fake.
    """

    def __init__(self, config: DiscriminatorConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if config.gan_type == "wgan":
            nets = [WassersteinDiscriminator(config)]
        else:
            nets = [ScaleDiscriminator(config) for _ in range(config.num_scales)]
        self.kind = config.gan_type
        self.mixes_samples = config.norm == "bn"
        self.scales = ModuleList(nets)
        initialise(self, "gaussian", generator)

    @staticmethod
    def shrink(x: Tensor, times: int = 1) -> Tensor:
        """Halve a picture ``times`` times: 3×3 average, stride 2, the padding not counted."""
        for _ in range(times):
            x = F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)
        return x

    def score(self, x: Tensor, scale: int) -> Tensor:
        """Score map (N, 1, h, w) of pictures already shrunk to that scale."""
        return self.scales[scale](x)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        scores = []
        for k in range(len(self.scales)):
            x = self.shrink(x) if k else x
            scores.append(self.score(x, k))
        return tuple(scores)
