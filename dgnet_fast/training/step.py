"""One training step of DG-Net: the passes and parts of `dgnet_fast.training.parts` with their backward passes, optimisers
and the guard against losses that are not finite.

Each part's backward pass follows at once and ends in the results of the two shared passes, so that the activations of
one part live at a time (`Shared`); what the parts left there goes on through the passes at the end.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from itertools import islice
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.profiler import record_function

from dgnet_fast.data import Batch
from dgnet_fast.models.dgnet import DGNet
from dgnet_fast.training.graphs import CudaRecorder, Recorder, StepGraphs, graphs_wanted
from dgnet_fast.training.guard import Guard, StepResult
from dgnet_fast.training.optim import Optimisers, Precision
from dgnet_fast.training.parts import (
    GENERATOR_PARTS,
    STREAMS,
    Encoded,
    Forward,
    Settings,
    Terms,
    discriminator_parts,
    encode_appearance,
    forward_pass,
    identity_part,
    swapped_only,
)
from dgnet_fast.training.schedule import Weights, WeightTensors, is_present, weights_at
from dgnet_fast.training.seeds import derive_seed
from dgnet_fast.training.weight_copies import WeightCopies

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
        """Take what the leaves have gathered back through the pass, whose activations are free after it. A second
        call does nothing.
        """
        reached = [(x, leaf.grad) for x, leaf in self._pairs if leaf.grad is not None]
        self._pairs = []
        if reached:
            torch.autograd.backward(*zip(*reached, strict=True))


def flat(results: Encoded | Forward) -> list[Tensor]:
    """All tensors of a pass's results."""
    return [x for one in results for x in ([one] if isinstance(one, Tensor) else one)]


Passes = tuple[Shared[Encoded], Shared[Forward]]


class TrainingStep:
    """Runs steps: draws, passes, parts, optimisers. A non-finite loss leaves weights, optimisers and running
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
        self.copies = None
        if precision.dtype:
            self.copies = WeightCopies(model, precision.dtype, without=model.decoder.upsample)
        compiled = compile_part if model.config.compile else (lambda function: function)
        self.encode_appearance = compiled(encode_appearance)
        self.identity_part = compiled(identity_part)
        self.forward_pass = compiled(forward_pass)
        self.discriminator_parts = [compiled(part) for part in discriminator_parts(model.discriminator)]
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
        if self.copies:
            self.copies.refresh()
        settings = Settings(weights, train_encoder, self.dropout)
        passes = self._train_discriminator(batches, settings, sums, of_generator)
        failed = self.guard.failed(sums)
        if not failed:
            self._apply("dis", [self.optimisers.dis])
            if self.copies:
                self.copies.refresh("discriminator")
            self._train_generator(batches, passes, settings, of_generator)
            sums |= of_generator
            failed = self.guard.failed(sums)
        if not failed:
            self._apply("gen", [self.optimisers.gen, self.optimisers.id])
        self.guard.finish(failed=failed)
        for _, optimiser in self.optimisers.named():
            optimiser.zero_grad(set_to_none=True)
        return list(sums)

    def _run(self, function: Callable, *arguments: Any, **options: Any) -> Any:
        """``function(model, ...)``; under autocast with weights that are cast already."""
        with self.copies.in_place() if self.copies else contextlib.nullcontext():
            return function(self.model, *arguments, **options)

    def _passes(self, batch: Batch, settings: Settings, sums: Terms, batches: int) -> Passes:
        """The two shared passes over a batch; between them, when nothing else is kept, E_a learns from real pictures."""
        with labelled("encode_appearance"), self.precision.autocast():
            encoded = Shared(self._run(self.encode_appearance, batch, dropout=self.dropout))
        self._learn("gen", self.identity_part, (encoded.leaves, batch, settings), sums, batches)
        if not encoded.leaves.code.requires_grad:
            with labelled("encode_appearance"):
                encoded.backward()
        with labelled("forward_pass"), self.precision.autocast():
            return encoded, Shared(self._run(self.forward_pass, batch, encoded.leaves.code))

    def _train_discriminator(
        self, batches: list[Batch], settings: Settings, sums: Terms, of_generator: Terms
    ) -> list[Passes]:
        """D's gradients; the passes that the generator phase can go on with."""
        found = []
        for batch in batches:
            if len(batches) == 1:
                found.append(self._passes(batch, settings, of_generator, 1))
                swapped = found[0][1].leaves.swapped
            else:
                with labelled("swapped_only"), self.precision.autocast():
                    swapped = self._run(swapped_only, batch)
            for part in self.discriminator_parts:
                self._learn("dis", part, (swapped, batch.x), sums, len(batches))
        return found

    def _train_generator(
        self, batches: list[Batch], found: list[Passes], settings: Settings, sums: Terms
    ) -> None:
        """Gradients of E_s, G and E_a."""
        for batch in batches:
            encoded, forward = found.pop() if found else self._passes(batch, settings, sums, len(batches))
            for part in self.generator_parts:
                self._learn("gen", part, (forward.leaves, batch, settings), sums, len(batches))
            with labelled("forward_pass"):
                forward.backward()
            with labelled("encode_appearance"):
                encoded.backward()

    def _learn(
        self, phase: str, part: Callable[..., Terms], arguments: tuple, sums: Terms, batches: int
    ) -> None:
        """One part's terms, added to ``sums``, and its backward pass, outside of autocast as PyTorch wants it."""
        with labelled(part.__name__):
            with self.precision.autocast():
                terms = self._run(part, *arguments)
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
