"""BatchNorm whose batch may hold several groups, each its own batch to the statistics.

E_a and the teacher see several batches per step (x_a, x_b, the positives, erased copies, generated pictures).
Run as one tensor they are G groups of equal size: every group is normalised with its own statistics, and the
running statistics are updated group after group, exactly as separate passes in that order would.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgnet_fast.ops import batch_norm_act
from dgnet_fast.ops.registry import FAST_DTYPES

Statistics = Literal["update", "batch", "running"]


class BatchNormMode(NamedTuple):
    """How a pass treats BatchNorm.

    groups: equal consecutive slices of the batch, each with statistics of its own.
    statistics: ``update`` batch statistics, running ones updated; ``batch`` the same without the update;
    ``running`` the stored ones (evaluation).
    """

    groups: int = 1
    statistics: Statistics = "running"


class GroupedBatchNorm(nn.Module):
    """BatchNorm over dimension 1 of (G·B, C) or (G·B, C, H, W); parameters and buffers as in
    ``nn.BatchNorm2d``.
    """

    def __init__(self, channels: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def forward(
        self, x: Tensor, mode: BatchNormMode, residual: Tensor | None = None, *, relu: bool = False
    ) -> Tensor:
        """norm(x), plus ``residual``, through a ReLU if asked: one op where `batch_norm_act` serves."""
        if mode.statistics == "running":
            mean, var = self.running_mean, self.running_var
            if torch.is_grad_enabled():
                # The backward reads them again, and a later pass of the step may have updated them by then:
                # PyTorch's batch_norm changes them without autograd's notice, so no error would tell.
                mean, var = mean.clone(), var.clone()
            y = F.batch_norm(x, mean, var, self.weight, self.bias, False, self.momentum, self.eps)
            return self._finish(y, residual, relu)
        if mode.groups < 1 or x.shape[0] % mode.groups:
            raise ValueError(f"a batch of {x.shape[0]} cannot be cut into {mode.groups} equal groups")
        update = mode.statistics == "update"
        if update:
            self.num_batches_tracked += mode.groups
        count = x.numel() // (mode.groups * x.shape[1])
        if x.ndim == 4 and x.device.type == "cpu" and x.dtype in FAST_DTYPES and count > 1:
            options = {"groups": mode.groups, "relu": relu, "eps": self.eps}
            y, mean, var = batch_norm_act(x, self.weight, self.bias, residual, **options)
            if update:
                self._update(mean, var * (count / (count - 1)))
            return y
        running = (self.running_mean, self.running_var) if update else (None, None)
        outputs = [
            F.batch_norm(part, *running, self.weight, self.bias, True, self.momentum, self.eps)
            for part in x.chunk(mode.groups)
        ]
        return self._finish(outputs[0] if mode.groups == 1 else torch.cat(outputs), residual, relu)

    @staticmethod
    def _finish(y: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
        y = y if residual is None else y + residual
        return F.relu(y) if relu else y

    @torch.no_grad()
    def _update(self, means: Tensor, unbiased: Tensor) -> None:
        """Running statistics from (G, C) means and unbiased variances, group after group."""
        for mean, var in zip(means, unbiased, strict=True):
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_(var.to(self.running_var.dtype), self.momentum)
