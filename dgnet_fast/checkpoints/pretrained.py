"""ImageNet weights from which E_a starts."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from dgnet_fast.checkpoints.files import load_file
from dgnet_fast.checkpoints.schema import check_tensors
from dgnet_fast.config import Config
from dgnet_fast.models.appearance_encoder import AppearanceEncoder


def read_imagenet(path: str | Path) -> dict[str, Tensor]:
    """The weights of a torchvision ResNet file, by name, without its ``fc``. Raises ValueError if it is none."""
    content = load_file(path, "weight file")
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"pretrained {path} holds no weights by name (a state dict)")
    return {k: v for k, v in check_tensors(content, path, "it").items() if not k.startswith("fc.")}


def check_imagenet(path: str | Path, config: Config) -> None:
    """Raise ValueError if the file cannot be read, or if its first convolution or the number of its blocks are not
    those of the options.
    """
    state = read_imagenet(path)
    first = state.get("conv1.weight")
    stages = [
        len({k.split(".")[1] for k in state if k.startswith(f"layer{n}.")})
        for n in range(1, 1 + len(config.ID_blocks))
    ]
    if first is None or first.shape[:1] != (config.ID_width,) or stages != config.ID_blocks:
        width = "none" if first is None else str(len(first))
        raise ValueError(
            f"pretrained {path} does not fit E_a: it has {width} channels and blocks {stages}, the options say ID_width "
            f"{config.ID_width} and ID_blocks {config.ID_blocks}; missing or extra entries are such as {sorted(state)[:3]}"
        )


def load_imagenet(encoder: AppearanceEncoder, path: str | Path) -> None:
    """Load the backbone from a torchvision ResNet-50 file (its ``fc`` is not used).

    Raises ValueError naming missing, extra or wrongly shaped entries, or an unreadable file.
    """
    state = read_imagenet(path)
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
