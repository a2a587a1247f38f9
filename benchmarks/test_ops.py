"""Operators at DG-Net's shapes (`ops_table.py`): reference eager and compiled, and each body of this device.

A pass is measured as in training, with gradients asked for: forward keeps what the backward needs, backward
starts from a fresh forward, both is one after the other.
"""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch

from benchmarks.measure import DTYPES, LAYOUTS, emulates_bf16, skip_emulated_bf16
from benchmarks.ops_table import OPS, PASSES, OpCase, tensors

QUICK_KINDS = (("fp32", "NCHW"), ("bf16", "channels_last"))
KINDS = tuple((dtype, layout) for dtype in DTYPES for layout in LAYOUTS)


def pytest_generate_tests(metafunc):
    full, cuda = metafunc.config.getoption("--full"), torch.cuda.is_available()
    emulated = emulates_bf16("cuda" if cuda else "cpu")
    rows = []
    for case in OPS:
        if not (full or case.quick):
            continue
        kinds = KINDS if full else QUICK_KINDS[-1:] if cuda else QUICK_KINDS
        if case.products and case.images and not (full or cuda):
            kinds = (("fp32", "channels_last"), QUICK_KINDS[-1])  # the order that the networks are in
        if not case.images:
            kinds = tuple(dict.fromkeys((dtype, "rows") for dtype, _ in kinds))
        for dtype, layout in kinds:
            if emulated and case.products and dtype == "bf16" and (layout == "NCHW" or not case.quick):
                continue  # minutes a call
            for how in case.implementations("cuda" if cuda else "cpu", DTYPES[dtype]):
                for which in PASSES if full else ("forward", "both"):
                    name = f"{case.op}-{case.name}-{dtype}-{layout}-{how}-{which}".replace(" ", "_")
                    rows.append(pytest.param(case, dtype, layout, how, which, id=name))
    metafunc.parametrize(("case", "dtype", "layout", "how", "which"), rows)


@lru_cache(maxsize=1)
def compiled(case: OpCase, dtype: str, layout: str):
    """The compiled reference, fresh for a shape and kept for its three passes."""
    torch._dynamo.reset()
    return torch.compile(case.reference, fullgraph=True, dynamic=False)


def function(case: OpCase, dtype: str, layout: str, how: str, monkeypatch):
    if how == "eager":
        return case.reference
    if how == "plain":
        return case.plain
    if how == "compiled":
        return compiled(case, dtype, layout)
    if how != "op":
        monkeypatch.setenv("DGNET_FAST_IMPL", how)
    return case.public


def test_op(measured, monkeypatch, device, full, case, dtype, layout, how, which):
    if case.products and dtype == "bf16" and not full:
        skip_emulated_bf16(device)
    arguments = case.inputs(DTYPES[dtype], device, layout == "channels_last")
    leaves = [one.requires_grad_() for k in case.differentiable for one in tensors(arguments[k])]
    call = function(case, dtype, layout, how, monkeypatch)
    result = call(*arguments, **case.options)
    grad = torch.randn_like(result)
    state = [result]

    def forward():
        state[0] = call(*arguments, **case.options)

    def backward():
        torch.autograd.grad(state[0], leaves, grad)

    def both():
        forward()
        backward()

    if how == "compiled":
        both()  # compiles both passes before a round is timed

    moved, flops = case.work(which, arguments, result)
    measured(
        {"forward": forward, "backward": backward, "both": both}[which],
        setup=forward if which == "backward" else None,
        section="op",
        op=case.op,
        group=f"{case.op} {case.name} {dtype} {layout} {which}",
        name=how,
        baseline=how in ("plain", "eager", "compiled"),
        dtype=dtype,
        layout=layout,
        batch=tensors(arguments[0])[0].shape[0],
        bytes=moved,
        flops=flops,
        limit=[f"matmul {dtype}"] if flops > 100 * moved else ["copy"],
        memory=both if which == "both" else None,
    )
