"""Blocks that the networks share: padded convolution + norm + activation, residual block, self-attention.

Every block takes what it needs as arguments; AdaIN's scale and shift in particular are never stored on a
module. Shapes: B batch, C channels, H and W of the picture or feature map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgnet_fast.models.typed import ModuleList
from dgnet_fast.ops import act_pad, adain_act, adain_act_reference, conv3x3, layer_norm_act
from dgnet_fast.ops.act_pad import act_pad_for_two
from dgnet_fast.ops.conv3x3 import serves as conv3x3_serves
from dgnet_fast.ops.halving_conv import halving_conv
from dgnet_fast.ops.padding import reflect_pad, replicate_pad, with_interior
from dgnet_fast.ops.twice_conv import twice_conv

LRELU_SLOPE = 0.2
INSTANCE_EPS = 1e-5
LAYER_EPS = 1e-5
FUSED_SLOPES: dict[type, float] = {nn.LeakyReLU: LRELU_SLOPE, nn.ReLU: 0.0}
"""Activations that the fused ops compute: a LeakyReLU's slope; ReLU is one of slope 0."""


def activation_module(name: str) -> nn.Module | None:
    """The activation called ``name`` (relu, lrelu, prelu, selu, tanh or none), or None for none.

    In place where the backward pass can do with the result: the input, a layer's result, is nobody else's and one
    tensor less is kept.
    """
    match name:
        case "relu":
            return nn.ReLU(inplace=True)
        case "lrelu":
            return nn.LeakyReLU(LRELU_SLOPE, inplace=True)
        case "prelu":
            return nn.PReLU()
        case "selu":
            return nn.SELU(inplace=True)
        case "tanh":
            return nn.Tanh()
        case "none":
            return None
    raise ValueError(f"activation is {name!r}; allowed: relu, lrelu, prelu, selu, tanh, none")


def pad2d(x: Tensor, amount: int, kind: str) -> Tensor:
    """Pad H and W by ``amount`` on each side; kind is zero, reflect or replicate."""
    if kind == "replicate":
        return replicate_pad(x, amount)
    if kind == "reflect":
        return activate_and_reflect(x, None, amount)
    return F.pad(x, (amount,) * 4) if amount else x


def activate_and_reflect(
    x: Tensor, negative_slope: float | None, padding: int, bias: Tensor | None = None
) -> Tensor:
    """Reflect-pad the LeakyReLU of x (x itself for None): by `act_pad`, but compiled in plain PyTorch, which Inductor fuses
    and which torch.func, in D's compiled penalty, accepts. ``bias`` (C,), where `follower_adds_bias`, is added before.
    """
    if (padding or bias is not None) and not torch.compiler.is_compiling():
        return act_pad(x, bias, negative_slope=negative_slope, padding=padding)
    assert bias is None
    return reflect_pad(x if negative_slope is None else F.leaky_relu(x, negative_slope), padding)


def follower_adds_bias(x: Tensor) -> bool:
    """Whether what follows a convolution adds its bias, `act_pad` or `layer_norm_act`, and that reads a picture in phases:
    on CUDA either is a pass of its own. A CPU's convolutions add the bias in theirs, and its body wants a picture.
    """
    return x.is_cuda and not torch.compiler.is_compiling()


def convolve(conv: nn.Conv2d, x: Tensor, *, twice: bool = False, biased: bool = True) -> Tensor:
    """conv(x), by the op `conv3x3` or `halving_conv` where it is of that kind; ``twice``: by `twice_conv` where `conv3x3`
    does not serve, for a network whose input gradient is itself differentiated. Without its bias where it is not to be
    ``biased``.
    """
    bias = conv.bias if biased else None
    if isinstance(conv.padding, str) or conv.dilation != (1, 1):
        return conv._conv_forward(x, conv.weight, bias)
    if conv.kernel_size == (3, 3) and conv.stride == (1, 1):
        given = (x, conv.weight, bias)
        # torch.func's transforms, which a compiled penalty needs, refuse ops of one's own: then all of D is plain
        if not twice or (not torch.compiler.is_compiling() and conv3x3_serves(*given, conv.padding[0])):
            return conv3x3(*given, padding=conv.padding[0])
    if not twice and conv.kernel_size == (4, 4) and conv.stride == (2, 2) and conv.padding == (0, 0):
        return halving_conv(x, conv.weight, bias)
    if not twice:
        return conv._conv_forward(x, conv.weight, bias)
    stride, padding = conv.stride, conv.padding
    return twice_conv(x, conv.weight, bias, stride=stride, padding=padding)  # pyright: ignore[reportArgumentType]


