"""Learning rates and ramped loss weights as closed functions of the step, so that resuming needs no state."""

from __future__ import annotations

from typing import NamedTuple

from dgnet_fast.config import Config


class Weights(NamedTuple):
    """The four loss weights that change during training."""

    recon_f_w: float
    recon_s_w: float
    recon_x_cyc_w: float
    teacher_w: float


def _ramp(start: float, rise: float, steps: int, ceiling: float) -> float:
    return start if steps <= 0 else min(start + rise * steps, ceiling)


def weights_at(config: Config, step: int) -> Weights:
    """Loss weights of step ``step`` (0 is the first): they rise by ``warm_scale`` a step after the warm-up."""
    steps, teacher_steps = step - config.warm_iter, step - config.warm_teacher_iter
    rise = config.warm_scale
    return Weights(
        recon_f_w=_ramp(config.recon_f_w, rise, steps, config.max_w),
        recon_s_w=_ramp(config.recon_s_w, rise, steps, config.max_w),
        recon_x_cyc_w=_ramp(config.recon_x_cyc_w, rise, steps, config.max_cyc_w),
        teacher_w=_ramp(config.teacher_w, rise, teacher_steps, config.max_teacher_w),
    )


def decay_at(config: Config, step: int, gamma: float) -> float:
    """Factor on a base learning rate at step ``step`` (``lr_policy``)."""
    size = config.step_size
    match config.lr_policy:
        case "constant":
            return 1.0
        case "step":
            return gamma ** (step // size)
        case "multistep":
            milestones = (size, size + size // 2, size + size // 2 + size // 4)
            return gamma ** sum(step >= m for m in milestones)
    raise AssertionError(config.lr_policy)
