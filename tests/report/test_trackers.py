"""The log reaches Weights & Biases and MLflow, and a resumed run goes on in the same place there."""

from __future__ import annotations

import json

import pytest

from dgnet_fast.config import ConfigError, from_dict
from dgnet_fast.report.log import RunLog
from dgnet_fast.report.trackers import trackers_of

CONFIG = {"seed": 3, "gen": {"dim": 8}}


def logged(folder, names, steps):
    with RunLog(folder, 9, tensorboard=False, trackers=trackers_of(names, folder, CONFIG)) as log:
        for step in steps:
            log.write(step, {"total": 10.0 / step})


def test_mlflow_has_every_scalar_and_option_and_resumes(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # its newer versions advise against plain files
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    mlflow.set_tracking_uri((tmp_path / "store").as_uri())
    for steps in ((1, 2), (3,)):
        logged(tmp_path / "run", "mlflow", steps)
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("dgnet_fast").experiment_id])
    assert run.data.params == {"seed": "3", "gen.dim": "8"} and run.info.run_name == "run"
    found = {m.step: m.value for m in client.get_metric_history(run.info.run_id, "train/total")}
    assert found == {1: 10.0, 2: 5.0, 3: pytest.approx(10 / 3)}


def test_wandb_gets_every_scalar_and_one_identity_a_folder(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    begun, rows = [], []

    class Run:
        def log(self, scalars, step):
            rows.append((step, scalars))

        def finish(self):
            rows.append("finished")

    monkeypatch.setattr(wandb, "init", lambda **options: begun.append(options) or Run())
    for steps in ((1, 2), (4,)):
        logged(tmp_path / "run", "wandb", steps)
    assert begun[0] == begun[1] and begun[0]["config"] == CONFIG and begun[0]["resume"] == "allow"
    assert rows == [
        (1, {"train/total": 10.0}),
        (2, {"train/total": 5.0}),
        "finished",
        (4, {"train/total": 2.5}),
        "finished",
    ]
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3
    assert json.loads(json.dumps(begun[0]))  # nothing that W&B could not store


def test_an_unknown_tracker_is_refused_before_the_run():
    with pytest.raises(ConfigError, match="track is 'tensorbord'; allowed: wandb, mlflow"):
        from_dict({"track": "wandb,tensorbord"})
