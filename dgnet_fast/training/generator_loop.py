"""E_s and G are first trained alone to reconstruct pictures, before everything is trained together. The paper does not
do this.

From random weights, the complete step trains E_s and G slowly: E_a, whose codes they use, still changes, and most of
the computation of a step goes into terms that mean little while the pictures are blurred. Here E_a is constant, and a
step decodes each picture once, with its own code or with that of its positive, drawn at random.

The error is squared, and not absolute as in the terms of the paper. While G cannot tell a colour, the absolute error is
smallest for grey, and G stays grey for a thousand steps; the squared error gives the most weight to exactly these
pixels.

With ``generator_code_w``, each picture is also decoded with the code of another person, and E_a has to find this code in
the result: the paper's reconstruction of the appearance code (section 3.1), with its gradient. (In style AB the public
code detaches the codes, so that its term `recon_f` trains nothing.) Reconstructions alone let G read from the structure
how light clothes are, which is wrong for every swap. docs/learning_experiments.md gives the figures.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dgnet_fast.checkpoints.files import load_file, save_atomically
from dgnet_fast.checkpoints.schema import check_fit, check_optimiser, check_step, check_tensors
from dgnet_fast.config import Config
from dgnet_fast.data import Batch, TrainBatches
from dgnet_fast.distributed import processes
from dgnet_fast.distributed.gradients import GradientSums
from dgnet_fast.models.appearance_encoder import upsample_small
from dgnet_fast.models.batch_norm import BatchNormMode
from dgnet_fast.models.dgnet import DGNet
from dgnet_fast.models.layers import idle_biases
from dgnet_fast.models.structure_input import structure_input
from dgnet_fast.report.log import RunLog
from dgnet_fast.training.graphs import LoopSteps
from dgnet_fast.training.loop import StopSignal
from dgnet_fast.training.losses import code_error, deviation_of, wide
from dgnet_fast.training.optim import SENT, Precision, Rates, ZeroGradients, generator_optimiser
from dgnet_fast.training.parts import batch_norm_groups, split_streams
from dgnet_fast.training.seeds import seed_step
from dgnet_fast.training.weight_copies import WeightCopies

logger = logging.getLogger("dgnet_fast")

GENERATOR = "generator.pt"
"""The file in a run's folder with E_s and G after their own phase."""
FORMAT = "dgnet_fast.generator.1"
BATCHES_OF_CODES = 16
"""Batches whose codes the MLPs are fitted to at first (`AppearanceMlp.fit_to`)."""
TRAINED = ("structure_encoder", "mlp", "decoder")


class Errors(NamedTuple):
    """Errors (S,) of both streams, each a mean over pictures."""

    squared: Tensor
    """of pictures decoded from their own structure with their own or their positive's code"""
    absolute: Tensor
    """of the same pictures, without a gradient"""
    code: Tensor | None
    """squared error of the codes of swaps, in standard deviations of codes; None if it has no weight"""


def errors(model: DGNet, batch: Batch, deviation: Tensor | None = None) -> Errors:
    """What one step makes small. E_a is constant; its BatchNorms take each batch's statistics, as in the whole step, and
    keep their running ones.

    Own and positive's code come with probability one half. ``deviation`` (4·id_dim,) is how far codes of different
    pictures lie apart; with it each structure is decoded with the code of the other stream too.
    """
    config = model.config
    pictures = batch.x.flatten(0, 1)
    with torch.no_grad():
        positive = torch.rand(len(pictures), 1, 1, 1, device=pictures.device) < 0.5
        shown = torch.where(positive, batch.xp.flatten(0, 1), pictures)
        code = appearance_codes(model, split_streams(shown))
    structure = model.structure_encoder(structure_input(pictures, config.single, config.gray_jitter))
    if deviation is None:
        decoded, found = split_streams(model.decode(structure, code)), None
    else:  # one call for both kinds: half as many operations, which a small network waits for
        wanted = split_streams(code).flip(0)
        codes = torch.cat([code, wanted.flatten(0, 1)])
        decoded, swaps = model.decode(torch.cat([structure] * 2), codes).unflatten(0, (2, *wanted.shape[:2]))
        again = split_streams(appearance_codes(model, swaps))
        found = code_error(again, wanted, deviation)
    difference = wide(decoded) - batch.x
    absolute = difference.detach().abs().flatten(1).mean(dim=1)
    return Errors(difference.square().flatten(1).mean(dim=1), absolute, found)


def appearance_codes(model: DGNet, pictures: Tensor) -> Tensor:
    """Appearance codes (S·B, 4·id_dim) of pictures (S, B, 3, H, W), each stream a batch of its own to BatchNorm unless
    ``bn_together``.
    """
    upsampled = upsample_small(pictures.flatten(0, 1), model.config.ID_upsample)
    mode = BatchNormMode(batch_norm_groups(model.config, len(pictures)), "batch")
    return model.appearance_encoder.code_of(upsampled, mode)


@contextlib.contextmanager
def held_constant(module: nn.Module) -> Iterator[nn.Module]:
    """Within it no parameter of the module asks for a gradient."""
    asked = {p: p.requires_grad for p in module.parameters()}
    try:
        yield module.requires_grad_(False)
    finally:
        for p, before in asked.items():
            p.requires_grad_(before)


