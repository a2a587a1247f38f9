"""Run by test_conv3x3_act.py with TRITON_INTERPRET=1: the Triton body on CPU tensors, errors as JSON.

In a process of its own, because Triton reads the variable when kernels are defined.
"""

from __future__ import annotations

import itertools
import json

import torch
from dgnet_fast.kernels import conv3x3_act as kernels

from dgnet_fast.ops import conv3x3_act, conv3x3_act_reference
from tests.ops.test_conv3x3_act import CASES, ORDERS, errors, results


def main() -> None:
    # Small, so that there are several tiles, blocks of channels and parts of the pixels.
    kernels.ROWS, kernels.CHANNELS, kernels.SPLITS = 32, 16, 3
    rows = []
    # the interpreter has no bfloat16 products
    for case, order, dtype in itertools.product(CASES, ORDERS, (torch.float32, torch.float16)):
        exact = results(conv3x3_act_reference, case, order, dtype, torch.float64)
        rows.append(
            {
                "case": f"{case} {order} {dtype}",
                "triton": errors(results(conv3x3_act, case, order, dtype), exact),
                "pytorch": errors(results(conv3x3_act_reference, case, order, dtype), exact),
            }
        )
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
