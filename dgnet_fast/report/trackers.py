"""Experiment trackers that get what `metrics.jsonl` gets: Weights & Biases, and MLflow."""

from __future__ import annotations

import hashlib
import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from dgnet_fast.config.choices import TRACKERS
from dgnet_fast.config.extras import need

PROJECT = "dgnet_fast"
"""Project (W&B) or experiment (MLflow) of all runs, unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME names another."""


class Tracker(Protocol):
    """A place for scalars."""

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Send the scalars of a step, with names such as train/recon_x."""

    def close(self) -> None:
        """Send what is left, and end."""


class _Wandb:
    """A run of Weights & Biases. It is the same run again when a run folder is resumed."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        wandb = importlib.import_module("wandb")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=folder.name,
            id=_identity(folder),
            dir=str(folder),
            config=dict(config),
            resume="allow",
        )

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        self._run.log(dict(scalars), step=step)

    def close(self) -> None:
        self._run.finish()


class _Mlflow:
    """A run of MLflow, where MLFLOW_TRACKING_URI says. Resuming a run folder continues its run."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        mlflow = importlib.import_module("mlflow")
        self._client = mlflow.MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        tag = _identity(folder)
        found = self._client.search_runs([experiment], f"tags.folder = '{tag}'")
        if found:
            self._id = found[0].info.run_id
            return
        run = self._client.create_run(experiment, run_name=folder.name, tags={"folder": tag})
        self._id = run.info.run_id
        for key, value in _flat(config):
            self._client.log_param(self._id, key, value)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            self._client.log_metric(self._id, name, value, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._id)


def trackers_of(names: str, folder: Path, config: Mapping[str, Any]) -> list[Tracker]:
    """The trackers that ``names`` lists, separated by commas. Raises ValueError for one that is unknown or missing."""
    chosen = [name for name in names.split(",") if name]
    check_trackers(names)
    kinds = {"wandb": _Wandb, "mlflow": _Mlflow}
    return [kinds[name](folder, config) for name in chosen]


def check_trackers(names: str) -> None:
    """Raise ValueError if a tracker of the list is unknown or is not installed."""
    for name in filter(None, names.split(",")):
        if name not in TRACKERS:
            raise ValueError(f"track is {names!r}; allowed: {', '.join(TRACKERS)}, separated by commas")
        need(name, name, f"--track {name}")


def _identity(folder: Path) -> str:
    return hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]


def _flat(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in config.items():
        rows += _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return rows
