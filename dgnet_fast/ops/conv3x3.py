"""conv3x3: a 3×3 convolution of stride 1, on a CPU with a quarter of the multiplications, or its gradient by AMX.

Winograd's minimal filtering F(4×4, 3×3) (Lavin and Gray 2015, arXiv 1509.09308) for the forward pass and both gradients,
in float32 arithmetic, of float32 and bfloat16 pictures. PyTorch's own convolutions in float32 run at the machine's
multiplication rate already, so only fewer multiplications are faster: 1.2 to 3.3 times the faster one of both memory
orders at every such shape of E_s, G, D and E_a (csrc/conv3x3.cpp has the method, `pytest benchmarks/ --full --op conv3x3`
measures).

A CPU with AMX multiplies bfloat16 sixteen times as fast as float32. There PyTorch's bfloat16 convolution is four to nine
times as fast as the filtering: it serves the forward pass and the gradient of x. The gradient of the weight takes PyTorch
about as long as both, and comes from a body of ours (csrc/conv3x3_amx.cpp), 1.5 to 2.1 times as fast (one thread of an
Intel Xeon with AMX, torch 2.13, benchmarks/results). A CPU that multiplies bfloat16 without AMX (AVX512-BF16) does it twice as
fast as float32: there PyTorch's convolution is 1.4 to 2 times as fast as the filtering, both ways, and serves alone. On a GPU
and in another dtype PyTorch's serves.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dgnet_fast.ops import registry
from dgnet_fast.ops.arguments import check_pictures
from dgnet_fast.ops.bodies import ELEMENT_TYPES, Arguments, Body, address, addresses
from dgnet_fast.ops.define import define
from dgnet_fast.ops.input_alone import current, needed
from dgnet_fast.ops.native import _C

KERNEL = 3

#: Winograd's body takes channels by eights, that for AMX by tiles.
CHANNELS, AMX_CHANNELS = 8, 32
#: The op costs 0.15 to 0.3 ms more than PyTorch's convolution, forward and backward. The body for AMX saves more than that
#: from so many channels on, and from so many products times the smaller number of channels (one thread, Intel Xeon).
AMX_FEWEST, AMX_WORTH = 64, 4e10
_AMX = _C.conv3x3_amx()
_FILTERED = next(one.automatic for one in registry.TABLE["conv3x3"]["cpu"] if one.name == "cpp")


class reference:
    """Plain PyTorch: what every body must compute."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
        """Returns y (B, O, H', W')."""
        return F.conv2d(x, weight, bias, padding=padding)

    @staticmethod
    def backward(
        grad_y: Tensor, x: Tensor, weight: Tensor, padding: int, needed: list[bool]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the gradients of x, weight and bias; what is not needed is empty, (0,)."""
        pair = [1, 1]
        gradients = torch.ops.aten.convolution_backward(
            grad_y, x, weight, [weight.shape[0]], pair, [padding] * 2, pair, False, [0, 0], 1, needed
        )
        like = (x, weight, weight.new_empty(weight.shape[0]))
        grad_x, grad_weight, grad_bias = (
            x.new_empty(0) if gradient is None else _like(gradient, one)
            for gradient, one in zip(gradients, like, strict=True)
        )
        return grad_x, grad_weight, grad_bias


aten = reference


def conv3x3_reference(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, padding: int = 0) -> Tensor:
    """`conv3x3` in plain PyTorch: same arguments and result, any device, differentiable at any order."""
    return reference.forward(x, weight, bias, padding)


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, padding: int = 0) -> Tensor:
    """``F.conv2d(x, weight, bias, padding=padding)`` for a 3×3 kernel.

    Args:
        x: (B, C, H, W), not empty.
        weight: (O, C, 3, 3).
        bias: (O,) or None.
        padding: zeros on each side.

    Returns:
        (B, O, H + 2·padding - 2, W + 2·padding - 2) in x's dtype, under autocast in autocast's.

    On a CPU an x in channels_last order with padding up to 2 takes the fused op: in float32, where C and O are multiples
    of 8; in bfloat16, also under autocast, likewise where the CPU has no instructions for it, and on a CPU with AMX where the
    gradient of the weight may be asked for, C and O are multiples of 32, at least 64, and there is enough to compute
    (`AMX_WORTH`). All else is ``F.conv2d`` itself; DGNET_FAST_IMPL chooses the body of the fused op alone.

    In float32 its error against float64 is 2.5 to 2.7 times that of ``F.conv2d`` in the root mean square (the largest 3e-6
    of the largest value over 128 channels, 8e-6 over 512); in bfloat16 it is that of ``F.conv2d``, the rounding of the
    results (1.003 times at most, in the root mean square). By Winograd's filtering a value that is not finite reaches every
    pixel of its 4×4 patches of the result, not only those whose taps meet it. Equal inputs give equal bits whatever the
    number of threads, in bfloat16 on a CPU with AMX as far as PyTorch's convolution does. Differentiable to any order by
    autograd, but not under the transforms of torch.func.

    Raises:
        ValueError: shapes other than these; DGNET_FAST_IMPL forces a body that the fused op has not.
    """
    _check(x, weight, bias, padding)
    if serves(x, weight, bias, padding):
        if torch.is_autocast_enabled("cpu"):
            x, weight = x.to(torch.bfloat16), weight.to(torch.bfloat16)
            bias = None if bias is None else bias.to(torch.bfloat16)
        return _forward_op(x, weight, bias, padding)
    return F.conv2d(x, weight, bias, padding=padding)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> None:
    check_pictures(x)
    if weight.dim() != 4 or weight.shape[1:] != (x.shape[1], KERNEL, KERNEL):
        raise ValueError(f"weight must have shape (O, {x.shape[1]}, 3, 3), got {tuple(weight.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must have shape (O,) = {tuple(weight.shape[:1])}, got {tuple(bias.shape)}")
    if padding < 0 or min(x.shape[2:]) + 2 * padding < KERNEL:
        raise ValueError(
            f"x has shape {tuple(x.shape)} and padding is {padding}; padded height and width of at least 3 are allowed"
        )


def serves(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> bool:
    """Whether the fused op takes such a convolution of a 3×3 kernel; see `conv3x3`."""
    given = (x, weight) if bias is None else (x, weight, bias)
    if not (
        all(t.device.type == "cpu" for t in given)
        and padding < KERNEL
        and x.is_contiguous(memory_format=torch.channels_last)
    ):
        return False
    dtype = _computed_in(given)
    if dtype == torch.bfloat16 and _AMX:
        # without a gradient of the weight all of it is PyTorch's
        asked = weight.requires_grad and torch.is_grad_enabled()
        return asked and _multiples_of(AMX_CHANNELS, weight) and _worth_amx(x, weight)
    return dtype in _FILTERED and _multiples_of(CHANNELS, weight)


def saves_products(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> bool:
    """Whether the fused op takes such a convolution with a quarter of the multiplications."""
    given = (x, weight) if bias is None else (x, weight, bias)
    return serves(x, weight, bias, padding) and not (_AMX and _computed_in(given) == torch.bfloat16)


def _computed_in(given: tuple[Tensor, ...]) -> torch.dtype | None:
    """The dtype that a convolution of these computes in, autocast's where that is on; None where there is none."""
    dtypes = [t.dtype for t in given]
    if torch.is_autocast_enabled("cpu") and torch.float64 not in dtypes:
        return torch.get_autocast_dtype("cpu")
    return dtypes[0] if all(dtype == dtypes[0] for dtype in dtypes) else None


def _worth_amx(x: Tensor, weight: Tensor) -> bool:
    batch, _, height, width = x.shape
    fewest = min(weight.shape[:2])
    return fewest >= AMX_FEWEST and batch * height * width * weight.numel() * fewest >= AMX_WORTH


def _multiples_of(count: int, weight: Tensor) -> bool:
    return weight.shape[0] % count == weight.shape[1] % count == 0


# ---- the op: what it allocates, checks and makes dense, and its autograd


def _results(a: Arguments) -> dict[str, Tensor]:
    height, width = (size + 2 * a.padding - 2 for size in a.x.shape[2:])
    shape = (a.x.shape[0], a.weight.shape[0], height, width)
    y = torch.empty(shape, dtype=a.x.dtype, device=a.x.device, memory_format=torch.channels_last)
    return {"y": y}


def _gradients(a: Arguments) -> dict[str, Tensor]:
    to_x, to_weight, to_bias = a.needed
    return {
        "grad_x": torch.empty_like(a.x) if to_x else a.x.new_empty(0),
        "grad_weight": torch.empty_like(a.weight) if to_weight else a.x.new_empty(0),
        "grad_bias": a.x.new_empty(a.weight.shape[0] if to_bias else 0),
    }


def _prepare(a: Arguments) -> Tensor:
    _check(a.x, a.weight, a.bias, a.padding)
    a.x = _in_order(a.x)
    return a.x


def _prepare_backward(a: Arguments) -> Tensor:
    a.grad_y, a.x = _in_order(a.grad_y), _in_order(a.x)
    return a.x


def _in_order(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _setup_context(ctx, a: Arguments, output: Tensor) -> None:
    ctx.padding, ctx.alone = a.padding, current()
    ctx.save_for_backward(a.x, a.weight)
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_y: Tensor | None) -> dict[str, Tensor | None]:
    wanted = needed(ctx.alone, ctx.needs_input_grad)
    if grad_y is None or not any(wanted):
        return {}
    gradients = _backward_op(grad_y, *ctx.saved_tensors, ctx.padding, wanted)
    named = zip(("x", "weight", "bias"), gradients, wanted, strict=True)
    return {name: gradient for name, gradient, need in named if need}


def _setup_double(ctx, a: Arguments, output) -> None:
    ctx.padding, ctx.needed = a.padding, a.needed
    ctx.save_for_backward(a.grad_y, a.x, a.weight)
    ctx.set_materialize_grads(False)


def _double_backward(ctx, *cotangents) -> dict[str, Tensor | None]:
    """The gradients of x and weight are linear in grad_y and in weight or x: theirs are convolutions of the
    cotangents.
    """
    grad_y, x, weight = ctx.saved_tensors
    to_x, to_weight, to_bias = (
        cotangent if need else None for cotangent, need in zip(cotangents, ctx.needed, strict=True)
    )
    needs_grad_y, needs_x, needs_weight = ctx.needs_input_grad[:3]
    found: dict[str, Tensor | None] = {}
    if needs_grad_y:
        parts = []
        if to_x is not None:
            parts.append(_forward_op(to_x, weight, None, ctx.padding))
        if to_weight is not None:
            parts.append(_forward_op(x, to_weight, None, ctx.padding))
        if to_bias is not None:
            parts.append(to_bias.view(1, -1, 1, 1).expand_as(grad_y))
        found["grad_y"] = sum(parts[1:], parts[0]) if parts else None
    if needs_x and to_weight is not None:
        found["x"] = _backward_op(grad_y, x, to_weight, ctx.padding, [True, False, False])[0]
    if needs_weight and to_x is not None:
        found["weight"] = _backward_op(grad_y, to_x, weight, ctx.padding, [False, True, False])[1]
    return found


_forward_op, _backward_op = define(
    "conv3x3",
    reference,
    results=_results,
    gradients=_gradients,
    prepare=_prepare,
    prepare_backward=_prepare_backward,
    setup_context=_setup_context,
    backward=_backward,
    setup_double=_setup_double,
    double_backward=_double_backward,
    devices=("cpu",),
)

# ---- its body by Winograd's filtering, for CPU tensors in channels_last order: csrc/conv3x3.cpp. It works on so many patches
# at a time that their matrices stay in the cache; memory sees x, y, and the 36 matrices of the taps, 4 times the size of the
# weight in float32.


def _fill_forward(a: Arguments) -> None:
    # as a matrix: PyTorch transposes 256×256 taps 1.7 times as fast as in four dimensions (one core, AMD EPYC, 2.13)
    out, channels = a.weight.shape[:2]
    taps = _matrix(a.weight).float().t().contiguous().view(3, 3, channels, out)
    bias = None if a.bias is None else a.bias.float().contiguous()
    _convolve(a.x, taps, bias, a.padding, a.y, flipped=False)


def _fill_backward(a: Arguments) -> None:
    out, channels = a.weight.shape[:2]
    if a.needed[0]:  # the convolution of grad_y with the taps turned by 180°, over the full border
        taps = a.weight.float().permute(2, 3, 0, 1).contiguous()
        _convolve(a.grad_y, taps, None, 2 - a.padding, a.grad_x, flipped=True)
    if a.needed[1]:
        a.grad_taps = torch.empty(3, 3, channels, out, dtype=torch.float32)
        sizes = _sizes(a.x, out, a.padding)
        _C.conv3x3_taps_gradient(sizes=sizes, **addresses(a, "x", "grad_y", "grad_taps"))
        if a.grad_weight.is_contiguous(memory_format=torch.channels_last):
            _matrix(a.grad_weight).copy_(a.grad_taps.view(-1, out).t())
        else:
            a.grad_weight.copy_(a.grad_taps.permute(3, 2, 0, 1))
    if a.needed[2]:
        torch.sum(a.grad_y, dim=(0, 2, 3), out=a.grad_bias)


def _matrix(weight: Tensor) -> Tensor:
    """Turns (O, C, 3, 3) into (O, 9·C), taps first; it is a view where the weight is in channels_last order."""
    return weight.permute(0, 2, 3, 1).reshape(weight.shape[0], -1)


def _sizes(x: Tensor, out: int, padding: int) -> tuple[int, int, int, int, int, int, int]:
    """The `Conv3x3Sizes` of csrc/bindings.cpp."""
    batch, channels, height, width = x.shape
    return batch, channels, out, height, width, padding, ELEMENT_TYPES[x.dtype]


def _convolve(
    x: Tensor, taps: Tensor, bias: Tensor | None, padding: int, y: Tensor, *, flipped: bool
) -> None:
    where = {"x": address(x), "taps": address(taps), "bias": address(bias), "y": address(y)}
    _C.conv3x3(sizes=_sizes(x, taps.shape[3], padding), flipped=flipped, **where)


cpp = Body(_fill_forward, _fill_backward)

# ---- its body for bfloat16 on a CPU with AMX: PyTorch's convolutions, and csrc/conv3x3_amx.cpp for the weight's gradient


class amx:
    """As the reference, but for the gradient of the weight; C and O are multiples of 32, or it is all the reference's."""

    forward = reference.forward

    @staticmethod
    def backward(
        grad_y: Tensor, x: Tensor, weight: Tensor, padding: int, needed: list[bool]
    ) -> tuple[Tensor, Tensor, Tensor]:
        by_tiles = needed[1] and padding < KERNEL and _multiples_of(AMX_CHANNELS, weight)
        if not by_tiles:
            return reference.backward(grad_y, x, weight, padding, needed)
        grad_x, _, _ = reference.backward(grad_y, x, weight, padding, [needed[0], False, False])
        made = torch.empty_like(weight, memory_format=torch.channels_last)
        where = {"x": address(x), "grad_y": address(grad_y), "grad_weight": address(made)}
        _C.conv3x3_weight_gradient(sizes=_sizes(x, weight.shape[0], padding), **where)
        # PyTorch's convolution would compute the weight's gradient again for the bias's
        grad_bias = grad_y.sum(dim=(0, 2, 3)) if needed[2] else x.new_empty(0)
        return grad_x, _like(made, weight), grad_bias


def _like(gradient: Tensor, one: Tensor) -> Tensor:
    """The gradient in the memory order of what it is the gradient of."""
    return gradient if gradient.stride() == one.stride() else torch.empty_like(one).copy_(gradient)
