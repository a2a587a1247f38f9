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


class LayerNormActCase(NamedTuple):
    """Where the decoder uses layer_norm_act: shape of x (B, C, H, W)."""

    name: str
    shape: tuple[int, int, int, int]


LAYER_NORM_ACT = (
    LayerNormActCase("decoder_up1", (8, 64, 128, 64)),
    LayerNormActCase("decoder_up2", (8, 32, 256, 128)),
    LayerNormActCase("decoder_up2_step", (48, 32, 256, 128)),
)


def layer_norm_act_inputs(
    case: LayerNormActCase,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    channels_last: bool = False,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """(x, gamma, beta) for a case: normal x of mean 1 and deviation 2, gamma from U(0, 1) as drawn at first."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(case.shape, generator=generator) * 2 + 1
    gamma = torch.rand(case.shape[1], generator=generator)
    beta = 0.1 * torch.randn(case.shape[1], generator=generator)
    return x.to(device, dtype).contiguous(memory_format=order), gamma.to(device), beta.to(device)


class BatchNormActCase(NamedTuple):
    """Where E_a uses batch_norm_act, with residual and ReLU: shape of x (B, C, H, W) and groups of the batch."""

    name: str
    shape: tuple[int, int, int, int]
    groups: int


BATCH_NORM_ACT = (
    BatchNormActCase("layer1", (8, 256, 64, 32), 4),
    BatchNormActCase("layer4", (8, 2048, 16, 8), 4),
)


def batch_norm_act_inputs(
    case: BatchNormActCase,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    channels_last: bool = False,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x, weight, bias, residual) for a case: normal values, no gradients asked for."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.channels_last if channels_last else torch.contiguous_format
    x, residual = (
        torch.randn(case.shape, generator=generator).to(device, dtype).contiguous(memory_format=order)
        for _ in range(2)
    )
    weight, bias = (torch.randn(case.shape[1], generator=generator).to(device) for _ in range(2))
    return x, weight, bias, residual


class UpsampleConvCase(NamedTuple):
    """Where the decoder uses upsample_conv: shape of the small x (B, C, H, W) and channels of the result."""

    name: str
    shape: tuple[int, int, int, int]
    out_channels: int


UPSAMPLE_CONV = (
    UpsampleConvCase("decoder_up1", (8, 128, 64, 32), 64),
    UpsampleConvCase("decoder_up2", (8, 64, 128, 64), 32),
    UpsampleConvCase("decoder_up1_step", (48, 128, 64, 32), 64),
)


def upsample_conv_inputs(
    case: UpsampleConvCase,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    channels_last: bool = False,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """(x, weight (O, C, 5, 5), bias (O,)) for a case, all in `dtype`; results of about unit deviation."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.channels_last if channels_last else torch.contiguous_format
    channels = case.shape[1]
    x = torch.randn(case.shape, generator=generator)
    weight = torch.randn(case.out_channels, channels, 5, 5, generator=generator) / (5 * channels**0.5)
    bias = 0.1 * torch.randn(case.out_channels, generator=generator)
    x, weight = (one.to(device, dtype).contiguous(memory_format=order) for one in (x, weight))
    return x, weight, bias.to(device, dtype)


class AppearanceMlpCase(NamedTuple):
    """Rows of appearance codes at once; the rest is the paper's: 4 quarters of 2048, 512 wide, 128 channels."""

    name: str
    batch: int


APPEARANCE_MLP = (AppearanceMlpCase("decode", 8), AppearanceMlpCase("decode_step", 48))
MLP_COUNT, MLP_WIDTHS = 8, (2048, 512, 512, 256)


def appearance_mlp_inputs(
    case: AppearanceMlpCase, *, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """(code in `dtype`, weights, biases in float32, as they are under autocast) for a case."""
    generator = torch.Generator().manual_seed(seed)
    code = torch.rand(case.batch, MLP_COUNT // 2 * MLP_WIDTHS[0], generator=generator).to(device, dtype)
    weights, biases = [], []
    for n_in, n_out in zip(MLP_WIDTHS[:-1], MLP_WIDTHS[1:], strict=True):
        weight = torch.randn(MLP_COUNT, n_out, n_in, generator=generator) * (2 / n_in) ** 0.5
        weights.append(weight.to(device))
        biases.append(0.1 * torch.randn(MLP_COUNT, n_out, generator=generator).to(device))
    return code, weights, biases
