"""BatchNorm whose statistics are those of the batches of all processes of a run.

In plain PyTorch, with one exchange in each direction: every process's means and variances forward, and the sums over its
pictures of the gradient and of the gradient times the normalised value backward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dgnet_fast.distributed import processes


def synced_batch_norm(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(x - mean) / sqrt(var + eps) * weight + bias, for x (groups · B, C, ...), B the same in every process.

    Returns y in x's dtype and layout, and mean and biased variance (groups, C) over the group's pictures of all
    processes, which carry no gradient; these are float32, float64 for float64. Differentiable once. The gradients of
    weight and bias are those of this process's pictures: they are summed with all other gradients.
    """
    return _Synced.apply(x, weight, bias, groups, eps)


def _grouped(x: Tensor, groups: int) -> Tensor:
    """(G·B, C, ...) → (G, B, C, ...), at least float32."""
    return (x if x.dtype == torch.float64 else x.float()).unflatten(0, (groups, -1))


def _per_group(value: Tensor, ndim: int) -> Tensor:
    """(G, C) → (G, 1, C, 1, ...) of ``ndim`` dimensions."""
    return value.view(len(value), 1, -1, *[1] * (ndim - 3))


class _Synced(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        values = _grouped(x, groups)
        over = (1, *range(3, values.ndim))
        var, mean = torch.var_mean(values, dim=over, correction=0)
        means, variances = processes.stacked(torch.stack([mean, var])).unbind(1)
        mean = means.mean(dim=0)
        var = variances.mean(dim=0) + (means - mean).square().mean(dim=0)
        rstd = (var + eps).rsqrt()
        normal = (values - _per_group(mean, values.ndim)) * _per_group(rstd, values.ndim)
        shape = (1, 1, -1, *[1] * (values.ndim - 3))
        y = normal * weight.to(values.dtype).view(shape) + bias.to(values.dtype).view(shape)
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.groups = groups
        ctx.mark_non_differentiable(mean, var)
        return y.flatten(0, 1).to(x.dtype), mean, var

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_y: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        values, grad = _grouped(x, ctx.groups), _grouped(grad_y, ctx.groups)
        over = (1, *range(3, values.ndim))
        normal = (values - _per_group(mean, values.ndim)) * _per_group(rstd, values.ndim)
        total, product = grad.sum(dim=over), (grad * normal).sum(dim=over)
        grad_weight, grad_bias = product.sum(dim=0), total.sum(dim=0)
        sums = torch.stack([total, product])
        processes.sum_(sums)
        count = values.numel() // (values.shape[0] * values.shape[2]) * processes.size()
        total, product = (_per_group(one / count, values.ndim) for one in sums)
        grad_x = (grad - total - normal * product) * _per_group(rstd * weight.to(rstd.dtype), values.ndim)
        return (
            grad_x.flatten(0, 1).to(x.dtype),
            grad_weight.to(weight.dtype),
            grad_bias.to(weight.dtype),
            None,
            None,
        )
