"""An option of the configuration tree: its default, documentation, allowed values and unit; and how a value of a YAML
file or of the command line is converted.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from dataclasses import field
from typing import Any

from dgnet_fast.config.shown import shown

LARGEST = 2**62
"""Whole numbers of options are at most this."""


class ConfigError(ValueError):
    """An option has an unknown name or a value that is not allowed."""


def option(
    default: Any,
    help: str,  # noqa: A002 - argparse's own word
    *,
    choices: tuple | None = None,
    low: float | None = None,
    high: float | None = None,
    unit: str = "",
    several: str = "",
) -> Any:
    """A dataclass field that carries its documentation, allowed values and unit.

    With ``several`` the value may be several of the choices, separated by that sign.
    """
    metadata = {
        "help": help, "choices": choices, "low": low, "high": high, "unit": unit, "several": several
    }  # fmt: skip
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def coerce(name: str, value: Any, kind: Any) -> Any:
    """Bring a YAML or command-line value to the option's type, or raise ConfigError.

    Whole floats pass as ints and ints as floats (old files say ``beta1: 0``); text is accepted for numbers
    because YAML reads ``1e-4`` as text.
    """
    if kind is bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, (int, float)) and value in (0, 1):
            return bool(value)
        if isinstance(value, str) and value.lower() in ("true", "yes", "on", "1", "false", "no", "off", "0"):
            return value.lower() in ("true", "yes", "on", "1")
        raise ConfigError(f"{name} is {shown(value)}; allowed: true or false")
    if kind in (int, float):
        if isinstance(value, bool):
            value = int(value) if name.endswith("non_local") else value
        if isinstance(value, str):
            try:
                value = float(value) if kind is float or not value.strip().isdecimal() else int(value)
            except ValueError:
                pass
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(
                f"{name} is {shown(value)}; allowed: {'a whole number' if kind is int else 'a number'}"
            )
        if isinstance(value, int) and abs(value) > LARGEST:
            raise ConfigError(f"{name} is {shown(value)}; allowed: at most {LARGEST}")
        if kind is int and (not math.isfinite(value) or value != int(value)):
            raise ConfigError(f"{name} is {shown(value)}; allowed: a whole number")
        return kind(value)
    if kind is str:
        if value is None:
            return ""
        if isinstance(value, bool) and name == "amp":  # YAML reads a bare `off` as false
            return "auto" if value else "off"
        if isinstance(value, str):
            if "\0" in value:
                raise ConfigError(f"{name} is {shown(value)}; allowed: text without NUL")
            return value
        raise ConfigError(f"{name} is {shown(value)}; allowed: text")
    if isinstance(kind, types.GenericAlias) and typing.get_origin(kind) is list:
        if isinstance(value, str):
            value = value.replace(",", " ").split()
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{name} is {shown(value)}; allowed: a list")
        return [coerce(name, v, typing.get_args(kind)[0]) for v in value]
    raise AssertionError(f"no rule for {kind}")


def check_value(name: str, value: Any, spec: dataclasses.Field) -> None:
    meta = spec.metadata
    parts = value.split(meta["several"]) if meta["several"] else [value]
    if meta["choices"] is not None and any(part not in meta["choices"] for part in parts):
        allowed = ", ".join(str(c) for c in dict.fromkeys(meta["choices"]))
        raise ConfigError(f"{name} is {shown(value)}; allowed: {allowed}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{name} is {shown(value)}; allowed: a finite number")
    if isinstance(value, int) and abs(value) > LARGEST:
        raise ConfigError(f"{name} is {shown(value)}; allowed: at most {LARGEST}")
    if meta["low"] is not None and value < meta["low"]:
        raise ConfigError(f"{name} is {shown(value)}; allowed: at least {meta['low']}")
    if meta["high"] is not None and value > meta["high"]:
        raise ConfigError(f"{name} is {shown(value)}; allowed: at most {meta['high']}")
