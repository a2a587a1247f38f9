"""What the ops ask of their arguments, and what they make of them: checks, the statistics' dtype, the slope."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NoReturn, overload

import torch
from torch import Tensor

from dgnet_fast.ops import registry


def check_device(op: str, x: Tensor) -> None:
    """ValueError that names the devices there are; before the op, whose dispatcher would say it less clearly."""
    if x.device.type not in registry.TABLE[op]:
        registry.choose(op, x.device.type, x.dtype)


def check_pictures(x: Tensor) -> None:
    """ValueError unless x is a non-empty (B, C, H, W) of a dtype that is served."""
    if x.dim() != 4:
        raise ValueError(f"x must have 4 dimensions (B, C, H, W), got shape {tuple(x.shape)}")
    if x.numel() == 0:
        raise ValueError(f"x must not be empty, got shape {tuple(x.shape)}")
    if x.dtype not in registry.DTYPES:
        allowed = ", ".join(str(dtype) for dtype in registry.DTYPES)
        raise ValueError(f"x must have one of the dtypes {allowed}, got {x.dtype}")


def check_affine(name: str, value: Tensor, x: Tensor, dims: str) -> None:
    """ValueError unless `value` lies over the dimensions `dims` of x ("BC" or "C"), on x's device, in x's dtype
    or float32.
    """
    wanted = tuple(x.shape["BCHW".index(dims[0]) :][: len(dims)])
    if value.shape != wanted:
        letters = f"({', '.join(dims)}{',' if len(dims) == 1 else ''})"
        raise ValueError(f"{name} must have shape {letters} = {wanted}, got {tuple(value.shape)}")
    if value.dtype not in (x.dtype, torch.float32):
        raise ValueError(f"{name} must have x's dtype {x.dtype} or torch.float32, got {value.dtype}")
    if value.device != x.device:
        raise ValueError(f"{name} must be on x's device {x.device}, got {value.device}")


def check_residual(residual: Tensor, x: Tensor) -> None:
    """ValueError unless `residual` has x's shape, dtype and device."""
    if residual.shape != x.shape:
        raise ValueError(f"residual must have x's shape {tuple(x.shape)}, got {tuple(residual.shape)}")
    if residual.dtype != x.dtype:
        raise ValueError(f"residual must have x's dtype {x.dtype}, got {residual.dtype}")
    if residual.device != x.device:
        raise ValueError(f"residual must be on x's device {x.device}, got {residual.device}")


def as_slope(negative_slope: float | None) -> float:
    """Returns the slope that bodies take: 1 for no activation."""
    return 1.0 if negative_slope is None else float(negative_slope)


def statistics_dtype(x: Tensor) -> torch.dtype:
    """Returns float64 for float64, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def widest(tensors: Sequence[Tensor]) -> torch.dtype:
    """Returns float64 if a tensor is, else float32: the dtype of sums over many."""
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32


def choosing(tensors: Sequence[Tensor]) -> Tensor:
    """Returns the tensor that chooses the body of an op on many: the first of float64, or else the first."""
    return next((x for x in tensors if x.dtype == torch.float64), tensors[0])


@overload
def as_statistics(value: Tensor, x: Tensor) -> Tensor: ...
@overload
def as_statistics(value: Tensor | None, x: Tensor) -> Tensor | None: ...
def as_statistics(value: Tensor | None, x: Tensor) -> Tensor | None:
    """Makes `value` contiguous in the statistics' dtype."""
    return None if value is None else value.to(statistics_dtype(x)).contiguous()


def new_statistics(x: Tensor, *shape: int) -> tuple[Tensor, Tensor]:
    """Allocates two tensors of the statistics' dtype, apart, as an op's outputs must not share memory."""
    first = x.new_empty(shape, dtype=statistics_dtype(x))
    return first, torch.empty_like(first)


def once_differentiable(op: str) -> Callable[..., NoReturn]:
    """The autograd formula of a backward op that has none: it raises RuntimeError."""

    def double_backward(ctx, *_grads) -> NoReturn:
        raise RuntimeError(
            f"{op} is differentiable once; for second derivatives use dgnet_fast.ops.{op}_reference"
        )

    return double_backward
