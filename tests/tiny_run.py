"""A tiny checkpoint on disk, drawn pictures to use it on, and the line of a command that fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from dgnet_fast.checkpoints.runs import save_run_folder
from dgnet_fast.data import SyntheticPedestrians
from dgnet_fast.models.dgnet import DGNet
from tests.tiny import tiny_config, tiny_model

DATA = {"synthetic_ids": 5, "synthetic_views": 4, "synthetic_test_ids": 4, "max_iter": 9}
STEP = 7


def tiny_run(folder: Path, *, scale: float = 1.0, **changes: Any) -> tuple[DGNet, Path]:
    """An untrained tiny model (E_a's weights times ``scale``) and the run folder that holds it, at step 7."""
    model = tiny_model(tiny_config(**DATA | changes)).eval()
    with torch.no_grad():
        for parameter in model.appearance_encoder.parameters():
            parameter *= scale
    names = [str(k) for k in range(1, 6)]
    save_run_folder(model, {"step": STEP, "class_names": names}, folder)
    return model, folder


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


def fails(capsys: Any, main: Any, words: list, status: int = 1) -> str:
    """The one line on standard error of a command that fails and says nothing else."""
    try:
        code = main([str(word) for word in words])
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    assert code == status, err
    assert "Traceback" not in err and err.count("\n") == 1, err
    assert err.startswith("python -m dgnet_fast.") and out == ""
    return err.strip()
