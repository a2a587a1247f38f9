"""E_s and G are first trained alone to reconstruct pictures, before everything is trained together. The paper does not
do this.

From random weights, the complete step trains E_s and G slowly: E_a, whose codes they use, still changes, and most of
the computation of a step goes into terms that mean little while the pictures are blurred. Here E_a is constant, and a
step decodes each picture once, with its own code or with that of its positive, drawn at random.

The error is squared, and not absolute as in the terms of the paper. While G cannot tell a colour, the absolute error is
smallest for grey, and G stays grey for a thousand steps; the squared error gives the most weight to exactly these
pixels. docs/learning.md gives the figures.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from dgnet_fast.checkpoints.files import load_file, save_atomically
from dgnet_fast.config import Config
from dgnet_fast.data import Batch, TrainBatches
from dgnet_fast.distributed import processes
from dgnet_fast.distributed.gradients import GradientSums
from dgnet_fast.models.appearance_encoder import upsample_small
from dgnet_fast.models.batch_norm import BatchNormMode
from dgnet_fast.models.dgnet import DGNet
from dgnet_fast.models.structure_input import structure_input
from dgnet_fast.report.log import RunLog
from dgnet_fast.training.loop import Stopped, StopSignal
from dgnet_fast.training.losses import wide
from dgnet_fast.training.optim import SENT, Precision
from dgnet_fast.training.parts import split_streams
from dgnet_fast.training.seeds import seed_step

FORMAT = "dgnet_fast.generator.1"
BATCHES_OF_CODES = 16
"""Batches whose codes the MLPs are fitted to at first (`AppearanceMlp.fit_to`)."""
TRAINED = ("structure_encoder", "mlp", "decoder")


def reconstruction(model: DGNet, batch: Batch) -> tuple[Tensor, Tensor]:
    """Mean squared and mean absolute error (S,) of both streams' pictures, each decoded from its own structure with its
    own or its positive's code, either with probability one half. E_a is constant; its BatchNorms take each batch's
    statistics, as in the whole step, and keep their running ones.
    """
    config = model.config
    pictures = batch.x.flatten(0, 1)
    with torch.no_grad():
        positive = torch.rand(len(pictures), 1, 1, 1, device=pictures.device) < 0.5
        shown = torch.where(positive, batch.xp.flatten(0, 1), pictures)
        code = appearance_codes(model, split_streams(shown))
    structure = model.structure_encoder(structure_input(pictures, config.single, config.gray_jitter))
    difference = wide(split_streams(model.decode(structure, code))) - batch.x
    return difference.square().flatten(1).mean(dim=1), difference.detach().abs().flatten(1).mean(dim=1)


def appearance_codes(model: DGNet, pictures: Tensor) -> Tensor:
    """Appearance codes (S·B, 4·id_dim) of pictures (S, B, 3, H, W), each stream a batch of its own to BatchNorm."""
    upsampled = upsample_small(pictures.flatten(0, 1), model.config.ID_upsample)
    return model.appearance_encoder(upsampled, BatchNormMode(len(pictures), "batch")).code


def rate_at(config: Config, step: int) -> float:
    """Learning rate of step ``step`` (from 0): half a cosine wave from ``generator_lr`` down to 0."""
    return config.generator_lr * 0.5 * (1 + math.cos(math.pi * step / config.generator_steps))


def train_generator(
    model: DGNet,
    batches: TrainBatches,
    folder: Path,
    precision: Precision,
    stop: StopSignal,
    log: RunLog,
) -> None:
    """Train the networks `TRAINED` of ``model`` for ``generator_steps`` steps of ``batch_size`` pictures a stream, and
    keep them as ``folder/generator.pt``; where that is there already, load it. The MLPs start fitted to the codes
    (`AppearanceMlp.fit_to`).

    Adam with ``beta1``, ``beta2`` and ``weight_decay``; the loss is ``recon_x_w`` times the squared error, added up
    over the streams as in the whole step. Resumes from ``folder/generator/state.pt``, which is written every
    ``snapshot_save_iter`` steps and when stopped (Stopped), and removed at the end. FloatingPointError when the loss is
    not finite.
    """
    config, finished, unfinished = model.config, folder / "generator.pt", folder / "generator" / "state.pt"
    networks = {name: getattr(model, name) for name in TRAINED}
    if processes.agreed(finished.is_file()):
        _load(networks, load_file(finished), finished)
        return
    betas = (config.beta1, config.beta2)
    parameters = [p for network in networks.values() for p in network.parameters()]
    optimiser = torch.optim.Adam(parameters, config.generator_lr, betas, weight_decay=config.weight_decay)
    scaler = precision.scalers["gen"]
    first = 0
    if processes.agreed(unfinished.is_file()):
        content = load_file(unfinished)
        _load(networks, content, unfinished)
        optimiser.load_state_dict(content["optimiser"])
        first = content["step"]
        log.truncate_after(first)

    def content_at(step: int) -> dict:
        return {"format": FORMAT, "step": step} | {k: v.state_dict() for k, v in networks.items()}

    if first == 0:
        with torch.no_grad():
            codes = [appearance_codes(model, batches.batch(k).x) for k in range(BATCHES_OF_CODES)]
            model.mlp.fit_to(processes.stacked(torch.cat(codes)).flatten(0, 1))
    processes.broadcast_(model.state_dict().values())
    sums = GradientSums({"gen": parameters}, SENT[config.send_gradients])

    for step in range(first, config.generator_steps):
        seed_step(config.seed, "generator step", step)
        for group in optimiser.param_groups:
            group["lr"] = rate_at(config, step)
        with precision.autocast():
            squared, absolute = reconstruction(model, batches.batch(step))
        optimiser.zero_grad(set_to_none=True)
        scaler.scale(config.recon_x_w / processes.size() * squared.sum()).backward()
        sums.wait("gen")
        scaler.step(optimiser)
        scaler.update()
        seen = processes.mean_(torch.stack([squared.detach().mean(), absolute.mean()]))
        done = step + 1
        if done % config.log_iter == 0 or done == config.generator_steps or log.due(done):
            scalars = dict(zip(("squared", "recon_x"), seen.tolist(), strict=True))
            if not math.isfinite(scalars["squared"]):
                raise FloatingPointError(
                    f"the squared error is {scalars['squared']} at step {done} of E_s and G alone; "
                    f"lower --generator_lr (now {config.generator_lr})"
                )
            log.write(done, scalars, phase="generator")
            log.progress(done, scalars)
        ending = stop.due()
        due = done % config.snapshot_save_iter == 0 and done < config.generator_steps
        if not log.silent and (ending or due):
            save_atomically(content_at(done) | {"optimiser": optimiser.state_dict()}, unfinished)
        if ending:
            raise Stopped(done)
    optimiser.zero_grad(set_to_none=True)
    if not log.silent:
        save_atomically(content_at(config.generator_steps), finished)
        unfinished.unlink(missing_ok=True)


def _load(networks: dict[str, torch.nn.Module], content: object, source: Path) -> None:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{source} is not what E_s and G alone leave (expected format {FORMAT!r})")
    for name, network in networks.items():
        try:
            network.load_state_dict(content[name])
        except RuntimeError as error:
            reason = str(error).splitlines()[1].strip()
            raise ValueError(f"{source} does not fit the options: {reason}") from error
