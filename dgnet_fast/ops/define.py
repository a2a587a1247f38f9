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
from torch.library import CustomOpDef

from dgnet_fast.ops import registry
from dgnet_fast.ops.arguments import once_differentiable
from dgnet_fast.ops.bodies import Arguments, Body

Prepare = Callable[[Arguments], Tensor]
Allocate = Callable[[Arguments], dict[str, Any]]
SetupContext = Callable[[Any, Arguments, Any], None]
Backward = Callable[..., dict[str, Any]]


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
            the schemas, their results those of the ops.
        results, gradients: allocate what `forward` and `backward` return, in this order, by name: tensors, or one
            list of them. No two share memory with each other or with an input, and none is a view, for PyTorch
            refuses to let a caller change those in place.
        prepare, prepare_backward: check the arguments, replace in place those that bodies want otherwise (dense, in
            another dtype), and return the tensor whose device and dtype choose the body.
        setup_context, backward: as `torch.library.CustomOpDef.register_autograd` takes them, but for the names: the
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
        backward_op.register_autograd(once_differentiable(name))
    else:
        _differentiate(backward_op, reference.backward, setup_double, double_backward)
    return getattr(torch.ops.dgnet_fast, name).default, getattr(
        torch.ops.dgnet_fast, f"{name}_backward"
    ).default


def _parameters(function: Callable) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


def _op(
    name: str, way: str, function: Callable, prepare: Prepare, allocate: Allocate, devices: tuple[str, ...]
) -> CustomOpDef:
    names = _parameters(function)

    def run(*given: Any) -> Any:
        a = Arguments(dict(zip(names, given, strict=True)))
        chosen = prepare(a)
        body = registry.implementation(name, chosen.device.type, chosen.dtype)
        if not isinstance(body, Body):  # plain PyTorch makes its results itself
            return getattr(body, way)(*(getattr(a, key) for key in names))
        made = allocate(a)
        vars(a).update(made)
        getattr(body, way)(a)
        return _returned(made)

    def fake(*given: Any) -> Any:
        a = Arguments(dict(zip(names, given, strict=True)))
        prepare(a)
        return _returned(allocate(a))

    op = torch.library.custom_op(
        f"dgnet_fast::{name}" if way == "forward" else f"dgnet_fast::{name}_{way}",
        run,
        mutates_args=(),
        device_types=devices,
        schema=torch.library.infer_schema(function, mutates_args=()),
    )
    op.register_fake(fake)
    return op


def _returned(made: dict[str, Any]) -> Any:
    values = tuple(made.values())
    return values[0] if len(values) == 1 else values


def _differentiate(
    op: CustomOpDef, function: Callable, setup_context: SetupContext | None, backward: Backward
) -> None:
    names = _parameters(function)
    known = frozenset(names)

    def named_setup_context(ctx: Any, inputs: tuple, output: Any) -> None:
        assert setup_context is not None
        setup_context(ctx, Arguments(dict(zip(names, inputs, strict=True))), output)

    def named_backward(ctx: Any, *grads: Any) -> tuple:
        found = backward(ctx, *grads)
        assert found.keys() <= known, found.keys()
        return tuple(map(found.get, names))

    op.register_autograd(named_backward, setup_context=named_setup_context)
