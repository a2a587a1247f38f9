"""Checkpoints of a run: written atomically, complete, and safe to load."""

from __future__ import annotations

import os
import re
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from dgnet_fast.checkpoints.files import load_file, save_atomically
from dgnet_fast.checkpoints.fingerprint import model_state
from dgnet_fast.checkpoints.schema import check_fit, check_names, check_options, check_step, check_tensors
from dgnet_fast.config import Config, ConfigError, from_dict, option_names, read_mapping, read_yaml, walk
from dgnet_fast.config.places import with_absolute_paths
from dgnet_fast.config.shown import shown
from dgnet_fast.config.unit import UnitConfig
from dgnet_fast.models.dgnet import DGNet
from dgnet_fast.models.size import check_size
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
    """The newest of our checkpoints in a run folder or in its ``checkpoints`` folder; a file is itself. None if there
    is none.
    """
    if path.is_file():
        return path
    found = checkpoints_in(path / "checkpoints") or checkpoints_in(path)
    return found[-1] if found else None


def load_latest(path: Path) -> tuple[Path, Any]:
    """`latest_checkpoint`, which must be there, and its content. A training that goes on may remove an old checkpoint
    between the look into its folder and the reading of the file; then this is the newer one.
    """
    own = latest_checkpoint(path)
    while True:
        assert own is not None
        try:
            return own, load_file(own)
        except ValueError:
            newer = latest_checkpoint(path)
            if own.exists() or newer in (own, None):
                raise
            own = newer


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
    """The content of one of our checkpoints, as `run_content` checks it. Raises ValueError for any other file."""
    content = load_file(path)
    if not is_run(content):
        raise ValueError(f"{path} is not a checkpoint of a dgnet_fast run (expected format {FORMAT!r})")
    return run_content(content, path)


def is_run(content: Any) -> bool:
    """Whether the content of a torch file is one of our checkpoints."""
    return isinstance(content, dict) and content.get("format") == FORMAT


def run_content(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """The content of a checkpoint, whose entries are what they must be: nothing larger than the file can be built from
    it. Raises ValueError that names the file and the entry.
    """
    config = check_options(content.get("config"), path)
    check_step(content.get("step"), path)
    if "class_names" not in content:
        raise ValueError(f"{path}: class_names is missing; expected a list of texts")
    check_names(content["class_names"], path)
    model = check_tensors(content.get("model"), path, "model")
    if "average" in content:
        check_tensors(content["average"], path, "average")
        own = {name: model[name] for name in content["average"] if name in model}
        check_fit(own, content["average"], path)
    for name in ("optimisers", "precision"):
        if name in content and not isinstance(content[name], dict):
            raise ValueError(f"{path}: {name} is {shown(content[name])}; expected a mapping")
    check_size(config, sum(tensor.numel() for tensor in model.values()), f"{path} holds")
    return content


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
    own = {k: v for k, v in model.state_dict().items() if not k.startswith("teachers.")}
    check_fit(own, content["model"], source)
    model.load_state_dict(content["model"], strict=False)


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
    write_options(folder, model.config)
    return path


_MARK = "# checksum of the lines above (remove this line after a change by hand): "


def write_options(folder: Path, config: Config | UnitConfig, remark: str = "") -> None:
    """Write ``folder/config.yaml``: a remark, all options, and a last line by which `saved_options` sees whether it is
    whole.
    """
    text = (f"# {remark}\n" if remark else "") + config.to_yaml()
    write_text(folder / "config.yaml", f"{text}{_MARK}{zlib.crc32(text.encode()):08x}\n")


def saved_options(folder: Path, names: Sequence[str] = ()) -> dict[str, Any]:
    """The options of a run folder, for resuming it. ``names`` are all options of a run that is not one of DG-Net.

    Raises ConfigError if the file is missing, or was damaged: its checksum differs, or it has none and lacks options.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"nothing to resume in {folder}: no config.yaml there")
    tree = read_mapping(path) if names else read_yaml(path)
    text, mark, checksum = path.read_text(encoding="utf-8").partition(_MARK)
    if mark:
        if checksum.strip() != f"{zlib.crc32(text.encode()):08x}":
            raise ConfigError(
                f"{path} is damaged, or was changed by hand; if you changed it, remove its last line"
            )
        return tree
    if text.rstrip().rpartition("\n")[2].startswith("#"):  # the last line was damaged itself
        raise ConfigError(
            f"{path} is damaged, or was changed by hand; if you changed it, remove its last line"
        )
    there = {f"{k}.{n}" if n else k for k, v in tree.items() for n in (v if isinstance(v, dict) else [""])}
    lacking = [name for name in names or option_names() if name not in there]
    if lacking and not (folder / "checkpoints").is_dir():
        raise ConfigError(f"{path} is not whole, or of another version: it lacks {', '.join(lacking[:4])}")
    return tree


def check_same_options(config: Config, content: dict[str, Any], given: set[str], source: Path) -> None:
    """Raise ConfigError if the options of a run folder are not those inside its checkpoint, apart from those that the
    command line gives (``given``, dotted).
    """
    compare_options(
        with_absolute_paths(config), with_absolute_paths(from_dict(content["config"])), given, source
    )


def compare_options(
    config: Config | UnitConfig, other: Config | UnitConfig, given: set[str], source: Path
) -> None:
    """`check_same_options` of any two trees of options with absolute paths; ``other`` is that of the checkpoint."""
    theirs = _flat(other)
    for name, ours in _flat(config).items():
        saved = theirs[name]
        if ours != saved and name not in given and name != "ID_class":
            raise ConfigError(
                f"{name} is {shown(ours)} in config.yaml, and {source} was trained with {shown(saved)}; give --{name} to say which"
            )


def _flat(config: Config | UnitConfig) -> dict[str, Any]:
    return {name: getattr(owner, spec.name) for name, spec, owner in walk(config)}
