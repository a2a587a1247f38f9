"""An op from plain functions: `define` adds what is the same for all, and says nothing twice.

The reference's two functions give the schemas. An op's inputs travel as `Arguments`, by the reference's names, so a
new argument is typed where a reader needs it: in the reference, in the public functions and in the check. The fake
is the allocation: it is what the bodies fill.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from dgnet_fast.ops import registry
from dgnet_fast.ops.arguments import once_differentiable
from dgnet_fast.ops.bodies import Arguments, Body

Prepare = Callable[[Arguments], Tensor]
Allocate = Callable[[Arguments], dict[str, Any]]
SetupContext = Callable[[Any, Arguments, Any], None]
Backward = Callable[..., dict[str, Any]]

#: Not `torch.library.custom_op`, which compares the memory of all results and inputs at every call and costs 15 to 20 µs
#: a call more on a CPU; tests/ops check with `torch.library.opcheck` what it checks.
_LIBRARY = torch.library.Library("dgnet_fast", "FRAGMENT")


def define(
    name: str,
    reference: Any,
    *,
    results: Allocate,
    gradients: Allocate,
    prepare: Prepare,
    prepare_backward: Prepare,
    setup_context: SetupContext,
    backward: Backward,
    setup_double: SetupContext | None = None,
    double_backward: Backward | None = None,
    devices: tuple[str, ...] | None = None,
) -> tuple[OpOverload, OpOverload]:
    """``dgnet_fast::<name>`` and ``dgnet_fast::<name>_backward``, called with the parameters of the reference.

    Args:
        reference: a namespace whose `forward` and `backward` compute both in plain PyTorch. Their annotations are
            the schemas, their results those of the ops. A new argument of ``backward`` comes last and has a default: what
            torch.compile keeps between runs calls it as it was (`forward` is part of the key of what is kept).
        results, gradients: allocate what `forward` and `backward` return, in this order, by name: tensors, or one
            list of them. No two share memory with each other or with an input, and none is a view, for PyTorch
            refuses to let a caller change those in place.
        prepare, prepare_backward: check the arguments, replace in place those that bodies want otherwise (dense, in
            another dtype), and return the tensor whose device and dtype choose the body.
        setup_context, backward: as `torch.library.register_autograd` takes them, but for the names: the
            inputs come as `Arguments`, and `backward` returns gradients by the names of the inputs. What it leaves
            out has none; a list of tensors may not be left out.
        setup_double, double_backward: the same for the backward op. Without them it raises on double backward.
        devices: device types that the op is for; those of the registry's table unless given.
    """
    devices = devices or tuple(registry.TABLE[name])
    forward_op = _op(name, "forward", reference.forward, prepare, results, devices)
    backward_op = _op(name, "backward", reference.backward, prepare_backward, gradients, devices)
    _differentiate(forward_op, reference.forward, setup_context, backward)
    if double_backward is None:
        torch.library.register_autograd(backward_op.name(), once_differentiable(name), lib=_LIBRARY)
    else:
        assert setup_double is not None
        _differentiate(backward_op, reference.backward, setup_double, double_backward)
    return forward_op, backward_op


def _parameters(function: Callable) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


def _naming(function: Callable) -> Callable[[tuple], Arguments]:
    """Makes `Arguments` of a call's; PyTorch leaves out what equals its default at the end."""
    parameters = inspect.signature(function).parameters
    defaults = {name: one.default for name, one in parameters.items() if one.default is not one.empty}

    def named(given: tuple) -> Arguments:
        found = dict(zip(parameters, given, strict=False))
        return Arguments(found | {name: value for name, value in defaults.items() if name not in found})

    return named


def _op(
    name: str, way: str, function: Callable, prepare: Prepare, allocate: Allocate, devices: tuple[str, ...]
) -> OpOverload:
    names, named = _parameters(function), _naming(function)

    def run(*given: Any) -> Any:
        a = named(given)
        chosen = prepare(a)
        body = registry.implementation(name, chosen.device.type, chosen.dtype)
        if not isinstance(body, Body):  # plain PyTorch makes its results itself
            return getattr(body, way)(*(getattr(a, key) for key in names))
        made = allocate(a)
        vars(a).update(made)
        getattr(body, way)(a)
        return _returned(made)

    def fake(*given: Any) -> Any:
        a = named(given)
        prepare(a)
        return _returned(allocate(a))

    qualified = name if way == "forward" else f"{name}_{way}"
    _LIBRARY.define(
        qualified + torch.library.infer_schema(function, mutates_args=()), tags=(torch.Tag.pt2_compliant_tag,)
    )
    # Dynamo traces calls of an op, and nothing that it runs.
    kernel: Any = torch._disable_dynamo(run)  # torch.compiler.disable imports all of Dynamo at once
    for device in devices:
        _LIBRARY.impl(qualified, kernel, device.upper())
    torch.library.register_fake(f"dgnet_fast::{qualified}", fake, lib=_LIBRARY)
    return getattr(torch.ops.dgnet_fast, qualified).default


def _returned(made: dict[str, Any]) -> Any:
    values = tuple(made.values())
    return values[0] if len(values) == 1 else values


def _differentiate(
    op: OpOverload, function: Callable, setup_context: SetupContext, backward: Backward
) -> None:
    names, named = _parameters(function), _naming(function)
    known = frozenset(names)

    def named_setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        setup_context(ctx, named(inputs), output)

    def named_backward(ctx: Any, *grads: Any) -> tuple:
        found = backward(ctx, *grads)
        assert found.keys() <= known, found.keys()
        return tuple(map(found.get, names))

    torch.library.register_autograd(
        op.name(), named_backward, setup_context=named_setup_context, lib=_LIBRARY
    )
