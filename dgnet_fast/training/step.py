"""One training step of DG-Net: the flow of the paper's figure 2, as plain functions.

A step has three parts: the shared forward pass (`forward_pass`), the discriminator phase
(`discriminator_phase`) and the generator phase (`generator_phase`: E_s, G and E_a together). `TrainingStep`
runs them with the optimisers.

Streams a and b are the first dimension of every tensor, (S, B, ...) with S = 2; "the other stream" is
``flip(0)``. E_s, G and D mix no samples, so all their inputs of a phase go through in one batch; E_a's passes
are groups of one batch (see `dgnet_fast.models.batch_norm`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dgnet_fast import losses
from dgnet_fast.data import Batch, erase
from dgnet_fast.models.appearance_encoder import Appearance, upsample_small
from dgnet_fast.models.batch_norm import BatchNormMode
from dgnet_fast.models.dgnet import DGNet
from dgnet_fast.models.discriminator import Discriminator
from dgnet_fast.models.structure_input import structure_input
from dgnet_fast.models.teacher import teacher_labels
from dgnet_fast.training.graphs import CudaRecorder, Recorder, StepGraphs, graphs_wanted
from dgnet_fast.training.guard import Guard, StepResult
from dgnet_fast.training.optim import Optimisers, Precision
from dgnet_fast.training.schedule import Weights, WeightTensors, is_present, weights_at
from dgnet_fast.training.seeds import derive_seed

STREAMS = 2


class Forward(NamedTuple):
    """What both phases share; every tensor starts (S, B, ...), stream a first.

    structure, code: of x. swapped[k]: appearance of stream k in the structure of the other (x_ba, x_ab).
    self_recon, same_id_recon: x decoded with its own code and with its positive's.
    logits, positive_logits: per head, (S·B, ids).
    """

    structure: Tensor
    code: Tensor
    swapped: Tensor
    self_recon: Tensor
    same_id_recon: Tensor
    logits: tuple[Tensor, ...]
    positive_logits: tuple[Tensor, ...]


def detached(module: nn.Module) -> dict[str, Tensor]:
    """Parameters as constants: with ``torch.func.functional_call`` a frozen view of the module, no copy."""
    return {name: p.detach() for name, p in module.named_parameters()}


def frozen(module: nn.Module, *args, **kwargs):  # noqa: ANN201 - returns what the module returns
    """Call a module with its parameters as constants: gradient reaches the inputs only, no weight gradients
    are made.
    """
    return torch.func.functional_call(module, detached(module), args, kwargs)


def split_streams(x: Tensor, parts: int = STREAMS) -> Tensor:
    """(parts·B, ...) → (parts, B, ...)."""
    return x.unflatten(0, (parts, -1))


def encode_appearance(
    model: DGNet, batch: Batch, dropout: bool, statistics: str = "update"
) -> tuple[Appearance, Appearance]:
    """E_a on x_a, x_b, xp_a, xp_b in that order, each a batch of its own to BatchNorm.

    Returns (codes, logits): two views of the same pass, or, with random erasing, the plain pass for the codes
    and a second one over the erased copies for the logits. Where no gradient can flow the plain pass keeps no
    graph.
    """
    config = model.config
    mode = BatchNormMode(2 * STREAMS, statistics)
    pictures = upsample_small(torch.cat([batch.x.flatten(0, 1), batch.xp.flatten(0, 1)]), config.ID_upsample)
    erasing = batch.erasing_boxes is not None
    with torch.set_grad_enabled(torch.is_grad_enabled() and not (erasing and config.ID_style == "AB")):
        plain = model.appearance_encoder(pictures, mode, dropout=dropout)
    if not erasing:
        return plain, plain
    return plain, model.appearance_encoder(
        erase(pictures, batch.erasing_boxes.flatten(0, 1)), mode, dropout=dropout
    )


def forward_pass(model: DGNet, batch: Batch, *, dropout: bool = True) -> Forward:
    """Codes of both streams, the six decodes in one batch, identity logits."""
    count = batch.x.shape[0] * batch.x.shape[1]
    structure = model.structure_encoder(structure_input(batch.x.flatten(0, 1), model.config.single))
    codes, identities = encode_appearance(model, batch, dropout)
    code, positive_code = codes.code[:count], codes.code[count:]
    crossed = split_streams(structure).flip(0).flatten(0, 1)
    decoded = model.decode(torch.cat([crossed, structure, structure]), torch.cat([code, code, positive_code]))
    swapped, self_recon, same_id_recon = decoded.unflatten(0, (3, STREAMS, -1))
    return Forward(
        structure=split_streams(structure),
        code=split_streams(code),
        swapped=swapped,
        self_recon=self_recon,
        same_id_recon=same_id_recon,
        logits=tuple(one[:count] for one in identities.logits),
        positive_logits=tuple(one[count:] for one in identities.logits),
    )


@torch.no_grad()
def swapped_only(model: DGNet, batch: Batch) -> Tensor:
    """The swapped pictures alone, without a graph or a change of running statistics (for accumulated D
    updates).
    """
    pictures = batch.x.flatten(0, 1)
    structure = model.structure_encoder(structure_input(pictures, model.config.single))
    upsampled = upsample_small(pictures, model.config.ID_upsample)
    code = model.appearance_encoder(upsampled, BatchNormMode(STREAMS, "batch")).code
    return split_streams(model.decode(split_streams(structure).flip(0).flatten(0, 1), code))


def streams_apart(discriminator: Discriminator, pictures: Tensor) -> list[Tensor]:
    """Batches (N, 3, H, W) of pictures (S, B, 3, H, W) as D sees them: all streams in one, or one each where D's
    BatchNorm ties a batch together.
    """
    return list(pictures) if discriminator.mixes_samples else [pictures.flatten(0, 1)]


def joined(parts: list[list[Tensor]]) -> list[Tensor]:
    """What D made of each of `streams_apart`'s batches, together: every result (S, B, ...)."""
    return [split_streams(torch.cat(one)) for one in zip(*parts, strict=True)]


