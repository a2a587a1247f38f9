"""E_s and G (with its MLPs) whole: ours against the plain fp32 NCHW networks, forward and forward + backward.

Values are compared before anything is timed. The least bytes are inputs, weights, and results, once each.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from benchmarks.flops import network_flops
from benchmarks.measure import LAYOUTS, skip_emulated_bf16
from benchmarks.plain import StructureEncoder, copy_weights, plain_decoder
from dgnet_fast.config import Config, from_dict
from dgnet_fast.config.presets import preset
from dgnet_fast.models.dgnet import DGNet

CUDA = torch.cuda.is_available()
HEIGHT, WIDTH = 256, 128
# (name, dtype, layout, needs --full); the first of them is the baseline
KINDS = (
    ("plain", "fp32", "NCHW", False),
    ("plain compiled", "fp32", "NCHW", True),
    ("ours", "fp32", "NCHW", True),
    ("ours", "fp32", "channels_last", False),
    ("ours", "bf16", "channels_last", False),
    ("ours compiled", "bf16" if CUDA else "fp32", "channels_last", True),
)


class Subject(NamedTuple):
    """A module under measurement: callables over the same inputs, and what gradients go to."""

    plain: Callable[..., Tensor]
    ours: Callable[..., Tensor]
    plain_parameters: list[nn.Parameter]
    parameters: list[nn.Parameter]
    inputs: tuple[Tensor, ...]
    differentiable: tuple[int, ...]


@cache
def config() -> Config:
    return from_dict(preset("paper")).replace(ID_class=2, ID_blocks=[1, 1, 1, 1])  # E_a is idle here


@cache
def subject(name: str, batch: int, device: str) -> Subject:
    """The module with its weights in both forms and inputs of `batch` pictures; values compared."""
    torch.manual_seed(0)
    options = config().replace(device=device)
    model = DGNet(options).to(device)
    if name == "E_s":
        plain = copy_weights(StructureEncoder(options), model.structure_encoder)
        inputs = (torch.randn(batch, 1, HEIGHT, WIDTH, device=device),)
        found = Subject(
            plain,
            model.structure_encoder,
            [*plain.parameters()],
            [*model.structure_encoder.parameters()],
            inputs,
            (),
        )
    else:
        plain = plain_decoder(model)
        structure = torch.randn(
            batch, plain.residual[0].conv1.conv.in_channels, HEIGHT // 4, WIDTH // 4, device=device
        )
        code = torch.rand(batch, 4 * options.gen.id_dim, device=device)
        parameters = [*model.decoder.parameters(), *model.mlp.parameters()]
        found = Subject(plain, model.decode, [*plain.parameters()], parameters, (structure, code), (0,))
    with torch.no_grad():
        one = tuple(x[:2] for x in found.inputs)
        expected, got = found.plain(*one), found.ours(*one)
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
    return found


def pytest_generate_tests(metafunc):
    full = metafunc.config.getoption("--full")
    batches = (8, 48) if CUDA else (8,) if full else (2,)
    rows = [
        pytest.param(
            name, batch, kind[:3], which, id=f"{name}-{batch}-{'-'.join(kind[:3])}-{which}".replace(" ", "-")
        )
        for name in ("E_s", "G")
        for batch in batches
        for kind in KINDS
        for which in ("forward", "forward+backward")
        if full or not kind[3]
    ]
    metafunc.parametrize(("name", "batch", "kind", "which"), rows)


def test_module(measured, device, full, name, batch, kind, which):
    how, dtype, layout = kind
    if dtype == "bf16" and not full:
        skip_emulated_bf16(device)
    found = subject(name, batch, device)
    plain = how.startswith("plain")
    parameters = found.plain_parameters if plain else found.parameters
    order = LAYOUTS[layout]
    for parameter in parameters:
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=order)
    inputs = [x.contiguous(memory_format=order) if x.ndim == 4 else x for x in found.inputs]
    inputs = [x.detach().requires_grad_(k in found.differentiable) for k, x in enumerate(inputs)]
    module = found.plain if plain else found.ours
    if how.endswith("compiled"):
        torch._dynamo.reset()
        module = torch.compile(module, fullgraph=True, dynamic=False)
    leaves = [*parameters, *(inputs[k] for k in found.differentiable)]

    def forward():
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bf16"):
            return module(*inputs)

    result = forward()
    grad = torch.randn_like(result)

    def both():
        torch.autograd.grad(forward(), leaves, grad)

    if how.endswith("compiled") and which != "forward":
        both()  # compiles the backward before a round is timed

    passes = network_flops_once()[name]
    backward = passes["both"] if found.differentiable else passes["weights"]
    held = sum(p.nbytes for p in parameters) + sum(x.nbytes for x in inputs) + 4 * result.numel()
    measured(
        forward if which == "forward" else both,
        memory=both if which != "forward" else None,
        section="module",
        group=f"{name} batch {batch} {which}",
        name=how,
        baseline=plain,
        dtype=dtype,
        layout=layout,
        batch=batch,
        bytes=held if which == "forward" else 3 * held,
        flops=batch * (passes["forward"] + (0 if which == "forward" else backward)),
        limit=[f"matmul {dtype}"],
    )


@cache
def network_flops_once() -> dict[str, dict[str, float]]:
    return network_flops(config(), ("E_s", "G"))