def as_computed(x: Tensor, weight: Tensor) -> Tensor:
    """x in the precision that layers of this weight compute in: autocast's, else the weight's."""
    device, dtype = x.device.type, weight.dtype
    if dtype != torch.float64 and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    return x.to(dtype)


class LayerNorm2d(nn.Module):
    """The decoder's LayerNorm: per sample over C, H, W, then a per-channel affine.

    ``(x - mean) / (std + 1e-5) * gamma + beta`` with the unbiased std and eps outside the root. x (B, C, H,
    W); statistics in at least float32, result in x's dtype.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels))  # `initialise` draws it from U(0, 1)
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        std, mean = torch.std_mean(wide, dim=(1, 2, 3), keepdim=True)
        scale = self.gamma.view(-1, 1, 1) / (std + LAYER_EPS)  # (B, C, 1, 1): one pass over x instead of five
        return torch.addcmul(self.beta.view(-1, 1, 1) - mean * scale, wide, scale).to(x.dtype)


class ConvBlock(nn.Module):
    """pad → conv → norm → activation, the unit of E_s, G and D.

    norm: ``none``, ``in`` (InstanceNorm without affine), ``ln`` (LayerNorm2d), ``bn`` (BatchNorm over a whole call)
    or ``adain`` (the caller gives scale and shift, (B, C) each). ``twice_differentiable`` keeps to plain PyTorch
    for the norm, for a network whose input gradient is itself differentiated (the discriminator's gradient penalty).

    What follows the convolution can write its result straight into the reflect-padded picture that the next convolution
    reads: ``pad_result`` of one block is `reflection` of the next, which is then called with ``padded`` (`chain`).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        padding: int = 0,
        *,
        norm: str = "none",
        activ: str = "lrelu",
        pad_type: str = "reflect",
        dilation: int = 1,
        twice_differentiable: bool = False,
    ) -> None:
        super().__init__()
        self.padding, self.pad_type, self.norm_kind = padding, pad_type, norm
        conv_padding = padding if pad_type == "zero" else 0
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, conv_padding, dilation)
        made = {"ln": LayerNorm2d, "bn": nn.BatchNorm2d}.get(norm)
        self.norm = None if made is None else made(out_channels)
        self.activation = activation_module(activ)
        self.twice_differentiable = twice_differentiable
        self.adain_act = adain_act_reference if twice_differentiable else adain_act

    @property
    def reflection(self) -> int:
        """Reflect padding that this block's convolution reads; 0 for another kind of padding."""
        return self.padding if self.pad_type == "reflect" else 0

    @property
    def bias_is_idle(self) -> bool:
        """Whether the norm that follows takes the convolution's bias out again, so that it is not even added: what a
        channel has in all its pixels is no part of an instance norm. Its gradient is zero (`idle_biases`).
        """
        return self.norm_kind in ("in", "adain")

    @property
    def takes_phases(self) -> bool:
        """Whether `finish` takes a picture in phases, as `upsample_conv_phases` makes it, and the convolution's bias."""
        fused = self.activation is None or type(self.activation) in FUSED_SLOPES
        return fused and isinstance(self.norm, LayerNorm2d) and not self.twice_differentiable

    def convolve(self, x: Tensor, *, padded: bool = False, biased: bool = True) -> Tensor:
        """Pad, unless x comes ``padded`` by `reflection`, and convolve, ``biased`` or without the bias; nothing else."""
        if self.pad_type != "zero" and not (padded and self.reflection):
            x = pad2d(x, self.padding, self.pad_type)
        return convolve(
            self.conv, x, twice=self.twice_differentiable, biased=biased and not self.bias_is_idle
        )

    def activate(self, x: Tensor) -> Tensor:
        return x if self.activation is None else self.activation(x)

    def finish(
        self,
        x: Tensor,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        residual: Tensor | None = None,
        *,
        pad_result: int = 0,
        bias: Tensor | None = None,
        phases: bool = False,
    ) -> Tensor:
        """What follows the convolution: norm, activation, residual, and reflect padding by ``pad_result``. ``bias`` is the
        convolution's where it is left to the padding or, with ``phases`` (x is a picture in phases: see `takes_phases`),
        to the norm.
        """
        slope = FUSED_SLOPES.get(type(self.activation))
        fused = self.activation is None or slope is not None
        if self.norm_kind in ("in", "adain"):
            if fused and not self.twice_differentiable:
                options: dict[str, Any] = {
                    "negative_slope": slope,
                    "eps": INSTANCE_EPS,
                    "padding": pad_result,
                }
                return self.adain_act(x, scale, shift, residual, **options)
            x = self.adain_act(x, scale, shift, eps=INSTANCE_EPS)
        elif self.norm is not None:
            fused = fused and isinstance(self.norm, LayerNorm2d)
            if fused and residual is None and not self.twice_differentiable:
                gamma, beta = self.norm.gamma, self.norm.beta
                options = {"negative_slope": slope, "eps": LAYER_EPS, "padding": pad_result}
                return layer_norm_act(x, gamma, beta, bias, phases=phases, **options)
            x = self.norm(x)
        if bias is not None and residual is not None:
            return act_pad(x, bias, residual, padding=pad_result)
        if (pad_result or bias is not None) and residual is None and slope is not None:
            return activate_and_reflect(x, slope, pad_result, bias)
        x = self.activate(x)
        return activate_and_reflect(x if residual is None else x + residual, None, pad_result)

    def forward(
        self,
        x: Tensor,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        residual: Tensor | None = None,
        *,
        padded: bool = False,
        pad_result: int = 0,
    ) -> Tensor:
        later = self.conv.bias if self._leaves_bias(x, residual) else None
        x = self.convolve(x, padded=padded, biased=later is None)
        return self.finish(x, scale, shift, residual, pad_result=pad_result, bias=later)

    def _leaves_bias(self, x: Tensor, residual: Tensor | None) -> bool:
        """Whether `act_pad` follows and adds the bias: without a norm, before a fused activation or after a residual."""
        fused = type(self.activation) in FUSED_SLOPES if residual is None else self.activation is None
        return self.norm_kind == "none" and fused and follower_adds_bias(x)

    def serves_two(self, x: Tensor, *, residual: bool = False) -> bool:
        """Whether `for_two` serves, for the picture x, with or without a residual."""
        return self._leaves_bias(x, x if residual else None)

    def for_two(
        self, x: Tensor, residual: Tensor | None = None, *, padded: bool = False, pad_result: int
    ) -> tuple[Tensor, Tensor]:
        """The padded result and the picture within it: see `act_pad_for_two`."""
        slope = FUSED_SLOPES.get(type(self.activation))
        x = self.convolve(x, padded=padded, biased=False)
        return act_pad_for_two(x, self.conv.bias, residual, negative_slope=slope, padding=pad_result)


