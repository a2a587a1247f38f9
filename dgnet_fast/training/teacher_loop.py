"""Training of the baseline, which later is the teacher: one network, cross entropy, SGD (paper section 4.1)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dgnet_fast.checkpoints.files import load_file, save_atomically
from dgnet_fast.checkpoints.pretrained import load_imagenet
from dgnet_fast.checkpoints.schema import check_fit, check_optimiser, check_step, check_tensors
from dgnet_fast.config import Config
from dgnet_fast.config.shown import shown
from dgnet_fast.data import TrainBatches
from dgnet_fast.distributed import processes
from dgnet_fast.distributed.gradients import GradientSums
from dgnet_fast.models.appearance_encoder import (
    STRIPS,
    AppearanceEncoder,
    build_teacher,
    upsample_small,
)
from dgnet_fast.models.batch_norm import BatchNormMode, set_batch_norms
from dgnet_fast.models.typed import in_channels_last
from dgnet_fast.report.log import RunLog
from dgnet_fast.training.average import WeightAverage
from dgnet_fast.training.compiling import COMPILING
from dgnet_fast.training.generated import GeneratedBatches
from dgnet_fast.training.graphs import LoopSteps
from dgnet_fast.training.loop import StopSignal
from dgnet_fast.training.losses import batch_hard_triplet, smoothed_cross_entropy, soft_label_divergence
from dgnet_fast.training.optim import HEAD_FACTOR, SENT, Precision, Rates, sgd_for_encoder
from dgnet_fast.training.runner import compile_part
from dgnet_fast.training.seeds import derive_seed, seed_step

DECAY_AT = 2 / 3
"""Share of the steps after which the learning rate falls to a tenth."""


class TeacherBatch(NamedTuple):
    """What a step trains on: ``pictures`` (N, 3, H, W) of both streams with their ``labels`` (S, B), and generated
    pictures (M, 3, H, W) with soft labels (M, ids) or None.
    """

    pictures: Tensor
    labels: Tensor
    generated: Tensor | None
    soft_labels: Tensor | None


def teacher_rate(config: Config, step: int) -> float:
    """The factor of the teacher's learning rates at ``step``, from ``reid.warm_up`` and ``reid.policy``."""
    rise = min(1.0, (step + 1) / (config.reid.warm_up + 1))
    if config.reid.policy == "cosine":
        return rise * 0.5 * (1 + math.cos(math.pi * step / config.teacher_steps))
    return rise * (0.1 if step >= DECAY_AT * config.teacher_steps else 1.0)


def teacher_terms(
    teacher: AppearanceEncoder, batch: TeacherBatch, config: Config, generated_weight: float
) -> dict[str, Tensor]:
    """What a step learns from, by name: first the total (``id``, or ``total`` with generated pictures), then accuracy and
    the total's parts.
    """
    recipe, pictures, count = config.reid, batch.pictures, len(batch.pictures)
    if batch.generated is not None:
        pictures = torch.cat([pictures, batch.generated])
    pictures = upsample_small(pictures, config.ID_upsample)
    found = teacher(pictures, BatchNormMode(1, "update"), dropout=True)
    logits = found.logits
    loss = smoothed_cross_entropy([one[:count] for one in logits], batch.labels, recipe.smoothing).mean()
    right = (logits[0][:count].argmax(dim=1) == batch.labels.flatten()).float().mean()
    measured = {"accuracy": right}
    if recipe.triplet_w:  # on the pooled map, before the head's BatchNorm
        pooled = found.code[:count].unflatten(1, (-1, STRIPS)).mean(dim=2)
        triplet = batch_hard_triplet(pooled, batch.labels.flatten(), recipe.margin)
        loss = loss + recipe.triplet_w * triplet
        measured["triplet"] = triplet
    if batch.soft_labels is not None:
        divergence = soft_label_divergence(logits[0][count:], batch.soft_labels[None]).mean()
        loss = loss + generated_weight * divergence
        measured["generated_kl"] = divergence
    return {"id" if batch.generated is None else "total": loss} | measured


