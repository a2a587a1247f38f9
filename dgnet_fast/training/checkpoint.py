"""Checkpoints of a run: atomic, complete, safe to load; and the public implementation's files in and out."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dgnet_fast.config import Config, ConfigError, from_dict, load_config
from dgnet_fast.models.appearance_encoder import AppearanceEncoder, build_teacher
from dgnet_fast.models.dgnet import DGNet
from dgnet_fast.models.reference_layout import (
    discriminator_layout,
    encoder_layout,
    export_state,
    generator_layout,
    import_state,
)

FORMAT = "dgnet_fast.run.1"
TEACHER_FORMAT = "dgnet_fast.teacher.1"
NAME = "step_{:08d}.pt"
PATTERN = re.compile(r"step_(\d{8,})\.pt$")
PUBLIC = re.compile(r"(gen|id|dis)_(\d{8,})\.pt$")


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


def checkpoints_in(folder: Path) -> list[Path]:
    """A run's checkpoints, oldest first."""
    return sorted(
        (p for p in folder.glob("step_*.pt") if PATTERN.search(p.name)),
        key=lambda p: int(PATTERN.search(p.name)[1]),
    )


def save_run(
    folder: Path,
    step: int,
    model: DGNet,
    optimisers,
    precision,
    class_names: list[str],
    *,
    keep: int,  # noqa: ANN001
    average: dict[str, Tensor] | None = None,
) -> Path:
    """Write ``folder/step_XXXXXXXX.pt`` after ``step`` finished steps and drop all but the newest ``keep``.

    ``average``: averaged weights by name (``ema_decay``), which whoever uses the checkpoint gets. The teachers are not in
    it: they do not change; see `save_teachers`.
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
    """The content of one of our checkpoints; ValueError for anything else."""
    content = load_file(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} is not a checkpoint of a dgnet_fast run (expected format {FORMAT!r})")
    return content


def restore_model(model: DGNet, content: dict[str, Any], source: Path) -> None:
    """Load the networks of a checkpoint strictly; the model's teachers stay as they are."""
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


def save_teachers(
    path: Path, teachers: list[AppearanceEncoder], strides: list[int], class_names: list[str], config: Config
) -> None:
    """Write all teachers of a run, with what is needed to rebuild them."""
    shape = {k: getattr(config, k) for k in ("ID_width", "ID_blocks", "ID_features", "ID_upsample")}
    save_atomically(
        {
            "format": TEACHER_FORMAT,
            "shape": shape,
            "class_names": class_names,
            "teachers": [
                {"stride": s, "state": t.state_dict()} for t, s in zip(teachers, strides, strict=True)
            ],
        },
        path,
    )


def _check_classes(ours: list[str], theirs: list[str], source: str) -> None:
    if ours == theirs:
        return
    if len(ours) != len(theirs):
        raise ValueError(
            f"{source} knows {len(theirs)} identities, the training set has {len(ours)}; train a teacher on this set"
        )
    at = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
    raise ValueError(
        f"{source} orders identities differently: class {at} is {theirs[at]!r} there and {ours[at]!r} in the training set"
    )


def _read_own_teachers(
    path: Path, content: dict, config: Config, class_names: list[str] | None
) -> list[AppearanceEncoder]:
    for key, value in content["shape"].items():
        if getattr(config, key) != value:
            raise ValueError(
                f"{path} is a teacher with {key} {value}, the options say {getattr(config, key)}"
            )
    if class_names is not None:
        _check_classes(class_names, content["class_names"], str(path))
    teachers = []
    for one in content["teachers"]:
        teacher = build_teacher(config.replace(ID_class=len(content["class_names"])), one["stride"])
        teacher.load_state_dict(one["state"])
        teachers.append(teacher)
    return teachers


def _public_teacher(path: Path, config: Config) -> AppearanceEncoder:
    """A teacher in the public layout: ``net_last.pth`` with an optional ``opts.yaml`` (its stride) beside it."""
    options_file = path.with_name("opts.yaml")
    stride = 2
    if options_file.is_file():
        import yaml

        options = yaml.safe_load(options_file.read_text()) or {}
        stride = int(options.get("stride", 2))
    entries = load_file(path)
    if not isinstance(entries, dict) or not all(isinstance(v, Tensor) for v in entries.values()):
        raise ValueError(f"{path} is not a teacher's state dict")
    entries = {k: v for k, v in entries.items() if not k.startswith("model.fc.")}
    teacher = build_teacher(config, stride)
    import_state(teacher, encoder_layout(teacher, teacher=True), entries, source=str(path))
    return teacher


def load_teachers(config: Config, class_names: list[str] | None = None) -> list[AppearanceEncoder]:
    """The teachers that ``config.teacher`` names: files of ours, of the public layout, or public names below
    ./models.

    ``class_names`` (the training set's, in class order) are compared with those of a teacher of ours.
    """
    teachers = []
    for name in filter(None, (part.strip() for part in config.teacher.split(","))):
        candidates = [
            Path(name),
            Path(name) / "teacher.pt",
            Path(name) / "net_last.pth",
            Path("models") / name / "net_last.pth",
        ]
        path = next((p for p in candidates if p.is_file()), None)
        if path is None:
            tried = ", ".join(str(p) for p in candidates)
            raise ConfigError(
                f"teacher is {name!r}: none of {tried} exists; allowed: auto, a file, a folder, or '' for none"
            )
        if path.name.endswith(".pth"):
            teachers.append(_public_teacher(path, config))
            continue
        content = load_file(path)
        if not isinstance(content, dict) or content.get("format") != TEACHER_FORMAT:
            raise ValueError(
                f"{path} is not a teacher file of dgnet_fast (expected format {TEACHER_FORMAT!r})"
            )
        teachers += _read_own_teachers(path, content, config, class_names)
    return teachers


