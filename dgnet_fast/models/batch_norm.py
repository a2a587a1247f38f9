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

    def forward(self, x: Tensor, mode: BatchNormMode) -> Tensor:
        if mode.statistics == "running":
            mean, var = self.running_mean, self.running_var
            if torch.is_grad_enabled():
                # The backward reads them again, and a later pass of the step may have updated them by then:
                # PyTorch's batch_norm changes them without autograd's notice, so no error would tell.
                mean, var = mean.clone(), var.clone()
            return F.batch_norm(x, mean, var, self.weight, self.bias, False, self.momentum, self.eps)
        if mode.groups < 1 or x.shape[0] % mode.groups:
            raise ValueError(f"a batch of {x.shape[0]} cannot be cut into {mode.groups} equal groups")
        running = (None, None)
        if mode.statistics == "update":
            running = (self.running_mean, self.running_var)
            self.num_batches_tracked += mode.groups
        outputs = [
            F.batch_norm(part, *running, self.weight, self.bias, True, self.momentum, self.eps)
            for part in x.chunk(mode.groups)
        ]
        return outputs[0] if mode.groups == 1 else torch.cat(outputs)
