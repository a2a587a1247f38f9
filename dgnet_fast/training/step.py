"""One training step of DG-Net: the flow of the paper's figure 2, as plain functions.

A step has two passes that others build on, E_a's over the real pictures (`encode_appearance`) and E_s and G's
(`forward_pass`); D's phase (`DISCRIMINATOR_PARTS`); and the phase of E_s, G and E_a (`identity_part` and
`GENERATOR_PARTS`). `TrainingStep` runs them with the optimisers. The parts share nothing but the results of the two
passes: each part's backward pass follows at once, down to those results, so that the activations of one part live at a
time (`Shared`); what they left there goes on through the two passes at the end.

Streams a and b are the first dimension of every tensor, (S, B, ...) with S = 2; "the other stream" is
``flip(0)``. E_s, G and D mix no samples, so all their inputs of a phase go through in one batch; E_a's passes
are groups of one batch (see `dgnet_fast.models.batch_norm`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from dgnet_fast import losses
from dgnet_fast.config import Config
from dgnet_fast.data import Batch, erase
from dgnet_fast.models.appearance_encoder import upsample_small
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

Terms = dict[str, Tensor]
"""Terms by name, (S,) each, absent where their weight is 0 (a weight that is a tensor is taken to be above 0); and
``total``, their weighted sum."""


class Encoded(NamedTuple):
    """What E_a makes of x_a, x_b, xp_a, xp_b, in that order: code (2·S·B, 4·C) and logits (2·S·B, ids) per head.

    No logits with random erasing, which takes those of erased copies (`identity_part`).
    """

    code: Tensor
    logits: tuple[Tensor, ...]


class Forward(NamedTuple):
    """What E_s and G make of x; every tensor starts (S, B, ...), stream a first.

    structure, code: of x. swapped[k]: appearance of stream k in the structure of the other (x_ba, x_ab).
    self_recon, same_id_recon: x decoded with its own code and with its positive's.
    """

    structure: Tensor
    code: Tensor
    swapped: Tensor
    self_recon: Tensor
    same_id_recon: Tensor


Results = TypeVar("Results", Encoded, Forward)


class Shared(Generic[Results]):
    """The results of a pass that several parts of the step use, as leaves of the graph, where the parts' backward
    passes end and their gradients add up.
    """

    def __init__(self, results: Results) -> None:
        tensors = flat(results)
        leaves = [x.detach().requires_grad_(x.requires_grad) for x in tensors]
        self._pairs = list(zip(tensors, leaves, strict=True))
        rest = iter(leaves)
        self.leaves: Results = type(results)(
            *(next(rest) if isinstance(x, Tensor) else tuple(islice(rest, len(x))) for x in results)
        )

    def backward(self) -> None:
        """Take what the leaves have gathered back through the pass, whose activations are free after it; once."""
        reached = [(x, leaf.grad) for x, leaf in self._pairs if leaf.grad is not None]
        self._pairs = []
        if reached:
            torch.autograd.backward(*zip(*reached, strict=True))


def flat(results: Encoded | Forward) -> list[Tensor]:
    """All tensors of a pass's results."""
    return [x for one in results for x in ([one] if isinstance(one, Tensor) else one)]


Passes = tuple[Shared[Encoded], Shared[Forward]]


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


def appearance_pictures(model: DGNet, batch: Batch) -> Tensor:
    """x_a, x_b, xp_a, xp_b one after the other as E_a sees them, each a batch of its own to BatchNorm."""
    return upsample_small(
        torch.cat([batch.x.flatten(0, 1), batch.xp.flatten(0, 1)]), model.config.ID_upsample
    )


def encode_appearance(model: DGNet, batch: Batch, *, dropout: bool = True) -> Encoded:
    """E_a on `appearance_pictures`; where no gradient can flow (style AB with random erasing) without a graph."""
    erasing = batch.erasing_boxes is not None
    codes_alone = erasing and model.config.ID_style == "AB"
    with torch.set_grad_enabled(torch.is_grad_enabled() and not codes_alone):
        mode = BatchNormMode(2 * STREAMS, "update")
        seen = model.appearance_encoder(appearance_pictures(model, batch), mode, dropout=dropout)
    return Encoded(seen.code, () if erasing else seen.logits)


