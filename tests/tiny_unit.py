"""A whole UNIT small enough for tests: milliseconds a step."""

from __future__ import annotations

from typing import Any

import torch

from dgnet_fast.config.unit import UnitConfig, unit_from_dict
from dgnet_fast.models.unit import Unit
from dgnet_fast.training.optim import Precision
from dgnet_fast.translation.step import UnitBatch, UnitOptimisers, UnitStep

TINY: dict[str, Any] = {
    "gen.dim": 4,
    "gen.n_res": 1,
    "gen.n_downsample": 1,
    "dis.dim": 4,
    "dis.n_layer": 2,
    "dis.num_scales": 2,
    "crop_image_height": 24,
    "crop_image_width": 16,
    "batch_size": 2,
    "lr": 0.001,
    "amp": "off",
    "device": "cpu",
}


def tiny_config(**changes: Any) -> UnitConfig:
    return unit_from_dict({}).replace(**TINY | changes)


def tiny_model(config: UnitConfig, dtype: torch.dtype = torch.float32) -> Unit:
    """The networks of ``config``; biases drawn and D awake, so that none is idle."""
    model = Unit(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("discriminators.") and parameter.ndim > 1:
                parameter.mul_(10)
            if name.endswith((".bias", ".beta")):
                parameter.normal_(0, 0.1, generator=generator)
    return model.to(dtype)


def tiny_batch(config: UnitConfig, seed: int = 0, dtype: torch.dtype = torch.float32) -> UnitBatch:
    generator = torch.Generator().manual_seed(seed)
    size = (2, config.batch_size, 3, *config.picture_size)
    return UnitBatch(
        (0.5 * torch.randn(size, generator=generator, dtype=torch.float64)).clamp(-1, 1).to(dtype)
    )


def tiny_step(model: Unit, **options: Any) -> UnitStep:
    precision = Precision(options.pop("amp", None), torch.device("cpu"))
    optimisers = UnitOptimisers(model, model.config, fused=options.pop("fused", None))
    return UnitStep(model, optimisers, precision, **options)
