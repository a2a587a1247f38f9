"""Optional packages: asked for before a command's work begins, and named with the extra that brings them."""

from __future__ import annotations

import importlib.util

NAMES = {"flask": "Flask", "sklearn": "scikit-learn"}
"""Packages that are not called like their module."""


def need(module: str, extra: str, what: str) -> None:
    """Raise ValueError, one line that says how to install it, where ``module`` is missing; nothing is imported.

    ``extra`` is the name in dgnet-fast[…] that brings the package, ``what`` the thing that needs it.
    """
    try:
        found = importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # shut out by a None in sys.modules
        found = False
    if not found:
        name = NAMES.get(module, module)
        raise ValueError(f"{what} needs {name}, which is not installed: pip install 'dgnet-fast[{extra}]'")
