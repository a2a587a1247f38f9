"""Teachers in files: our own, with the names of their classes, and those of the public code."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from dgnet_fast.checkpoints.files import load_file, save_atomically
from dgnet_fast.checkpoints.public_layout import encoder_layout, export_state, import_state
from dgnet_fast.config import Config, ConfigError
from dgnet_fast.models.appearance_encoder import AppearanceEncoder, build_teacher

TEACHER_FORMAT = "dgnet_fast.teacher.1"


def save_teachers(
    path: Path, teachers: list[AppearanceEncoder], strides: list[int], class_names: list[str], config: Config
) -> None:
    """Write all teachers of a run, with everything that is needed to build them again."""
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
    """The teachers that ``config.teacher`` names: our own files, files in the layout of the public code, or names of
    folders in ./models as in the public code.

    ``class_names`` (of the training set, in the order of the classes) are compared with those of our own teacher files.
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


def export_public_teacher(teacher: AppearanceEncoder, path: Path) -> None:
    """Write a teacher as the public ``net_last.pth`` (a bare state dict)."""
    save_atomically(export_state(teacher, encoder_layout(teacher, teacher=True)), path)
