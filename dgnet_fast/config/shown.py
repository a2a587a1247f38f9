"""Values and text of other people in messages of one line: shortened, and without control characters."""

from __future__ import annotations

import reprlib
from typing import Any

LONGEST = 200
"""Characters of a value that a message shows."""
_repr = reprlib.Repr()
_repr.maxlevel, _repr.maxstring, _repr.maxother, _repr.maxlong = 2, 80, 80, 40


def shown(value: Any) -> str:
    """``repr(value)``, shortened: the time it takes and its length do not depend on the size of the value."""
    try:
        return _repr.repr(value)[:LONGEST]
    except Exception:  # of a value of somebody else's class
        return f"a {type(value).__name__}"


def one_line(text: str) -> str:
    """Text in one line that any terminal shows: other white space becomes a space, control characters and bytes that are
    no UTF-8 are escaped.
    """
    words = " ".join(text.split())
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in words
    )
