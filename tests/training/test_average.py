"""The weights' moving average."""

from __future__ import annotations

import pytest
import torch

from dgnet_fast.training.average import WeightAverage
from tests.tiny import tiny_config, tiny_model


def test_it_follows_the_weights_by_its_rule():
    model = tiny_model(tiny_config())
    average = WeightAverage(model, 0.5)
    weight = model.decoder.to_rgb.conv.weight
    expected = weight.detach().clone()
    for step, decay in enumerate([1 / 10, 2 / 11, 3 / 12, 4 / 13, 5 / 14, 6 / 15, 7 / 16, 8 / 17, 0.5, 0.5]):
        with torch.no_grad():
            weight += 1
        average.update(step)
        expected = decay * expected + (1 - decay) * weight.detach()
        torch.testing.assert_close(average.state_dict()["decoder.to_rgb.conv.weight"], expected)


def test_in_place_and_back():
    model = tiny_model(tiny_config(), teachers=1)
    average = WeightAverage(model, 0.9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
        model.appearance_encoder.backbone.bn1.running_mean += 1
    live = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(KeyError), average.in_place():
        held = model.state_dict()
        for name in ("mlp.weights.0", "appearance_encoder.backbone.bn1.running_mean"):
            torch.testing.assert_close(held[name], live[name] - 1)
        for name in live:
            if name.startswith(("discriminator.", "teachers.")):
                assert torch.equal(held[name], live[name])
        raise KeyError
    assert all(torch.equal(value, live[name]) for name, value in model.state_dict().items())


def test_a_checkpoint_without_all_averages_is_named():
    average = WeightAverage(tiny_model(tiny_config()), 0.9)
    state = dict(average.state_dict())
    del state["mlp.weights.0"]
    with pytest.raises(ValueError, match=r"averaged weights lack \['mlp.weights.0'\]"):
        average.load_state_dict(state)
