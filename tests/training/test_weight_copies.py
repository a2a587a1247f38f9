"""Weights in autocast's dtype: the numbers of autocast with fewer calls."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from dgnet_fast.training.weight_copies import WeightCopies
from tests.tiny import ALL_TERMS, tiny_batch, tiny_config, tiny_model, tiny_step
from tests.training.test_update import assert_same, snapshot

BF16 = torch.bfloat16


class Casts(TorchDispatchMode):
    """Counts casts between two dtypes."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default:
            self.count += made.dtype != args[0].dtype
        return made


@pytest.mark.parametrize("amp", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize(
    "options",
    [
        {"use_encoder_again": 1.0, "erasing_p": 0.5},
        {"use_encoder_again": -1.0, "checkpoint_activations": True},
        {"accumulate": 2},
    ],
    ids=["erasing", "recomputed", "accumulated"],
)
def test_the_numbers_are_those_of_autocast(amp, options):
    terms = ALL_TERMS | ({"recon_f_w": 0.0} if amp == torch.float16 else {})
    config = tiny_config(teacher="given", **terms, **options)
    results, casts = [], []
    for copies in (True, False):
        step = tiny_step(tiny_model(config, 1), amp)
        for scaler in step.precision.scalers.values():
            scaler.load_state_dict(scaler.state_dict() | ({"scale": 256.0} if scaler.is_enabled() else {}))
        assert step.copies is not None
        if not copies:
            step.copies = None
        with Casts() as counted:
            found = [
                step([tiny_batch(config, 2 * number + k) for k in range(config.accumulate)], number).terms
                for number in range(3)
            ]
        results.append([found, snapshot(step)])
        casts.append(counted.count)
    assert_same(*results)
    assert casts[0] < 0.7 * casts[1], (
        casts
    )  # what is left are activations, and there are more of them on a CPU


def test_without_low_precision_there_are_none():
    assert tiny_step(tiny_model(tiny_config())).copies is None


def test_copies_follow_their_weights_only_when_told_and_gradients_reach_the_weights():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    model[3].requires_grad_(False)
    copies = WeightCopies(model, BF16)
    made = copies.tensors()
    assert set(made) == {f"model.{n}" for n in ("0.weight", "0.bias", "3.weight", "3.bias")}
    assert all(t.dtype == BF16 for t in made.values())
    assert made["model.0.weight"].requires_grad and not made["model.3.weight"].requires_grad

    with torch.no_grad():
        model[0].weight.fill_(2)
        model[3].weight.fill_(2)
    copies.refresh("3")
    assert (copies.tensors()["model.3.weight"] == 2).all()
    assert not (copies.tensors()["model.0.weight"] == 2).any()
    copies.refresh()
    assert (copies.tensors()["model.0.weight"] == 2).all()

    def first_layer(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, model[0].weight)

    x = torch.ones(1, 3, 1, 1, dtype=BF16)
    copies.run(first_layer, copies.tensors(), x).sum().backward()
    assert model[0].weight.grad.dtype == torch.float32 and (model[0].weight.grad == 1).all()
    assert model[0].bias.grad is None  # nobody asked it
    with torch.no_grad():
        assert not copies.tensors()["model.0.weight"].requires_grad
    assert model[0].weight.dtype == torch.float32  # back in its place
