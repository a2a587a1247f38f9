"""The baseline trained alone in a folder of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dgnet_fast.checkpoints.runs import saved_options
from dgnet_fast.checkpoints.teachers import export_public_teacher, load_teachers
from dgnet_fast.config import Config, ConfigError, differing, from_dict
from dgnet_fast.config.device import convolutions_tried
from dgnet_fast.config.places import absolute, with_absolute_paths
from dgnet_fast.distributed import processes
from dgnet_fast.models.appearance_encoder import AppearanceEncoder
from dgnet_fast.report.files import locked, write_text
from dgnet_fast.report.log import METRICS_FILE
from dgnet_fast.retrieval.scoring import chance_scores
from dgnet_fast.retrieval.tables import retrieval_table
from dgnet_fast.training.generated import load_generated
from dgnet_fast.training.loop import StopSignal
from dgnet_fast.training.run import Run
from dgnet_fast.training.seeds import generators_kept


def run_teacher(
    config: Config, folder: Path, *, generated: Path | None = None, labeller: str = "", weight: float = 1.0
) -> list[dict[str, Any]]:
    """Train the baseline alone in ``folder`` and score it; returns the result tables.

    ``generated`` is a generated set to train on in addition, with the soft labels of the teacher file ``labeller``.
    Writes ``teacher.pt``, and ``net_last.pth`` with ``opts.yaml`` for the public code.
    """
    run = Run.open(config, folder, teacher_only=True)
    with processes.held_by_first(locked(folder)):
        teacher = _train_teacher(run, generated, labeller, weight)
    return [
        retrieval_table(
            run.dataset,
            {"chance": chance_scores(run.dataset)} | run.scores_of({"teacher (baseline)": teacher}),
        )
    ]


def _train_teacher(run: Run, generated: Path | None, labeller: str, weight: float) -> AppearanceEncoder:
    config, folder, names = run.config, run.folder, run.dataset.class_names
    own = folder / "teacher.pt"
    if (folder / METRICS_FILE).exists() or (folder / "checkpoints").exists():
        raise ConfigError(f"{folder} holds a run of dgnet_fast.train; choose another --out")
    if own.exists() and (folder / "results.json").exists():
        raise ConfigError(f"{folder} already holds a finished teacher; choose another --out")
    if (folder / "teacher" / "state.pt").is_file():
        there = from_dict(saved_options(folder))
        if (wrong := differing(with_absolute_paths(there), config)) is not None:
            raise ConfigError(f"{folder} holds a teacher in training with {wrong}; choose another --out")
    extra: dict[str, Any] = {"about": {"class names": names}}
    if generated is not None:
        batches = load_generated(generated, labeller, config, names, run.device)
        extra |= {"generated": batches, "generated_weight": weight}
        extra["about"] |= {"generated set": absolute(str(generated)), "generated_weight": weight}
    if processes.agreed(own.exists()):  # ended after the teacher was saved, before it was scored
        (teacher,) = load_teachers(config.replace(teacher=str(own)), names)
        teacher = teacher.to(run.device)
    else:
        pictures = run.training_pictures()
        run.begin()
        with StopSignal() as stop, generators_kept(run.device), convolutions_tried(run.device):
            teacher = run.train_baseline(
                "teacher", pictures, stop, steps=config.teacher_steps, batch=config.teacher_batch, **extra
            )
    if processes.is_first():
        export_public_teacher(teacher, folder / "net_last.pth")
        write_text(folder / "opts.yaml", f"stride: {config.teacher_stride}\n")
    return teacher
