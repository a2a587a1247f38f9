"""Torch files: written atomically, and read without running pickled code."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from dgnet_fast.report.files import atomically


def save_atomically(content: Any, path: Path) -> None:
    """torch.save, done `atomically`: if the program is killed, the old file or the new one is left, never a part of
    one.
    """
    with atomically(path) as temporary, open(temporary, "wb") as file:
        torch.save(content, file)


def load_file(path: str | Path, what: str = "checkpoint") -> Any:
    """torch.load on the CPU without running pickled code. Raises ValueError that names a missing or damaged file;
    ``what`` says what the file should be.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no such {what}: {path}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # PyTorch's own text advises to load it as a program, which nobody should do with a file that is none of theirs
        raise ValueError(
            f"{path} is not a readable {what}: it is no file of tensors, or holds more than tensors"
        ) from error
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is not a readable {what}: {reason}") from error
