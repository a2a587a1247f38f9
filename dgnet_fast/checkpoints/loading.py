"""Load a model from any file that holds one, for evaluation and generation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from dgnet_fast.checkpoints.public import PUBLIC, import_public, missing_networks, public_entries, public_set
from dgnet_fast.checkpoints.runs import latest_checkpoint, read_run, restore_model
from dgnet_fast.config import from_dict, load_config
from dgnet_fast.models.dgnet import DGNet


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
    if path.suffix == ".safetensors":
        from dgnet_fast.checkpoints.safetensors import load_safetensors  # which is built on this module

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
        for k, v in public_entries(files["id"]).items()
        if re.fullmatch(r"classifier\d?\.classifier\.0\.weight", k)
    ]
    if not classifiers:
        raise ValueError(f"{files['id']} has no identity head (classifier*.classifier.0.weight)")
    model = DGNet(load_config(options).replace(ID_class=classifiers[0].shape[0]))
    import_public(model, files, allow_extra=allow_extra)
    named = PUBLIC.search(files["id"].name)
    assert named is not None  # `public_set` found it by this pattern
    step = int(named[2])
    return model, {"step": step, "class_names": None, "source": str(files["id"]), "files": sorted(files)}


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
