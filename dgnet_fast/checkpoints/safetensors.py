"""All networks of a model with their options in one safetensors file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from dgnet_fast.checkpoints.fingerprint import digest, fingerprint, model_state
from dgnet_fast.checkpoints.runs import restore_model
from dgnet_fast.checkpoints.schema import check_names, check_options, check_step, check_tensors
from dgnet_fast.config.shown import shown
from dgnet_fast.models.dgnet import DGNet
from dgnet_fast.models.size import check_size
from dgnet_fast.report.files import write_bytes

SAFETENSORS_FORMAT = "dgnet_fast.safetensors.2"
WITHOUT_CHECKSUM = "dgnet_fast.safetensors.1"
"""The format before the checksum was added; it is still read."""
LARGEST_HEADER = 2**24
"""Bytes of a header; that of the paper's networks takes 60 KB."""


def is_safetensors(path: Path) -> bool:
    """Whether a file is in the format safetensors, by its name or its first bytes: the length of the header, and the
    bracket with which it begins.
    """
    if path.suffix == ".safetensors":
        return True
    with open(path, "rb") as file:
        start = file.read(9)
    return len(start) == 9 and start.endswith(b"{") and int.from_bytes(start[:8], "little") <= LARGEST_HEADER


def save_safetensors(model: DGNet, known: dict[str, Any], path: Path) -> Path:
    """Write all networks of ``model`` with their options as one safetensors file, atomically. The same model gives
    the same bytes.

    ``known`` is what `load_for_use` knows of the model; step, class names, options and fingerprint go into
    the file's metadata, with a checksum (SHA-256) of the metadata and the tensors.
    """
    from safetensors.torch import save

    state = model_state(model)
    metadata = {
        "format": SAFETENSORS_FORMAT,
        "config": json.dumps(model.config.to_dict()),
        "step": str(known["step"]),
        "class_names": json.dumps(known["class_names"]),
        "fingerprint": fingerprint(model),
    }
    metadata["checksum"] = _checksum(state, metadata)
    write_bytes(path, _sorted_metadata(save(state, metadata)))
    return path


def _checksum(state: dict[str, Tensor], metadata: dict[str, str]) -> str:
    kept = {name: value for name, value in metadata.items() if name != "checksum"}
    return digest(state, json.dumps(kept, sort_keys=True))


def _sorted_metadata(data: bytes) -> bytes:
    """The same file with its metadata in the order of their names; safetensors writes them in a random order."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


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
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
    if metadata.get("format") not in (SAFETENSORS_FORMAT, WITHOUT_CHECKSUM):
        raise ValueError(
            f"{path} is a safetensors file of format {shown(metadata.get('format'))}; expected {SAFETENSORS_FORMAT!r}"
        )
    if metadata["format"] == SAFETENSORS_FORMAT and metadata.get("checksum") != _checksum(state, metadata):
        raise ValueError(f"{path} is damaged: its checksum is not that of its content")
    try:
        known = {name: json.loads(metadata[name]) for name in ("config", "step", "class_names")}
    except (KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: its metadata are not whole: {error}") from error
    config = check_options(known["config"], path)
    step, names = check_step(known["step"], path), check_names(known["class_names"], path)
    state = check_tensors(state, path, "it")
    check_size(config, sum(tensor.numel() for tensor in state.values()), f"{path} holds")
    model = DGNet(config)
    restore_model(model, {"model": state}, path)
    return model, {"step": step, "class_names": names, "source": str(path)}
