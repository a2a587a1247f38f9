"""Models in and out of other files: safetensors, run folders, the public implementation's set; and their fingerprint."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dgnet_fast.config import from_dict
from dgnet_fast.models.dgnet import DGNet
from dgnet_fast.training.checkpoint import (
    FORMAT,
    NAME,
    export_public,
    load_for_use,
    restore_model,
    save_atomically,
)
from dgnet_fast.training.optim import Optimisers, Precision

SAFETENSORS_FORMAT = "dgnet_fast.safetensors.1"
GENERATING = ("structure_encoder.", "mlp.", "decoder.", "appearance_encoder.")
"""Networks that a generated picture depends on: all but D and the teachers."""


def model_state(model: DGNet) -> dict[str, Tensor]:
    """The tensors of E_s, the MLPs, G, E_a and D, contiguous and on the CPU; no teachers."""
    return {
        name: value.detach().cpu().contiguous()
        for name, value in model.state_dict().items()
        if not name.startswith("teachers.")
    }


def fingerprint(model: DGNet) -> str:
    """16 hexadecimal digits of SHA-256 over the names and values of the networks that generate.

    The same weights have the same fingerprint in whichever file they came.
    """
    digest = hashlib.sha256()
    for name, value in sorted(model_state(model).items()):
        if name.startswith(GENERATING):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def save_safetensors(model: DGNet, known: dict[str, Any], path: Path) -> Path:
    """Write all networks of ``model`` with their options as one safetensors file, atomically.

    ``known`` is what `load_for_use` knows of the model; step, class names, options and fingerprint go into
    the file's metadata.
    """
    from safetensors.torch import save_file

    metadata = {
        "format": SAFETENSORS_FORMAT,
        "config": json.dumps(model.config.to_dict()),
        "step": str(known["step"]),
        "class_names": json.dumps(known["class_names"]),
        "fingerprint": fingerprint(model),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(model_state(model), temporary, metadata)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def load_safetensors(path: str | Path) -> tuple[DGNet, dict[str, Any]]:
    """Read what `save_safetensors` wrote: the model, and what is known of it as `load_for_use` gives it.

    Raises ValueError for a file that is missing, damaged or of another format.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no such checkpoint: {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
    if metadata.get("format") != SAFETENSORS_FORMAT:
        raise ValueError(
            f"{path} is a safetensors file of format {metadata.get('format')!r}; expected {SAFETENSORS_FORMAT!r}"
        )
    model = DGNet(from_dict(json.loads(metadata["config"])))
    restore_model(model, {"model": state}, path)
    names = json.loads(metadata["class_names"])
    return model, {"step": int(metadata["step"]), "class_names": names, "source": str(path)}


def save_run_folder(model: DGNet, known: dict[str, Any], folder: Path) -> Path:
    """Write ``folder`` as a run: ``config.yaml`` and ``checkpoints/step_XXXXXXXX.pt``.

    It can be evaluated, generated from and resumed; the optimisers start afresh, since no other file holds
    theirs.
    """
    path = folder / "checkpoints" / NAME.format(known["step"])
    content = {
        "format": FORMAT,
        "step": known["step"],
        "config": model.config.to_dict(),
        "class_names": known["class_names"],
        "model": model_state(model),
        "optimisers": Optimisers(model, model.config).state_dict(),
        "precision": Precision(None, torch.device("cpu")).state_dict(),
    }
    save_atomically(content, path)
    (folder / "config.yaml").write_text(model.config.to_yaml())
    return path


def save_public(model: DGNet, known: dict[str, Any], folder: Path) -> list[Path]:
    """Write ``gen_``, ``id_`` and ``dis_XXXXXXXX.pt`` of the public layout and their ``config.yaml``."""
    paths = export_public(model, folder, known["step"])
    (folder / "config.yaml").write_text(model.config.to_yaml())
    return list(paths.values())


def missing_networks(known: dict[str, Any]) -> list[str]:
    """Networks that the source did not hold (a public set without its gen_ or dis_ file): 'gen', 'dis'."""
    return [kind for kind in ("gen", "dis") if "files" in known and kind not in known["files"]]


def load_generator(
    path: str | Path, *, config_file: str | Path | None = None, allow_extra: bool = False
) -> tuple[DGNet, dict[str, Any]]:
    """`load_for_use` for commands that make pictures: refuses a public set without its ``gen_*.pt``."""
    model, known = load_for_use(path, config_file=config_file, allow_extra=allow_extra)
    if "gen" in missing_networks(known):
        raise ValueError(
            f"{known['source']} has no gen_*.pt beside it: E_s and G are needed to make pictures"
        )
    return model.eval(), known
