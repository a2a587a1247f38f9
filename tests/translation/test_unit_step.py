"""UNIT's training step: every option against the plain step, and what the runner promises of it."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from benchmarks.plain_unit import PlainUnit
from dgnet_fast.models.unit import Unit
from dgnet_fast.translation.parts import discriminator_part
from dgnet_fast.translation.step import UnitStep, pair_at
from tests.tiny_unit import tiny_batch, tiny_config, tiny_model, tiny_step

F64 = torch.float64
OPTIONS = {
    "as shipped": {},
    "every layer reflects": {"gen.n_downsample": 2, "dis.n_layer": 3, "gen.n_res": 2},
    "lrelu, zero, nsgan": {"gen.activ": "lrelu", "gen.pad_type": "zero", "dis.pad_type": "zero", "dis.gan_type": "nsgan"},
    "prelu, replicate, in": {"gen.activ": "prelu", "dis.activ": "prelu", "gen.pad_type": "replicate",
        "dis.pad_type": "replicate", "dis.norm": "in"},
    "selu, ln": {"gen.activ": "selu", "dis.activ": "selu", "dis.norm": "ln", "dis.n_layer": 3},
    "tanh, bn": {"gen.activ": "tanh", "dis.activ": "tanh", "dis.norm": "bn", "dis.n_layer": 3},
    "relu in D, decays": {"dis.activ": "relu", "step_size": 2, "gamma": 0.25, "gen.n_downsample": 3},
    "perceptual": {"vgg_w": 1.0},
    "no cycle": {"recon_x_cyc_w": 0, "recon_kl_cyc_w": 0.3},
    "constant rate": {"lr_policy": "constant", "step_size": 1, "gan_w": 0.0},
}  # fmt: skip


def shared_noise(index: int):
    """Noise by name, the same for whoever asks."""

    def noise(name: str, code: Tensor) -> Tensor:
        names = ["dis.n_a", "dis.n_b", "gen.n_a", "gen.n_b", "gen.n_ba", "gen.n_ab"]
        generator = torch.Generator().manual_seed(100 * index + names.index(name))
        return torch.randn(code.shape, generator=generator, dtype=F64).to(code.dtype)

    return noise


def flat(terms: dict) -> dict[str, Tensor]:
    return {k: torch.as_tensor(v, dtype=F64) for k, v in terms.items()}


@pytest.mark.parametrize("name", OPTIONS)
def test_the_step_is_the_plain_step(name):
    config = tiny_config(**OPTIONS[name])
    model = tiny_model(config, F64)
    plain, step = PlainUnit(model), tiny_step(model)
    for index in range(2):
        batch, noise = tiny_batch(config, index, F64), shared_noise(index)
        step.noise = noise
        torch.testing.assert_close(
            flat(step([batch], index).terms), flat(plain.step(batch.x, index, noise)), rtol=1e-9, atol=1e-10
        )
    ours, theirs = model.state_dict(), plain.model.state_dict()
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], rtol=1e-7, atol=1e-9, msg=lambda m, k=key: f"{k}: {m}")


def run(model: Unit, batches: list, count: int = 3, first: int = 0, **options) -> UnitStep:
    step = tiny_step(model, **options)
    for index in range(first, first + count):
        step([batches[index % len(batches)]], index)
    return step


def test_resuming_gives_the_same_bits():
    config = tiny_config()
    batches = [tiny_batch(config, k) for k in range(2)]
    whole = tiny_model(config)
    run(whole, batches, 4)
    halves = tiny_model(config)
    first = run(halves, batches, 2)
    state = copy.deepcopy((halves.state_dict(), first.optimisers.state_dict()))
    again = tiny_model(config)
    again.load_state_dict(state[0])
    step = tiny_step(again)
    step.optimisers.load_state_dict(state[1])
    for index in (2, 3):
        step([batches[index % 2]], index)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


def test_accumulated_gradients_are_the_average():
    """Two equal batches, with the same noise, move the weights as one does."""
    config = tiny_config(accumulate=2)
    batch, once, twice = tiny_batch(config, 0, F64), tiny_model(config, F64), tiny_model(config, F64)
    one, two = tiny_step(once, noise=shared_noise(0)), tiny_step(twice, noise=shared_noise(0))
    torch.testing.assert_close(flat(one([batch], 0).terms), flat(two([batch, batch], 0).terms))
    for key, value in once.state_dict().items():
        torch.testing.assert_close(value, twice.state_dict()[key], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("deferred", [False, True])
@pytest.mark.parametrize("bad", ["dis", "gen"])
def test_a_loss_that_is_not_finite_changes_nothing(bad, deferred):
    config = tiny_config(**{"dis.norm": "bn", "dis.n_layer": 3})
    model = tiny_model(config)
    step = tiny_step(model, deferred=deferred, fused=deferred or None)
    step([tiny_batch(config)], 0)
    before = copy.deepcopy((model.state_dict(), step.optimisers.state_dict()["dis"]["state"][0]))

    def noise(name: str, code: Tensor) -> Tensor:
        return torch.randn_like(code).fill_(math.nan) if name.startswith(bad) else torch.randn_like(code)

    step.noise = noise
    assert step([tiny_batch(config)], 1).non_finite
    assert step.guard.skips().skipped == 1
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[0][key]), key
    for key, value in step.optimisers.state_dict()["dis"]["state"][0].items():
        assert torch.equal(value, before[1][key]), key


def test_discriminators_get_no_gradient_in_the_phase_of_the_generators():
    config = tiny_config()
    model = tiny_model(config)
    step, left = tiny_step(model), {}

    def look(*_):
        left.update({n: p.grad for n, p in model.named_parameters() if n.startswith("discriminators.")})

    found = []
    step.optimisers.dis.register_step_post_hook(lambda *_: step.optimisers.dis.zero_grad())
    step.optimisers.gen.register_step_pre_hook(look)
    with step.watching(discriminator_part, found):
        step([tiny_batch(config)], 0)
    assert len(found) == 2 and all(grad is None for grad in left.values())


@pytest.mark.parametrize("amp", [None, torch.bfloat16])
def test_activations_that_are_computed_again_change_no_number(amp):
    found = []
    for again in (False, True):
        model = tiny_model(tiny_config(checkpoint_activations=again))
        step, terms = tiny_step(model, amp=amp), []
        for index in range(2):
            step.noise = shared_noise(index)
            terms.append(flat(step([tiny_batch(model.config, index)], index).terms))
        found.append((terms, model.state_dict()))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


def test_low_precision_stays_near_float32():
    config = tiny_config()
    terms = []
    for amp in (None, torch.bfloat16):
        step = tiny_step(tiny_model(config), amp=amp, noise=shared_noise(0))
        terms.append(flat(step([tiny_batch(config)], 0).terms))
    torch.testing.assert_close(*terms, rtol=0.05, atol=0.02)


@pytest.mark.slow
@pytest.mark.thorough
def test_compiled_passes_compute_the_same():
    config, steps = tiny_config(), {}
    for compiled in (False, True):
        step = tiny_step(tiny_model(config.replace(compile=compiled)))
        found = steps[compiled] = []
        for index in range(2):  # the second from the weights that the first one's gradients made
            step.noise = shared_noise(index)
            found.append(flat(step([tiny_batch(config, index)], index).terms))
    torch.testing.assert_close(steps[True][0], steps[False][0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(steps[True][1], steps[False][1], rtol=1e-3, atol=1e-4)


def test_pairs_of_many_domains_come_equally_often():
    assert {pair_at(0, step, 2) for step in range(5)} == {(0, 1)}
    pairs = [pair_at(7, step, 4) for step in range(12)]
    assert sorted(pairs[:6]) == sorted(pairs[6:]) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert pairs != [pair_at(8, step, 4) for step in range(12)]


def test_a_step_of_many_domains_leaves_the_others_alone():
    config = tiny_config(sources=["a", "b", "c"])
    model = tiny_model(config)
    before = copy.deepcopy(model.state_dict())
    step = tiny_step(model)
    pair = pair_at(config.seed, 0, 3)
    (idle,) = {0, 1, 2} - set(pair)
    step([tiny_batch(config)], 0)
    for key, value in model.state_dict().items():
        domain = int(key.split(".")[1])
        assert torch.equal(value, before[key]) == (domain == idle), key


def test_domains_can_begin_alike():
    model = Unit(tiny_config(same_start=True, sources=["a", "b", "c"]))
    x = tiny_batch(model.config).x[0]
    assert torch.equal(model.translate(x, 0, 2), model.translate(x, 1, 1))
    other = Unit(tiny_config())
    assert not torch.equal(other.translate(x, 0, 1), other.translate(x, 0, 0))


class Replay:
    """In place of a CUDA graph: what was recorded runs again from the same buffers."""

    def __init__(self) -> None:
        self.recorded = 0

    def warm_up(self, work):
        return work()

    def record(self, work):
        self.recorded += 1
        return work, list(UnitStep.TERMS)


def test_recorded_steps_give_the_numbers_of_steps_that_are_not():
    """One recording for each pair of domains, and the random numbers of each step."""
    config, stand = tiny_config(sources=["a", "b", "c"], batch_size=1), Replay()
    models = [tiny_model(config) for _ in range(2)]
    plain = tiny_step(models[0], deferred=True, fused=True)
    recorded = tiny_step(models[1], deferred=True, fused=True, recorder=stand)
    for index in range(15):
        batch = tiny_batch(config, index)
        one, two = plain([batch], index).terms, recorded([batch], index).terms
        assert all(one[name] == two[name] for name in one)
    assert stand.recorded == 3
    for key, value in models[0].state_dict().items():
        assert torch.equal(value, models[1].state_dict()[key]), key
