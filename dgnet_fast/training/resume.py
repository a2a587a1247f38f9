"""Whether a run can go on from the newest checkpoint of its folder, found before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dgnet_fast.checkpoints.files import load_file
from dgnet_fast.checkpoints.runs import check_same_options, latest_checkpoint, read_run
from dgnet_fast.checkpoints.schema import check_fit
from dgnet_fast.checkpoints.teachers import check_classes
from dgnet_fast.config import Config, ConfigError
from dgnet_fast.data import ReidDataset
from dgnet_fast.distributed import processes
from dgnet_fast.models.dgnet import DGNet
from dgnet_fast.training.average import WeightAverage
from dgnet_fast.training.optim import Optimisers, Precision


def content_of(
    config: Config, dataset: ReidDataset, folder: Path, resume: bool, given: set[str] | None
) -> tuple[Path | None, dict[str, Any] | None]:
    """The newest checkpoint of the folder and its content, if it can be resumed with the options of the run."""
    checkpoint = processes.agreed(latest_checkpoint(folder) if resume else None)
    if checkpoint is None:
        if not resume and (folder / "config.yaml").exists():
            raise ConfigError(
                f"{folder} already holds a run; continue it with --resume or choose another --out"
            )
        state = folder / "teacher" / "state.pt"
        if resume and state.is_file():  # a run that was stopped while its teacher was trained
            saved = load_file(state, "state of a teacher")
            about = saved.get("about") if isinstance(saved, dict) else None
            if isinstance(about, dict) and isinstance(names := about.get("class names"), list):
                check_classes(dataset.class_names, names, str(state))
        return None, None
    try:
        content = read_run(checkpoint)
    except ValueError as error:
        raise ValueError(f"{error}; to resume from the checkpoint before it, remove this file") from error
    if given is not None:
        check_same_options(config, content, given, checkpoint)
    if content["class_names"] is not None:
        check_classes(dataset.class_names, content["class_names"], str(checkpoint))
    return checkpoint, content


def check_content(model: DGNet, precision: Precision, content: dict[str, Any], source: Path) -> None:
    """Raise ValueError if a checkpoint does not fit the networks, their optimisers, or the averaged weights."""
    own = {k: v for k, v in model.state_dict().items() if not k.startswith("teachers.")}
    check_fit(own, content["model"], source)
    if "optimisers" in content:
        Optimisers(model, model.config).check(content["optimisers"], source)
    if "precision" in content:
        precision.check(content["precision"], source)
    if model.config.ema_decay and "average" in content:
        WeightAverage(model, model.config.ema_decay).check(content["average"], source)