def train_teacher(
    config: Config,
    batches: TrainBatches,
    log: RunLog,
    precision: Precision,
    *,
    state_file: Path,
    stop: StopSignal,
    generated: GeneratedBatches | None = None,
    generated_weight: float = 1.0,
    about: dict[str, Any] | None = None,
) -> AppearanceEncoder:
    """Train for ``config.teacher_steps`` steps of ``teacher_batch`` pictures (both streams of ``batches``
    together).

    With ``generated``, the same number of generated pictures is added to each batch; their KL divergence from their
    soft labels is added to the loss with ``generated_weight``.

    Resumes from ``state_file`` when it is there, and writes it every ``snapshot_save_iter`` steps and when stopped.
    The caller removes it when the teacher itself is saved. ``about`` (the names of the classes, ...) is saved with the
    state and must be the same when the training continues. Where several processes are one run, each has batches of its
    own, and the first one writes. Raises Stopped after a signal, and FloatingPointError when a loss is not finite.
    """
    device = precision.device
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "teacher"))
    teacher = build_teacher(config, config.teacher_stride, generator)
    if config.pretrained not in ("", "teacher"):
        load_imagenet(teacher, config.pretrained)
    in_channels_last(teacher, device)
    set_batch_norms(teacher, parts=config.bn_parts, synced=config.sync_bn)
    on_device = device.type == "cuda"
    optimiser = sgd_for_encoder(
        teacher, config.teacher_lr / HEAD_FACTOR, config.weight_decay, fused=on_device or None
    )
    rates = Rates(optimiser, device if on_device else None)
    scaler = precision.scalers["gen"]
    recipe = config.reid
    average = WeightAverage(teacher, recipe.ema_decay, parts=("",)) if recipe.ema_decay else None
    first = 0
    if processes.agreed(state_file.is_file()):
        content = load_file(state_file, "state of a teacher")
        if not isinstance(content, dict) or not {"step", "teacher", "optimiser"} <= content.keys():
            raise ValueError(f"{state_file} is not the state of a teacher")
        first = check_step(content["step"], state_file)
        for name, value in (about or {}).items():
            if (theirs := content.get("about", {}).get(name, value)) != value:
                raise ValueError(
                    f"{state_file} was trained with other {name} ({shown(theirs)}, and not {shown(value)}); take another folder"
                )
        state = check_tensors(content["teacher"], state_file, "teacher")
        check_fit(teacher.state_dict(), state, state_file)
        check_optimiser(optimiser, content["optimiser"], state_file)
        teacher.load_state_dict(state)
        rates.load_state_dict(content["optimiser"])
        if average is not None:
            average.load_state_dict(content.get("average", state))
    log.truncate_after(first)

    processes.broadcast_(teacher.state_dict().values())
    sums = GradientSums({"id": list(teacher.parameters())}, SENT[config.send_gradients])

    def save(step: int) -> None:
        if log.silent:
            return
        content = {
            "step": step,
            "about": about or {},
            "teacher": teacher.state_dict(),
            "optimiser": rates.state_dict(),
        }
        if average is not None:
            content["average"] = average.state_dict()
        save_atomically(content, state_file)

    values = torch.zeros(4, device=device)

    terms_of = teacher_terms
    if config.compile and device.type != "cpu":  # on a CPU E_a takes longer compiled
        COMPILING.watch()
        terms_of = compile_part(teacher_terms)

    def work(batch: TeacherBatch) -> list[str]:
        with COMPILING.part(teacher_terms.__name__):
            with precision.autocast():
                terms = terms_of(teacher, batch, config, generated_weight)
            optimiser.zero_grad(set_to_none=True)
            total = next(iter(terms.values()))
            scaler.scale(total / processes.size()).backward()
        sums.wait("id")
        scaler.step(optimiser)
        scaler.update()
        values[: len(terms)].copy_(torch.stack([one.detach() for one in terms.values()]))
        return list(terms)

    one_step = LoopSteps(work, config, precision, list(teacher.parameters()))
    for step in range(first, config.teacher_steps):
        rates.set(teacher_rate(config, step))
        batch = batches.batch(step)
        more = (None, None) if generated is None else generated.batch(step)
        given = TeacherBatch(batch.x.flatten(0, 1), batch.labels, *more)
        names = one_step(given, lambda at=step: seed_step(config.seed, "teacher step", at))
        log.leave_out(COMPILING.taken())
        processes.mean_all_(b for b in teacher.buffers() if b.is_floating_point())
        if average is not None:
            average.update(step)
        seen = processes.mean_(values[: len(names)].clone())
        done = step + 1
        if done % config.log_iter == 0 or done == config.teacher_steps or log.due(done):
            scalars = dict(zip(names, seen.tolist(), strict=True))
            if not math.isfinite(value := scalars[names[0]]):
                raise FloatingPointError(
                    f"the teacher's loss is {value} at step {done}; lower --teacher-lr (now {config.teacher_lr})"
                )
            log.write(done, scalars, phase="teacher")
            log.progress(done, scalars)
        if stop.due():
            save(done)
            raise stop.stopped(done)
        if done % config.snapshot_save_iter == 0 and done < config.teacher_steps:
            save(done)
    if average is not None:
        average.settle()
    return teacher
