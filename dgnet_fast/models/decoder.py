"""Decoder G and the MLPs that drive its AdaIN layers (paper section 3.1, "generative module")."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgnet_fast.config import GeneratorConfig
from dgnet_fast.models.layers import (
    FUSED_SLOPES,
    INSTANCE_EPS,
    ConvBlock,
    SelfAttention2d,
    activation_module,
    as_computed,
    chain,
    follower_adds_bias,
    initialise,
    initialise_weight,
)
from dgnet_fast.models.recompute import recomputed
from dgnet_fast.models.typed import ModuleList
from dgnet_fast.ops import adain_act, appearance_mlp
from dgnet_fast.ops.padding import with_interior
from dgnet_fast.ops.upsample_conv import upsample_conv, upsample_conv_phases

STRIPS = 4
"""The appearance code is cut in four consecutive quarters; each feeds one scale and one shift MLP."""


class AdainParameters(NamedTuple):
    """Scale and shift of the AdaIN layers, (B, 8, C) each: layer k of the decoder takes column k of `layers`."""

    scale: Tensor
    shift: Tensor

    def layers(self, count: int) -> list[tuple[Tensor, Tensor]]:
        """(B, C) scale and shift of each of ``count`` layers; those beyond the eighth share the last column."""
        pairs = list(zip(self.scale.unbind(1), self.shift.unbind(1), strict=True))
        return [pairs[min(k, len(pairs) - 1)] for k in range(count)]


class AppearanceMlp(nn.Module):
    """The eight MLPs from an appearance code (B, 4·id_dim) to AdaIN parameters: the op `appearance_mlp` for lrelu
    and relu without norm, else three batched matmuls.

    MLPs 0…3 give the scales of code quarters 0…3, MLPs 4…7 the shifts. Each is id_dim → mlp_dim → mlp_dim →
    2·channels with the activation between; its first ``channels`` outputs serve the first AdaIN of decoder
    block k, the others the second.
    """

    COUNT = 2 * STRIPS

    def __init__(
        self, config: GeneratorConfig, channels: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        widths = (config.id_dim, config.mlp_dim, config.mlp_dim, 2 * channels)
        self.channels, self.code_length = channels, STRIPS * config.id_dim
        self.norm = config.mlp_norm
        self.weights = nn.ParameterList(
            nn.Parameter(torch.empty(self.COUNT, n_out, n_in))
            for n_in, n_out in zip(widths[:-1], widths[1:], strict=True)
        )
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(self.COUNT, n_out)) for n_out in widths[1:])
        for weight in self.weights:
            for one in weight:
                initialise_weight(one.data, config.init, generator)
        self.slopes = None
        self.activation = None
        if config.activ == "prelu":  # one learned slope for every hidden layer of every MLP
            self.slopes = nn.ParameterList(
                nn.Parameter(torch.full((self.COUNT, 1), 0.25)) for _ in widths[1:-1]
            )
        else:
            self.activation = activation_module(config.activ)

    @torch.no_grad()
    def fit_to(self, codes: Tensor, spread: float = 0.3) -> None:
        """A start that depends on data, codes (N, 4·id_dim) of many pictures: the first layer sees them centred and
        scaled to unit variance, and AdaIN starts at scale 1 and shift 0, give or take ``spread`` of what the last layer's
        initialisation gives.

        Codes are far from that: maxima after a ReLU, whose mean over pictures is 1.5 times as long as what tells two
        pictures apart, so that an MLP of plain initialisation answers all pictures alike, with scales of random sign.
        """
        mean = codes.mean(dim=0).view(STRIPS, 1, -1).repeat(2, 1, 1)
        std = codes.std(dim=0).view(STRIPS, 1, -1).repeat(2, 1, 1)
        first, last = self.weights[0], self.weights[-1]
        first.div_(std.clamp(min=0.1 * std.mean()))
        self.biases[0].copy_(-(first * mean).sum(dim=2))
        last.mul_(spread)
        self.biases[-1][:STRIPS].fill_(1.0)
        self.biases[-1][STRIPS:].zero_()

    def _hidden(self, x: Tensor, layer: int) -> Tensor:
        if self.norm == "in":
            x = F.layer_norm(x, x.shape[-1:], eps=INSTANCE_EPS)
        if self.slopes is not None:
            return torch.where(x > 0, x, x * self.slopes[layer].unsqueeze(1).to(x.dtype))
        return x if self.activation is None else self.activation(x)

    def forward(self, code: Tensor) -> AdainParameters:
        if code.ndim != 2 or code.shape[1] != self.code_length:
            raise ValueError(
                f"appearance code has shape {tuple(code.shape)}; expected (batch, {self.code_length})"
            )
        code = as_computed(code, self.weights[0])
        slope = FUSED_SLOPES.get(type(self.activation))
        if slope is not None and self.norm == "none":
            scale, shift = appearance_mlp(code, list(self.weights), list(self.biases), negative_slope=slope)
            return AdainParameters(scale.transpose(0, 1), shift.transpose(0, 1))
        batch = code.shape[0]
        quarters = code.view(batch, STRIPS, -1).transpose(0, 1)
        x = quarters.expand(2, *quarters.shape).reshape(self.COUNT, batch, -1)
        last = len(self.weights) - 1
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))
            if layer < last:
                x = self._hidden(x, layer)
        # (2·4, B, 2C) → two of (B, 4·2, C): quarter-major, then first and second AdaIN of the block
        scale, shift = (
            x.view(2, STRIPS, batch, 2, self.channels)
            .permute(0, 2, 1, 3, 4)
            .reshape(2, batch, -1, self.channels)
        )
        return AdainParameters(scale, shift)


class AdainBlock(nn.Module):
    """Residual block of G in its three forms (``gen.dec``).

    basic: conv-AdaIN-act, conv-AdaIN, plus the input. series: y = conv(x), y ← IN(AdaIN(y) + y).
    parallel: y ← IN(conv(x) + AdaIN(x)); both with the activation after the first half and the input added at
    the end.
    """

    def __init__(self, channels: int, config: GeneratorConfig) -> None:
        super().__init__()
        self.kind = config.dec
        common: dict[str, Any] = {"norm": "adain", "pad_type": config.pad_type}
        self.conv1 = ConvBlock(channels, channels, 3, 1, 1, activ=config.activ, **common)
        self.conv2 = ConvBlock(channels, channels, 3, 1, 1, activ="none", **common)

    def _half(self, block: ConvBlock, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        if self.kind == "series":
            x = block.convolve(x)
            x = adain_act(x, scale, shift, x, eps=INSTANCE_EPS)
        else:
            x = adain_act(x, scale, shift, block.convolve(x), eps=INSTANCE_EPS)
        return block.activate(adain_act(x, eps=INSTANCE_EPS))

    @property
    def reflection(self) -> int:
        """Reflect padding that the block wants of its input."""
        return self.conv1.reflection if self.kind == "basic" else 0

    def forward(
        self,
        x: Tensor,
        first: tuple[Tensor, Tensor],
        second: tuple[Tensor, Tensor],
        *,
        padded: bool = False,
        pad_result: int = 0,
    ) -> Tensor:
        """``padded``: x comes padded by `reflection`; ``pad_result``, 0 or `reflection`: so does the result."""
        if self.kind == "basic":
            x, residual = with_interior(x, self.reflection) if padded else (x, x)
            half = self.conv1(x, *first, padded=padded, pad_result=self.conv2.reflection)
            return self.conv2(half, *second, residual=residual, padded=True, pad_result=pad_result)
        return self._half(self.conv2, self._half(self.conv1, x, *first), *second) + x


class Decoder(nn.Module):
    """G: structure code (B, C, h, w) and AdaIN parameters → picture (B, 3, H, W), ImageNet-normalised, no
    activation. Codes of any floating dtype: stored ones need not have the precision that G computes in.

    With ``checkpoint`` set, everything from the first upsampling on keeps a stage's input only and computes the rest again
    in the backward pass.
    """

    def __init__(
        self, config: GeneratorConfig, channels: int, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.channels, self.checkpoint = channels, False
        self.dropout = nn.Dropout(config.dropout)
        self.residual = ModuleList(AdainBlock(channels, config) for _ in range(config.n_res))
        self.attention = SelfAttention2d(channels) if config.non_local else None
        common: dict[str, Any] = {"activ": config.activ, "pad_type": config.pad_type}
        upsample = []
        for _ in range(config.n_downsample):
            upsample.append(ConvBlock(channels, channels // 2, 5, 1, 2, norm="ln", **common))
            channels //= 2
        self.upsample = ModuleList(upsample)
        self.refine = ModuleList(ConvBlock(channels, channels, 3, 1, 1, **common) for _ in range(2))
        self.to_rgb = ConvBlock(channels, 3, 1, activ="none")
        initialise(self, config.init, generator)

    def forward(self, structure: Tensor, adain: AdainParameters) -> Tensor:
        # else a block's first convolution would answer in another precision than its residual has
        x = self.dropout(as_computed(structure, self.to_rgb.conv.weight))
        adain = AdainParameters(*(p if p.dtype == torch.float32 else p.to(x.dtype) for p in adain))
        layers = adain.layers(2 * len(self.residual))
        for k, block in enumerate(self.residual):
            last = k == len(self.residual) - 1
            pad_result = 0 if last else block.reflection
            x = block(x, *layers[2 * k : 2 * k + 2], padded=k > 0, pad_result=pad_result)
        if self.attention is not None:
            x = self.attention(x)
        run = recomputed if self.checkpoint else (lambda stage, x: stage(x))
        for k, block in enumerate(self.upsample):
            pad_result = self.refine[0].reflection if k == len(self.upsample) - 1 else 0
            x = run(functools.partial(_upsample_stage, block, pad_result), x)
        return run(self._to_picture, x)

    def _to_picture(self, x: Tensor) -> Tensor:
        return self.to_rgb(chain(self.refine, x, padded=len(self.upsample) > 0))


def _upsample_stage(block: ConvBlock, pad_result: int, x: Tensor) -> Tensor:
    conv = block.conv
    if block.takes_phases and follower_adds_bias(x):
        small = upsample_conv_phases(x, conv.weight, block.pad_type)
        return block.finish(small, pad_result=pad_result, bias=conv.bias, phases=True)
    x = upsample_conv(x, conv.weight, conv.bias, block.pad_type)
    return block.finish(x, pad_result=pad_result)
