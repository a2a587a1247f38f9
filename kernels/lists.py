"""Lists of tensors as kernel arguments: each has a name with its number, since each may have its own dtype."""

from __future__ import annotations

from typing import Any


def numbered(most: int, **lists: list[Any]) -> dict[str, Any]:
    """{"x0": …, "x1": …, …} from x=[…], `most` of each; None beyond a list's end."""
    return {
        f"{name}{k}": values[k] if k < len(values) else None
        for name, values in lists.items()
        for k in range(most)
    }