def idle_biases(network: nn.Module) -> list[nn.Parameter]:
    """The biases within ``network`` that change no result: they get no gradient, which an optimiser with weight decay
    must take for zero.
    """
    blocks = (m for m in network.modules() if isinstance(m, ConvBlock) and m.bias_is_idle)
    biases = (block.conv.bias for block in blocks)
    return [bias for bias in biases if isinstance(bias, nn.Parameter)]


class ResidualBlock(nn.Module):
    """conv-norm-activation, conv-norm, plus the input (E_s and D). ``padded`` and ``pad_result`` as in
    `ConvBlock`.
    """

    def __init__(
        self, channels: int, *, norm: str, activ: str, pad_type: str, twice_differentiable: bool = False
    ) -> None:
        super().__init__()
        common: dict[str, Any] = {
            "norm": norm,
            "pad_type": pad_type,
            "twice_differentiable": twice_differentiable,
        }
        self.conv1 = ConvBlock(channels, channels, 3, 1, 1, activ=activ, **common)
        self.conv2 = ConvBlock(channels, channels, 3, 1, 1, activ="none", **common)

    @property
    def reflection(self) -> int:
        """Reflect padding that the block reads; 0 for another kind of padding."""
        return self.conv1.reflection

    def serves_two(self, x: Tensor) -> bool:
        """Whether `for_two` serves, for the picture x."""
        return self.conv2.serves_two(x, residual=True)

    def _halves(self, x: Tensor, again: Tensor | None, padded: bool) -> tuple[Tensor, Tensor]:
        """What the second convolution reads, and the residual."""
        if again is None:
            x, again = with_interior(x, self.reflection) if padded else (x, x)
        return self.conv1(x, padded=padded, pad_result=self.conv2.reflection), again

    def forward(
        self, x: Tensor, again: Tensor | None = None, *, padded: bool = False, pad_result: int = 0
    ) -> Tensor:
        """``again``: the picture within an x that comes padded, where `for_two` of the block before has made it."""
        half, residual = self._halves(x, again, padded)
        return self.conv2(half, residual=residual, padded=True, pad_result=pad_result)

    def for_two(
        self, x: Tensor, again: Tensor | None = None, *, padded: bool = False, pad_result: int
    ) -> tuple[Tensor, Tensor]:
        """The padded result and the picture within it, for a block that reads both: see `act_pad_for_two`."""
        half, residual = self._halves(x, again, padded)
        return self.conv2.for_two(half, residual, padded=True, pad_result=pad_result)


