"""Run by test_act_pad_triton.py with TRITON_INTERPRET=1: the Triton body on CPU tensors, errors as JSON.

In a process of its own, because Triton reads the variable when kernels are defined.
"""

from __future__ import annotations

import itertools
import json

import torch
from dgnet_fast.kernels import act_pad as kernels
from dgnet_fast.kernels import slices

from dgnet_fast.ops import act_pad
from dgnet_fast.ops.act_pad import act_pad_for_two
from tests.ops.test_act_pad import plainly, plainly_for_two, prepared, run, two_readers

#: Shape, padding and dtypes: every line mirrored on both sides, several blocks of channels, several tiles.
CASES = [
    ((2, 5, 7, 3), 2, (torch.float32, torch.bfloat16, torch.float16)),
    ((1, 1, 4, 9), 3, (torch.float32,)),
    ((1, 140, 2, 2), 1, (torch.float32,)),
    ((1, 3, 20, 11), 1, (torch.float32,)),
]


def main() -> None:
    kernels.TILE = 256  # small, so that there are several tiles
    errors = {}
    for (shape, padding, dtypes), channels_last, slope in itertools.product(
        CASES, (False, True), (None, 0.2)
    ):
        for dtype in dtypes:
            given = prepared(shape, padding, dtype=dtype, channels_last=channels_last)
            ours, exact = (
                run(act_pad, given, slope, padding),
                run(plainly, given, slope, padding, torch.float64),
            )
            worst = max(
                ((mine - other).abs() / (other.abs() + 0.1)).max().item()
                for mine, other in zip(ours, exact, strict=True)
            )
            errors.setdefault(str(dtype), []).append(worst)
            x, bias = given[0], torch.randn(shape[1], generator=torch.Generator().manual_seed(3))
            sums = x.double() + bias.double().view(-1, 1, 1)
            for amount in (padding, 0) if slope else (padding,):
                mine = act_pad(x, bias, negative_slope=slope, padding=amount)
                other = plainly(sums, negative_slope=slope, padding=amount)
                errors[str(dtype)].append(((mine - other).abs() / (other.abs() + 0.1)).max().item())
    # sums of a bias's gradient in several slices, which are merged in several steps
    kernels.MOST_PROGRAMS, slices.SUM_ELEMENTS, slices.SUM_COLUMNS = 6, 8, 2
    for channels_last, slope in itertools.product((False, True), (None, 0.2)):
        given = (2, 5, 13, 9), slope, channels_last
        pairs = zip(
            two_readers(act_pad_for_two, *given),
            two_readers(plainly_for_two, *given, torch.float64),
            strict=True,
        )
        worst = max(((a.double() - b).abs() / (b.abs() + 1)).max().item() for a, b in pairs)
        errors.setdefault("two readers", []).append(worst)
    print(json.dumps(errors))


if __name__ == "__main__":
    main()