# --- the public implementation's files
# --------------------------------------------------------------------------


def _public_entries(path: Path) -> dict[str, Tensor]:
    content = load_file(path)
    if not isinstance(content, dict) or not isinstance(content.get("a"), dict):
        raise ValueError(
            f"{path} is not a public DG-Net checkpoint: expected a dictionary with the entry 'a'"
        )
    return content["a"]


def public_set(path: Path) -> dict[str, Path]:
    """The public files that belong to ``path`` (one of them, or a folder: the newest set): {'gen': ..., 'id':
    ..., 'dis': ...}.
    """
    folder, number = path, None
    if path.is_file():
        folder, number = path.parent, PUBLIC.search(path.name)[2]
    found: dict[str, dict[str, Path]] = {}
    for candidate in folder.iterdir():
        if match := PUBLIC.search(candidate.name):
            found.setdefault(match[2], {})[match[1]] = candidate
    if not found:
        return {}
    return found[number or max(found, key=int)]


def import_public(
    model: DGNet, files: dict[str, Path], *, allow_extra: bool = False
) -> dict[str, dict[str, Tensor]]:
    """Load public ``gen``, ``id`` and ``dis`` files (those given) strictly; returns the values of their
    unused entries.
    """
    targets = {
        "gen": (model, generator_layout),
        "id": (model.appearance_encoder, encoder_layout),
        "dis": (model, discriminator_layout),
    }
    unused = {}
    for kind, path in files.items():
        module, layout = targets[kind]
        unused[kind] = import_state(
            module, layout(module), _public_entries(path), source=str(path), allow_extra=allow_extra
        )
    return unused


def export_public(
    model: DGNet, folder: Path, step: int, unused: dict[str, dict[str, Tensor]] | None = None
) -> dict[str, Path]:
    """Write ``gen_``, ``id_`` and ``dis_XXXXXXXX.pt`` that the public implementation loads; returns the
    paths.
    """
    unused = unused or {}
    states = {
        "gen": export_state(model, generator_layout(model), unused.get("gen")),
        "id": export_state(
            model.appearance_encoder, encoder_layout(model.appearance_encoder), unused.get("id")
        ),
        "dis": export_state(model, discriminator_layout(model), unused.get("dis")),
    }
    paths = {}
    for kind, state in states.items():
        paths[kind] = folder / f"{kind}_{step:08d}.pt"
        save_atomically({"a": state}, paths[kind])
    return paths


def export_public_teacher(teacher: AppearanceEncoder, path: Path) -> None:
    """Write a teacher as the public ``net_last.pth`` (a bare state dict)."""
    save_atomically(export_state(teacher, encoder_layout(teacher, teacher=True)), path)


# --- any checkpoint, for evaluation and generation
# --------------------------------------------------------------


def latest_checkpoint(path: Path) -> Path | None:
    """The newest of our checkpoints in a run folder or its ``checkpoints`` folder, or the file itself."""
    if path.is_file():
        return path if PATTERN.search(path.name) else None
    found = checkpoints_in(path / "checkpoints") or checkpoints_in(path)
    return found[-1] if found else None


def load_for_use(
    path: str | Path, *, config_file: str | Path | None = None, allow_extra: bool = False
) -> tuple[DGNet, dict[str, Any]]:
    """A model ready to evaluate or generate, from a run folder, one of our checkpoints, a .safetensors file of
    ours, or public files.

    Public checkpoints need their options: ``config_file``, or a ``config.yaml`` in their folder or the one
    above. The number of identities is read from the checkpoint. Returns the model and what is known of it
    ({'step', 'class_names', 'source'}).
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"no such checkpoint: {path}")
    if path.suffix == ".safetensors":
        from dgnet_fast.interchange import load_safetensors  # which is built on this module

        return load_safetensors(path)
    own = latest_checkpoint(path)
    if own is not None:
        content = read_run(own)
        model = DGNet(from_dict(content["config"]))
        restore_model(model, content | {"model": content["model"] | content.get("average", {})}, own)
        return model, {"step": content["step"], "class_names": content["class_names"], "source": str(own)}
    if path.is_file() and not PUBLIC.search(path.name):
        raise ValueError(
            f"{path} is neither a checkpoint of ours (step_*.pt, *.safetensors) nor a public one (gen_, id_ or dis_*.pt)"
        )
    files = public_set(path) if PUBLIC.search(path.name) or path.is_dir() else {}
    if not files and path.is_dir() and (path / "checkpoints").is_dir():
        files = public_set(path / "checkpoints")
    if "id" not in files:
        raise ValueError(
            f"{path} holds no checkpoint: expected step_*.pt of ours, or id_*.pt (and gen_*.pt) of the public code"
        )
    if config_file is not None and not Path(config_file).is_file():
        raise ValueError(f"no such configuration file: {config_file}")
    folder = files["id"].parent
    options = next(
        (
            p
            for p in (config_file, folder / "config.yaml", folder.parent / "config.yaml")
            if p and Path(p).is_file()
        ),
        None,
    )
    if options is None:
        raise ValueError(
            f"{path} needs the options it was trained with: give --config FILE (no config.yaml beside it)"
        )
    classifiers = [
        v
        for k, v in _public_entries(files["id"]).items()
        if re.fullmatch(r"classifier\d?\.classifier\.0\.weight", k)
    ]
    if not classifiers:
        raise ValueError(f"{files['id']} has no identity head (classifier*.classifier.0.weight)")
    model = DGNet(load_config(options).replace(ID_class=classifiers[0].shape[0]))
    import_public(model, files, allow_extra=allow_extra)
    step = int(PUBLIC.search(files["id"].name)[2])
    return model, {"step": step, "class_names": None, "source": str(files["id"]), "files": sorted(files)}
