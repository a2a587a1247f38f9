"""UNIT's networks (Liu, Breuel and Kautz, NIPS 2017, as the public code has them): for each domain an encoder, a
decoder and a multi-scale patch discriminator, and for all of them one frozen VGG-16 if there is a perceptual loss.

h = enc_a(x)              code of a picture of domain a    (N, dim·2^n, H/2^n, W/2^n), n = n_downsample
x' = dec_b(h + noise)     the picture as one of domain b   (N, 3, H, W), in [-1, 1]

Nothing is shared between domains, so C domains need C encoders and C decoders. No layer mixes samples, except D's
BatchNorm.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgnet_fast.config.unit import UnitConfig, UnitDiscriminatorConfig, UnitGeneratorConfig
from dgnet_fast.models.discriminator import Discriminator
from dgnet_fast.models.layers import ConvBlock, ResidualBlock, chain, convolve, initialise
from dgnet_fast.models.typed import ModuleList
from dgnet_fast.ops import adain_act
from dgnet_fast.ops.upsample_conv import upsample_conv

VGG_MEAN = (103.939, 116.779, 123.68)
"""Means of the channels blue, green and red that the VGG-16 of the original Caffe model subtracts from 0..255."""
VGG_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
POOLED = 3
"""Stages that end in a max-pooling; the public network has none after the fourth."""


class UnitEncoder(nn.Module):
    """(N, 3, H, W) in [-1, 1] → code (N, dim·2^n_downsample, H/2^n_downsample, W/2^n_downsample)."""

    def __init__(
        self, config: UnitGeneratorConfig, init: str, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        common: dict[str, Any] = {"norm": "in", "activ": config.activ, "pad_type": config.pad_type}
        dim = config.dim
        stem = [ConvBlock(3, dim, 7, 1, 3, **common)]
        for _ in range(config.n_downsample):
            stem.append(ConvBlock(dim, 2 * dim, 4, 2, 1, **common))
            dim *= 2
        self.stem = ModuleList(stem)
        self.residual = ModuleList(ResidualBlock(dim, **common) for _ in range(config.n_res))
        self.channels = dim
        initialise(self, init, generator)

    def forward(self, x: Tensor) -> Tensor:
        return chain([*self.stem, *self.residual], x)


class UnitDecoder(nn.Module):
    """Code (N, channels, h, w) → picture (N, 3, H, W) in [-1, 1] (tanh)."""

    def __init__(
        self, config: UnitGeneratorConfig, channels: int, init: str, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        common: dict[str, Any] = {"activ": config.activ, "pad_type": config.pad_type}
        self.residual = ModuleList(ResidualBlock(channels, norm="in", **common) for _ in range(config.n_res))
        upsample = []
        for _ in range(config.n_downsample):
            upsample.append(ConvBlock(channels, channels // 2, 5, 1, 2, norm="ln", **common))
            channels //= 2
        self.upsample = ModuleList(upsample)
        self.to_rgb = ConvBlock(channels, 3, 7, 1, 3, activ="tanh", pad_type=config.pad_type)
        initialise(self, init, generator)

    def forward(self, code: Tensor) -> Tensor:
        x = chain([*self.residual], code)
        for k, block in enumerate(self.upsample):
            x = upsample_conv(x, block.conv.weight, block.conv.bias, block.pad_type)
            last = k == len(self.upsample) - 1
            x = block.finish(x, pad_result=self.to_rgb.reflection if last else 0)
        return self.to_rgb(x, padded=True)


class PatchDiscriminator(nn.Module):
    """One scale of D: (N, 3, H, W) → scores (N, 1, H/2^n_layer, W/2^n_layer), no output activation."""

    def __init__(self, config: UnitDiscriminatorConfig) -> None:
        super().__init__()
        common: dict[str, Any] = {"activ": config.activ, "pad_type": config.pad_type}
        dim = config.dim
        stem = [ConvBlock(3, dim, 4, 2, 1, **common)]
        for _ in range(config.n_layer - 1):
            stem.append(ConvBlock(dim, 2 * dim, 4, 2, 1, norm=config.norm, **common))
            dim *= 2
        self.stem = ModuleList(stem)
        self.to_score = nn.Conv2d(dim, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.to_score(chain(self.stem, x))


class UnitDiscriminator(nn.Module):
    """D of one domain: pictures (N, 3, H, W) → a score map for each scale."""

    def __init__(self, config: UnitDiscriminatorConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.scales = ModuleList(PatchDiscriminator(config) for _ in range(config.num_scales))
        initialise(self, "gaussian", generator)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        scores = []
        for k, net in enumerate(self.scales):
            x = Discriminator.shrink(x) if k else x
            scores.append(net(x))
        return tuple(scores)


class Vgg16(nn.Module):
    """VGG-16 up to relu5_3 as the public code has it: (N, 3, H, W) in [-1, 1] → (N, 512, H/8, W/8), instance-normed.

    ``instance_normed`` False gives the features before the instance norm of the loss. The weights are read from a file,
    see `dgnet_fast.checkpoints.unit.load_vgg`, and never learn.
    """

    def __init__(self) -> None:
        super().__init__()
        channels, convs = 3, {}
        for stage, widths in enumerate(VGG_STAGES, 1):
            for k, width in enumerate(widths, 1):
                convs[f"conv{stage}_{k}"] = nn.Conv2d(channels, width, 3, padding=1)
                channels = width
        self.convs = nn.ModuleDict(convs)
        self.requires_grad_(False)

    def features(self, x: Tensor) -> Tensor:
        """relu5_3."""
        if x.dtype != torch.float64:
            x = x.float()  # grey levels up to 255 have no room in bfloat16
        planes = [x[:, 2 - k].add(1).mul(127.5).sub(mean) for k, mean in enumerate(VGG_MEAN)]
        x = torch.stack(planes, dim=3).permute(0, 3, 1, 2)  # in channels_last
        for stage, widths in enumerate(VGG_STAGES, 1):
            for k in range(1, len(widths) + 1):
                conv = self.convs[f"conv{stage}_{k}"]
                assert isinstance(conv, nn.Conv2d)
                x = F.relu(convolve(conv, x), inplace=True)
            if stage <= POOLED:
                x = F.max_pool2d(x, 2, stride=2)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return adain_act(self.features(x), eps=1e-5)


class Unit(nn.Module):
    """All networks of a run. ``perceptual`` is a `Vgg16` where ``vgg_w`` is above 0."""

    def __init__(self, config: UnitConfig) -> None:
        super().__init__()
        self.config = config
        # PyTorch's layers draw first weights of their own from the caller's generator; ours take their place
        with torch.random.fork_rng(devices=[]):
            generator = torch.Generator().manual_seed(config.seed)
            domains, gen, init = range(config.domains), config.gen, config.init
            self.encoders = ModuleList(UnitEncoder(gen, init, generator) for _ in domains)
            channels = self.encoders[0].channels
            self.decoders = ModuleList(UnitDecoder(gen, channels, init, generator) for _ in domains)
            self.discriminators = ModuleList(UnitDiscriminator(config.dis, generator) for _ in domains)
            if config.same_start:
                for networks in (self.encoders, self.decoders):
                    for network in list(networks)[1:]:
                        network.load_state_dict(networks[0].state_dict())
            self.perceptual = Vgg16() if config.vgg_w > 0 else None
        self.mixes_samples = config.dis.norm == "bn"

    def generator_parameters(self) -> list[nn.Parameter]:
        """Parameters of all encoders and decoders, domain after domain: one optimiser's."""
        pairs = zip(self.encoders, self.decoders, strict=True)
        return [p for pair in pairs for network in pair for p in network.parameters()]

    @torch.no_grad()
    def translate(self, x: Tensor, source: int, target: int) -> Tensor:
        """Pictures (N, 3, H, W) in [-1, 1] of domain ``source`` as pictures of domain ``target``, without noise; with
        the same domain twice, their reconstruction.
        """
        return self.decoders[target](self.encoders[source](x))
