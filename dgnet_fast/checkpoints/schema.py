"""What the entries of our files must be: compared before anything is built or allocated from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from dgnet_fast.config import Config, ConfigError, from_dict
from dgnet_fast.config.shown import shown

LARGEST_STEP = 2**53


@runtime_checkable
class NamesItsState(Protocol):
    """An optimiser whose parameters do not all have the same entries."""

    def state_names(self, parameter: Tensor) -> set[str]:
        """Names of the entries of a parameter's state."""
        ...


def check_step(value: Any, source: object) -> int:
    """``step`` as a whole number from 0. Raises ValueError for anything else."""
    if type(value) is not int or not 0 <= value <= LARGEST_STEP:
        raise ValueError(f"{source}: step is {shown(value)}; expected a whole number from 0")
    return value


def check_names(value: Any, source: object, *, missing_allowed: bool = True) -> list[str] | None:
    """``class_names`` as a list of texts, or None where nobody knows them."""
    if value is None and missing_allowed:
        return None
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"{source}: class_names is {shown(value)}; expected a list of texts")
    return value


def check_options(value: Any, source: object) -> Config:
    """``config`` as options. The error of an option names the file."""
    if not isinstance(value, dict):
        raise ValueError(f"{source}: config is {shown(value)}; expected a mapping of options")
    try:
        return from_dict(value)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error


def check_tensors(value: Any, source: object, what: str) -> dict[str, Tensor]:
    """A mapping of names to dense tensors whose values are all in the file. Raises ValueError that names another entry."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{source}: {what} is {shown(value)}; expected tensors by name")
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ValueError(f"{source}: {what} holds {shown(name)}: {_kind(tensor)}; expected a tensor")
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise ValueError(f"{source}: {what}: {shown(name)} is {_kind(tensor)}; expected a dense tensor")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError(
                f"{source}: {what}: {shown(name)} has {tensor.numel()} numbers, and the file fewer"
            )
    return dict(value)


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor ({value.layout}, {value.dtype}, {value.device.type})"
    return f"a {type(value).__name__}"


def check_fit(own: Mapping[str, Tensor], state: Mapping[str, Tensor], source: object) -> None:
    """Raise ValueError if the tensors of a file do not fit those of a network, with the first names that differ."""
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or extra:
        raise ValueError(f"{source} does not fit the options: missing {missing[:4]}, extra {extra[:4]}")
    for name, tensor in own.items():
        theirs = state[name]
        if theirs.shape != tensor.shape:
            raise ValueError(
                f"{source} does not fit the options: size mismatch for {name}: "
                f"{tuple(theirs.shape)} in the file, {tuple(tensor.shape)} as the options say"
            )
        if theirs.is_floating_point() != tensor.is_floating_point() or theirs.is_complex():
            raise ValueError(
                f"{source} does not fit the options: {name} is {theirs.dtype}, expected {tensor.dtype}"
            )


def check_finite(state: Mapping[str, Tensor], source: object) -> None:
    """Raise ValueError that names the first tensor with values that are not finite."""
    for name, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(
                f"{source} holds weights that are not finite, such as {name}; take an earlier checkpoint"
            )


def check_optimiser(own: torch.optim.Optimizer, state: Any, source: object) -> None:
    """Raise ValueError if the saved state of an optimiser does not fit its parameters."""
    if not isinstance(state, dict) or not isinstance(state.get("state"), dict):
        raise ValueError(f"{source} is {shown(state)}; expected the state of an optimiser")
    ours, groups = own.state_dict()["param_groups"], state.get("param_groups")
    if not isinstance(groups, list) or len(groups) != len(ours):
        raise ValueError(f"{source}: param_groups is {shown(groups)}; expected a list of {len(ours)}")
    for mine, theirs in zip(ours, groups, strict=True):
        if not isinstance(theirs, dict) or theirs.get("params") != mine["params"]:
            raise ValueError(f"{source}: the parameters of a group are not those of the networks")
        kinds = ["Muon" if group.get("factor") else "Adam" for group in (theirs, mine)]
        if kinds[0] != kinds[1]:
            raise ValueError(
                f"{source} was saved with {kinds[0]}, and option muon asks for {kinds[1]}; take the same muon"
            )
        for name, value in mine.items():
            if name in ("params", "lr", "fused", "foreach", "capturable", "maximize", "differentiable"):
                continue
            other = theirs.get(name, value)
            if not _same_kind(value, other):
                raise ValueError(f"{source}: {name} is {shown(other)}; expected such as {shown(value)}")
    parameters = [p for group in own.param_groups for p in group["params"]]
    for place, entries in state["state"].items():
        if type(place) is not int or not 0 <= place < len(parameters) or not isinstance(entries, dict):
            raise ValueError(f"{source}: {shown(place)} is no parameter of the networks")
        for name, value in entries.items():
            if name == "step":
                if not _is_number(value):
                    raise ValueError(f"{source}: step of parameter {place} is {shown(value)}")
            elif value is not None and (
                not isinstance(value, Tensor)
                or value.shape != parameters[place].shape
                or not value.is_floating_point()
                or value.layout != torch.strided
            ):
                raise ValueError(
                    f"{source}: {shown(name)} of parameter {place} is {_kind(value)}; expected a tensor "
                    f"{tuple(parameters[place].shape)}"
                )
        wanted = {"step", "exp_avg", "exp_avg_sq"} if isinstance(own, torch.optim.Adam) else set()
        if isinstance(own, NamesItsState):
            wanted = own.state_names(parameters[place])
        if entries and not wanted <= entries.keys():
            raise ValueError(
                f"{source}: parameter {place} lacks {', '.join(sorted(wanted - entries.keys()))}"
            )


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.is_complex() and math.isfinite(float(value))
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _same_kind(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, bool) or ours is None:
        return isinstance(theirs, bool) or theirs is None
    if isinstance(ours, tuple):
        return isinstance(theirs, (tuple, list)) and len(ours) == len(theirs) and all(map(_is_number, theirs))
    return _is_number(theirs) if isinstance(ours, (int, float)) else True


def check_scaler(value: Any, source: object) -> None:
    """Raise ValueError if the saved state of a loss scaler is anything else; an empty one is of a run without fp16."""
    if not isinstance(value, dict):
        raise ValueError(f"{source} is {shown(value)}; expected the state of a loss scaler")
    names = ("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker")
    if value and not all(_is_number(value.get(name)) and value[name] >= 0 for name in names):
        raise ValueError(f"{source} is {shown(value)}; expected {', '.join(names)}")
