"""Hostile tensors for every public op: it gives a result, or says in a ValueError, TypeError or RuntimeError what is wrong;
it never reads or writes beyond its tensors, and never ends the process.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dgnet_fast import ops
from tests.stress.harness import Budget, Section, hostile, run

DTYPES = (
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.float64,
    torch.int64,
    torch.uint8,
    torch.bool,
    torch.complex64,
)
BATCH = 50


def usual(name: str) -> tuple[list[Any], dict[str, Any]]:
    """Arguments that the op takes."""
    x = torch.randn(4, 8, 6, 5)
    per_sample = torch.randn(4, 8)
    return {
        "adain_act": ([x, per_sample, per_sample.clone(), torch.randn_like(x)], {"negative_slope": 0.2, "padding": 0}),
        "act_pad": ([x, torch.randn(8), torch.randn_like(x)], {"negative_slope": 0.2, "padding": 2}),
        "batch_norm_act": ([x, torch.randn(8), torch.randn(8), torch.randn_like(x)], {"groups": 2, "relu": True}),
        "layer_norm_act": ([x, torch.randn(8), torch.randn(8)], {"negative_slope": 0.2, "padding": 1}),
        "conv3x3": ([x, torch.randn(3, 8, 3, 3), torch.randn(3)], {"padding": 1}),
        "conv3x3_act": ([x, torch.randn(3, 8, 3, 3), torch.randn(3)], {"negative_slope": 0.2}),
        "loss_l1": ([[x, x[:2]], [x.flip(0), x[2:]]], {}),
        "loss_adversarial": ([[torch.randn(4, 1, 3, 2), torch.randn(4, 1, 2, 2)], [True, False]], {"kind": "lsgan"}),
        "loss_identity": (
            [[torch.randn(6, 7), torch.randn(4, 7)], [torch.randint(7, (2, 3)), torch.rand(2, 2, 7).softmax(-1)]], {},
        ),
        "appearance_mlp": (
            [torch.randn(5, 12), [torch.randn(4, 3), torch.randn(4, 4), torch.randn(6, 4)],
             [torch.randn(4), torch.randn(4), torch.randn(6)]], {"negative_slope": 0.2},
        ),
    }[name]  # fmt: skip


NAMES = tuple(name for name in ops.__all__ if not name.endswith("_reference"))


def odd_tensor(x: Tensor, rng: random.Random) -> Any:
    """The tensor in another shape, dtype, layout or with other values, or no tensor."""
    kinds: tuple[Callable[[], Any], ...] = (
        lambda: x.to(rng.choice(DTYPES)), lambda: x[..., :0], lambda: x[:0], lambda: x.flatten(), lambda: x[None], lambda: x.sum(),
        lambda: x.transpose(0, -1), lambda: x.expand(3, *x.shape), lambda: x[..., ::2], lambda: x.flip(0)[1:], lambda: None,
        lambda: torch.full_like(x, rng.choice((float("nan"), float("inf"), 1e38, -1e38))) if x.is_floating_point() else x + 10**6,
        lambda: x[..., :1].expand(x.shape), lambda: x.to_sparse(), lambda: x.to("meta"), lambda: x.numpy(), lambda: [x], lambda: -x,
        lambda: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.t() if x.dim() == 2 else x,
        lambda: x.repeat(*[rng.choice((1, 2)) for _ in range(x.dim())]), lambda: x - 100 if x.dtype == torch.int64 else x,
        lambda: torch.zeros(1, dtype=x.dtype).expand(*[rng.choice((1, 3, 2**15)) for _ in range(x.dim())])[..., :3],
    )  # fmt: skip
    return rng.choice(kinds)()


ODD_NUMBERS = (-1, 0, 1, 3, 2**31, 2**63, -(2**63), 0.5, float("nan"), float("inf"), None, "x", True, 1e-30)


def changed(value: Any, rng: random.Random) -> Any:
    if isinstance(value, Tensor):
        return odd_tensor(value, rng) if rng.random() < 0.5 else value
    if isinstance(value, list):
        made = [changed(one, rng) for one in value]
        kind = rng.random()
        return [] if kind < 0.03 else made[:-1] if kind < 0.06 else made + made[:1] if kind < 0.09 else made
    return rng.choice(ODD_NUMBERS) if rng.random() < 0.3 else value


def attempt(name: str, seed: int) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    arguments, options = usual(name)
    arguments = [changed(one, rng) for one in arguments]
    options = {key: changed(value, rng) for key, value in options.items()}
    leaves = [x for x in arguments if isinstance(x, Tensor) and x.is_floating_point() and rng.random() < 0.5]
    for leaf in leaves:
        leaf.requires_grad_()
    try:
        result = getattr(ops, name)(*arguments, **options)
        if isinstance(result, Tensor) and result.requires_grad and result.numel() < 10**7:
            result.float().sum().backward()
    except (
        ValueError,
        TypeError,
        RuntimeError,
        NotImplementedError,
        OverflowError,
        AttributeError,
        IndexError,
    ):
        print("refused", flush=True)


def hostile_tensors(budget: Budget, rng: random.Random) -> Section:
    """Every op in turn, `BATCH` cases in a process."""
    section = Section("hostile tensors")
    while budget.allows(section.cases):
        for name in NAMES:
            seeds = [rng.randrange(2**31) for _ in range(BATCH)]

            def many(seeds: list[int], name: str = name) -> int:
                for seed in seeds:
                    attempt(name, seed)
                return 0

            result = run(lambda seeds=seeds, many=many: many(seeds), timeout=60, hostile_memory=True)
            if result.status == 0 and hostile(result) is None:
                section.cases += BATCH
            else:
                for seed in seeds:
                    alone = run(lambda seed=seed, many=many: many([seed]), timeout=10, hostile_memory=True)
                    problem = hostile(alone)
                    section.count(problem and f"{name}, seed {seed}: {problem}")
            section.notes[name] = section.notes.get(name, 0) + BATCH
    return section
