"""Run by test_assemble_triton.py with TRITON_INTERPRET=1: the kernel on CPU tensors against PyTorch, as JSON.

In a process of its own, because Triton reads the variable when kernels are defined.
"""

from __future__ import annotations

import json

import torch
from dgnet_fast.kernels import assemble as kernels

from dgnet_fast.data.augment import assemble, normalizing_constants

#: Pictures, height, width, padding, block.
CASES = [(5, 12, 8, 3, 32), (3, 7, 5, 0, 1024), (2, 4, 3, 9, 16), (4, 16, 16, 1, 64)]


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = []
    for count, height, width, pad, block in CASES:
        kernels.BLOCK = block
        images = torch.randint(256, (count, 3, height, width), generator=generator, dtype=torch.uint8)
        n = 7
        indices = torch.randint(count, (n,), generator=generator)
        flip = torch.arange(n) % 2
        top, left = (torch.randint(2 * pad + 1, (n,), generator=generator) for _ in range(2))
        top[0], left[0], top[1], left[1] = 0, 0, 2 * pad, 2 * pad
        given = (images, indices, flip, top, left, pad)
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            made = kernels.forward(*given, *normalizing_constants(), dtype)
            wanted = assemble(*given, dtype)
            assert made.dtype == wanted.dtype == dtype and made.shape == wanted.shape
            # Bits apart: the interpreter truncates to bfloat16, GPUs round.
            bits = torch.int32 if dtype == torch.float32 else torch.int16
            apart = (made.view(bits).long() - wanted.view(bits).long()).abs().max().item()
            rows.append({"case": f"{count} {height}x{width} pad {pad} {dtype}", "apart": apart})
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
