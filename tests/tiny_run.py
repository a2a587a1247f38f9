"""A tiny checkpoint on disk with tiny synthetic data, for tests of the commands that read one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dgnet_fast.interchange import save_run_folder
from dgnet_fast.models.dgnet import DGNet
from tests.tiny import tiny_config, tiny_model

DATA = {"synthetic_ids": 5, "synthetic_views": 4, "synthetic_test_ids": 4, "max_iter": 9}
STEP = 7


def tiny_run(folder: Path, **changes: Any) -> tuple[DGNet, Path]:
    """An untrained tiny model and the run folder that holds it, at step 7."""
    model = tiny_model(tiny_config(**DATA | changes)).eval()
    names = [str(k) for k in range(1, 6)]
    save_run_folder(model, {"step": STEP, "class_names": names}, folder)
    return model, folder


def fails(capsys: Any, main: Any, words: list, status: int = 1) -> str:
    """The one line on standard error of a command that fails."""
    try:
        code = main([str(word) for word in words])
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    assert code == status, err
    assert "Traceback" not in err and err.count("\n") == 1, err
    assert err.startswith("python -m dgnet_fast.") and out == ""
    return err.strip()
