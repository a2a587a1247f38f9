"""The extension as the ops see it: every module of `dgnet_fast.ops` takes `_C` from here and from nowhere else."""

from dgnet_fast import _C

__all__ = ["_C"]
