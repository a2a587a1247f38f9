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
        assert all(
            scaler.get_scale() in (1.0, 256.0) for scaler in step.precision.scalers.values()
        )  # no step skipped
        results.append([found, snapshot(step)])
        casts.append(counted.count)
    assert_same(*results)
    # what is left are activations, and there are more of them on a CPU
    assert casts[0] < 0.7 * casts[1], casts


def test_without_low_precision_there_are_none():
    assert tiny_step(tiny_model(tiny_config())).copies is None


def test_copies_follow_their_weights_only_when_told_and_gradients_reach_the_weights():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 2), nn.Linear(2, 2), nn.Linear(2, 2)
    )
    model[3].requires_grad_(False)
    first, frozen, whole = model[0], model[3], model[4].weight
    copies = WeightCopies(model, BF16, without=model[4])
    with copies.in_place():
        held = {name: (t.dtype, t.requires_grad) for name, t in model.named_parameters()}
    low = [name for name, (dtype, _) in held.items() if dtype == BF16]
    assert low == ["0.weight", "0.bias", "2.weight", "2.bias", "3.weight", "3.bias"]
    assert held["0.weight"][1] and not held["3.weight"][1] and model[4].weight is whole

    with torch.no_grad():
        first.weight.fill_(2)
        model[2].weight.fill_(2)
    copies.refresh("2")
    with copies.in_place():
        assert (model[2].weight == 2).all() and not (first.weight == 2).any()
    copies.refresh()
    with copies.in_place(), torch.no_grad():
        assert (first.weight == 2).all() and frozen.weight.dtype == BF16

    with copies.in_place():
        y = F.conv2d(torch.ones(1, 3, 1, 1, dtype=BF16), first.weight)
    y.sum().backward()
    assert first.weight.grad.dtype == torch.float32 and (first.weight.grad == 1).all()
    assert first.bias.grad is None and model[2].weight.grad is None  # nobody asked them
    with torch.no_grad(), copies.in_place():
        assert not first.weight.requires_grad


def test_an_error_leaves_the_weights_in_their_place():
    model = nn.Sequential(nn.Linear(2, 2))
    copies = WeightCopies(model, BF16)
    with pytest.raises(KeyError), copies.in_place():
        raise KeyError
    assert isinstance(model[0].weight, nn.Parameter) and model[0].weight.dtype == torch.float32
