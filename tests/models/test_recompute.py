"""Activation checkpointing: the same numbers, statistics updated once, fewer tensors kept."""

from __future__ import annotations

import pytest
import torch

from dgnet_fast.models.batch_norm import BatchNormMode
from tests.tiny import ALL_TERMS, tiny_batch, tiny_config, tiny_model, tiny_step

F64 = torch.float64


@pytest.mark.parametrize(
    "options",
    [
        {"erasing_p": 0.5},
        {"ID_style": "normal", "pool": "avg", "train_bn": False, "use_encoder_again": -1.0},
        {"ID_style": "PCB", "pool": "avg", "gen__dec": "series"},
    ],
    ids=["AB", "normal", "PCB"],
)
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_a_step_is_the_same_bit_by_bit(options, dtype):
    """Losses, weights, and running statistics, which a second update would move; frozen views of E_a included."""
    found = []
    for checkpoint in (False, True):
        config = tiny_config(teacher="given", checkpoint_activations=checkpoint, **options, **ALL_TERMS)
        step = tiny_step(tiny_model(config, 1, dtype), dropout=True)
        terms = [step([tiny_batch(config, number, dtype)], number).terms for number in range(2)]
        found.append((terms, step.model.state_dict()))
    (plain_terms, plain), (terms, state) = found
    assert terms == plain_terms
    for name, value in plain.items():
        assert torch.equal(state[name], value), name
    assert state["appearance_encoder.backbone.bn1.num_batches_tracked"] > 4


@pytest.mark.parametrize("part", ["appearance_encoder", "decoder"])
def test_less_is_kept_for_the_backward_pass(part):
    kept = {}
    for checkpoint in (False, True):
        config = tiny_config(checkpoint_activations=checkpoint)
        model, total, seen = tiny_model(config), 0, set()

        def pack(tensor, seen=seen):
            seen.add((tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()))
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            if part == "decoder":
                structure = torch.randn(2, 16, 20, 12, requires_grad=True)
                result = model.decode(structure, torch.randn(2, model.mlp.code_length))
            else:
                result = model.appearance_encoder(
                    torch.randn(2, 3, 80, 48), BatchNormMode(1, "update")
                ).logits[0]
        parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
        total = sum(size for place, size in seen if place not in parameters)
        kept[checkpoint] = total
        result.sum().backward()
    assert kept[True] < 0.7 * kept[False], kept
