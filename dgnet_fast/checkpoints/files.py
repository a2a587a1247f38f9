"""Torch files: written atomically, read without unpickling code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch


def save_atomically(content: Any, path: Path) -> None:
    """torch.save through a temporary file, so that a kill leaves the old file or the new one, never half of
    one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_file(path: str | Path) -> Any:
    """torch.load on the CPU without unpickling code; ValueError names a missing or broken file."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no such checkpoint: {path}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is not a readable checkpoint: {reason}") from error
