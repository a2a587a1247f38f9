"""Reading and writing the checkpoint files of the public code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from dgnet_fast.checkpoints.files import load_file, save_atomically
from dgnet_fast.checkpoints.public_layout import (
    discriminator_layout,
    encoder_layout,
    export_state,
    generator_layout,
    import_state,
)
from dgnet_fast.checkpoints.schema import check_tensors
from dgnet_fast.models.dgnet import DGNet
from dgnet_fast.report.files import write_text

PUBLIC = re.compile(r"(gen|id|dis)_(\d{8,})\.pt$")


def public_entries(path: Path) -> dict[str, Tensor]:
    content = load_file(path)
    if not isinstance(content, dict) or not isinstance(content.get("a"), dict):
        raise ValueError(
            f"{path} is not a public DG-Net checkpoint: expected a dictionary with the entry 'a'"
        )
    return check_tensors(content["a"], path, "a")


def public_set(path: Path) -> dict[str, Path]:
    """The public files that belong to ``path`` (one of them, or a folder: the newest set): {'gen': ..., 'id':
    ..., 'dis': ...}.
    """
    folder, number = path, None
    if path.is_file():
        named = PUBLIC.search(path.name)
        if named is None:
            raise ValueError(f"{path} is no public checkpoint; allowed: a name such as gen_00100000.pt")
        folder, number = path.parent, named[2]
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
            module, layout(module), public_entries(path), source=str(path), allow_extra=allow_extra
        )
    return unused


def export_public(
    model: DGNet, folder: Path, step: int, unused: dict[str, dict[str, Tensor]] | None = None
) -> dict[str, Path]:
    """Write ``gen_``, ``id_`` and ``dis_XXXXXXXX.pt`` that the public code loads; returns the
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


def save_public(model: DGNet, known: dict[str, Any], folder: Path) -> list[Path]:
    """Write ``gen_``, ``id_`` and ``dis_XXXXXXXX.pt`` of the public layout and their ``config.yaml``."""
    paths = export_public(model, folder, known["step"])
    write_text(folder / "config.yaml", model.config.to_yaml())
    return list(paths.values())


def missing_networks(known: dict[str, Any]) -> list[str]:
    """The networks that the source did not hold, 'gen' or 'dis' (public files without their gen_ or dis_ file)."""
    return [kind for kind in ("gen", "dis") if "files" in known and kind not in known["files"]]