def discriminator_phase(model: DGNet, swapped: Tensor, real: Tensor) -> dict[str, Tensor]:
    """D's terms: per stream adversarial loss plus gradient penalty; ``total`` is weighted by gan_w."""
    discriminator, config = model.discriminator, model.config
    parts = []
    for fake, true in zip(
        streams_apart(discriminator, swapped.detach()), streams_apart(discriminator, real), strict=True
    ):
        fake_scores = discriminator(fake)
        true_scores, penalty = losses.real_scores_and_penalty(discriminator, true)
        parts.append([*fake_scores, *true_scores, penalty])
    *scores, penalty = joined(parts)
    scales = len(scores) // 2
    adversarial = losses.discriminator_term(scores[:scales], scores[scales:], config.dis.gan_type)
    penalty = config.dis.LAMBDA * penalty.mean(dim=1)
    return {
        "dis": adversarial + penalty,
        "penalty": penalty,
        "total": config.gan_w * (adversarial + penalty).sum(),
    }


def teacher_pairs(model: DGNet, generated: Tensor, labels: Tensor, dropout: bool) -> dict[str, list]:
    """(logits, target) of primary (KL to the teacher's label) and, in style AB, fine-grained (the structure
    provider's id) learning.

    ``generated`` are the swapped pictures without gradient; E_a sees them in train mode, which updates its
    running statistics.
    """
    config = model.config
    other = labels.flip(0)
    upsampled = upsample_small(generated.flatten(0, 1), config.ID_upsample)
    target = teacher_labels(
        model.teachers,
        split_streams(upsampled),
        labels,
        other,
        ids=config.ID_class,
        style=config.teacher_style,
        batch_statistics=config.train_bn,
    )
    student = model.appearance_encoder(upsampled, BatchNormMode(STREAMS, "update"), dropout=dropout)
    pairs = {"teacher_kl": [(student.logits[0], target)]}
    if config.ID_style == "AB":
        pairs["teacher_fine"] = [(one, other) for one in student.logits[1:]]
    return pairs


