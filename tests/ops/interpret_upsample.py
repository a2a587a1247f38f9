"""Run by test_upsample_ops.py with TRITON_INTERPRET=1: the Triton bodies of `upsample_border` and `upsample_weights` on CPU
tensors, the largest difference from the reference as JSON.

In a process of its own, because Triton reads the variable when kernels are defined.
"""

from __future__ import annotations

import json

import torch
from dgnet_fast.kernels import upsample_border as border_kernels
from dgnet_fast.kernels import upsample_weights as weight_kernels

from dgnet_fast.ops.upsample_border import reference as border_reference
from dgnet_fast.ops.upsample_border import upsample_border
from dgnet_fast.ops.upsample_weights import reference as weights_reference
from dgnet_fast.ops.upsample_weights import upsample_weights
from tests.ops.test_upsample_ops import BORDERS, DTYPES, FILTERS, differences, draw

ORDERS = (torch.contiguous_format, torch.channels_last)


def main() -> None:
    border_kernels.TILE, weight_kernels.BLOCK = 64, 8  # small, so that there are several tiles
    found = {}
    for dtype in DTYPES:
        for order in ORDERS:
            for shape in BORDERS:
                x = draw(shape, dtype, order)
                found[f"{shape} {dtype} {order}"] = differences(upsample_border, border_reference, x)
            for shape in FILTERS:
                weight = draw(shape, torch.float32, order)
                found[f"{shape} {dtype} {order}"] = differences(
                    upsample_weights, weights_reference, weight, dtype
                )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
