"""One training step of UNIT: the order in which the passes and parts of `dgnet_fast.translation.parts` and the
optimisers come. `dgnet_fast.training.runner` runs them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dgnet_fast.config.unit import UnitConfig
from dgnet_fast.models.layers import idle_biases
from dgnet_fast.models.unit import Unit
from dgnet_fast.training.graphs import CudaRecorder, Recorder, graphs_wanted
from dgnet_fast.training.optim import Optimisers, Precision, generator_optimiser
from dgnet_fast.training.runner import Phase, Runner, Step
from dgnet_fast.training.seeds import derive_seed
from dgnet_fast.translation.parts import (
    STREAMS,
    Pair,
    Place,
    Streams,
    adversarial_part,
    cycle_part,
    decode,
    discriminator_part,
    encode,
    perceptual_part,
    places,
    reconstruction_part,
    translate_alone,
)

Noise = Callable[[str, Tensor], Tensor]
"""Noise for a code, by its name among ``dis.n_a``, ``dis.n_b``, ``gen.n_a``, ``gen.n_b``, ``gen.n_ba`` and
``gen.n_ab``; it is asked for in this order.
"""


class UnitBatch(NamedTuple):
    """Pictures of the two domains of a step: x float32 (2, B, 3, H, W) in [-1, 1]."""

    x: Tensor


def pair_at(seed: int, step: int, domains: int) -> Pair:
    """The domains that step ``step`` trains: (0, 1) of two. Of more every pair comes once, in random order, before any
    comes again.
    """
    if domains == 2:
        return 0, 1
    pairs = list(itertools.combinations(range(domains), 2))
    round_, place = divmod(step, len(pairs))
    generator = torch.Generator().manual_seed(derive_seed(seed, "pairs", round_))
    return pairs[int(torch.randperm(len(pairs), generator=generator)[place])]


class UnitOptimisers(Optimisers):
    """Adam or Muon for all encoders and decoders (``gen``; `generator_optimiser`) and Adam for all Ds (``dis``), with the public code's schedule: its
    rate moves before the update, so that update k (1, 2, …) has lr·gamma^floor(k / step_size).
    """

    def __init__(self, model: Unit, config: UnitConfig, *, fused: bool | None = None) -> None:
        adam = {"betas": (config.beta1, config.beta2), "weight_decay": config.weight_decay}
        device = next(model.parameters()).device
        self.unit_config, self.fused = config, device.type == "cuda" if fused is None else fused
        if self.fused:
            adam |= {"fused": True, "capturable": device.type == "cuda"}
        self.gen = generator_optimiser(model.generator_parameters(), config, config.lr, fused=self.fused)
        self.dis = torch.optim.Adam(model.discriminators.parameters(), lr=config.lr, **adam)
        self._adopt(device)

    def named(self) -> list[tuple[str, torch.optim.Optimizer]]:
        return [("gen", self.gen), ("dis", self.dis)]

    def factor_at(self, name: str, step: int) -> float:
        config = self.unit_config
        return config.gamma ** ((step + 1) // config.step_size) if config.lr_policy == "step" else 1.0


def drawn_noise(name: str, code: Tensor) -> Tensor:
    """Standard normal noise from the default generator of the code's device."""
    return torch.randn_like(code)


class UnitStep(Runner):
    """Runs UNIT's steps. ``noise`` gives the noise of the codes (parity with recorded numbers brings its own).

    ``deferred`` and ``recorder`` as in `Runner`; without a recorder it is the device's own, where ``cuda_graphs`` asks for
    one.
    """

    PHASES = {
        "dis": Phase(("dis",), "dis_total", "discriminators"),
        "gen": Phase(("gen",), "total"),
    }
    TERMS = (
        "dis", "dis_total", "adv", "recon_x", "recon_kl", "recon_kl_cyc", "recon_x_cyc", "vgg", "total"
    )  # fmt: skip
    STREAMS = STREAMS

    model: Unit

    def __init__(
        self,
        model: Unit,
        optimisers: UnitOptimisers,
        precision: Precision,
        *,
        noise: Noise = drawn_noise,
        deferred: bool | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        config, self.noise = model.config, noise
        if recorder is None and graphs_wanted(config, precision):
            recorder = CudaRecorder(next(model.parameters()).device)
        super().__init__(
            model,
            optimisers,
            precision,
            seed=config.seed,
            compile=config.compile,
            deferred=deferred,
            recorder=recorder,
            whole=nn.ModuleList(decoder.upsample for decoder in model.decoders),
            idle=idle_biases(model),
        )

    def plan(self, step: int) -> Pair:
        """The domains of the step."""
        return pair_at(self.model.config.seed, step, len(self.model.encoders))

    def variant(self, plan: Pair) -> Hashable:
        return plan

    def one_batch(self, step: Step, batch: UnitBatch, plan: Pair) -> None:
        """Both phases use the same codes: D's phase changes no encoder."""
        pictures = tuple(batch.x)
        encoded = step.shared(encode, pictures, plan)
        self._discriminators(step, pictures, encoded.leaves, plan)
        if not step.apply("dis"):
            return
        self._generators(step, pictures, encoded.leaves, plan)
        encoded.backward()
        step.apply("gen")

    def several_batches(self, step: Step, batches: list[UnitBatch], plan: Pair) -> None:
        """The Ds learn from all batches before encoders and decoders learn from any, so pictures are encoded twice."""
        for batch in batches:
            pictures = tuple(batch.x)
            with torch.no_grad():
                codes = step.run(encode, pictures, plan)
            self._discriminators(step, pictures, codes, plan)
        if not step.apply("dis"):
            return
        for batch in batches:
            pictures = tuple(batch.x)
            encoded = step.shared(encode, pictures, plan)
            self._generators(step, pictures, encoded.leaves, plan)
            encoded.backward()
        step.apply("gen")

    def _noise(self, names: str, codes: Streams) -> Streams:
        return tuple(self.noise(name, h) for name, h in zip(names.split(), codes, strict=True))

    def _discriminators(self, step: Step, pictures: Streams, codes: Streams, pair: Pair) -> None:
        codes = tuple(h.detach() for h in codes)
        noise = self._noise("dis.n_a dis.n_b", codes)
        for place in places(pair):
            other = 1 - place.index
            translated = step.run(translate_alone, codes[other], noise[other], place)
            step.learn("dis", discriminator_part, translated, pictures[place.index], place)

    def _generators(self, step: Step, pictures: Streams, codes: Streams, pair: Pair) -> None:
        noise, again = self._noise("gen.n_a gen.n_b", codes), self._noise("gen.n_ba gen.n_ab", codes)
        for place in places(pair):
            self._generator(step, pictures, codes, noise, again[place.index], place)

    def _generator(
        self, step: Step, pictures: Streams, codes: Streams, noise: Streams, again: Tensor, place: Place
    ) -> None:
        """One stream: ``again`` is the noise of the code of its translated pictures."""
        own, sources = pictures[place.index], pictures[1 - place.index]
        decoded = step.shared(decode, codes, noise, place)
        step.learn("gen", adversarial_part, decoded.leaves, place)
        step.learn("gen", reconstruction_part, codes[place.index], decoded.leaves, own, place)
        step.learn("gen", perceptual_part, decoded.leaves, sources, place)
        step.learn("gen", cycle_part, decoded.leaves, sources, again, place)
        decoded.backward()
