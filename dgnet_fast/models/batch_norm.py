"""BatchNorm whose batch may hold several groups, each its own batch to the statistics.

E_a and the teacher see several batches per step (x_a, x_b, the positives, erased copies, generated pictures).
Run as one tensor they are G groups of equal size: every group is normalised with its own statistics, and the
running statistics are updated group after group, exactly as separate passes in that order would.

With its running statistics BatchNorm is one factor and one offset a channel, which `fold_batch_norms` moves into
the layer before it for inference.
"""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgnet_fast.distributed import processes
from dgnet_fast.models.synced_batch_norm import synced_batch_norm
from dgnet_fast.models.typed import Network, in_channels_last
from dgnet_fast.ops import batch_norm_act
from dgnet_fast.ops.batch_norm_act import batch_norm_act_for_two
from dgnet_fast.ops.registry import FAST_DTYPES, TABLE

Statistics = Literal["update", "batch", "running"]


class BatchNormMode(NamedTuple):
    """How a pass treats BatchNorm.

    groups: equal consecutive slices of the batch, each with statistics of its own.
    statistics: ``update`` batch statistics, running ones updated; ``batch`` the same without the update;
    ``running`` the stored ones (evaluation).
    found: where norms that `batch_norm_act` serves leave their statistics instead of updating the running ones;
    whoever made the list, as E_a does for each pass, calls `update_running_statistics` after it. None: each norm
    updates its own.
    """

    groups: int = 1
    statistics: Statistics = "running"
    found: list[Found] | None = None


class Found(NamedTuple):
    """Statistics (G, C) that a norm found in a pass: means, biased variances, and of how many values each."""

    norm: GroupedBatchNorm
    mean: Tensor
    var: Tensor
    count: int


@torch.no_grad()
def update_running_statistics(found: list[Found]) -> None:
    """Running statistics of one pass's norms, group after group: for all norms a few calls. One for each norm and
    group were 1 900 of the 7 200 calls that a step had (`python -m benchmarks.launches`), launches without work on a GPU.

    The norms are different ones, of one momentum and dtype, and saw the same number of groups.
    """
    if not found:
        return
    groups, momentum = len(found[0].mean), found[0].norm.momentum
    assert all(len(one.mean) == groups and one.norm.momentum == momentum for one in found)
    assert len({id(one.norm) for one in found}) == len(found)
    # not +=: torch.compile refuses that under checkpointing
    torch._foreach_add_([one.norm.num_batches_tracked for one in found], groups)
    unbiased = torch._foreach_mul([one.var for one in found], [n / (n - 1) for *_, n in found])
    running = [one.norm.running_mean for one in found] + [one.norm.running_var for one in found]
    dtype = running[0].dtype
    rows = [t.to(dtype).unbind() for t in (*(one.mean for one in found), *unbiased)]
    for of_group in zip(*rows, strict=True):
        torch._foreach_lerp_(running, list(of_group), momentum)


