"""The plain networks and the plain step compute what the fast ones do: without that no speed-up means anything."""

from __future__ import annotations

import pytest
import torch

from benchmarks.plain import STRIPS, StructureEncoder, check_options, copy_weights, plain_decoder
from benchmarks.plain_step import PlainStep
from tests.tiny import ALL_TERMS, tiny_batch, tiny_config, tiny_model, tiny_step

CLOSE = {"rtol": 1e-9, "atol": 1e-9}


@pytest.mark.parametrize("ramps", [{}, ALL_TERMS], ids=["before_ramps", "after_ramps"])
@pytest.mark.parametrize("erasing", [0.0, 0.5])
@pytest.mark.parametrize("train_encoder", [True, False])
def test_plain_step_has_the_same_losses(ramps, erasing, train_encoder):
    config = tiny_config(erasing_p=erasing, teacher="auto", use_encoder_again=float(train_encoder), **ramps)
    model = tiny_model(config, teachers=1, dtype=torch.float64)
    plain, fast = PlainStep(model, dropout=False), tiny_step(model)
    for index in range(2):  # the second step starts from what the first one's updates left
        batch = tiny_batch(config, seed=index, dtype=torch.float64)
        theirs, ours = plain.step(batch, index, train_encoder=train_encoder), fast([batch], index).terms
        assert theirs.keys() == ours.keys() - {"dis_penalty", "teacher_kl", "teacher_fine"}
        for name, value in theirs.items():
            torch.testing.assert_close(
                torch.tensor(ours[name]), torch.tensor(value), rtol=1e-6, atol=1e-9, msg=name
            )


def test_plain_networks_have_the_same_values_and_gradients():
    config = tiny_config()
    model = tiny_model(config, dtype=torch.float64)
    encoder = copy_weights(StructureEncoder(config), model.structure_encoder)
    decoder = plain_decoder(model)
    picture = torch.randn(2, 1, 40, 24, dtype=torch.float64)
    code = torch.randn(2, 4 * config.gen.id_dim, dtype=torch.float64)
    structure = model.structure_encoder(picture)
    theirs = encoder(picture)
    torch.testing.assert_close(theirs, structure, **CLOSE)
    ours_again, theirs_again = model.decode(structure, code), decoder(theirs, code)
    torch.testing.assert_close(theirs_again, ours_again, **CLOSE)
    grad = torch.randn_like(ours_again)
    ours_again.backward(grad)
    theirs_again.backward(grad)
    for net, plain in ((model.structure_encoder, encoder), (model.decoder, decoder)):
        gradients = {name: p.grad for name, p in plain.named_parameters() if not name.startswith("mlps")}
        for name, parameter in net.named_parameters():
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-6, atol=1e-9, msg=name)
    blocks = config.gen.n_res  # the MLPs of later blocks' codes are idle
    for k in (*range(blocks), *range(STRIPS, STRIPS + blocks)):
        mlp = decoder.mlps[k]
        torch.testing.assert_close(mlp[0].weight.grad, model.mlp.weights[0].grad[k], rtol=1e-6, atol=1e-9)


def test_other_options_are_refused():
    with pytest.raises(
        ValueError, match="gen.pad_type is 'zero'; the plain networks are written for 'reflect'"
    ):
        check_options(tiny_config(gen__pad_type="zero"))
