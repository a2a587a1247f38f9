"""Load a model from any file that holds one, for evaluation and generation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from dgnet_fast.checkpoints.files import load_file
from dgnet_fast.checkpoints.fingerprint import model_state
from dgnet_fast.checkpoints.public import PUBLIC, import_public, missing_networks, public_entries, public_set
from dgnet_fast.checkpoints.runs import is_run, latest_checkpoint, load_latest, restore_model, run_content
from dgnet_fast.checkpoints.safetensors import is_safetensors, load_safetensors
from dgnet_fast.checkpoints.schema import check_finite, check_options
from dgnet_fast.checkpoints.teachers import (
    PUBLIC_CLASSIFIER,
    is_public_teacher,
    is_teacher,
    own_teachers,
    public_teacher,
)
from dgnet_fast.config import Config, from_dict, load_config
from dgnet_fast.models.appearance_encoder import AppearanceEncoder
from dgnet_fast.models.dgnet import DGNet
from dgnet_fast.models.size import check_size


def load_for_use(
    path: str | Path, *, config_file: str | Path | None = None, allow_extra: bool = False
) -> tuple[DGNet, dict[str, Any]]:
    """A model ready to evaluate or generate, from a run folder, one of our checkpoints, a .safetensors file of
    ours, or public files.

    Public checkpoints need their options: ``config_file``, or a ``config.yaml`` in their folder or the one
    above. The number of identities is read from the checkpoint. Returns the model, and a dictionary of what is known
    about it (with 'step', 'class_names' and 'source').
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"no such checkpoint: {path}")
    own = latest_checkpoint(path)
    if own is not None:
        if path.is_file() and is_safetensors(own):
            return _checked(*load_safetensors(own))
        own, content = load_latest(path)
        if is_run(content):
            content = run_content(content, own)
            model = DGNet(from_dict(content["config"]))
            restore_model(model, content | {"model": content["model"] | content.get("average", {})}, own)
            known = {"step": content["step"], "class_names": content["class_names"], "source": str(own)}
            return _checked(model, known)
        if is_teacher(content) or is_public_teacher(content):
            raise ValueError(
                f"{own} is a teacher, which makes features and no pictures; dgnet_fast.evaluate, extract, search and visualize "
                "read it"
            )
        if not PUBLIC.search(own.name):
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
    options = options_beside(files["id"], config_file)
    if options is None:
        raise ValueError(
            f"{path} needs the options it was trained with: give --config FILE (no config.yaml beside it)"
        )
    classifiers = [
        v
        for k, v in public_entries(files["id"]).items()
        if re.fullmatch(r"classifier\d?\.classifier\.0\.weight", k)
    ]
    if not classifiers:
        raise ValueError(f"{files['id']} has no identity head (classifier*.classifier.0.weight)")
    if classifiers[0].dim() != 2:
        raise ValueError(f"{files['id']}: the identity head has shape {tuple(classifiers[0].shape)}")
    config = load_config(options).replace(ID_class=classifiers[0].shape[0])
    held = sum(v.numel() for file in files.values() for v in public_entries(file).values())
    if {"gen", "dis"} <= files.keys():
        check_size(config, held, f"the public files in {files['id'].parent} hold")
    model = DGNet(config)
    import_public(model, files, allow_extra=allow_extra)
    named = PUBLIC.search(files["id"].name)
    assert named is not None  # `public_set` found it by this pattern
    step = int(named[2])
    known = {"step": step, "class_names": None, "source": str(files["id"]), "files": sorted(files)}
    return _checked(model, known)


def _checked(model: DGNet, known: dict[str, Any]) -> tuple[DGNet, dict[str, Any]]:
    """The model, whose weights are finite; D may have any, because nothing uses it."""
    state = model_state(model)
    check_finite({k: v for k, v in state.items() if not k.startswith("discriminator.")}, known["source"])
    return model, known


def options_beside(file: Path, config_file: str | Path | None) -> Path | None:
    """The file of options that belongs to a public file: ``config_file``, or a config.yaml in its folder or the one
    above.
    """
    if config_file is not None and not Path(config_file).is_file():
        raise ValueError(f"no such configuration file: {config_file}")
    places = (config_file, file.parent / "config.yaml", file.parent.parent / "config.yaml")
    return next((Path(p) for p in places if p and Path(p).is_file()), None)


def load_encoder(
    path: str | Path, *, config_file: str | Path | None = None, allow_extra: bool = False
) -> tuple[AppearanceEncoder, Config, dict[str, Any]]:
    """The network that makes retrieval features, its options, and what is known of it: E_a of anything that
    `load_for_use` reads; or a teacher, from its file (ours, or the public net_last.pth with its options) or its folder.
    """
    found = _teacher_file(Path(path))
    if found is None:
        model, known = load_for_use(path, config_file=config_file, allow_extra=allow_extra)
        return model.appearance_encoder, model.config, known
    file, content = found
    options = options_beside(file, config_file)
    if config_file is None and isinstance(content.get("config"), dict):
        config = check_options(content["config"], file)
    elif options is None:
        raise ValueError(f"{file} needs the options it was trained with: give --config FILE")
    else:
        config = load_config(options)
    names = None
    if is_teacher(content):
        teacher, *_ = own_teachers(file, content, config)
        names = content["class_names"]
        config = config.replace(ID_class=len(names))
    else:
        config = config.replace(ID_class=max(1, len(content[PUBLIC_CLASSIFIER])))
        teacher = public_teacher(file, content, config)
    check_finite(teacher.state_dict(), file)
    # the teacher has one head, whose feature has no halves
    config = config.replace(ID_style="normal", norm_id=False)
    return (
        teacher.eval(),
        config,
        {"step": config.teacher_steps, "class_names": names, "source": str(file)},
    )


def _teacher_file(path: Path) -> tuple[Path, dict[str, Any]] | None:
    """The teacher that a file is, or that a folder without checkpoints holds, with its content; None for any other."""
    candidates = [path]
    if path.is_dir():
        if latest_checkpoint(path) is not None or (path / "checkpoints").is_dir() or public_set(path):
            return None
        candidates = [path / "teacher.pt", path / "net_last.pth"]
    for file in candidates:
        if file.is_file() and not is_safetensors(file):
            content = load_file(file)
            if is_teacher(content) or is_public_teacher(content):
                return file, content
    return None


def load_generator(
    path: str | Path, *, config_file: str | Path | None = None, allow_extra: bool = False
) -> tuple[DGNet, dict[str, Any]]:
    """`load_for_use` for commands that generate pictures: public files without their ``gen_*.pt`` are refused."""
    model, known = load_for_use(path, config_file=config_file, allow_extra=allow_extra)
    if "gen" in missing_networks(known):
        raise ValueError(
            f"{known['source']} has no gen_*.pt beside it: E_s and G are needed to make pictures"
        )
    return model.eval(), known
