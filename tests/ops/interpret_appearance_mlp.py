"""Run by test_appearance_mlp_triton.py with TRITON_INTERPRET=1: the Triton body on CPU tensors, errors as JSON.

In a process of its own, because Triton reads the variable when kernels are defined.
"""

from __future__ import annotations

import json

import torch
from dgnet_fast.kernels import appearance_mlp as kernels

from dgnet_fast.ops import appearance_mlp_reference
from tests.ops.test_appearance_mlp import arguments, errors, run

#: Sizes as in test_appearance_mlp.py, dtype of the code and of the weights, slope. Rows over more than one tile,
#: features that fill no tile, and more of them than one has. The interpreter has no bfloat16 products.
CASES = [
    ((3, 2, 40, 24, 17, 5), torch.float32, torch.float32, 0.2),
    ((37, 1, 20, 16, 18, 9), torch.float32, torch.float32, 0.0),
    ((1, 1, 3, 2, 2, 1), torch.float32, torch.float32, 1.0),
    ((5, 2, 48, 32, 16, 8), torch.float16, torch.float16, 0.2),
    ((5, 2, 48, 32, 16, 8), torch.float16, torch.float32, 0.2),
]


def main() -> None:
    from dgnet_fast.ops import appearance_mlp

    kernels.OUTPUTS, kernels.INPUTS, kernels.MOST_ROWS, kernels.SUMMED_ROWS = 16, 32, 16, 16
    rows = []
    for sizes, dtype, weight_dtype, slope in CASES:
        given = arguments(sizes, dtype, weight_dtype)
        exact = run(appearance_mlp_reference, *given, slope, torch.float64)
        ours, theirs = run(appearance_mlp, *given, slope), run(appearance_mlp_reference, *given, slope)
        rows.append(
            {
                "case": f"{sizes} {dtype} {weight_dtype} {slope}",
                "dtypes": [str(t.dtype) for t in ours],
                "triton": errors(ours, exact),
                "pytorch": errors(theirs, exact),
            }
        )
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
