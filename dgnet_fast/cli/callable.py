"""Modules that can be called, for the two names that are a command and a function: `dgnet_fast.train` is the module of
`python -m dgnet_fast.train`, and ``dgnet_fast.train(config)`` trains.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any


class _CallableModule(types.ModuleType):
    _function: tuple[str, str]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module, name = self._function
        return getattr(importlib.import_module(module), name)(*args, **kwargs)

    @property
    def __wrapped__(self) -> Any:  # the signature that `help` and `inspect` show
        module, name = self._function
        return getattr(importlib.import_module(module), name)


def callable_module(name: str, function: str) -> None:
    """Let the module ``name`` be called as ``function`` ('module:name'), which is imported at the first call."""
    module = sys.modules[name]
    module.__class__ = _CallableModule
    module._function = tuple(function.split(":"))  # type: ignore[attr-defined]
