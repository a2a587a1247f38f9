"""Learning rates and ramped loss weights as closed functions of the step, so that resuming needs no state."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from dgnet_fast.config import Config


class Weights(NamedTuple):
    """The four loss weights that change during training: numbers, or 0-d tensors where they are above 0.

    A weight of the number 0 says that its term is not computed at all; see `is_present`.
    """

    recon_f_w: float | Tensor
    recon_s_w: float | Tensor
    recon_x_cyc_w: float | Tensor
    teacher_w: float | Tensor


def is_present(weight: float | Tensor) -> bool:
    """Whether the term of a weight is computed: known without reading a tensor, which stands for a number above 0."""
    return isinstance(weight, Tensor) or weight > 0


def _ramp(start: float, rise: float, steps: int, ceiling: float) -> float:
    return start if steps <= 0 else min(start + rise * steps, ceiling)


def weights_at(config: Config, step: int) -> Weights:
    """The loss weights of step ``step`` (from 0). They rise by ``warm_scale`` in each step after the warm-up."""
    steps, teacher_steps = step - config.warm_iter, step - config.warm_teacher_iter
    rise = config.warm_scale
    return Weights(
        recon_f_w=_ramp(config.recon_f_w, rise, steps, config.max_w),
        recon_s_w=_ramp(config.recon_s_w, rise, steps, config.max_w),
        recon_x_cyc_w=_ramp(config.recon_x_cyc_w, rise, steps, config.max_cyc_w),
        teacher_w=_ramp(config.teacher_w, rise, teacher_steps, config.max_teacher_w),
    )


class WeightTensors:
    """The ramped weights where the step reads them: one 0-d tensor each, rewritten in place.

    A compiled or recorded step thus follows a ramp without being made again; only a term that appears makes
    another variant of it.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self._numbers = Weights(0.0, 0.0, 0.0, 0.0)
        self._tensors = [torch.zeros((), device=device, dtype=dtype) for _ in Weights._fields]

    def set(self, weights: Weights) -> Weights:
        """Write the numbers (only what changed, without waiting for the device); returns tensors, 0.0 where absent."""
        for tensor, new, old in zip(self._tensors, weights, self._numbers, strict=True):
            if new != old:
                tensor.fill_(new)
        self._numbers = weights
        return Weights(*(t if is_present(w) else 0.0 for t, w in zip(self._tensors, weights, strict=True)))


def decay_at(config: Config, step: int, gamma: float) -> float:
    """The factor of a base learning rate at step ``step``, from ``warm_up`` and ``lr_policy``."""
    return min(1.0, (step + 1) / (config.warm_up + 1)) * _policy(config, step, gamma)


def learning_rates(config: Config, step: int) -> dict[str, float]:
    """The learning rates of step ``step`` by the names of their options (for E_a that of the backbone)."""
    generators, encoder = decay_at(config, step, config.gamma), decay_at(config, step, config.gamma2)
    return {"lr_g": config.lr_g * generators, "lr_d": config.lr_d * generators, "lr2": config.lr2 * encoder}


def _policy(config: Config, step: int, gamma: float) -> float:
    size = config.step_size
    match config.lr_policy:
        case "constant":
            return 1.0
        case "step":
            return gamma ** (step // size)
        case "multistep":
            milestones = (size, size + size // 2, size + size // 2 + size // 4)
            return gamma ** sum(step >= m for m in milestones)
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * min(1.0, step / config.max_iter)))
    raise AssertionError(config.lr_policy)