class GroupedBatchNorm(nn.Module):
    """BatchNorm over dimension 1 of (G·B, C) or (G·B, C, H, W); parameters and buffers as in
    ``nn.BatchNorm2d``.

    ``parts``: each group is cut into so many equal parts with statistics of their own, whose means move the running ones:
    what as many processes do. ``synced``: the statistics are those of the groups of all processes together. Both are set
    by `set_batch_norms`.
    """

    parts: int = 1
    synced: bool = False

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

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
        return self._normalised(x, mode, residual, relu, two=False)[0]

    def for_two(
        self, x: Tensor, mode: BatchNormMode, residual: Tensor | None = None, *, relu: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The same twice, for two readers that change nothing in place: see `batch_norm_act_for_two`."""
        return self._normalised(x, mode, residual, relu, two=True)

    def _normalised(
        self, x: Tensor, mode: BatchNormMode, residual: Tensor | None, relu: bool, *, two: bool
    ) -> tuple[Tensor, Tensor]:
        if mode.statistics == "running":
            mean, var = self.running_mean, self.running_var
            if torch.is_grad_enabled():
                # The backward reads them again, and another pass may have updated them by then: PyTorch's batch_norm
                # changes them without autograd's notice, so no error would tell.
                mean, var = mean.clone(), var.clone()
            y = F.batch_norm(x, mean, var, self.weight, self.bias, False, self.momentum, self.eps)
            return _twice(_finish(y, residual, relu))
        groups = mode.groups * self.parts
        if groups < 1 or x.shape[0] % groups:
            raise ValueError(f"a batch of {x.shape[0]} cannot be cut into {groups} equal groups")
        update = mode.statistics == "update"
        count = x.numel() // (groups * x.shape[1])
        if self.synced and processes.size() > 1:
            y, mean, var = synced_batch_norm(x, self.weight, self.bias, groups, self.eps)
            if update:
                self._moved(mean, var, count * processes.size(), mode)
            return _twice(_finish(y, residual, relu))
        served = x.device.type in TABLE["batch_norm_act"] and x.dtype in FAST_DTYPES
        if served and count > 1:
            options = {"groups": groups, "relu": relu, "eps": self.eps}
            flat = x.ndim == 2
            if flat:
                x = _picture_of(x, groups)
                residual = None if residual is None else _picture_of(residual, groups)
            given = (x, self.weight, self.bias, residual)
            if two:
                y, again, mean, var = batch_norm_act_for_two(*given, **options)
            else:
                y, mean, var = batch_norm_act(*given, **options)
                again = y
            if flat:
                y, again = (t.squeeze(3).transpose(1, 2).flatten(0, 1) for t in (y, again))
            if update:
                self._moved(mean, var, count, mode)
            return y, again
        if update and self.parts > 1:
            values = x.detach().unflatten(0, (groups, -1))
            var, mean = torch.var_mean(values, dim=(1, *range(3, values.ndim)), correction=0)
            self._moved(mean, var, count, mode)
            update = False
        if update:
            self.num_batches_tracked.add_(mode.groups)
        running = (self.running_mean, self.running_var) if update else (None, None)
        outputs = [
            F.batch_norm(part, *running, self.weight, self.bias, True, self.momentum, self.eps)
            for part in x.chunk(groups)
        ]
        y = outputs[0] if groups == 1 else torch.cat(outputs)
        return _twice(_finish(y, residual, relu))

    def _moved(self, mean: Tensor, var: Tensor, count: int, mode: BatchNormMode) -> None:
        """Running statistics move by those of a pass, (groups · parts, C), or are left in ``mode.found`` to do so."""
        if self.parts > 1:
            mean, var = (one.unflatten(0, (mode.groups, self.parts)).mean(dim=1) for one in (mean, var))
        mine = Found(self, mean, var, count)
        if mode.found is None:
            update_running_statistics([mine])
        else:
            mode.found.append(mine)


def _picture_of(x: Tensor, groups: int) -> Tensor:
    """Vectors (G·B, C) as the pixels of a picture (G, C, B, 1) for each group, a view in channels_last."""
    return x.unflatten(0, (groups, -1)).transpose(1, 2).unsqueeze(3)


def set_batch_norms(network: nn.Module, *, parts: int, synced: bool) -> None:
    """Whose pictures a statistic is of, in all norms of a network: see `GroupedBatchNorm`."""
    for module in network.modules():
        if isinstance(module, GroupedBatchNorm):
            module.parts, module.synced = parts, synced


def _twice(y: Tensor) -> tuple[Tensor, Tensor]:
    return y, y


def _finish(y: Tensor, residual: Tensor | None, relu: bool) -> Tensor:
    y = y if residual is None else y + residual
    return F.relu(y) if relu else y


class FoldedBatchNorm(nn.Module):
    """In place of a `GroupedBatchNorm` that the layer before it has taken in: residual and ReLU remain."""

    def forward(
        self, x: Tensor, mode: BatchNormMode, residual: Tensor | None = None, *, relu: bool = False
    ) -> Tensor:
        """x, plus ``residual``, through a ReLU if asked; ValueError for a mode with batch statistics."""
        if mode.statistics != "running":
            raise ValueError(
                f"statistics is {mode.statistics!r}; a network with folded BatchNorms allows: running"
            )
        y = x if residual is None else x.add_(residual)  # in place: x is the layer's result and nobody else's
        return F.relu_(y) if relu else y

    def for_two(
        self, x: Tensor, mode: BatchNormMode, residual: Tensor | None = None, *, relu: bool = False
    ) -> tuple[Tensor, Tensor]:
        """As `GroupedBatchNorm.for_two`."""
        return (self(x, mode, residual, relu=relu),) * 2


@torch.no_grad()
def fold_batch_norms(network: Network) -> Network:
    """A copy of a network for inference, with every `GroupedBatchNorm` folded into the layer before it.

    In mode ``running`` it gives what the network gives, to rounding; other modes raise ValueError. The copy asks for
    no gradients, is in channels_last, and holds the weights and running statistics of this moment: fold again after
    they change. The network itself is left as it is, and returned where there is nothing to fold.

    E_a of the paper in float32 on one core (AVX2, PyTorch 2.13, 256x128, medians): 32 pictures 3.99 s, folded 3.10 s,
    folded and in channels_last 3.22 s; 64 pictures 8.12, 7.90 and 6.95 s. Copying and folding take 0.3 s.

    Raises:
        ValueError: a norm that does not directly follow a convolution or linear layer among its parent's children.
    """
    if not any(isinstance(module, GroupedBatchNorm) for module in network.modules()):
        return network
    folded = copy.deepcopy(network).requires_grad_(False)
    for module in list(folded.modules()):
        for (before, layer), (name, norm) in pairwise([("", None), *module.named_children()]):
            if not isinstance(norm, GroupedBatchNorm):
                continue
            if not isinstance(layer, (nn.Conv2d, nn.Linear)):
                raise ValueError(
                    f"{name} follows {before or 'nothing'}; a convolution or linear layer is allowed"
                )
            _fold(layer, norm)
            module.register_module(name, FoldedBatchNorm())
    return in_channels_last(folded)


def _fold(layer: nn.Conv2d | nn.Linear, norm: GroupedBatchNorm) -> None:
    """norm(layer(x)) as the layer's own weight and bias, computed in float64."""
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    offset = (0 if layer.bias is None else layer.bias.double()) - norm.running_mean.double()
    bias = norm.bias.double() + offset * scale
    layer.weight.mul_(scale.view(-1, *[1] * (layer.weight.ndim - 1)))
    layer.bias = nn.Parameter(bias.to(layer.weight.dtype), requires_grad=False)
