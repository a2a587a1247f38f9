"""A whole DG-Net small enough for tests: milliseconds a step, every part of the paper's there."""

from __future__ import annotations

from typing import Any

import torch

from dgnet_fast.config import Config, from_dict
from dgnet_fast.data import Batch
from dgnet_fast.models.appearance_encoder import AppearanceEncoder, build_teacher
from dgnet_fast.models.dgnet import DGNet
from dgnet_fast.training.optim import Optimisers, Precision
from dgnet_fast.training.parts import (
    GENERATOR_PARTS,
    Encoded,
    Forward,
    Settings,
    Terms,
    discriminator_parts,
    encode_appearance,
    forward_pass,
    identity_part,
)
from dgnet_fast.training.schedule import Weights
from dgnet_fast.training.step import TrainingStep

BATCH, IDS = 3, 5
NETWORK: dict[str, Any] = {
    "gen.dim": 4,
    "gen.id_dim": 64,
    "gen.mlp_dim": 16,
    "gen.n_downsample": 1,
    "gen.n_res": 2,
    "dis.dim": 4,
    "dis.n_res": 1,
    "dis.num_scales": 2,
    "crop_image_height": 40,
    "crop_image_width": 24,
    "ID_width": 2,
    "ID_blocks": [1, 1, 1, 1],
    "ID_features": 16,
    "ID_stride": 1,
    "pool": "max",
}
"""Options, dotted, of the tiny networks; the structure code is 16×20×12."""

ALL_TERMS: dict[str, float] = {"recon_f_w": 0.7, "recon_s_w": 0.8, "recon_x_cyc_w": 0.9, "teacher_w": 0.6}
"""Weights with which every term of the objective is there from the first step."""


def tiny_config(**changes: Any) -> Config:
    """The tiny options with five identities, float32 and no erasing; ``gen__dim=8`` names a branch's option."""
    fixed = {"ID_class": IDS, "batch_size": BATCH, "erasing_p": 0.0, "amp": "off", "device": "cpu"}
    return from_dict({}).replace(**NETWORK | fixed | changes)


def tiny_model(config: Config, teachers: int = 0, dtype: torch.dtype = torch.float32) -> DGNet:
    """The networks of ``config`` with untrained teachers; biases and
    gammas drawn and D awake, so that none is idle."""
    made: list[AppearanceEncoder] = [
        build_teacher(config, 2, torch.Generator().manual_seed(100 + k)) for k in range(teachers)
    ]
    model = DGNet(config, made)
    generator = torch.Generator().manual_seed(17)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(1.0)
            if parameter.ndim == 1 or ".biases." in name:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
            elif name.startswith("discriminator."):
                parameter *= 10  # at its first 0.02 the gradient penalty would be 1e-16
    return model.to(dtype)


def tiny_batch(config: Config, seed: int = 0, dtype: torch.dtype = torch.float32) -> Batch:
    """A batch of noise pictures; with ``erasing_p`` one box of 20×10 a sample, with ``real_batch`` further pictures."""
    generator = torch.Generator().manual_seed(seed)
    size = (4, config.batch_size, 3, config.crop_image_height, config.crop_image_width)
    pictures = torch.randn(size, generator=generator).clamp(-2, 2).to(dtype)
    labels = torch.randint(config.ID_class, (2, config.batch_size), generator=generator)
    boxes = None
    if config.erasing_p > 0:
        corners = torch.randint(20, (4, config.batch_size, 2), generator=generator)
        boxes = torch.cat([corners, torch.tensor([20, 10]).expand(4, config.batch_size, 2)], dim=2)
    batch = Batch(pictures[:2], pictures[2:], labels, boxes)
    if config.real_batch:
        count = config.real_batch // 2
        more = torch.randn((2, count, *size[2:]), generator=generator).clamp(-2, 2).to(dtype)
        batch = batch._replace(more=more, more_labels=torch.randint(config.ID_class, (2, count), generator=generator))
    return batch


def tiny_step(model: DGNet, amp: torch.dtype | None = None, *, dropout: bool = False) -> TrainingStep:
    """The training step of ``model`` with fresh optimisers, on the CPU."""
    precision = Precision(amp, torch.device("cpu"))
    return TrainingStep(model, Optimisers(model, model.config), precision, dropout=dropout)


def both_passes(model: DGNet, batch: Batch, *, dropout: bool = False) -> tuple[Encoded, Forward]:
    """The two passes that the parts of a step share."""
    encoded = encode_appearance(model, batch, dropout=dropout)
    return encoded, forward_pass(model, batch, encoded.code)


def added(parts: list[Terms]) -> Terms:
    """The terms of all parts of a phase, those that several of them have added up."""
    terms: Terms = {}
    for part in parts:
        for name, value in part.items():
            terms[name] = terms[name] + value if name in terms else value
    return terms


def discriminator_terms(model: DGNet, swapped: torch.Tensor, real: torch.Tensor) -> Terms:
    """D's terms in one graph."""
    return added([part(model, swapped, real) for part in discriminator_parts(model.discriminator)])


def generator_terms(
    model: DGNet,
    passes: tuple[Encoded, Forward],
    batch: Batch,
    weights: Weights,
    *,
    train_encoder: bool,
    dropout: bool = False,
) -> Terms:
    """The terms of E_s, G and E_a in one graph with both passes."""
    encoded, forward = passes
    settings = Settings(weights, train_encoder, dropout)
    first = identity_part(model, encoded, batch, settings)
    return added([first, *(part(model, forward, batch, settings) for part in GENERATOR_PARTS)])


def arguments(options: dict[str, Any]) -> list[str]:
    """Dotted options as command-line arguments."""
    words = []
    for name, value in options.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words