def generator_phase(
    model: DGNet,
    forward: Forward,
    batch: Batch,
    weights: Weights,
    *,
    train_encoder: bool,
    dropout: bool = True,
) -> dict[str, Tensor]:
    """All terms of E_s, G and E_a, each (S,), and their weighted sum ``total``. A term whose weight is 0 is
    absent; a weight may be a 0-d tensor, which is taken to be above 0.

    ``train_encoder``: structure reconstruction trains E_s on the generated picture held fixed; otherwise a
    frozen E_s passes the gradient on to the picture.
    """
    config, style = model.config, model.config.ID_style
    swapped = forward.swapped.flatten(0, 1)
    heads = 1 if style == "AB" else len(forward.logits)
    labels = batch.labels

    # structure again: stream k's structure is in the other stream's swap
    fixed = swapped.detach()
    if is_present(weights.recon_s_w) or is_present(weights.recon_x_cyc_w):
        if train_encoder:
            structure_again = model.structure_encoder(structure_input(fixed, config.single))
        else:
            structure_again = frozen(model.structure_encoder, structure_input(swapped, config.single))
        structure_again = split_streams(structure_again).flip(0)

    # appearance again: a frozen view of E_a, batch statistics in its BatchNorms when train_bn
    mode = BatchNormMode(STREAMS, "batch") if config.train_bn else BatchNormMode()
    again = frozen(model.appearance_encoder, upsample_small(swapped, config.ID_upsample), mode)

    pictures = {
        "recon_x": (forward.self_recon, batch.x),
        "recon_xp": (forward.same_id_recon, batch.x),
    }
    if is_present(weights.recon_s_w):
        pictures["recon_s"] = structure_again, forward.structure
    if is_present(weights.recon_f_w):
        pictures["recon_f"] = split_streams(again.code), forward.code
    if is_present(weights.recon_x_cyc_w):
        cycled = model.decode(structure_again.flatten(0, 1), again.code)
        pictures["recon_x_cyc"] = split_streams(cycled), batch.x

    identities = {
        "id": [(one, labels) for one in forward.logits[:heads]],
        "pid": [(one, labels) for one in forward.positive_logits[:heads]],
        "recon_id": [(one, labels) for one in again.logits[:heads]],
    }
    if style == "AB":
        identities["fine"] = [(one, labels) for one in forward.logits[1:]]
    if is_present(weights.teacher_w) and config.teacher and style != "PCB":
        identities |= teacher_pairs(model, split_streams(fixed), labels, dropout)

    terms = dict(zip(pictures, losses.l1_terms(list(pictures.values())), strict=True))
    terms |= losses.mean_identity_terms(identities)
    if style == "AB":
        # head 2 is part of every pass; at weight 0 it still takes weight decay, as a zero gradient (not None)
        # gives it
        terms["id"] = terms["id"] + weights.teacher_w * config.B_w * terms.pop("fine")
    if "teacher_kl" in terms:
        terms["teacher"] = terms["teacher_kl"]
        if style == "AB":
            terms["teacher"] = config.T_w * terms["teacher_kl"] + config.B_w * terms["teacher_fine"]
    scores = [
        frozen(model.discriminator, part) for part in streams_apart(model.discriminator, forward.swapped)
    ]
    terms["adv"] = losses.generator_term(joined(scores), config.dis.gan_type)

    total = 0
    for name, weight in term_weights(model, weights).items():
        if name in terms:
            total = total + weight * terms[name].sum()
    terms["total"] = total
    return terms


def term_weights(model: DGNet, weights: Weights) -> dict[str, float | Tensor]:
    """Weight in force of every term of the generator phase's total."""
    config = model.config
    return {
        "adv": config.gan_w,
        "recon_x": config.recon_x_w,
        "recon_xp": config.recon_xp_w,
        "recon_f": weights.recon_f_w,
        "recon_s": weights.recon_s_w,
        "recon_x_cyc": weights.recon_x_cyc_w,
        "id": config.id_w,
        "pid": config.pid_w,
        "recon_id": config.recon_id_w,
        "teacher": weights.teacher_w,
    }


