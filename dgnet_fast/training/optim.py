"""Optimisers and numeric precision of the training step."""

from __future__ import annotations

import contextlib

import torch
from torch import nn

from dgnet_fast.config import Config
from dgnet_fast.models.dgnet import DGNet
from dgnet_fast.training.schedule import decay_at

HEAD_FACTOR = 10
"""The identity heads learn this many times faster than E_a's trunk."""


def sgd_for_encoder(encoder: nn.Module, lr: float, weight_decay: float) -> torch.optim.SGD:
    """SGD (Nesterov 0.9) over an appearance encoder: trunk at ``lr``, each head at ten times as much."""
    groups = [{"params": list(encoder.backbone.parameters()), "lr": lr}]
    groups += [{"params": list(head.parameters()), "lr": lr * HEAD_FACTOR} for head in encoder.heads]
    return torch.optim.SGD(groups, lr=lr, weight_decay=weight_decay, momentum=0.9, nesterov=True)


class Optimisers:
    """Adam for E_s, MLPs and G (``gen``), Adam for D (``dis``), SGD for E_a (``id``), with their schedules."""

    def __init__(self, model: DGNet, config: Config) -> None:
        adam = {"betas": (config.beta1, config.beta2), "weight_decay": config.weight_decay}
        self.config = config
        self.gen = torch.optim.Adam(model.generator_parameters(), lr=config.lr_g, **adam)
        self.dis = torch.optim.Adam(model.discriminator.parameters(), lr=config.lr_d, **adam)
        self.id = sgd_for_encoder(model.appearance_encoder, config.lr2, config.weight_decay)
        self._base = {name: [g["lr"] for g in one.param_groups] for name, one in self.named()}

    def named(self) -> list[tuple[str, torch.optim.Optimizer]]:
        return [("gen", self.gen), ("dis", self.dis), ("id", self.id)]

    def set_learning_rates(self, step: int) -> None:
        """Apply the schedule of step ``step``."""
        for name, optimiser in self.named():
            factor = decay_at(self.config, step, self.config.gamma2 if name == "id" else self.config.gamma)
            for group, base in zip(optimiser.param_groups, self._base[name], strict=True):
                group["lr"] = base * factor

    def state_dict(self) -> dict:
        return {name: one.state_dict() for name, one in self.named()}

    def load_state_dict(self, state: dict) -> None:
        for name, one in self.named():
            one.load_state_dict(state[name])


def cpu_is_fast_at_bf16() -> bool:
    """Whether this CPU multiplies bf16 natively (AVX512-BF16 or AMX); elsewhere bf16 is emulated and slower
    than fp32.
    """
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def resolve_amp(config: Config, device: torch.device) -> torch.dtype | None:
    """The low-precision dtype of autocast, or None for float32 throughout."""
    choice = "fp16" if config.amp == "auto" and config.apex else config.amp
    if choice == "auto":
        fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else cpu_is_fast_at_bf16()
        choice = "bf16" if fast else "off"
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}[choice]


class Precision:
    """Autocast and, for fp16, one loss scaler per phase; an overflowing step is skipped and the scale halved."""

    def __init__(self, dtype: torch.dtype | None, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        scaling = dtype == torch.float16
        self.scalers = {phase: torch.amp.GradScaler(device.type, enabled=scaling) for phase in ("dis", "gen")}

    def autocast(self) -> contextlib.AbstractContextManager:
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def state_dict(self) -> dict:
        return {phase: scaler.state_dict() for phase, scaler in self.scalers.items()}

    def load_state_dict(self, state: dict) -> None:
        for phase, scaler in self.scalers.items():
            if state.get(phase):
                scaler.load_state_dict(state[phase])
