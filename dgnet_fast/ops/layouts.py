"""The memory orders that kernels read and write."""

from __future__ import annotations

import torch
from torch import Tensor


def is_channels_last(x: Tensor) -> bool:
    """Whether x (B, C, H, W) is dense in (B, H, W, C) order and not in (B, C, H, W) order as well."""
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def memory_format(x: Tensor) -> torch.memory_format:
    """The format that kernels read x (B, C, H, W) and write results in; x is copied if dense in neither."""
    return torch.channels_last if is_channels_last(x) else torch.contiguous_format


def dense_innermost(x: Tensor, order: torch.memory_format) -> bool:
    """Whether kernels can read x in place by its strides: the interior of a padded buffer, or a dense x.

    In NCHW the values of a row are neighbours; in channels_last those of a pixel are, and pixels follow each
    other. The strides of the other dimensions are free.
    """
    if order == torch.channels_last:
        inner = ((1, 1), (3, x.shape[1]))
    else:
        inner = ((3, 1),)
    return all(x.shape[dim] == 1 or x.stride(dim) == stride for dim, stride in inner)
