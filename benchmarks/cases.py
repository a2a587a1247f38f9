"""DG-Net's real shapes, shared with tests. Pictures are 256x128, batch 8; a step decodes 48 at once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class _Draw:
    """Seeded normal values, as asked for: each tensor is drawn in float32 on the CPU and then moved."""

    def __init__(self, seed: int, device: str, dtype: torch.dtype, channels_last: bool = False) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.device, self.dtype = device, dtype
        self.order = torch.channels_last if channels_last else torch.contiguous_format

    def normal(self, *shape: int) -> Tensor:
        """float32, on the CPU."""
        return torch.randn(shape, generator=self.generator)

    def picture(self, value: Tensor) -> Tensor:
        """`value` (B, C, H, W) in the case's dtype, memory order and device."""
        return value.to(self.device, self.dtype).contiguous(memory_format=self.order)


class ActPadCase(NamedTuple):
    """Where D uses act_pad, with the padding of a 3×3 convolution: shape of x (B, C, H, W)."""

    name: str
    shape: tuple[int, int, int, int]


ACT_PAD = (  # both streams of D's first scale
    ActPadCase("discriminator_first", (16, 32, 256, 128)),
    ActPadCase("discriminator_deep", (16, 128, 64, 32)),
)


def act_pad_inputs(
    case: ActPadCase,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    channels_last: bool = False,
    seed: int = 0,
) -> tuple[Tensor]:
    """(x,) for a case: normal values."""
    draw = _Draw(seed, device, dtype, channels_last)
    return (draw.picture(draw.normal(*case.shape)),)


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
    draw = _Draw(seed, device, dtype, channels_last)
    x = draw.picture(draw.normal(*case.shape) * 2 + draw.normal(*case.shape[:2])[:, :, None, None])
    residual = draw.picture(draw.normal(*case.shape)) if case.residual else None
    scale = shift = None
    if case.adaptive:
        scale, shift = (draw.normal(*case.shape[:2]).to(device) for _ in range(2))
    return x, scale, shift, residual


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
    draw = _Draw(seed, device, dtype, channels_last)
    x = draw.picture(draw.normal(*case.shape) * 2 + 1)
    gamma = torch.rand(case.shape[1], generator=draw.generator)
    return x, gamma.to(device), 0.1 * draw.normal(case.shape[1]).to(device)


class BatchNormActCase(NamedTuple):
    """Where E_a uses batch_norm_act, with residual and ReLU: shape of x (B, C, H, W) and groups of the batch."""

    name: str
    shape: tuple[int, int, int, int]
    groups: int