def forward_pass(model: DGNet, batch: Batch, code: Tensor) -> Forward:
    """Structure of both streams and the six decodes in one batch; ``code`` of `Encoded`."""
    code, positive_code = code.chunk(2)
    structure = model.structure_encoder(structure_input(batch.x.flatten(0, 1), model.config.single))
    crossed = split_streams(structure).flip(0).flatten(0, 1)
    decoded = model.decode(torch.cat([crossed, structure, structure]), torch.cat([code, code, positive_code]))
    swapped, self_recon, same_id_recon = decoded.unflatten(0, (3, STREAMS, -1))
    return Forward(split_streams(structure), split_streams(code), swapped, self_recon, same_id_recon)


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
    """Pictures (S, B, 3, H, W) as D sees them: all streams in one pass, or one each where D's BatchNorm ties a batch
    together.
    """
    return list(pictures.split(1 if discriminator.mixes_samples else STREAMS))


def fake_part(model: DGNet, swapped: Tensor, real: Tensor) -> Terms:
    """D's terms of generated pictures (S, B, 3, H, W); ``total`` is weighted by gan_w."""
    scores = model.discriminator(swapped.detach().flatten(0, 1))
    scores = [split_streams(one, len(swapped)) for one in scores]
    adversarial = losses.discriminator_term(scores, [], model.config.dis.gan_type)
    return {"dis": adversarial, "total": model.config.gan_w * adversarial.sum()}


def real_part(model: DGNet, swapped: Tensor, real: Tensor) -> Terms:
    """D's terms of real pictures (S, B, 3, H, W), gradient penalty included; ``total`` is weighted by gan_w."""
    config = model.config
    scores, penalty = losses.real_scores_and_penalty(model.discriminator, real.flatten(0, 1))
    scores = [split_streams(one, len(real)) for one in scores]
    penalty = config.dis.LAMBDA * split_streams(penalty, len(real)).mean(dim=1)
    value = losses.discriminator_term([], scores, config.dis.gan_type) + penalty
    return {"dis": value, "penalty": penalty, "total": config.gan_w * value.sum()}


def streamwise_part(model: DGNet, swapped: Tensor, real: Tensor) -> Terms:
    """D's terms where its BatchNorm ties a batch together: fake before real, stream after stream, as the public code
    moves the running statistics.
    """
    streams = []
    for pictures in zip(swapped.split(1), real.split(1), strict=True):
        fake, true = fake_part(model, *pictures), real_part(model, *pictures)
        streams.append(true | {name: fake[name] + true[name] for name in fake})
    return {
        name: sum(found) if name == "total" else torch.cat(found)
        for name, found in ((name, [one[name] for one in streams]) for name in streams[0])
    }


def identity_part(model: DGNet, encoded: Encoded, batch: Batch, weights: Weights, *, dropout: bool) -> Terms:
    """E_a tells real people apart; with random erasing from erased copies of the pictures, in a pass of their own."""
    config = model.config
    logits = encoded.logits
    if batch.erasing_boxes is not None:
        pictures = erase(appearance_pictures(model, batch), batch.erasing_boxes.flatten(0, 1))
        mode = BatchNormMode(2 * STREAMS, "update")
        logits = model.appearance_encoder(pictures, mode, dropout=dropout).logits
    real, positive = zip(*(one.chunk(2) for one in logits), strict=True)
    heads = identity_heads(config, logits)
    identities = {
        "id": [(one, batch.labels) for one in real[:heads]],
        "pid": [(one, batch.labels) for one in positive[:heads]],
    }
    if config.ID_style == "AB":
        identities["fine"] = [(one, batch.labels) for one in real[1:]]
    terms = losses.mean_identity_terms(identities)
    if config.ID_style == "AB":
        # head 2 is part of every pass; at weight 0 it still takes weight decay, as a zero gradient (not None)
        # gives it
        terms["id"] = terms["id"] + weights.teacher_w * config.B_w * terms.pop("fine")
    return with_total(model, weights, terms)


def identity_heads(config: Config, logits: Sequence[Tensor]) -> int:
    """How many of E_a's heads learn the identity: in style AB the first; the second is the fine-grained one."""
    return 1 if config.ID_style == "AB" else len(logits)


