"""The tensors of a model, and the fingerprint of its weights."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from dgnet_fast.models.dgnet import DGNet

GENERATING = ("structure_encoder.", "mlp.", "decoder.", "appearance_encoder.")
"""The networks on which a generated picture depends: all except D and the teachers."""


def model_state(model: DGNet) -> dict[str, Tensor]:
    """The tensors of E_s, the MLPs, G, E_a and D, contiguous and on the CPU; without the teachers."""
    return {
        name: value.detach().cpu().contiguous()
        for name, value in model.state_dict().items()
        if not name.startswith("teachers.")
    }


def fingerprint(model: DGNet) -> str:
    """16 hexadecimal digits of SHA-256 over the names and values of the networks that generate pictures.

    The same weights have the same fingerprint in every file format.
    """
    return digest({name: value for name, value in model_state(model).items() if name.startswith(GENERATING)})


def digest(state: dict[str, Tensor], about: str = "") -> str:
    """16 hexadecimal digits of SHA-256 over names, dtypes, shapes and values of tensors, and over ``about``."""
    made = hashlib.sha256(about.encode())
    for name, value in sorted(state.items()):
        made.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        made.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return made.hexdigest()[:16]
