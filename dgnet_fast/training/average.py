"""A moving average of the weights, for samples, features and scores (exponential moving average, EMA).

The weights of a GAN after its last step are as noisy as its gradients; since Karras et al. 2018, samples are made with
their average. The training itself never uses the average.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from dgnet_fast.checkpoints.schema import check_fit

PARTS = ("structure_encoder.", "mlp.", "decoder.", "appearance_encoder.")
"""What is averaged: all networks that make pictures and features, with their running statistics; not D or the teachers.
"""


class WeightAverage:
    """Average of ``model``'s weights (`PARTS`), by name: after step n (from 0) it moves by 1 - d towards the weights,
    d = min(decay, (1 + n) / (10 + n)), so that the first steps do not linger.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._live = {
            name: tensor
            for name, tensor in model.state_dict().items()
            if name.startswith(PARTS) and tensor.is_floating_point()
        }
        self._average = {name: tensor.clone() for name, tensor in self._live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average with the weights after step ``step``; two calls serve all of them."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self._average.values()), list(self._live.values()), share)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Context in which the model holds the averaged weights."""
        kept = {name: tensor.clone() for name, tensor in self._live.items()}
        self._copy(self._average)
        try:
            yield
        finally:
            self._copy(kept)

    @torch.no_grad()
    def _copy(self, source: Mapping[str, Tensor]) -> None:
        for name, tensor in self._live.items():
            tensor.copy_(source[name])

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by name, to be saved."""
        return self._average

    def check(self, state: Mapping[str, Tensor], source: object) -> None:
        """Raise ValueError that names ``source`` if saved averages do not fit."""
        check_fit(self._average, state, source)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from saved averages. Raises ValueError that names what is missing."""
        if missing := sorted(self._average.keys() - state.keys()):
            raise ValueError(f"the checkpoint's averaged weights lack {missing[:4]}")
        for name, tensor in self._average.items():
            tensor.copy_(state[name])
