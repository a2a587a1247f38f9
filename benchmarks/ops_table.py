"""The operators measured: one entry an operator and shape. A new op is one `OpCase` here, nothing else.

Bytes and FLOPs are the least that the call needs: every input read once and every result written once, a
convolution after nearest upsampling with nine taps instead of twenty-five.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.cases import (
    ACT_PAD,
    ADAIN_ACT,
    APPEARANCE_MLP,
    BATCH_NORM_ACT,
    CONV3X3,
    CONV3X3_ACT,
    IDS,
    LAYER_NORM_ACT,
    LOSS,
    MLP_COUNT,
    MLP_WIDTHS,
    STREAMS,
    UPSAMPLE_CONV,
    ActPadCase,
    AdainActCase,
    AppearanceMlpCase,
    BatchNormActCase,
    ConvCase,
    LayerNormActCase,
    LossCase,
    act_pad_inputs,
    adain_act_inputs,
    appearance_mlp_inputs,
    batch_norm_act_inputs,
    conv_inputs,
    layer_norm_act_inputs,
    loss_adversarial_inputs,
    loss_identity_inputs,
    loss_l1_inputs,
)
from dgnet_fast.ops import act_pad, registry

LRELU_SLOPE = 0.2
PASSES = ("forward", "backward", "both")

# Operations per element of a norm with affine and activation. Forward: sum, squared deviation (3), fused
# normalisation and affine (2), activation. Backward: the forward's value again (2), activation, sums of grad
# and grad times value (5), result (4).
NORM_FLOPS = {"forward": 7, "backward": 12}


Argument = Tensor | list[Tensor] | None


def tensors(argument: Argument) -> list[Tensor]:
    """The tensors of one argument."""
    return [] if argument is None else [argument] if isinstance(argument, Tensor) else list(argument)


@dataclass(frozen=True, eq=False)  # each entry is itself
class OpCase:
    """An operator at one of its shapes.

    inputs(dtype, device, channels_last) gives its positional arguments, options the others. flops: of the
    forward and the backward pass. reread: arguments that the backward must read again, besides the gradient
    of the result; differentiable: those whose gradient it writes. quick: measured without --full too.
    plain: how it is written where nobody thinks of speed, if that is not the reference. products: it is matrix
    products or convolutions, which a CPU without bf16 arithmetic takes seconds for. images: its first argument
    is (B, C, H, W) and so has a layout.
    """

    op: str
    name: str
    inputs: Callable[..., tuple[Argument, ...]]
    flops: dict[str, float]
    options: dict[str, Any] = field(default_factory=dict)
    reread: tuple[int, ...] = (0,)
    differentiable: tuple[int, ...] = (0,)
    quick: bool = False
    plain: Callable[..., Tensor] | None = None
    products: bool = False
    images: bool = True

    def _function(self, name: str) -> Callable[..., Tensor]:
        function = getattr(importlib.import_module(f"dgnet_fast.ops.{self.op}"), name)

        def picture(*arguments: Argument, **options: Any) -> Tensor:
            result = function(*arguments, **options)
            return result[0] if isinstance(result, tuple) else result  # statistics beside it are small

        return picture

    @property
    def public(self) -> Callable[..., Tensor]:
        return self._function(self.op)

    @property
    def reference(self) -> Callable[..., Tensor]:
        return self._function(f"{self.op}_reference")

    def implementations(self, device: str, dtype: torch.dtype) -> list[str]:
        """The baselines, then the bodies that run here; where there is none, `op`: the public function."""
        baselines = ["plain"] * (self.plain is not None) + ["eager", "compiled"]
        bodies = [
            body.name
            for body in registry.TABLE.get(self.op, {}).get(device, ())
            if body.name != "reference"
            # what is not automatic is Triton's interpreter on a CPU, and on a GPU what waits for these measurements
            and (dtype in body.automatic or device == "cuda")
            and _serves(self.op, device, dtype, body.name)
        ]
        return baselines + (bodies or ["op"])

    def work(self, which: str, arguments: tuple[Argument, ...], result: Tensor) -> tuple[int, float]:
        """Least bytes and FLOPs of a pass, forward, backward or both."""
        size = [sum(one.nbytes for one in tensors(argument)) for argument in arguments]
        moved = {
            "forward": sum(size) + result.nbytes,
            "backward": result.nbytes + sum(size[k] for k in (*self.reread, *self.differentiable)),
        }
        passes = ("forward", "backward") if which == "both" else (which,)
        return sum(moved[p] for p in passes), sum(self.flops[p] for p in passes)


def _serves(op: str, device: str, dtype: torch.dtype, body: str) -> bool:
    """Whether a body can run here."""
    with mock.patch.dict(os.environ, DGNET_FAST_IMPL=body):
        try:
            return registry.choose(op, device, dtype).name == body
        except ValueError:
            return False


def _elements(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def _norm_flops(shape: tuple[int, ...]) -> dict[str, float]:
    return {which: each * _elements(shape) for which, each in NORM_FLOPS.items()}


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _act_pad(case: ActPadCase, **flags: bool) -> OpCase:
    return OpCase(
        "act_pad",
        f"{case.name} {_shape(case.shape)}",
        lambda dtype, device, channels_last: act_pad_inputs(
            case, dtype=dtype, device=device, channels_last=channels_last
        ),
        {"forward": _elements(case.shape), "backward": _elements(case.shape)},
        {"negative_slope": LRELU_SLOPE, "padding": 1},
        **flags,
    )


def _adain_act(case: AdainActCase, padding: int = 0, **flags: bool) -> OpCase:
    codes = (0, 1, 2) if case.adaptive else (0,)
    options = {"negative_slope": case.negative_slope} | ({"padding": padding} if padding else {})
    suffix = f" padding {padding}" if padding else ""
    return OpCase(
        "adain_act",
        f"{case.name} {_shape(case.shape)}{suffix}",
        lambda dtype, device, channels_last: adain_act_inputs(
            case, dtype=dtype, device=device, channels_last=channels_last
        ),
        _norm_flops(case.shape),
        options,
        reread=codes,
        differentiable=codes,  # the residual's gradient is the result's own: nothing is written
        **flags,
    )


def _layer_norm_act(case: LayerNormActCase, padding: int = 0, **flags: bool) -> OpCase:
    options = {"negative_slope": LRELU_SLOPE} | ({"padding": padding} if padding else {})
    suffix = f" padding {padding}" if padding else ""
    return OpCase(
        "layer_norm_act",
        f"{case.name} {_shape(case.shape)}{suffix}",
        lambda dtype, device, channels_last: layer_norm_act_inputs(
            case, dtype=dtype, device=device, channels_last=channels_last
        ),
        _norm_flops(case.shape),
        options,
        reread=(0, 1, 2),
        differentiable=(0, 1, 2),
        **flags,
    )


def _separate_batch_norms(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, *, groups: int
) -> Tensor:
    """A pass of PyTorch's BatchNorm for each group, then sum and ReLU."""
    parts = [torch.nn.functional.batch_norm(part, None, None, weight, bias, True) for part in x.chunk(groups)]
    return torch.relu(torch.cat(parts) + residual)