def adversarial_part(
    model: DGNet, forward: Forward, batch: Batch, weights: Weights, *, train_encoder: bool, dropout: bool
) -> Terms:
    """What D makes of the swapped pictures."""
    scores = [
        [split_streams(one, len(part)) for one in frozen(model.discriminator, part.flatten(0, 1))]
        for part in streams_apart(model.discriminator, forward.swapped)
    ]
    scores = [torch.cat(one) for one in zip(*scores, strict=True)]
    term = losses.generator_term(scores, model.config.dis.gan_type)
    return {"adv": term, "total": model.config.gan_w * term.sum()}


def reconstruction_part(
    model: DGNet, forward: Forward, batch: Batch, weights: Weights, *, train_encoder: bool, dropout: bool
) -> Terms:
    """Pictures and codes come back: x from its own codes and from the positive's; codes, identity and x again from the
    swapped pictures.

    ``train_encoder``: structure reconstruction trains E_s on the generated picture held fixed; otherwise a
    frozen E_s passes the gradient on to the picture.
    """
    config = model.config
    swapped = forward.swapped.flatten(0, 1)

    # structure again: stream k's structure is in the other stream's swap
    if is_present(weights.recon_s_w) or is_present(weights.recon_x_cyc_w):
        if train_encoder:
            structure_again = model.structure_encoder(structure_input(swapped.detach(), config.single))
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

    terms = dict(zip(pictures, losses.l1_terms(list(pictures.values())), strict=True))
    heads = again.logits[: identity_heads(config, again.logits)]
    terms |= losses.mean_identity_terms({"recon_id": [(one, batch.labels) for one in heads]})
    return with_total(model, weights, terms)


def teacher_part(
    model: DGNet, forward: Forward, batch: Batch, weights: Weights, *, train_encoder: bool, dropout: bool
) -> Terms:
    """E_a learns from generated pictures, held fixed: the teacher's labels (primary) and, in style AB, the structure
    provider's identity (fine-grained). Its BatchNorms see them in train mode, which updates the running statistics.
    """
    config = model.config
    if not is_present(weights.teacher_w) or not config.teacher or config.ID_style == "PCB":
        return {}
    other = batch.labels.flip(0)
    upsampled = upsample_small(forward.swapped.detach().flatten(0, 1), config.ID_upsample)
    target = teacher_labels(
        model.teachers,
        split_streams(upsampled),
        batch.labels,
        other,
        ids=config.ID_class,
        style=config.teacher_style,
        batch_statistics=config.train_bn,
    )
    student = model.appearance_encoder(upsampled, BatchNormMode(STREAMS, "update"), dropout=dropout)
    pairs = {"teacher_kl": [(student.logits[0], target)]}
    if config.ID_style == "AB":
        pairs["teacher_fine"] = [(one, other) for one in student.logits[1:]]
    terms = losses.mean_identity_terms(pairs)
    terms["teacher"] = terms["teacher_kl"]
    if config.ID_style == "AB":
        terms["teacher"] = config.T_w * terms["teacher_kl"] + config.B_w * terms["teacher_fine"]
    return with_total(model, weights, terms)


DISCRIMINATOR_PARTS = (fake_part, real_part)
"""What D learns from, each (model, swapped, real) → `Terms`; see `streamwise_part` for a D with BatchNorm."""
GENERATOR_PARTS = (adversarial_part, reconstruction_part, teacher_part)
"""What E_s, G and E_a learn from generated pictures, each (model, forward, batch, weights, train_encoder, dropout) →
`Terms`. The teacher's comes last: the frozen E_a of the reconstruction may read the running statistics that it moves.
"""


def with_total(model: DGNet, weights: Weights, terms: Terms) -> Terms:
    """The terms and their weighted sum ``total``."""
    weighted = term_weights(model, weights)
    total = sum(weighted[name] * value.sum() for name, value in terms.items() if name in weighted)
    return terms | {"total": total}


