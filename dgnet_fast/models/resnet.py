"""Bottleneck ResNet in torchvision's layout, with grouped BatchNorm and a removable last stride.

``width`` 64 and ``blocks`` (3, 4, 6, 3) is ResNet-50; other values give the same network thinner or
shallower. Parameter names below ``conv1, bn1, layer1…4`` are torchvision's, so its weight files load
directly.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgnet_fast.models.batch_norm import BatchNormMode, GroupedBatchNorm
from dgnet_fast.models.layers import convolve
from dgnet_fast.models.recompute import recomputed_block
from dgnet_fast.models.typed import ModuleList

EXPANSION = 4


def _conv(n_in: int, n_out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, kernel, stride, kernel // 2, bias=False)


class Bottleneck(nn.Module):
    """1×1 reduce, 3×3 (carries the stride), 1×1 expand ×4, plus the (projected) input."""

    def __init__(self, n_in: int, width: int, stride: int) -> None:
        super().__init__()
        n_out = EXPANSION * width
        self.conv1, self.bn1 = _conv(n_in, width, 1), GroupedBatchNorm(width)
        self.conv2, self.bn2 = _conv(width, width, 3, stride), GroupedBatchNorm(width)
        self.conv3, self.bn3 = _conv(width, n_out, 1), GroupedBatchNorm(n_out)
        self.downsample = None
        if stride != 1 or n_in != n_out:
            self.downsample = ModuleList([_conv(n_in, n_out, 1, stride), GroupedBatchNorm(n_out)])

    def forward(self, x: Tensor, mode: BatchNormMode) -> Tensor:
        return self.for_two(x, x, mode)[0]

    def for_two(self, x: Tensor, again: Tensor, mode: BatchNormMode) -> tuple[Tensor, Tensor]:
        """x through the block, twice, for the two readers of the next one (`GroupedBatchNorm.for_two`); ``again`` is x,
        for the second of this one's.
        """
        identity = again
        if self.downsample is not None:
            conv, norm = self.downsample
            identity = norm(conv(again), mode)
        y = self.bn1(self.conv1(x), mode, relu=True)
        y = self.bn2(convolve(self.conv2, y), mode, relu=True)
        return self.bn3.for_two(self.conv3(y), mode, identity, relu=True)


class ResNet(nn.Module):
    """(N, 3, H, W) → (N, 32·width, H/32, W/32), or H/16, W/16 with ``last_stride`` 1.

    With ``checkpoint`` set, a block keeps its input only and computes the rest again in the backward pass.
    """

    layer1: ModuleList[Bottleneck]
    layer2: ModuleList[Bottleneck]
    layer3: ModuleList[Bottleneck]
    layer4: ModuleList[Bottleneck]

    def __init__(
        self,
        width: int = 64,
        blocks: Sequence[int] = (3, 4, 6, 3),
        last_stride: int = 2,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.checkpoint = False
        self.conv1, self.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), GroupedBatchNorm(width)
        channels = width
        for stage, count in enumerate(blocks):
            stage_width = width * 2**stage
            stride = (1, 2, 2, last_stride)[stage]
            layers = []
            for k in range(count):
                layers.append(Bottleneck(channels, stage_width, stride if k == 0 else 1))
                channels = EXPANSION * stage_width
            setattr(self, f"layer{stage + 1}", ModuleList(layers))
        self.channels = channels
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(
                    module.weight, mode="fan_out", nonlinearity="relu", generator=generator
                )

    def forward(self, x: Tensor, mode: BatchNormMode) -> Tensor:
        x = self.bn1(self.conv1(x), mode, relu=True)
        x = again = F.max_pool2d(x, 3, stride=2, padding=1)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in layer:
                if self.checkpoint:
                    x = again = recomputed_block(block, x, mode)
                else:
                    x, again = block.for_two(x, again, mode)
        return x