def _batch_norm_act(case: BatchNormActCase, **flags: bool) -> OpCase:
    return OpCase(
        "batch_norm_act",
        f"{case.name} {_shape(case.shape)} in {case.groups} groups",
        lambda dtype, device, channels_last: batch_norm_act_inputs(
            case, dtype=dtype, device=device, channels_last=channels_last
        ),
        _norm_flops(case.shape),
        {"groups": case.groups},
        reread=(0, 0),  # x, and the result's sign
        differentiable=(0, 1, 2, 3),
        plain=_separate_batch_norms,
        **flags,
    )


def _conv(op: str, case: ConvCase, kernel: int, pixels: int, options: dict[str, Any], **flags: Any) -> OpCase:
    """A convolution that makes `pixels` pixels with nine taps each."""
    forward = 2 * 9 * case.shape[1] * case.out_channels * pixels
    return OpCase(
        op,
        f"{case.name} {_shape(case.shape)} to {case.out_channels}",
        lambda dtype, device, channels_last: conv_inputs(
            case, kernel, dtype=dtype, device=device, channels_last=channels_last
        ),
        {"forward": forward, "backward": 2 * forward},
        options,
        reread=(0, 1),
        differentiable=(0, 1, 2),
        products=True,
        **flags,
    )


def _upsample_conv(case: ConvCase, **flags: bool) -> OpCase:
    batch, _, height, width = case.shape
    return _conv("upsample_conv", case, 5, batch * 4 * height * width, {}, **flags)


def _conv3x3(case: ConvCase, **flags: bool) -> OpCase:
    batch, _, height, width = case.shape
    pixels = batch * (height + 2 * case.padding - 2) * (width + 2 * case.padding - 2)
    return _conv("conv3x3", case, 3, pixels, {"padding": case.padding}, **flags)


def _conv_between_paddings(x: Tensor, weight: Tensor, bias: Tensor, *, negative_slope: float) -> Tensor:
    """The library's convolution with `act_pad` on both sides, as the networks call them."""
    y = F.conv2d(act_pad(x, padding=1), weight)
    return act_pad(y, bias, negative_slope=negative_slope, padding=0)


def _conv3x3_act(case: ConvCase, **flags: bool) -> OpCase:
    batch, _, height, width = case.shape
    options = {"negative_slope": LRELU_SLOPE}
    plain = _conv_between_paddings
    return _conv("conv3x3_act", case, 3, batch * height * width, options, plain=plain, **flags)