def term_weights(model: DGNet, weights: Weights) -> dict[str, float | Tensor]:
    """Weight in force of every term in the total of E_s, G and E_a."""
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
        compiled = compile_part if model.config.compile else (lambda function: function)
        self.encode_appearance = compiled(encode_appearance)
        self.identity_part = compiled(identity_part)
        self.forward_pass = compiled(forward_pass)
        parts = (streamwise_part,) if model.discriminator.mixes_samples else DISCRIMINATOR_PARTS
        self.discriminator_parts = [compiled(part) for part in parts]
        self.generator_parts = [compiled(part) for part in GENERATOR_PARTS]

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
        sums: Terms = {}
        of_generator: Terms = {}
        self.guard.begin()
        passes = self._train_discriminator(batches, weights, sums, of_generator)
        failed = self.guard.failed(sums)
        if not failed:
            self._apply("dis", [self.optimisers.dis])
            self._train_generator(batches, passes, weights, train_encoder, of_generator)
            sums |= of_generator
            failed = self.guard.failed(sums)
        if not failed:
            self._apply("gen", [self.optimisers.gen, self.optimisers.id])
        self.guard.finish(failed=failed)
        for _, optimiser in self.optimisers.named():
            optimiser.zero_grad(set_to_none=True)
        return list(sums)

    def _passes(self, batch: Batch, weights: Weights, sums: Terms, batches: int) -> Passes:
        """The two shared passes over a batch; between them, when nothing else is kept, E_a learns from real pictures."""
        with labelled("encode_appearance"), self.precision.autocast():
            encoded = Shared(self.encode_appearance(self.model, batch, dropout=self.dropout))
        arguments = self.model, encoded.leaves, batch, weights
        self._learn("gen", self.identity_part, arguments, sums, batches, dropout=self.dropout)
        if not encoded.leaves.code.requires_grad:
            with labelled("encode_appearance"):
                encoded.backward()
        with labelled("forward_pass"), self.precision.autocast():
            return encoded, Shared(self.forward_pass(self.model, batch, encoded.leaves.code))

    def _train_discriminator(
        self, batches: list[Batch], weights: Weights, sums: Terms, of_generator: Terms
    ) -> list[Passes]:
        """D's gradients; the passes that the generator phase can go on with."""
        found = []
        for batch in batches:
            if len(batches) == 1:
                found.append(self._passes(batch, weights, of_generator, 1))
                swapped = found[0][1].leaves.swapped.detach()
            else:
                with labelled("swapped_only"), self.precision.autocast():
                    swapped = swapped_only(self.model, batch)
            for part in self.discriminator_parts:
                self._learn("dis", part, (self.model, swapped, batch.x), sums, len(batches))
        return found

    def _train_generator(
        self, batches: list[Batch], found: list[Passes], weights: Weights, train_encoder: bool, sums: Terms
    ) -> None:
        """Gradients of E_s, G and E_a."""
        options = {"train_encoder": train_encoder, "dropout": self.dropout}
        for batch in batches:
            encoded, forward = found.pop() if found else self._passes(batch, weights, sums, len(batches))
            for part in self.generator_parts:
                arguments = self.model, forward.leaves, batch, weights
                self._learn("gen", part, arguments, sums, len(batches), **options)
            with labelled("forward_pass"):
                forward.backward()
            with labelled("encode_appearance"):
                encoded.backward()

    def _learn(
        self,
        phase: str,
        part: Callable[..., Terms],
        arguments: tuple,
        sums: Terms,
        batches: int,
        **options: bool,
    ) -> None:
        """One part's terms, added to ``sums``, and its backward pass, outside of autocast as PyTorch wants it."""
        with labelled(part.__name__):
            with self.precision.autocast():
                terms = part(*arguments, **options)
            if not terms:
                return
            self.precision.scalers[phase].scale(terms["total"] / batches).backward()
        for name, value in terms.items():
            known = f"dis_{name}" if phase == "dis" and name != "dis" else name
            share = value.detach() / batches
            sums[known] = sums[known] + share if known in sums else share

    def _apply(self, phase: str, optimisers: list[torch.optim.Optimizer]) -> None:
        scaler = self.precision.scalers[phase]
        with labelled("optimisers"):
            for optimiser in optimisers:
                scaler.step(optimiser)
            scaler.update()


LABEL = "step: "


def labelled(name: str) -> record_function:
    """Time spent within goes by this name in a profile of PyTorch's profiler."""
    return record_function(LABEL + name)


def compile_part(function: Callable) -> Callable:
    """torch.compile of a part of the step: one graph or an error, static shapes."""
    return torch.compile(function, fullgraph=True, dynamic=False)