def rate_factor(config: Config, step: int) -> float:
    """Factor of ``generator_lr`` at ``step`` (from 0): half a cosine wave from 1 down to 0."""
    return 0.5 * (1 + math.cos(math.pi * step / config.generator_steps))


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

    Adam with ``beta1``, ``beta2`` and ``weight_decay``, or Muon (``muon``); the loss is ``recon_x_w`` times the squared error
    of the pictures plus ``generator_code_w`` times that of the codes, added up over the streams as in the whole step. Resumes
    from ``folder/generator/state.pt``, which is written every ``snapshot_save_iter`` steps and when stopped (Stopped), and
    removed at the end. FloatingPointError when the loss is not finite.
    """
    config, finished, unfinished = model.config, folder / GENERATOR, folder / "generator" / "state.pt"
    networks = {name: getattr(model, name) for name in TRAINED}
    if processes.agreed(finished.is_file()):
        logger.info(f"E_s and G: loaded from {finished}")
        _load(networks, load_file(finished), finished)
        return
    logger.info("training E_s and G alone")
    parameters = [p for network in networks.values() for p in network.parameters()]
    device = precision.device
    on_device = device.type == "cuda"
    optimiser = generator_optimiser(parameters, config, config.generator_lr, fused=on_device)
    rates = Rates(optimiser, device if on_device else None)
    zeros = ZeroGradients(idle_biases(model), [("gen", optimiser)])
    scaler = precision.scalers["gen"]
    first = 0
    with held_constant(model.appearance_encoder):
        if processes.agreed(unfinished.is_file()):
            content = load_file(unfinished)
            _load(networks, content, unfinished)
            check_optimiser(optimiser, content.get("optimiser"), unfinished)
            rates.load_state_dict(content["optimiser"])
            first = check_step(content.get("step"), unfinished)
        log.truncate_after(first)

        def content_at(step: int) -> dict:
            return {"format": FORMAT, "step": step} | {k: v.state_dict() for k, v in networks.items()}

        deviation = None
        if first == 0 or config.generator_code_w:
            with torch.no_grad():  # the same at every start: E_a and these batches do not change
                codes = [appearance_codes(model, batches.batch(k).x) for k in range(BATCHES_OF_CODES)]
                codes = processes.stacked(torch.cat(codes)).flatten(0, 1)
            if first == 0:
                model.mlp.fit_to(codes)
            if config.generator_code_w:
                deviation = deviation_of(codes)
        processes.broadcast_(model.state_dict().values())
        sums = GradientSums({"gen": parameters}, SENT[config.send_gradients])

        values = torch.zeros(3, device=device)
        copies = None
        if precision.dtype:
            multiplying = nn.ModuleDict({"appearance_encoder": model.appearance_encoder} | networks)
            copies = WeightCopies(multiplying, precision.dtype, without=model.decoder.upsample)

        def work(batch: Batch) -> list[str]:
            with precision.autocast(), copies.in_place() if copies else contextlib.nullcontext():
                found = errors(model, batch, deviation)
                total = config.recon_x_w * found.squared.sum()
                if found.code is not None:
                    total = total + config.generator_code_w * found.code.sum()
            optimiser.zero_grad(set_to_none=True)
            scaler.scale(total / processes.size()).backward()
            sums.wait("gen")
            zeros.give("gen")
            scaler.step(optimiser)
            scaler.update()
            if copies:
                copies.refresh()
            named = {"squared": found.squared, "recon_x": found.absolute}
            if found.code is not None:
                named["code"] = found.code
            values[: len(named)].copy_(torch.stack([one.detach().mean() for one in named.values()]))
            return list(named)

        one_step = LoopSteps(work, config, precision, parameters)
        for step in range(first, config.generator_steps):
            rates.set(rate_factor(config, step))
            names = one_step(
                batches.batch(step), lambda at=step: seed_step(config.seed, "generator step", at)
            )
            seen = processes.mean_(values[: len(names)].clone())
            done = step + 1
            if done % config.log_iter == 0 or done == config.generator_steps or log.due(done):
                scalars = dict(zip(names, seen.tolist(), strict=True))
                for name, value in scalars.items():
                    if not math.isfinite(value):
                        raise FloatingPointError(
                            f"{name} is {value} at step {done} of E_s and G alone; "
                            f"lower --generator-lr (now {config.generator_lr})"
                        )
                log.write(done, scalars, phase="generator")
                log.progress(done, scalars)
            ending = stop.due()
            due = done % config.snapshot_save_iter == 0 and done < config.generator_steps
            if not log.silent and (ending or due):
                save_atomically(content_at(done) | {"optimiser": rates.state_dict()}, unfinished)
            if ending:
                raise stop.stopped(done)
    optimiser.zero_grad(set_to_none=True)
    if not log.silent:
        save_atomically(content_at(config.generator_steps), finished)
        unfinished.unlink(missing_ok=True)


def _load(networks: dict[str, torch.nn.Module], content: object, source: Path) -> None:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{source} is not what E_s and G alone leave (expected format {FORMAT!r})")
    states = {name: check_tensors(content.get(name), source, name) for name in networks}
    for name, network in networks.items():
        check_fit(network.state_dict(), states[name], source)
    for name, network in networks.items():
        network.load_state_dict(states[name])