def _separate_mlps(
    code: Tensor, weights: list[Tensor], biases: list[Tensor], *, negative_slope: float
) -> Tensor:
    """Eight MLPs, one after the other; the result in the op's arrangement."""
    quarters = code.chunk(MLP_COUNT // 2, dim=1)
    rows = []
    for k in range(MLP_COUNT):
        x = quarters[k % len(quarters)]
        for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            x = F.linear(x, weight[k].to(x.dtype), bias[k].to(x.dtype))
            x = F.leaky_relu(x, negative_slope) if layer < 2 else x
        rows += x.float().chunk(2, dim=1)
    return torch.stack(rows).unflatten(0, (2, -1))


def _appearance_mlp(case: AppearanceMlpCase, **flags: bool) -> OpCase:
    products = [a * b for a, b in zip(MLP_WIDTHS[:-1], MLP_WIDTHS[1:], strict=True)]
    forward = 2 * MLP_COUNT * case.batch * sum(products)
    return OpCase(
        "appearance_mlp",
        f"{case.name} {case.batch} codes",
        lambda dtype, device, channels_last: appearance_mlp_inputs(case, dtype=dtype, device=device),
        {"forward": forward, "backward": 2 * forward - 2 * MLP_COUNT * case.batch * products[0]},
        {"negative_slope": LRELU_SLOPE},
        reread=(0, 1),
        differentiable=(1, 2),  # the code is detached
        plain=_separate_mlps,
        products=True,
        images=False,
        **flags,
    )


def _loss_l1(case: LossCase, **flags: bool) -> OpCase:
    count = STREAMS * case.batch * (3 * 3 * 256 * 128 + 128 * 64 * 32 + 8192)
    return OpCase(
        "loss_l1",
        f"{case.name}: 3 pictures, structure, code of {case.batch} a stream",
        lambda dtype, device, channels_last: loss_l1_inputs(
            case, dtype=dtype, device=device, channels_last=channels_last
        ),
        {"forward": 3 * count, "backward": count},
        reread=(),  # signs alone are two bits an element
        **flags,
    )


def _loss_identity(case: LossCase, **flags: bool) -> OpCase:
    count = 6 * STREAMS * case.batch * IDS
    return OpCase(
        "loss_identity",
        f"{case.name}: 6 terms of {case.batch} rows a stream",
        lambda dtype, device, channels_last: loss_identity_inputs(case, dtype=dtype, device=device),
        {"forward": 3 * count, "backward": 4 * count},
        reread=(0, 1),
        images=False,
        **flags,
    )


def _loss_adversarial(case: LossCase, **flags: bool) -> OpCase:
    count = 2 * STREAMS * case.batch * (64 * 32 + 32 * 16 + 16 * 8)
    return OpCase(
        "loss_adversarial",
        f"{case.name}: 6 score maps of {case.batch} a stream",
        lambda dtype, device, channels_last: loss_adversarial_inputs(case, dtype=dtype, device=device),
        {"forward": 3 * count, "backward": 3 * count},
        {"real": [False] * 3 + [True] * 3, "kind": "lsgan"},
        images=False,
        **flags,
    )


_P, _A, _B, _C, _CA, _L, _U, _M = (
    {case.name: case for case in table}
    for table in (
        ACT_PAD,
        ADAIN_ACT,
        BATCH_NORM_ACT,
        CONV3X3,
        CONV3X3_ACT,
        LAYER_NORM_ACT,
        UPSAMPLE_CONV,
        APPEARANCE_MLP,
    )
)

OPS: tuple[OpCase, ...] = (
    _act_pad(_P["discriminator_first"], quick=True),
    _act_pad(_P["discriminator_deep"]),
    _adain_act(_A["decoder_first"], quick=True),
    _adain_act(_A["decoder_first"], padding=1, quick=True),
    _adain_act(_A["decoder_second"], padding=1),
    _adain_act(_A["decoder_step"], quick=torch.cuda.is_available()),
    _adain_act(_A["structure_stem"], padding=1),
    _adain_act(_A["structure_deep"], padding=1),
    _layer_norm_act(_L["decoder_up1"], quick=True),
    _batch_norm_act(_B["layer1"], quick=not torch.cuda.is_available()),
    _batch_norm_act(_B["layer4"]),
    _batch_norm_act(_B["layer1_step"], quick=torch.cuda.is_available()),
    _layer_norm_act(_L["decoder_up1"], padding=2),
    _layer_norm_act(_L["decoder_up2"], padding=1),
    _layer_norm_act(_L["decoder_up2_step"], quick=torch.cuda.is_available()),
    _upsample_conv(_U["decoder_up1"], quick=True),
    _upsample_conv(_U["decoder_up2"]),
    _upsample_conv(_U["decoder_up1_step"], quick=torch.cuda.is_available()),
    _conv3x3(_C["decoder_residual"], quick=not torch.cuda.is_available()),
    _conv3x3(_C["decoder_refine"]),
    _conv3x3(_C["structure_residual"]),
    _conv3x3(_C["layer1"]),
    _conv3x3(_C["layer4"]),
    _conv3x3_act(_CA["discriminator_first"], quick=torch.cuda.is_available()),
    _conv3x3_act(_CA["discriminator_deep"], quick=torch.cuda.is_available()),
    _conv3x3_act(_CA["decoder_refine_step"]),
    _appearance_mlp(_M["decode"], quick=True),
    _appearance_mlp(_M["decode_step"], quick=torch.cuda.is_available()),
    _loss_l1(LOSS[0], quick=True),
    _loss_identity(LOSS[0], quick=torch.cuda.is_available()),
    _loss_adversarial(LOSS[0], quick=torch.cuda.is_available()),
)


def op_names() -> list[str]:
    return list(dict.fromkeys(case.op for case in OPS))
