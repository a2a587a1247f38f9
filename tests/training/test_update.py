"""What a training step updates: gradients, optimisers, skipped steps, low precision."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from dgnet_fast.models.layers import idle_biases
from dgnet_fast.training.schedule import weights_at
from dgnet_fast.training.step import TrainingStep
from tests.tiny import (
    ALL_TERMS,
    both_passes,
    discriminator_terms,
    generator_terms,
    tiny_batch,
    tiny_config,
    tiny_model,
    tiny_step,
)

F64 = torch.float64
EXACT = {"rtol": 1e-9, "atol": 1e-11}


def snapshot(step: TrainingStep):
    """Copies of everything that a step may change, but the teachers' running statistics.

    Nobody reads those while training moves them (`train_bn`), and a run scores its teachers as they were saved.
    """
    model = {k: v for k, v in step.model.state_dict().items() if not k.startswith("teachers.")}
    states = {"model": model, "optimisers": step.optimisers.state_dict()}
    states["precision"] = step.precision.state_dict()
    return copy.deepcopy(states)


def assert_same(one, other, place=""):
    """Nested states are equal bit by bit."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), place
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one:
            assert_same(one[key], other[key], f"{place}/{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), place
        for k, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{place}/{k}")
    else:
        assert one == other, place


def collect_gradients(step):
    """Gradients as each optimiser sees them, by optimiser."""
    found = {}
    for name, optimiser in step.optimisers.named():

        def hook(optimiser, _args, _kwargs, name=name):
            groups = (p for g in optimiser.param_groups for p in g["params"])
            found[name] = [None if p.grad is None else p.grad.clone() for p in groups]

        optimiser.register_step_pre_hook(hook)
    return found


def whole_gradients(model, total, parameters):
    """Gradients from one graph; zeros for biases that change no result, None for other parameters that are not reached."""
    idle = {id(bias) for bias in idle_biases(model)}
    found = torch.autograd.grad(total, parameters, allow_unused=True, retain_graph=True)
    pairs = list(zip(parameters, found, strict=True))
    assert all(gradient is None for parameter, gradient in pairs if id(parameter) in idle)
    return [torch.zeros_like(p) if id(p) in idle else gradient for p, gradient in pairs]


def test_biases_that_change_no_result_take_weight_decay_alone():
    """Instance norms take them out again, so no kernel adds them and no backward pass reaches them."""
    config = tiny_config(weight_decay=0.1, **ALL_TERMS)
    terms = []
    for value in (0.0, 1.0):
        model = tiny_model(config, 1, F64)
        idle = idle_biases(model)
        assert len(idle) == 18
        for bias in idle:
            bias.data.fill_(value)
        step = tiny_step(model)
        found = collect_gradients(step)
        terms.append(step([tiny_batch(config, 0, F64)], 0).terms)
        places = {id(p): k for k, p in enumerate(step.optimisers.gen.param_groups[0]["params"])}
        for bias in idle:
            assert (found["gen"][places[id(bias)]] == 0).all()
            # Adam's first step is the rate, whatever the gradient's size
            torch.testing.assert_close(
                bias, torch.full_like(bias, value * (1 - config.lr_g)), rtol=1e-6, atol=0
            )
    assert terms[0] == terms[1]


def test_accumulated_gradients_are_the_average():
    config = tiny_config(teacher="given", accumulate=2, use_encoder_again=1.0, **ALL_TERMS)
    model = tiny_model(config, 1, F64)
    batches = [tiny_batch(config, seed, F64) for seed in (0, 1)]
    plain = copy.deepcopy(model)
    step = tiny_step(model)
    found = collect_gradients(step)
    result = step(batches, 0)

    reference = tiny_step(plain)
    forwards = [both_passes(plain, b)[1] for b in batches]
    parts = [discriminator_terms(plain, f.swapped, b.x) for f, b in zip(forwards, batches, strict=True)]
    mean = sum(p["total"] for p in parts) / 2
    expected = torch.autograd.grad(mean, list(plain.discriminator.parameters()))
    for one, two in zip(found["dis"], expected, strict=True):
        torch.testing.assert_close(one, two, **EXACT)
    assert result.terms["dis_total"] == pytest.approx(mean.item(), rel=1e-12)
    for parameter, gradient in zip(plain.discriminator.parameters(), expected, strict=True):
        parameter.grad = gradient
    reference.optimisers.dis.step()

    weights = weights_at(config, 0)
    terms = [generator_terms(plain, both_passes(plain, b), b, weights, train_encoder=True) for b in batches]
    mean = sum(t["total"] for t in terms) / 2
    for name in ("gen", "id"):
        optimiser = dict(reference.optimisers.named())[name]
        parameters = [p for g in optimiser.param_groups for p in g["params"]]
        expected = whole_gradients(plain, mean, parameters)
        for one, two in zip(found[name], expected, strict=True):
            assert (one is None) == (two is None)
            if one is not None:
                torch.testing.assert_close(one, two, **EXACT)
    for name in ("recon_x", "recon_s", "id", "teacher"):
        expected = torch.stack([t[name] for t in terms]).mean(dim=0)
        torch.testing.assert_close(torch.tensor(result.terms[name], dtype=F64), expected, **EXACT)


@pytest.mark.parametrize("erasing", [0.0, 0.5])
@pytest.mark.parametrize("style", ["AB", "normal", "PCB"])
def test_going_back_part_by_part_gives_the_gradients_of_one_graph(style, erasing):
    options = {"ID_style": style, "pool": "avg", "erasing_p": erasing, "use_encoder_again": -1.0}
    config = tiny_config(teacher="given", lr_d=0, **options, **ALL_TERMS)
    model, batch = tiny_model(config, 1, F64), tiny_batch(config, dtype=F64)
    plain = copy.deepcopy(model)
    step = tiny_step(model)
    found = collect_gradients(step)
    step([batch], 0)
    total = generator_terms(
        plain, both_passes(plain, batch), batch, weights_at(config, 0), train_encoder=False
    )["total"]
    for name, optimiser in tiny_step(plain).optimisers.named():
        if name == "dis":
            continue
        parameters = [p for g in optimiser.param_groups for p in g["params"]]
        expected = whole_gradients(plain, total, parameters)
        for one, two in zip(found[name], expected, strict=True):
            assert (one is None) == (two is None)
            if one is not None:
                torch.testing.assert_close(one, two, **EXACT)


def test_a_batch_twice_is_the_batch_once():
    config = tiny_config(recon_s_w=0.5)
    one, two = (tiny_step(tiny_model(config, dtype=F64)) for _ in range(2))
    batch = tiny_batch(config, dtype=F64)
    first, second = one([batch], 0), two([batch, batch], 0)
    for name in ("total", "dis_total"):
        assert first.terms[name] == pytest.approx(second.terms[name], rel=1e-9)
    found = dict(two.model.named_parameters())
    for name, parameter in one.model.named_parameters():
        torch.testing.assert_close(parameter, found[name], rtol=1e-6, atol=1e-9, msg=name)


def test_a_step_is_a_function_of_its_state_and_number():
    config = tiny_config(erasing_p=0.5, teacher="given", **ALL_TERMS)
    batch = tiny_batch(config)
    outcomes = []
    for noise_before in (0, 3):
        step = tiny_step(tiny_model(config, 1), dropout=True)
        torch.randn(noise_before)
        outcomes.append((step([batch], 5).terms, snapshot(step)))
    assert_same(*outcomes)
    other = tiny_step(tiny_model(config, 1), dropout=True)([batch], 6).terms
    assert other["id"] != outcomes[0][0]["id"]  # another step's dropout
    assert other["recon_x"] == outcomes[0][0]["recon_x"]


@pytest.mark.parametrize("share", [1.0, -1.0, 0.5])
def test_how_often_e_s_is_trained_again(share):
    config = tiny_config(use_encoder_again=share, recon_s_w=0.5)
    model = tiny_model(config)
    step, drawn = tiny_step(model), []
    step.update = lambda _batches, plan: drawn.append(plan.train_encoder) or []
    batch = tiny_batch(config)
    for number in range(100):
        step([batch], number)
    low, high = {1.0: (100, 100), -1.0: (0, 0), 0.5: (35, 65)}[share]
    assert low <= sum(drawn) <= high


def test_optimisers_are_the_papers():
    config = tiny_config(
        lr_g=0.01,
        lr_d=0.02,
        lr2=0.03,
        beta1=0.1,
        beta2=0.9,
        weight_decay=0.4,
        step_size=10,
        gamma=0.5,
        gamma2=0.2,
    )
    model = tiny_model(config)
    optimisers = tiny_step(model).optimisers
    for adam, lr in ((optimisers.gen, 0.01), (optimisers.dis, 0.02)):
        (group,) = adam.param_groups
        assert (group["lr"], group["betas"], group["weight_decay"], group["eps"]) == (
            lr,
            (0.1, 0.9),
            0.4,
            1e-8,
        )
    trunk, *heads = optimisers.id.param_groups
    assert trunk["lr"] == 0.03 and [g["lr"] for g in heads] == pytest.approx([0.3, 0.3])
    assert all(
        (g["momentum"], g["nesterov"], g["weight_decay"]) == (0.9, True, 0.4)
        for g in optimisers.id.param_groups
    )
    everything = [id(p) for _, o in optimisers.named() for g in o.param_groups for p in g["params"]]
    assert len(set(everything)) == len(everything) == len(list(model.parameters()))
    optimisers.set_learning_rates(15)
    assert [o.param_groups[-1]["lr"] for _, o in optimisers.named()] == pytest.approx([0.0025, 0.005, 0.012])
    optimisers.set_learning_rates(0)
    assert [o.param_groups[-1]["lr"] for _, o in optimisers.named()] == pytest.approx([0.01, 0.02, 0.3])


# --- steps that must not count


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("place, named", [("x", {"dis", "dis_total"}), ("xp", {"recon_xp", "pid", "total"})])
def test_a_non_finite_loss_leaves_everything_as_it_was(place, named, parts):
    config = tiny_config(teacher="given", erasing_p=0.5, **ALL_TERMS)
    good = tiny_batch(config)
    pictures = getattr(good, place).clone()
    pictures[1, 2, 0, 3, 4] = math.nan
    bad = tiny_batch(config, seed=1)._replace(**{place: pictures})
    step, never = (
        tiny_step(tiny_model(config, 1), dropout=True),
        tiny_step(tiny_model(config, 1), dropout=True),
    )
    assert step([good] * parts, 0).non_finite == []
    before = snapshot(step)
    result = step([good] * (parts - 1) + [bad], 1)
    assert named <= set(result.non_finite), result.non_finite
    assert not {"recon_x", "id"} & set(result.non_finite)  # only what the picture reaches
    assert all(p.grad is None for p in step.model.parameters())
    assert_same(snapshot(step), before)
    never([good] * parts, 0)
    step([good] * parts, 2)
    never([good] * parts, 2)
    assert_same(snapshot(step), snapshot(never))


def test_a_bad_first_step_leaves_no_trace():
    config = tiny_config()
    good = tiny_batch(config)
    step, never = (tiny_step(tiny_model(config)) for _ in range(2))
    before = snapshot(step)
    assert step([good._replace(xp=good.xp * math.nan)], 0).non_finite  # D is updated before this is known
    assert_same(snapshot(step), before)
    assert_same([step([good], 1).terms, snapshot(step)], [never([good], 1).terms, snapshot(never)])


# --- precisions


@pytest.mark.parametrize(
    "amp, bound, cosine", [(torch.bfloat16, 0.03, 0.95), (torch.float16, 0.015, 0.995)], ids=["bf16", "fp16"]
)
def test_a_low_precision_step_is_close_to_float32(amp, bound, cosine):
    """Bounds: two to three times the worst of a few seeds (terms 0.009 and 0.0055; gradients' cosines 0.978, 0.999)."""
    config = tiny_config(teacher="given", **{k: v for k, v in ALL_TERMS.items() if k != "recon_f_w"})
    batch = tiny_batch(config)
    steps = tiny_step(tiny_model(config, 1)), tiny_step(tiny_model(config, 1), amp)
    if amp == torch.float16:  # the first scale, 65536, is found too large by skipping steps
        for scaler in steps[1].precision.scalers.values():
            scaler.load_state_dict(scaler.state_dict() | {"scale": 256.0})
    found = [collect_gradients(step) for step in steps]
    exact, low = (step([batch], 0) for step in steps)
    assert low.non_finite == []
    for name, value in exact.terms.items():
        value, ours = (torch.tensor(terms[name]).sum() for terms in (exact.terms, low.terms))
        assert abs(ours - value) < bound * abs(value), name
    for name in ("dis", "gen", "id"):
        one, two = (torch.cat([g.flatten() for g in each[name] if g is not None]) for each in found)
        assert F.cosine_similarity(one, two, dim=0) > cosine, name
        assert abs(two.norm() / one.norm() - 1) < 1 - cosine, name
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in steps[1].model.parameters())


def test_an_overflowing_fp16_step_lowers_the_scale_and_keeps_the_weights():
    config = tiny_config()
    step = tiny_step(tiny_model(config), torch.float16)
    for scaler in step.precision.scalers.values():
        scaler.load_state_dict(scaler.state_dict() | {"scale": 2.0**120})
    before = copy.deepcopy(dict(step.model.named_parameters()))
    assert step([tiny_batch(config)], 0).non_finite == []  # the losses are fine, the scaled gradients are not
    for name, parameter in step.model.named_parameters():
        assert torch.equal(parameter, before[name]), name
    assert all(s.get_scale() == 2.0**119 for s in step.precision.scalers.values())