def chain(
    blocks: Sequence[ConvBlock | ResidualBlock] | ModuleList[ConvBlock | ResidualBlock],
    x: Tensor,
    *,
    padded: bool = False,
) -> Tensor:
    """The blocks one after the other, each one's result padded as the next one reads it; ``padded``: x is so already."""
    again: Tensor | None = None
    for k, block in enumerate(blocks):
        following = blocks[k + 1] if k + 1 < len(blocks) else None
        wanted = following.reflection if following else 0
        given = (x,) if again is None else (x, again)
        if wanted and isinstance(following, ResidualBlock) and block.serves_two(x):
            x, again = block.for_two(*given, padded=padded or k > 0, pad_result=wanted)
        else:
            x, again = block(*given, padded=padded or k > 0, pad_result=wanted), None
    return x


class SelfAttention2d(nn.Module):
    """Self-attention over the positions of a feature map: query and key C/8, value C, softmax, learned gamma
    from 0.

    Written with plain matmuls so that it can be differentiated twice (D's gradient penalty).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels < 8:
            raise ValueError(
                f"self-attention over {channels} channels; it needs at least 8 (query and key have an eighth)"
            )
        self.query = nn.Conv2d(channels, channels // 8, 1)
        self.key = nn.Conv2d(channels, channels // 8, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        layers = (self.query, self.key, self.value)
        query, key, value = (convolve(layer, x, twice=True).flatten(2) for layer in layers)
        attention = torch.softmax(query.transpose(1, 2) @ key, dim=-1)
        mixed = value @ attention.transpose(1, 2)
        return x + self.gamma * mixed.view_as(x)


@torch.no_grad()
def initialise(module: nn.Module, kind: str, generator: torch.Generator | None = None) -> None:
    """Initialise every layer below ``module``: weights by ``kind``, biases 0, LayerNorm2d's gamma from U(0, 1).

    kind: gaussian (std 0.02), kaiming (fan in), xavier or orthogonal (gain √2 both), or default (PyTorch's own).
    """
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            initialise_weight(layer.weight, kind, generator)
            if layer.bias is not None:
                layer.bias.zero_()
        elif isinstance(layer, LayerNorm2d):
            layer.gamma.uniform_(generator=generator)


@torch.no_grad()
def initialise_weight(weight: Tensor, kind: str, generator: torch.Generator | None = None) -> None:
    """Fill one weight tensor by the named rule; see `initialise`."""
    match kind:
        case "gaussian":
            nn.init.normal_(weight, 0.0, 0.02, generator=generator)
        case "kaiming":
            nn.init.kaiming_normal_(weight, a=0, mode="fan_in", generator=generator)
        case "xavier":
            nn.init.xavier_normal_(weight, gain=math.sqrt(2), generator=generator)
        case "orthogonal":
            nn.init.orthogonal_(weight, gain=math.sqrt(2), generator=generator)
        case "default":
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)
        case _:
            raise ValueError(f"init is {kind!r}; allowed: gaussian, kaiming, xavier, orthogonal, default")
