"""Teachers in files: our own, with the names of their classes, and those of the public code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from dgnet_fast.checkpoints.files import load_file, save_atomically
from dgnet_fast.checkpoints.public_layout import encoder_layout, export_state, import_state
from dgnet_fast.checkpoints.schema import check_fit, check_names, check_tensors
from dgnet_fast.config import Config, ConfigError
from dgnet_fast.config.shown import shown
from dgnet_fast.config.yaml_files import read_mapping
from dgnet_fast.models.appearance_encoder import AppearanceEncoder, build_teacher

TEACHER_FORMAT = "dgnet_fast.teacher.1"
SHAPE = ("ID_width", "ID_blocks", "ID_features", "ID_upsample")
"""The options that a teacher shares with a run."""
PUBLIC_CLASSIFIER = "classifier.classifier.0.weight"


def save_teachers(
    path: Path, teachers: list[AppearanceEncoder], strides: list[int], class_names: list[str], config: Config
) -> None:
    """Write all teachers of a run, with everything that is needed to build them again."""
    shape = {k: getattr(config, k) for k in SHAPE}
    save_atomically(
        {
            "format": TEACHER_FORMAT,
            "shape": shape,
            "config": config.to_dict(),
            "class_names": class_names,
            "teachers": [
                {"stride": s, "state": t.state_dict()} for t, s in zip(teachers, strides, strict=True)
            ],
        },
        path,
    )


def check_classes(ours: list[str], theirs: list[str], source: str) -> None:
    """Raise ValueError if the classes of a file are not those of the training set, in the same order."""
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


def is_teacher(content: Any) -> bool:
    """Whether the content of a torch file is a teacher of ours."""
    return isinstance(content, dict) and content.get("format") == TEACHER_FORMAT


def is_public_teacher(content: Any) -> bool:
    """Whether the content of a torch file is a teacher in the public layout, which is a bare state dict."""
    return isinstance(content, dict) and {"model.conv1.weight", PUBLIC_CLASSIFIER} <= content.keys()


def own_teachers(
    path: Path, content: dict, config: Config, class_names: list[str] | None = None
) -> list[AppearanceEncoder]:
    """The teachers of a file of ours. Raises ValueError if they have other shapes than the options say, or other
    classes than ``class_names``.
    """
    shape, entries = content.get("shape"), content.get("teachers")
    if not isinstance(shape, dict) or shape.keys() != set(SHAPE):
        raise ValueError(f"{path}: shape is {shown(shape)}; expected {', '.join(SHAPE)}")
    for key, value in shape.items():
        if getattr(config, key) != value:
            raise ValueError(
                f"{path} is a teacher with {key} {shown(value)}, the options say {getattr(config, key)}"
            )
    names = check_names(content.get("class_names"), path, missing_allowed=False) or []
    if class_names is not None:
        check_classes(class_names, names, str(path))
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{path}: teachers is {shown(entries)}; expected a list")
    teachers = []
    for one in entries:
        if not isinstance(one, dict) or one.get("stride") not in (1, 2):
            raise ValueError(f"{path}: a teacher is {shown(one)}; expected its stride (1 or 2) and state")
        state = check_tensors(one.get("state"), path, "state")
        _check_head(state, "heads.0.classifier.weight", len(names), config, path)
        teacher = build_teacher(config.replace(ID_class=len(names)), one["stride"])
        check_fit(teacher.state_dict(), state, path)
        teacher.load_state_dict(state)
        teachers.append(teacher)
    return teachers


def _check_head(state: dict[str, Tensor], name: str, count: int, config: Config, path: Path) -> None:
    """Compare the largest layer with the file before it is allocated."""
    wanted = (count, config.ID_features)
    if name not in state or tuple(state[name].shape) != wanted:
        found = tuple(state[name].shape) if name in state else "missing"
        raise ValueError(
            f"{path} does not fit the options: {name} is {found}, expected {wanted} (identities, ID_features)"
        )


def public_teacher(path: Path, content: Any, config: Config) -> AppearanceEncoder:
    """A teacher in the public layout: ``net_last.pth`` with an optional ``opts.yaml`` (its stride) beside it."""
    options_file = path.with_name("opts.yaml")
    stride = 2
    if options_file.is_file():
        stride = read_mapping(options_file).get("stride", 2)
        if stride not in (1, 2):
            raise ConfigError(f"{options_file}: stride is {shown(stride)}; allowed: 1 or 2")
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"{path} is not a teacher's state dict")
    entries = {k: v for k, v in check_tensors(content, path, "it").items() if not k.startswith("model.fc.")}
    _check_head(entries, PUBLIC_CLASSIFIER, config.ID_class, config, path)
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
            Path(name).expanduser(),
            Path(name).expanduser() / "teacher.pt",
            Path(name).expanduser() / "net_last.pth",
            Path("models") / name / "net_last.pth",
        ]
        path = next((p for p in candidates if p.is_file()), None)
        if path is None:
            tried = ", ".join(str(p) for p in candidates)
            raise ConfigError(
                f"teacher is {name!r}: none of {tried} exists; allowed: auto, a file, a folder, or '' for none"
            )
        content = load_file(path, "teacher")
        if is_teacher(content):
            teachers += own_teachers(path, content, config, class_names)
        elif is_public_teacher(content):
            teachers.append(public_teacher(path, content, config))
        elif path.suffix == ".pth":
            raise ValueError(f"{path} is not a teacher's state dict (no {PUBLIC_CLASSIFIER})")
        else:
            raise ValueError(
                f"{path} is not a teacher file of dgnet_fast (expected format {TEACHER_FORMAT!r}), and no net_last.pth"
            )
    return teachers


def export_public_teacher(teacher: AppearanceEncoder, path: Path) -> None:
    """Write a teacher as the public ``net_last.pth`` (a bare state dict)."""
    save_atomically(export_state(teacher, encoder_layout(teacher, teacher=True)), path)