class TrainingStep:
    """Runs steps: draws, phases, optimisers. A non-finite loss leaves weights, optimisers and running
    statistics as they were; `Guard` sees to that.

    ``dropout`` False switches E_a's dropout off (parity with recorded numbers). ``deferred`` (None: on CUDA,
    unless fp16's loss scaling needs the host) keeps the host from reading anything during a step. With
    ``recorder`` (None: of the device, where ``cuda_graphs`` says so) steps are recorded and replayed.
    """

    def __init__(
        self,
        model: DGNet,
        optimisers: Optimisers,
        precision: Precision,
        *,
        dropout: bool = True,
        deferred: bool | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self.model, self.optimisers, self.precision, self.dropout = model, optimisers, precision, dropout
        first = next(model.parameters())
        if deferred is None:
            deferred = first.device.type == "cuda" and not precision.scaling
        optimisers.create_state()
        self.guard = Guard(model, optimisers, STREAMS, deferred=deferred)
        self.weights = WeightTensors(first.device, first.dtype)
        if recorder is None and graphs_wanted(model.config, precision):
            recorder = CudaRecorder(first.device)
        self.graphs = StepGraphs(self.update, recorder) if recorder else None
        compiled = compile_phase if model.config.compile else (lambda function: function)
        self.forward_pass = compiled(forward_pass)
        self.discriminator_phase = compiled(discriminator_phase)
        self.generator_phase = compiled(generator_phase)

    def __call__(self, batches: list[Batch], step: int) -> StepResult:
        """One update from one or, with gradient accumulation, several batches."""
        config = self.model.config
        torch.manual_seed(derive_seed(config.seed, "step", step))
        drawn = config.use_encoder_again >= torch.rand(()).item()
        self.optimisers.set_learning_rates(step)
        weights = self.weights.set(weights_at(config, step))
        # without a structure term the two branches are one
        train_encoder = drawn and (is_present(weights.recon_s_w) or is_present(weights.recon_x_cyc_w))
        self.guard.steps += 1
        if self.graphs is not None and len(batches) == 1:
            names = self.graphs(batches[0], weights, train_encoder)
        else:
            names = self.update(batches, weights, train_encoder)
        return StepResult(self.guard, names)

    def update(self, batches: list[Batch], weights: Weights, train_encoder: bool) -> list[str]:
        """The step's work on the device, all that a CUDA graph records; returns the names of its terms."""
        sums: dict[str, Tensor] = {}
        self.guard.begin()
        forwards = self._train_discriminator(batches, sums)
        failed = self.guard.failed(sums)
        if not failed:
            self._apply("dis", [self.optimisers.dis])
            self._train_generator(batches, forwards, weights, train_encoder, sums)
            failed = self.guard.failed(sums)
        if not failed:
            self._apply("gen", [self.optimisers.gen, self.optimisers.id])
        self.guard.finish(failed=failed)
        for _, optimiser in self.optimisers.named():
            optimiser.zero_grad(set_to_none=True)
        return list(sums)

    def _train_discriminator(self, batches: list[Batch], sums: dict[str, Tensor]) -> list[Forward]:
        """D's gradients; the forward passes that the generator phase can go on with."""
        forwards = []
        for batch in batches:
            with self.precision.autocast():
                if len(batches) == 1:
                    forwards.append(self.forward_pass(self.model, batch, dropout=self.dropout))
                    swapped = forwards[0].swapped
                else:
                    swapped = swapped_only(self.model, batch)
                terms = self.discriminator_phase(self.model, swapped, batch.x)
            self._backward("dis", terms, len(batches))
            named = {"dis_" + n if n in ("total", "penalty") else n: t for n, t in terms.items()}
            _add(sums, named, len(batches))
        return forwards

    def _train_generator(
        self,
        batches: list[Batch],
        forwards: list[Forward],
        weights: Weights,
        train_encoder: bool,
        sums: dict[str, Tensor],
    ) -> None:
        """Gradients of E_s, G and E_a."""
        for batch in batches:
            with self.precision.autocast():
                forward = (
                    forwards.pop() if forwards else self.forward_pass(self.model, batch, dropout=self.dropout)
                )
                terms = self.generator_phase(
                    self.model, forward, batch, weights, train_encoder=train_encoder, dropout=self.dropout
                )
            self._backward("gen", terms, len(batches))
            del forward
            _add(sums, terms, len(batches))

    def _backward(self, phase: str, terms: dict[str, Tensor], parts: int) -> None:
        self.precision.scalers[phase].scale(terms["total"] / parts).backward()

    def _apply(self, phase: str, optimisers: list[torch.optim.Optimizer]) -> None:
        scaler = self.precision.scalers[phase]
        for optimiser in optimisers:
            scaler.step(optimiser)
        scaler.update()


def compile_phase(function: Callable) -> Callable:
    """torch.compile of a phase: one graph or an error, static shapes."""
    return torch.compile(function, fullgraph=True, dynamic=False)


def _add(sums: dict[str, Tensor], terms: dict[str, Tensor], parts: int) -> None:
    for name, value in terms.items():
        share = value.detach() / parts
        sums[name] = sums[name] + share if name in sums else share
