"""Checkpoints of a run: written atomically, complete, and safe to load."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from dgnet_fast.checkpoints.files import load_file, save_atomically
from dgnet_fast.checkpoints.fingerprint import model_state
from dgnet_fast.config import ConfigError, read_mapping, read_yaml
from dgnet_fast.models.dgnet import DGNet
from dgnet_fast.report.files import atomically, write_text

FORMAT = "dgnet_fast.run.1"
NAME = "step_{:08d}.pt"
BEST = "best.pt"
"""Name of the checkpoint with the best mAP in the evaluations during training (``eval_iter``). It is kept beside the
newest checkpoints. It was selected on the test people, so its scores are no test result unless that is said.
"""
PATTERN = re.compile(r"step_(\d{8,})\.pt$")


class Stateful(Protocol):
    """An object with a state to save, such as the optimisers of a run."""

    def state_dict(self) -> dict[str, Any]: ...


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    named = ((PATTERN.search(path.name), path) for path in folder.glob("step_*.pt"))
    return [path for _, path in sorted((int(found[1]), path) for found, path in named if found)]


def latest_checkpoint(path: Path) -> Path | None:
    """The newest of our checkpoints in a run folder or in its ``checkpoints`` folder; or the file itself, if ``path``
    is one of our checkpoints with any name. None if there is none.
    """
    if path.is_file():
        return path if PATTERN.search(path.name) or is_run(path) else None
    found = checkpoints_in(path / "checkpoints") or checkpoints_in(path)
    return found[-1] if found else None


def save_run(
    folder: Path,
    step: int,
    model: DGNet,
    optimisers: Stateful,
    precision: Stateful,
    class_names: list[str],
    *,
    keep: int,
    average: dict[str, Tensor] | None = None,
) -> Path:
    """Write ``folder/step_XXXXXXXX.pt`` after ``step`` finished steps and drop all but the newest ``keep``.

    ``average``: the averaged weights by name (``ema_decay``); who loads the checkpoint for use gets these. The teachers
    are not in the file, because they do not change; see `save_teachers`.
    """
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("teachers.")}
    path = folder / NAME.format(step)
    save_atomically(
        {
            "format": FORMAT,
            "step": step,
            "config": model.config.to_dict(),
            "class_names": class_names,
            "model": state,
            "optimisers": optimisers.state_dict(),
            "precision": precision.state_dict(),
        }
        | ({} if average is None else {"average": average}),
        path,
    )
    for old in checkpoints_in(folder)[:-keep]:
        old.unlink(missing_ok=True)
    return path


def read_run(path: Path) -> dict[str, Any]:
    """The content of one of our checkpoints. Raises ValueError for any other file."""
    content = load_file(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} is not a checkpoint of a dgnet_fast run (expected format {FORMAT!r})")
    return content


def is_run(path: Path) -> bool:
    """Whether a file is one of our checkpoints, by its content."""
    try:
        read_run(path)
    except ValueError:
        return False
    return True


def keep_best(checkpoint: Path) -> Path:
    """Keep a checkpoint as `BEST` in the same folder: as a hard link where possible, otherwise as a copy."""
    best = checkpoint.with_name(BEST)
    with atomically(best, sync=False) as temporary:
        try:
            os.link(checkpoint, temporary)
        except OSError:
            shutil.copyfile(checkpoint, temporary)
    return best


def restore_model(model: DGNet, content: dict[str, Any], source: Path) -> None:
    """Load the networks of a checkpoint strictly; the teachers of the model do not change."""
    own = {k for k in model.state_dict() if not k.startswith("teachers.")}
    state = content["model"]
    missing, extra = sorted(own - state.keys()), sorted(state.keys() - own)
    if missing or extra:
        raise ValueError(f"{source} does not fit the options: missing {missing[:4]}, extra {extra[:4]}")
    try:
        model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ValueError(
            f"{source} does not fit the options: {str(error).splitlines()[1].strip()}"
        ) from error


def save_run_folder(model: DGNet, known: dict[str, Any], folder: Path) -> Path:
    """Write ``folder`` as a run: ``config.yaml`` and ``checkpoints/step_XXXXXXXX.pt``.

    All commands can use this run. It has no state of the optimisers, because other formats hold none; when it is
    resumed, it begins with new optimisers.
    """
    path = folder / "checkpoints" / NAME.format(known["step"])
    content = {
        "format": FORMAT,
        "step": known["step"],
        "config": model.config.to_dict(),
        "class_names": known["class_names"],
        "model": model_state(model),
    }
    save_atomically(content, path)
    write_text(folder / "config.yaml", model.config.to_yaml())
    return path


def saved_options(folder: Path) -> dict[str, Any]:
    """The options of a run folder, for resuming it."""
    return read_yaml(_saved(folder))


def saved_tree(folder: Path) -> dict[str, Any]:
    """`saved_options` of a run that is not one of DG-Net."""
    return read_mapping(_saved(folder))


def _saved(folder: Path) -> Path:
    path = folder / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"nothing to resume in {folder}: no config.yaml there")
    return path