BATCH_NORM_ACT = (
    BatchNormActCase("layer1", (8, 256, 64, 32), 4),
    BatchNormActCase("layer4", (8, 2048, 16, 8), 4),
    BatchNormActCase("layer1_step", (32, 256, 64, 32), 4),
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
    draw = _Draw(seed, device, dtype, channels_last)
    x, residual = (draw.picture(draw.normal(*case.shape)) for _ in range(2))
    weight, bias = (draw.normal(case.shape[1]).to(device) for _ in range(2))
    return x, weight, bias, residual


class ConvCase(NamedTuple):
    """Where a network convolves at stride 1: shape of x (B, C, H, W), channels of the result, zero padding."""

    name: str
    shape: tuple[int, int, int, int]
    out_channels: int
    padding: int = 0


UPSAMPLE_CONV = (  # x is the small picture
    ConvCase("decoder_up1", (8, 128, 64, 32), 64),
    ConvCase("decoder_up2", (8, 64, 128, 64), 32),
    ConvCase("decoder_up1_step", (48, 128, 64, 32), 64),
)
CONV3X3 = (
    ConvCase("decoder_residual", (8, 128, 66, 34), 128),
    ConvCase("decoder_refine", (8, 32, 258, 130), 32),
    ConvCase("structure_residual", (16, 64, 66, 34), 64),
    ConvCase("layer1", (16, 64, 64, 32), 64, 1),
    ConvCase("layer4", (16, 512, 16, 8), 512, 1),
)


CONV3X3_ACT = (  # D's first and last 3×3 layers, both streams, and G's last two
    ConvCase("discriminator_first", (16, 32, 256, 128), 32),
    ConvCase("discriminator_deep", (16, 64, 64, 32), 64),
    ConvCase("decoder_refine_step", (48, 32, 256, 128), 32),
)


def conv_inputs(
    case: ConvCase,
    kernel: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    channels_last: bool = False,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """(x, weight (O, C, kernel, kernel), bias (O,)) for a case, all in `dtype`; results of about unit deviation."""
    draw = _Draw(seed, device, dtype, channels_last)
    channels = case.shape[1]
    x = draw.picture(draw.normal(*case.shape))
    weight = draw.picture(draw.normal(case.out_channels, channels, kernel, kernel) / (kernel * channels**0.5))
    return x, weight, 0.1 * draw.normal(case.out_channels).to(device, dtype)


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
    draw = _Draw(seed, device, dtype)
    code = torch.rand(case.batch, MLP_COUNT // 2 * MLP_WIDTHS[0], generator=draw.generator).to(device, dtype)
    weights, biases = [], []
    for n_in, n_out in zip(MLP_WIDTHS[:-1], MLP_WIDTHS[1:], strict=True):
        weights.append(draw.normal(MLP_COUNT, n_out, n_in).to(device) * (2 / n_in) ** 0.5)
        biases.append(0.1 * draw.normal(MLP_COUNT, n_out).to(device))
    return code, weights, biases


class LossCase(NamedTuple):
    """The losses of a step at a batch a stream, two streams."""

    name: str
    batch: int


LOSS = (LossCase("step", 8),)
STREAMS, IDS = 2, 751


def loss_l1_inputs(
    case: LossCase,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    channels_last: bool = False,
    seed: int = 0,
) -> tuple[list[Tensor], list[Tensor]]:
    """(predictions in `dtype`, targets): three of pictures, whose target is float32 and contiguous as data comes,
    then structure and appearance codes, whose targets are as they are.
    """
    draw = _Draw(seed, device, dtype, channels_last)

    def pictures(*shape: int) -> Tensor:
        return draw.picture(draw.normal(STREAMS * case.batch, *shape)).unflatten(0, (STREAMS, case.batch))

    target = draw.normal(STREAMS, case.batch, 3, 256, 128).to(device)
    predictions = [pictures(3, 256, 128) for _ in range(3)]
    structures = [pictures(128, 64, 32) for _ in range(2)]
    codes = [draw.normal(STREAMS, case.batch, 8192).to(device, dtype) for _ in range(2)]
    return [*predictions, structures[0], codes[0]], [target] * 3 + [structures[1], codes[1]]


def loss_identity_inputs(
    case: LossCase, *, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0
) -> tuple[list[Tensor], list[Tensor]]:
    """(logits in `dtype`, targets): x by both heads, the positives, the swaps, the student against the teacher's
    probabilities and against the structures' labels.
    """
    draw = _Draw(seed, device, dtype)
    logits = [draw.normal(STREAMS * case.batch, IDS).to(device, dtype) for _ in range(6)]
    labels = torch.randint(IDS, (STREAMS, case.batch), generator=draw.generator).to(device)
    target = draw.normal(STREAMS, case.batch, IDS).softmax(dim=-1).to(device)
    return logits, [labels, labels, labels, labels, target, labels.flip(0)]


def loss_adversarial_inputs(
    case: LossCase, *, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0
) -> tuple[list[Tensor]]:
    """D's score maps of three scales in `dtype`, three of fakes and three of real pictures."""
    draw = _Draw(seed, device, dtype)
    sizes = [(64, 32), (32, 16), (16, 8)] * 2
    return ([draw.normal(STREAMS, case.batch, 1, *size).to(device, dtype) for size in sizes],)
