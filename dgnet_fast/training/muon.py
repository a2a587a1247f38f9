"""Muon for weight matrices and convolutions, Adam for the other parameters, as one optimiser.

Muon (K. Jordan and others, 2024; https://kellerjordan.github.io/posts/muon/) makes the momentum of a weight matrix nearly
orthogonal before it is added: all directions of the matrix move by the same amount, while Adam moves mostly along the few
directions that dominate the gradient. In the one seed that was compared, E_s and G, trained alone, need about a
quarter of Adam's steps with it (docs/learning_experiments.md). The paper trains them with Adam.

``torch.optim.Muon`` takes two-dimensional parameters only, which a convolution's weight is not, and one at a time; here
matrices of equal shape go through the iteration together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

MOMENTUM = 0.9
"""Weight of the momentum so far in the new one."""
ITERATIONS = 5
COEFFICIENTS = 3.4445, -4.7750, 2.0315
"""Of the quintic polynomial that is applied ``ITERATIONS`` times. It brings singular values between about 0.01 and 1 close to 1
(0.7 to 1.2); it is not exact, and need not be.
"""
LOW_FROM = 64
"""Shorter side of the matrices whose iteration is worth a change to bfloat16 (on a CPU with AMX, smaller ones are slower in it)."""


def is_matrix(parameter: Tensor) -> bool:
    """Whether Muon takes the parameter: a convolution's weight (out, in, h, w), which is the matrix (out, in·h·w), or matrices
    (n, out, in) of MLPs. Vectors, and matrices of other kinds, are Adam's.
    """
    return parameter.ndim >= 3


def as_matrices(x: Tensor) -> Tensor:
    """(out, in, h, w) → (1, out, in·h·w); (n, out, in) as it is."""
    return x if x.ndim == 3 else x.flatten(1).unsqueeze(0)


def orthogonalised(x: Tensor, low: torch.dtype | None = None) -> Tensor:
    """Matrices (n, rows, columns) with their singular values moved close to 1, by the Newton-Schulz iteration, in float32 or, if
    they have it, float64. ``low``, bfloat16, is taken instead for matrices whose shorter side is at least `LOW_FROM`, as the
    method's author and ``torch.optim.Muon`` do for all; the result has the precision of ``x`` again.
    """
    a, b, c = COEFFICIENTS
    wide = x.shape[1] <= x.shape[2]
    inner = x = x if x.dtype == torch.float64 else x.float()
    inner = inner if wide else inner.mT
    inner = inner / (inner.norm(dim=(1, 2), keepdim=True) + 1e-7)
    if low is not None and inner.shape[1] >= LOW_FROM:
        inner = inner.to(low)
    for _ in range(ITERATIONS):
        square = inner @ inner.mT
        polynomial = torch.baddbmm(square, square, square, beta=b, alpha=c)
        inner = torch.baddbmm(inner, polynomial, inner, beta=a)
    return (inner if wide else inner.mT).to(x.dtype)


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    """The gradients of parameters that all have one."""
    return [p.grad for p in parameters if p.grad is not None]


class MuonAdam(torch.optim.Optimizer):
    """Muon for the parameters that are matrices (`is_matrix`), at ``factor`` times the rate of Adam, which takes the others.

    The step of a matrix (out, in) is ``factor * lr * sqrt(max(1, out / in))`` times its orthogonalised momentum (Nesterov's
    form). ``weight_decay`` is Adam's and is added to the gradient of its parameters only; Muon's have none, since an
    orthogonalised step does not see its size.

    ``fused`` and ``capturable`` as in ``torch.optim.Adam``. With ``fused`` the tensors ``found_inf`` and ``grad_scale``, where
    a guard or a gradient scaler has set them, leave the update out and divide the gradients, without a wait of the host.
    ``low`` as in `orthogonalised`. State: ``exp_avg`` of a matrix is its momentum; the others have Adam's ``step``, ``exp_avg``
    and ``exp_avg_sq``.
    """

    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        betas: tuple[float, float],
        *,
        weight_decay: float = 0.0,
        factor: float = 30.0,
        fused: bool | None = None,
        capturable: bool = False,
        low: torch.dtype | None = None,
    ) -> None:
        self.low = low
        defaults = {
            "lr": lr, "betas": betas, "eps": 1e-8, "weight_decay": weight_decay, "factor": factor,
            "fused": fused, "capturable": capturable,
        }  # fmt: skip
        super().__init__(params, defaults)
        self._step_supports_amp_scaling = bool(fused)

    @staticmethod
    def state_names(parameter: Tensor) -> set[str]:
        """Names of the entries of a parameter's state."""
        return {"exp_avg"} if is_matrix(parameter) else {"exp_avg", "exp_avg_sq", "step"}

    def create_state(self) -> None:
        """Give all parameters the zeros with which their state begins, if they have none."""
        for group in self.param_groups:
            for parameter in group["params"]:
                self._create_state(parameter, group)

    def _create_state(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if state:
            return
        for name in self.state_names(parameter) - {"step"}:
            state[name] = torch.zeros_like(parameter)
        if not is_matrix(parameter):
            on_device = group["capturable"] or group["fused"]
            state["step"] = torch.zeros((), device=parameter.device if on_device else "cpu")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Move all parameters that have a gradient."""
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            for parameter in moved:
                self._create_state(parameter, group)
            self._adam([p for p in moved if not is_matrix(p)], group)
            alike: dict[tuple, list[Tensor]] = defaultdict(list)
            for parameter in moved:
                if is_matrix(parameter):
                    alike[*as_matrices(parameter).shape[1:], parameter.device].append(parameter)
            for parameters in alike.values():
                self._muon(parameters, group)

    def _adam(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        states = [self.state[p] for p in parameters]
        beta1, beta2 = group["betas"]
        adam(
            parameters, _gradients(parameters), [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states], [],
            [s["step"] for s in states], fused=group["fused"], capturable=group["capturable"], differentiable=False,
            grad_scale=self.grad_scale, found_inf=self.found_inf, amsgrad=False, beta1=beta1, beta2=beta2, lr=group["lr"],
            weight_decay=group["weight_decay"], eps=group["eps"], maximize=False,
        )  # fmt: skip

    def _muon(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Move matrices of one shape."""
        gradients = _gradients(parameters)
        if self.grad_scale is not None:
            gradients = list(torch._foreach_div(gradients, self.grad_scale))
        buffers = [self.state[p]["exp_avg"] for p in parameters]
        momenta = list(torch._foreach_lerp(buffers, gradients, 1 - MOMENTUM))
        ahead = torch.cat([as_matrices(t) for t in torch._foreach_lerp(gradients, momenta, MOMENTUM)])
        rows, columns = ahead.shape[1:]
        step = orthogonalised(ahead, self.low) * (
            -group["factor"] * group["lr"] * max(1.0, rows / columns) ** 0.5
        )
        if self.found_inf is not None:  # a bad gradient leaves neither momentum nor weight
            bad = self.found_inf > 0
            momenta = [torch.where(bad, old, new) for old, new in zip(buffers, momenta, strict=True)]
            step = torch.where(bad, 0.0, step)
        torch._foreach_copy_(buffers, momenta)
        counts = [len(as_matrices(p)) for p in parameters]
        steps = [s.view_as(p) for s, p in zip(step.split(counts), parameters, strict=True)]
        torch._foreach_add_(parameters, steps)
