"""Optimisers and numeric precision of the training step."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dgnet_fast.checkpoints.schema import check_optimiser, check_scaler
from dgnet_fast.config import Config
from dgnet_fast.config.unit import UnitConfig
from dgnet_fast.models.appearance_encoder import AppearanceEncoder
from dgnet_fast.models.dgnet import DGNet
from dgnet_fast.ops.registry import cpu_multiplies_bf16
from dgnet_fast.training.muon import MuonAdam
from dgnet_fast.training.schedule import decay_at

HEAD_FACTOR = 10
"""The learning rate of the identity heads is this many times that of the backbone of E_a."""

SENT = {"as-is": None, "bf16": torch.bfloat16}
"""What ``send_gradients`` allows, as the dtype in which gradients are summed over the processes of a run."""

OWN_SETTINGS = ("lr", "capturable", "fused", "foreach")
"""Entries of a parameter group that belong to the device and the schedule, not to a checkpoint."""


def sgd_for_encoder(
    encoder: AppearanceEncoder, lr: float, weight_decay: float, *, fused: bool | None = None
) -> torch.optim.SGD:
    """SGD (Nesterov 0.9) for an appearance encoder: the backbone at ``lr``, each head at ten times as much."""
    groups = [{"params": list(encoder.backbone.parameters()), "lr": lr}]
    groups += [{"params": list(head.parameters()), "lr": lr * HEAD_FACTOR} for head in encoder.heads]
    return torch.optim.SGD(groups, lr=lr, weight_decay=weight_decay, momentum=0.9, nesterov=True, fused=fused)


def generator_optimiser(
    parameters: Sequence[nn.Parameter], config: Config | UnitConfig, lr: float, *, fused: bool
) -> torch.optim.Optimizer:
    """Adam for what makes pictures, or with ``muon`` above 0 `MuonAdam`, in bfloat16 inside where the step is. ``fused`` takes
    PyTorch's fused kernels.
    """
    device, on_device = parameters[0].device, {}
    betas, decay = (config.beta1, config.beta2), config.weight_decay
    if fused:
        on_device = {"fused": True, "capturable": device.type == "cuda"}
    if config.muon:
        low = torch.bfloat16 if resolve_amp(config, device) == torch.bfloat16 else None
        return MuonAdam(parameters, lr, betas, weight_decay=decay, factor=config.muon, low=low, **on_device)
    return torch.optim.Adam(parameters, lr, betas, weight_decay=decay, **on_device)


class Rates:
    """The learning rates of one optimiser: those it was made with, times a factor that changes from step to step.

    With ``device`` they are tensors there, written in place and only when they change, so that a recorded update reads
    them. State is saved and loaded with rates as numbers and without settings that belong to a device.
    """

    def __init__(self, optimiser: torch.optim.Optimizer, device: torch.device | None = None) -> None:
        # its advice not to ask for capturable; the first steps are not recorded
        optimiser._warned_capturable_if_run_uncaptured = True
        self.optimiser = optimiser
        self._base = [group["lr"] for group in optimiser.param_groups]
        self._factor: float | None = None
        if device is not None:
            for group in optimiser.param_groups:
                group["lr"] = torch.tensor(group["lr"], device=device)

    def set(self, factor: float) -> None:
        if self._factor == factor:
            return
        self._factor = factor
        for group, base in zip(self.optimiser.param_groups, self._base, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(base * factor)
            else:
                group["lr"] = base * factor

    def state_dict(self) -> dict:
        made = self.optimiser.state_dict()
        for group, base in zip(made["param_groups"], self._base, strict=True):
            if isinstance(group["lr"], Tensor):
                group |= {"lr": base * (1.0 if self._factor is None else self._factor), "fused": None}
                if "capturable" in group:
                    group["capturable"] = False
        return made

    def load_state_dict(self, state: dict) -> None:
        """Take over a saved state, whichever device it was saved on; this one's settings stay."""
        groups = self.optimiser.param_groups
        own = [{k: g[k] for k in OWN_SETTINGS if k in g} for g in groups]
        saved = state["param_groups"]
        if len(saved) == len(own):  # else PyTorch says what does not fit
            saved = [group | mine for group, mine in zip(saved, own, strict=True)]
        self.optimiser.load_state_dict({"state": state["state"], "param_groups": saved})
        for group, mine in zip(self.optimiser.param_groups, own, strict=True):
            group.update(mine)  # the very tensors: loading copies
        self._factor = None


