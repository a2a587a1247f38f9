"""The 2015 Inception network up to its pooled features, which FID compares (Szegedy et al. 2016, as TensorFlow has it).

Its entries have the names of the weights file that torch-fidelity and pytorch-fid download. It differs from
torchvision's Inception in its pooling: averages leave the border out, and the last block takes the maximum.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Kernel = int | tuple[int, int]
Layer = tuple[int, Kernel]
"""Number of output channels, and the kernel."""

SIDE = 299
"""Pixels of each side of the pictures that the network takes."""


class _Conv(nn.Module):
    """Convolution, BatchNorm by its running statistics, ReLU. Without ``valid`` the size stays."""

    def __init__(
        self, n_in: int, n_out: int, kernel: Kernel, *, stride: int = 1, valid: bool = False
    ) -> None:
        super().__init__()
        height, width = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        padding = (0, 0) if valid else (height // 2, width // 2)
        self.conv = nn.Conv2d(n_in, n_out, (height, width), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(n_out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class _Block(nn.Module):
    """Branches side by side, their results one after another in the channels.

    Args:
        branches: the layers of each branch by the name of the branch, in order.
        pool: "average" or "max" over 3×3, then a convolution to ``pool_out`` channels; or, without ``pool_out``, the
            block halves the size: the last layer of each branch and the maximum have stride 2 and no padding.
        split: branches whose last layer is two, 1×3 and 3×1, of the same input.
    """

    def __init__(
        self,
        n_in: int,
        branches: dict[str, Sequence[Layer]],
        *,
        pool: str = "max",
        pool_out: int | None = None,
        split: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.pool = pool
        self.paths: list[list[list[str]]] = []
        for branch, layers in branches.items():
            path, width = [], n_in
            for k, (n_out, kernel) in enumerate(layers, 1):
                last = k == len(layers)
                ends = "ab" if last and branch in split else ("",)
                names = [f"{branch}_{k}{end}" if len(layers) > 1 else branch for end in ends]
                halves = last and pool_out is None
                for name, one in zip(names, ((1, 3), (3, 1)) if len(names) == 2 else (kernel,), strict=True):
                    self.add_module(name, _Conv(width, n_out, one, stride=2 if halves else 1, valid=halves))
                path.append(names)
                width = n_out
            self.paths.append(path)
        self.branch_pool = None if pool_out is None else _Conv(n_in, pool_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        results = []
        for path in self.paths:
            y = x
            for names in path:
                y = torch.cat([self.get_submodule(name)(y) for name in names], dim=1)
            results.append(y)
        if self.branch_pool is None:
            results.append(F.max_pool2d(x, 3, stride=2))
        elif self.pool == "max":
            results.append(self.branch_pool(F.max_pool2d(x, 3, stride=1, padding=1)))
        else:
            pooled = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
            results.append(self.branch_pool(pooled))
        return torch.cat(results, dim=1)


def _early(n_in: int, pool_out: int) -> _Block:
    branches: dict[str, Sequence[Layer]] = {
        "branch1x1": [(64, 1)],
        "branch5x5": [(48, 1), (64, 5)],
        "branch3x3dbl": [(64, 1), (96, 3), (96, 3)],
    }
    return _Block(n_in, branches, pool="average", pool_out=pool_out)


def _middle(width: int) -> _Block:
    row, column = (1, 7), (7, 1)
    branches: dict[str, Sequence[Layer]] = {
        "branch1x1": [(192, 1)],
        "branch7x7": [(width, 1), (width, row), (192, column)],
        "branch7x7dbl": [(width, 1), (width, column), (width, row), (width, column), (192, row)],
    }
    return _Block(768, branches, pool="average", pool_out=192)


def _late(n_in: int, pool: str) -> _Block:
    branches: dict[str, Sequence[Layer]] = {
        "branch1x1": [(320, 1)],
        "branch3x3": [(384, 1), (384, 3)],
        "branch3x3dbl": [(448, 1), (384, 3), (384, 3)],
    }
    return _Block(n_in, branches, pool=pool, pool_out=192, split=("branch3x3", "branch3x3dbl"))


class Inception(nn.Module):
    """Pictures (N, 3, 299, 299), values in [-1, 1], to features (N, 2048). In evaluation mode, without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, 32, 3, stride=2, valid=True)
        self.Conv2d_2a_3x3 = _Conv(32, 32, 3, valid=True)
        self.Conv2d_2b_3x3 = _Conv(32, 64, 3)
        self.Conv2d_3b_1x1 = _Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = _Conv(80, 192, 3, valid=True)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _early(192, 32), _early(256, 64), _early(288, 64)
        self.Mixed_6a = _Block(288, {"branch3x3": [(384, 3)], "branch3x3dbl": [(64, 1), (96, 3), (96, 3)]})
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = map(_middle, (128, 160, 160, 192))
        sevens: Sequence[Layer] = [(192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3)]
        self.Mixed_7a = _Block(768, {"branch3x3": [(192, 1), (320, 3)], "branch7x7x3": sevens})
        self.Mixed_7b, self.Mixed_7c = _late(1280, "average"), _late(2048, "max")
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, stride=2))))
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))
        x = self.Mixed_7a(self.Mixed_6e(self.Mixed_6d(x)))
        return self.Mixed_7c(self.Mixed_7b(x)).mean(dim=(2, 3))


def resized_legacy(x: Tensor, side: int = SIDE) -> Tensor:
    """float (N, C, H, W) to (N, C, side, side) as TensorFlow 1 did it, which FID was defined with: bilinear between two
    pixels at ``k · H / side``, without half a pixel of shift and without antialiasing.
    """
    for dim in (3, 2):
        count = x.shape[dim]
        at = torch.arange(side, device=x.device, dtype=x.dtype) * (count / side)
        low = at.long().clamp(max=count - 1)
        high = (low + 1).clamp(max=count - 1)
        share = (at - low).view(-1, *[1] * (3 - dim))
        x = torch.lerp(x.index_select(dim, low), x.index_select(dim, high), share)
    return x


def resized_clean(x: Tensor, side: int = SIDE) -> Tensor:
    """float (N, C, H, W) of range 0 to 255 to (N, C, side, side) as clean-fid does it: Pillow's bicubic filter with
    antialiasing on each channel in float32, cut to the range (Parmar et al., CVPR 2022). On the CPU.
    """
    import numpy as np
    from PIL import Image

    pictures = x.detach().float().cpu().numpy()
    made = np.empty((*pictures.shape[:2], side, side), dtype=np.float32)
    for n, picture in enumerate(pictures):
        for c, channel in enumerate(picture):
            made[n, c] = np.asarray(Image.fromarray(channel).resize((side, side), Image.Resampling.BICUBIC))
    return torch.from_numpy(made.clip(0, 255)).to(x.device)
