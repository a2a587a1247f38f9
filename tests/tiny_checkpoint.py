"""A run folder with a tiny untrained checkpoint, and drawn pictures to use it on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from dgnet_fast.data import SyntheticPedestrians
from dgnet_fast.training.checkpoint import save_run
from dgnet_fast.training.optim import Optimisers, Precision
from tests.tiny import tiny_config, tiny_model

DRAWN = {"synthetic_ids": 5, "synthetic_views": 4, "synthetic_test_ids": 4}


def tiny_checkpoint(folder: Path, scale: float = 1.0, **changes: Any) -> Path:
    """Save the tiny networks (E_a's weights times ``scale``) as a checkpoint of a run in ``folder``."""
    config = tiny_config(**DRAWN | changes)
    model = tiny_model(config)
    with torch.no_grad():
        for parameter in model.appearance_encoder.parameters():
            parameter *= scale
    names = [str(k) for k in range(config.ID_class)]
    precision = Precision(None, torch.device("cpu"))
    save_run(folder / "checkpoints", 3, model, Optimisers(model, config), precision, names, keep=1)
    return folder


def draw_people(
    folder: Path, people: int = 4, shots: int = 3, size: tuple[int, int] = (64, 32)
) -> list[Path]:
    """Write pictures `0002_c1_0005.png` of drawn people (identity, camera, view) into ``folder``; sorted."""
    folder.mkdir(parents=True, exist_ok=True)
    pedestrians = SyntheticPedestrians(0)
    for person in range(1, people + 1):
        for shot in range(shots):
            camera, view = shot % 2 + 1, 10 * person + shot
            picture = Image.fromarray(pedestrians.draw(person, view, camera, *size))
            picture.save(folder / f"{person:04d}_c{camera}_{view:04d}.png")
    return sorted(folder.iterdir())