class Optimisers:
    """Adam or Muon for E_s, MLPs and G (``gen``; `generator_optimiser`), Adam for D (``dis``), SGD for E_a (``id``), with their schedules.

    ``fused`` (None: where the weights are on a CUDA device) takes PyTorch's fused kernels with learning rates and
    step counts on the device: an update then needs nothing of the host, can be recorded in a CUDA graph, and is
    left out where a ``found_inf`` tensor on the optimiser says so. Checkpoints are the same either way.
    """

    def __init__(self, model: DGNet, config: Config, *, fused: bool | None = None) -> None:
        adam = {"betas": (config.beta1, config.beta2), "weight_decay": config.weight_decay}
        device = next(model.parameters()).device
        self.config, self.fused = config, device.type == "cuda" if fused is None else fused
        if self.fused:
            adam |= {"fused": True, "capturable": device.type == "cuda"}
        self.gen = generator_optimiser(model.generator_parameters(), config, config.lr_g, fused=self.fused)
        self.dis = torch.optim.Adam(model.discriminator.parameters(), lr=config.lr_d, **adam)
        self.id = sgd_for_encoder(
            model.appearance_encoder, config.lr2, config.weight_decay, fused=self.fused or None
        )
        self._adopt(device)

    def _adopt(self, device: torch.device) -> None:
        """Keep the base rates, and with ``fused`` put the rates on the device."""
        self._rates = {name: Rates(one, device if self.fused else None) for name, one in self.named()}

    def named(self) -> list[tuple[str, torch.optim.Optimizer]]:
        return [("gen", self.gen), ("dis", self.dis), ("id", self.id)]

    def factor_at(self, name: str, step: int) -> float:
        """The factor of an optimiser's base rate at step ``step``."""
        return decay_at(self.config, step, self.config.gamma2 if name == "id" else self.config.gamma)

    def set_learning_rates(self, step: int) -> None:
        """Apply the schedule of step ``step``; rates on a device are written only when they change."""
        for name, rates in self._rates.items():
            rates.set(self.factor_at(name, step))

    def create_state(self) -> None:
        """Give the parameters the state that PyTorch makes at their first update: zeros, so numbers do not change.

        Nothing then appears in the middle of a step, which can be undone or recorded. SGD's momentum is only made for
        the fused kernel, whose own first step would leave it uninitialised where ``found_inf`` skips the update.
        """
        for name, optimiser in self.named():
            if isinstance(optimiser, MuonAdam):
                optimiser.create_state()
                continue
            for parameter in (p for group in optimiser.param_groups for p in group["params"]):
                state = optimiser.state[parameter]
                if name == "id":
                    if self.fused and state.get("momentum_buffer") is None:
                        state["momentum_buffer"] = torch.zeros_like(parameter)
                elif not state:
                    state["step"] = torch.zeros((), device=parameter.device if self.fused else "cpu")
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)

    def state_dict(self) -> dict:
        """State and settings as every device writes them: learning rates as numbers."""
        return {name: rates.state_dict() for name, rates in self._rates.items()}

    def check(self, state: dict, source: object) -> None:
        """Raise ValueError, naming ``source`` and the entry, if a saved state is not of these optimisers."""
        for name, one in self.named():
            check_optimiser(one, state.get(name), f"{source}: optimisers: {name}")

    def load_state_dict(self, state: dict) -> None:
        """Take over a saved state, whichever device it was saved on; this one's settings stay."""
        for name, rates in self._rates.items():
            rates.load_state_dict(state[name])


class ZeroGradients:
    """The gradients of ``parameters`` that no backward pass reaches because they change no result. An optimiser leaves
    out what has no gradient, its weight decay too; with a zero it does what it does wherever rounding makes the zero.

    They are biases; the weight of its layer stands before each in the optimiser. Where that got no gradient, the network was
    no part of the step (UNIT trains two of several domains), and the bias gets none either.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], optimisers: Sequence[tuple[str, torch.optim.Optimizer]]
    ) -> None:
        idle = {id(p) for p in parameters}
        self._zeros = {
            name: [
                (p, weight, torch.zeros_like(p))
                for group in one.param_groups
                for weight, p in itertools.pairwise(group["params"])
                if id(p) in idle
            ]
            for name, one in optimisers
        }

    def give(self, name: str) -> None:
        """Give an optimiser's parameters their zeros."""
        for parameter, weight, zeros in self._zeros[name]:
            if weight.grad is not None:
                parameter.grad = zeros


def resolve_amp(config: Config | UnitConfig, device: torch.device) -> torch.dtype | None:
    """The low-precision dtype of autocast, or None for float32 throughout."""
    choice = "fp16" if config.amp == "auto" and getattr(config, "apex", False) else config.amp
    if choice == "auto":
        fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else cpu_multiplies_bf16()
        choice = "bf16" if fast else "off"
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}[choice]


class Precision:
    """Autocast and, for fp16, one loss scaler per phase; an overflowing step is skipped and the scale halved."""

    def __init__(self, dtype: torch.dtype | None, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self.scaling = dtype == torch.float16
        self.scalers = {
            phase: torch.amp.GradScaler(device.type, enabled=self.scaling) for phase in ("dis", "gen")
        }

    def autocast(self) -> contextlib.AbstractContextManager:
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def state_dict(self) -> dict:
        return {phase: scaler.state_dict() for phase, scaler in self.scalers.items()}

    def check(self, state: dict, source: object) -> None:
        """Raise ValueError, naming ``source`` and the entry, if a saved state is not of these scalers."""
        for phase in self.scalers:
            check_scaler(state.get(phase, {}), f"{source}: precision: {phase}")

    def load_state_dict(self, state: dict) -> None:
        for phase, scaler in self.scalers.items():
            if state.get(phase):
                scaler.load_state_dict(state[phase])
