"""ImageNet weights from which E_a starts."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from dgnet_fast.checkpoints.files import load_file
from dgnet_fast.models.appearance_encoder import AppearanceEncoder


def load_imagenet(encoder: AppearanceEncoder, path: str | Path) -> None:
    """Load the backbone from a torchvision ResNet-50 file (its ``fc`` is not used).

    Raises ValueError naming missing, extra or wrongly shaped entries, or an unreadable file.
    """
    state = load_file(path, "weight file")
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"pretrained {path} holds no weights by name (a state dict)")
    state = {k: v for k, v in state.items() if not k.startswith("fc.")}
    own = encoder.backbone.state_dict()
    for name in own:  # files older than PyTorch 0.4.1 do not count batches
        if name.endswith("num_batches_tracked"):
            state.setdefault(name, own[name])
    wrong = [k for k in own if k in state and state[k].shape != own[k].shape]
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or extra or wrong:
        raise ValueError(
            f"pretrained {path} does not fit E_a: missing {missing[:3]}, extra {extra[:3]}, other shape {wrong[:3]}"
        )
    encoder.backbone.load_state_dict(state)
