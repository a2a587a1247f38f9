"""All networks of a model with their options in one safetensors file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dgnet_fast.checkpoints.fingerprint import fingerprint, model_state
from dgnet_fast.checkpoints.runs import restore_model
from dgnet_fast.config import from_dict
from dgnet_fast.models.dgnet import DGNet
from dgnet_fast.report.files import atomically

SAFETENSORS_FORMAT = "dgnet_fast.safetensors.1"


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
    with atomically(path) as temporary:
        save_file(model_state(model), temporary, metadata)
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
