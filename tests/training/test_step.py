"""One training step: which terms are there, what they are worth, and whom they reach."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from dgnet_fast.data import erase
from dgnet_fast.models.appearance_encoder import upsample_small
from dgnet_fast.models.batch_norm import BatchNormMode
from dgnet_fast.training import generator_loop, losses
from dgnet_fast.training.parts import (
    Settings,
    encode_appearance,
    forward_pass,
    identity_part,
    more_real_part,
    swapped_only,
    term_weights,
)
from dgnet_fast.training.schedule import weights_at
from tests.tiny import (
    ALL_TERMS,
    BATCH,
    both_passes,
    discriminator_terms,
    generator_terms,
    tiny_batch,
    tiny_config,
    tiny_model,
    tiny_step,
)

ALWAYS = {"adv", "recon_x", "recon_xp", "id", "pid", "recon_id", "total"}
IMAGE_TERMS = ("adv", "recon_x", "recon_xp", "recon_f", "recon_s", "recon_x_cyc", "recon_id")
F64 = torch.float64
EXACT = {"rtol": 1e-9, "atol": 1e-11}


def phase(model, batch, *, train_encoder=True, dropout=False):
    """(forward, terms) of the generator phase at step 0."""
    passes = both_passes(model, batch, dropout=dropout)
    weights = weights_at(model.config, 0)
    terms = generator_terms(model, passes, batch, weights, train_encoder=train_encoder, dropout=dropout)
    return passes[1], terms


def gradients(value, module):
    """Norm of the gradient of each parameter that ``value`` reaches."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    if not (value.requires_grad and parameters):
        return []
    found = torch.autograd.grad(value.sum(), parameters, allow_unused=True, retain_graph=True)
    return [g.norm().item() for g in found if g is not None]


def reached(value, module):
    return any(n > 0 for n in gradients(value, module))


# --- the terms


def test_terms_of_weight_zero_are_absent():
    config = tiny_config(teacher="given")
    _, terms = phase(tiny_model(config, 1), tiny_batch(config))
    assert set(terms) == ALWAYS
    for name, extra in (("recon_f_w", "recon_f"), ("recon_s_w", "recon_s"), ("recon_x_cyc_w", "recon_x_cyc")):
        config = tiny_config(**{name: 0.5})
        assert set(phase(tiny_model(config), tiny_batch(config))[1]) == ALWAYS | {extra}
    config = tiny_config(teacher_w=0.5, teacher="given")
    assert set(phase(tiny_model(config, 1), tiny_batch(config))[1]) - ALWAYS == {
        "teacher",
        "teacher_kl",
        "teacher_fine",
    }
    config = tiny_config(teacher_w=0.5, teacher="")
    assert set(phase(tiny_model(config), tiny_batch(config))[1]) == ALWAYS
    config = tiny_config(teacher_w=0.5, teacher="given", train_on_generated=False)
    assert set(phase(tiny_model(config, 1), tiny_batch(config))[1]) == ALWAYS
    config = tiny_config(teacher_w=0.5, teacher="given", fine_on_generated=False)
    assert set(phase(tiny_model(config, 1), tiny_batch(config))[1]) == ALWAYS | {"teacher", "teacher_kl"}
    config = config.replace(T_w=0.0)
    assert set(phase(tiny_model(config, 1), tiny_batch(config))[1]) == ALWAYS
    config = tiny_config(teacher_w=0.5, teacher="given", ID_style="PCB")
    assert set(phase(tiny_model(config, 1), tiny_batch(config))[1]) == ALWAYS


def test_without_the_primary_loss_nobody_asks_the_teachers(monkeypatch):
    config = tiny_config(teacher="given", T_w=0.0, B_w=0.3, **ALL_TERMS)
    model, batch = tiny_model(config, 1), tiny_batch(config)
    monkeypatch.setattr("dgnet_fast.training.parts.teacher_labels", None)
    _, terms = phase(model, batch)
    assert "teacher_kl" not in terms
    torch.testing.assert_close(terms["teacher"], 0.3 * terms["teacher_fine"])
    heads = model.appearance_encoder.heads
    assert reached(terms["teacher"], heads[1]) and not reached(terms["teacher"], heads[0])


def test_the_total_is_the_weighted_sum():
    config = tiny_config(teacher="given", T_w=0.9, recon_id_w=0.4, pid_w=0.3, gan_w=1.1, **ALL_TERMS)
    model, batch = tiny_model(config, 1, F64), tiny_batch(config, dtype=F64)
    _, terms = phase(model, batch)
    weights = {"adv": 1.1, "recon_x": 5, "recon_xp": 5, "recon_f": 0.7, "recon_s": 0.8, "recon_x_cyc": 0.9}
    weights |= {"id": 1, "pid": 0.3, "recon_id": 0.4, "teacher": 0.6}
    assert term_weights(model, weights_at(config, 0)) == weights | {"id_more": 1, "code": 0}
    expected = sum(w * terms[name].sum() for name, w in weights.items())
    torch.testing.assert_close(terms["total"], expected, **EXACT)
    combined = 0.9 * terms["teacher_kl"] + 0.2 * terms["teacher_fine"]
    torch.testing.assert_close(terms["teacher"], combined, **EXACT)
    assert all(t.shape == (2,) for name, t in terms.items() if name != "total")


@pytest.mark.parametrize("style", ["AB", "PCB"])
def test_further_real_pictures_are_one_batch_of_the_teachers_kind(style):
    config = tiny_config(real_batch=6, ID_style=style, teacher_w=0.5, id_w=2.0)
    model, batch = tiny_model(config, dtype=F64), tiny_batch(config, dtype=F64)
    plain = copy.deepcopy(model.appearance_encoder)
    settings = Settings(weights_at(config, 0), train_encoder=True, dropout=False)
    terms = more_real_part(model, batch, settings)
    seen = plain(upsample_small(batch.more.flatten(0, 1)), BatchNormMode(1, "update"), dropout=False)
    errors = [
        F.cross_entropy(one, batch.more_labels.flatten(), reduction="none").view(2, -1).mean(dim=1)
        for one in seen.logits
    ]
    wanted = (
        errors[0] + 0.5 * config.B_w * sum(errors[1:]) / len(errors[1:])
        if style == "AB"
        else sum(errors) / len(errors)
    )
    torch.testing.assert_close(terms["id_more"], wanted, **EXACT)
    torch.testing.assert_close(terms["total"], 2.0 * wanted.sum(), **EXACT)
    for name, statistic in plain.named_buffers():
        torch.testing.assert_close(dict(model.appearance_encoder.named_buffers())[name], statistic)


@pytest.mark.parametrize("erasing_p", [0.0, 1.0])
def test_together_further_real_pictures_share_the_pass(erasing_p):
    config = tiny_config(real_batch=6, bn_together=True, erasing_p=erasing_p, id_w=2.0)
    model, batch = tiny_model(config, dtype=F64), tiny_batch(config, dtype=F64)
    plain = copy.deepcopy(model.appearance_encoder)
    settings = Settings(weights_at(config, 0), train_encoder=True, dropout=False)
    encoded = encode_appearance(model, batch, dropout=False)
    terms = identity_part(model, encoded, batch, settings)
    pictures, more = (
        upsample_small(torch.cat([*batch.x, *batch.xp])),
        upsample_small(batch.more.flatten(0, 1)),
    )
    mode = BatchNormMode(1, "update")
    if erasing_p:
        assert not encoded.more
        torch.testing.assert_close(encoded.code, plain(pictures, mode).code, **EXACT)
        pictures = erase(pictures, batch.erasing_boxes.flatten(0, 1))
    seen = plain(torch.cat([pictures, more]), mode, dropout=False)
    if not erasing_p:
        torch.testing.assert_close(encoded.code, seen.code[: len(pictures)], **EXACT)
    labels = torch.cat([batch.labels.flatten(), batch.labels.flatten(), batch.more_labels.flatten()])
    errors = F.cross_entropy(seen.logits[0], labels, reduction="none").split([2 * BATCH] * 2 + [6])
    for name, wanted in zip(("id", "pid", "id_more"), errors, strict=True):
        torch.testing.assert_close(terms[name], wanted.view(2, -1).mean(dim=1), **EXACT)
    wanted = 2.0 * (terms["id"].sum() + terms["id_more"].sum()) + config.pid_w * terms["pid"].sum()
    torch.testing.assert_close(terms["total"], wanted, **EXACT)
    for name, statistic in plain.named_buffers():
        torch.testing.assert_close(dict(model.appearance_encoder.named_buffers())[name], statistic)
    assert all(tiny_step(model)([batch], 0).terms["id_more"])


@pytest.mark.parametrize("together", [False, True])
def test_batch_norms_take_each_stream_or_all_pictures_of_a_pass(together):
    config = tiny_config(teacher="given", bn_together=together, **ALL_TERMS)
    model, batch = tiny_model(config, 1, F64), tiny_batch(config, dtype=F64)
    pictures = upsample_small(torch.cat([*batch.x, *batch.xp]))
    plain = copy.deepcopy(model.appearance_encoder)(pictures, BatchNormMode(1 if together else 4, "update"))
    groups: dict[str, set[int]] = {"E_a": set(), "teacher": set()}
    for name, network in (("E_a", model.appearance_encoder), ("teacher", model.teachers[0])):
        network.register_forward_pre_hook(lambda _, given, name=name: groups[name].add(given[1].groups))
    forward, _ = phase(model, batch)
    torch.testing.assert_close(forward.code.flatten(0, 1), plain.code.chunk(2)[0], **EXACT)
    assert groups == ({"E_a": {1}, "teacher": {1}} if together else {"E_a": {4, 2}, "teacher": {4}})
    swaps = forward.swapped.detach()
    codes = generator_loop.appearance_codes(model, swaps)
    mode = BatchNormMode(1 if together else 2, "batch")
    torch.testing.assert_close(
        codes, model.appearance_encoder.code_of(upsample_small(swaps.flatten(0, 1)), mode), **EXACT
    )


def test_a_step_counts_further_real_pictures_once():
    config = tiny_config(real_batch=4)
    model = tiny_model(config)
    terms = tiny_step(model)([tiny_batch(config)], 0).terms
    assert all(0.5 < value < 5 for value in terms["id_more"])
    both = tiny_step(tiny_model(config))([tiny_batch(config), tiny_batch(config, 1)], 0).terms
    assert both["id_more"] != terms["id_more"]


@pytest.mark.parametrize("style", ["AB", "normal"])
def test_the_code_of_swaps_is_asked_for_with_its_gradient(style):
    config = tiny_config(code_w=0.3, ID_style=style, pool="avg", recon_f_w=0.7, recon_x_cyc_w=0.9)
    model, batch = tiny_model(config, dtype=F64), tiny_batch(config, dtype=F64)
    forward, terms = phase(model, batch)
    swapped = upsample_small(forward.swapped.flatten(0, 1))
    again = model.appearance_encoder.code_of(swapped, BatchNormMode(2, "batch")).unflatten(0, (2, -1))
    deviation = losses.deviation_of(forward.code.detach().flatten(0, 1))
    wanted = ((again - forward.code.detach()) / deviation).square().mean(dim=(1, 2))
    torch.testing.assert_close(terms["code"], wanted, **EXACT)
    for module in (model.structure_encoder, model.mlp, model.decoder):
        assert reached(terms["code"], module)
    plain = tiny_model(config.replace(code_w=0.0), dtype=F64)
    others = phase(plain, batch)[1]
    for name, value in others.items():
        if name != "total":
            torch.testing.assert_close(terms[name], value, **EXACT)
    torch.testing.assert_close(terms["total"], others["total"] + 0.3 * wanted.sum(), **EXACT)
    if style == "AB":  # the other terms keep the public code's detached code, and E_a is held constant
        assert not reached(terms["recon_f"], model.decoder)
        assert not reached(terms["code"], model.appearance_encoder)


@pytest.mark.parametrize("train_encoder", [True, False])
def test_every_term_follows_the_flow_of_the_paper(train_encoder):
    """The step's batched flow against one picture stream at a time, from the networks' own calls."""
    config = tiny_config(teacher="given", **ALL_TERMS)
    model, batch = tiny_model(config, 1, F64), tiny_batch(config, dtype=F64)
    plain = copy.deepcopy(model)
    forward, terms = phase(model, batch, train_encoder=train_encoder)

    def e_a(x):
        return plain.appearance_encoder(upsample_small(x), BatchNormMode(1, "batch"))

    def e_s(x):
        return plain.structure_encoder(x.mean(dim=1, keepdim=True))

    s, seen = [e_s(x) for x in batch.x], [e_a(x) for x in batch.x]
    positives = [e_a(x) for x in batch.xp]
    for k, o in ((0, 1), (1, 0)):
        ce = F.cross_entropy
        x, own, other = batch.x[k], batch.labels[k], batch.labels[o]
        swapped = plain.decode(s[o], seen[k].code)
        opposite = plain.decode(s[k], seen[o].code)  # carries the structure of stream k
        torch.testing.assert_close(forward.swapped[k], swapped, **EXACT)
        again = e_a(swapped)
        structure_again = e_s(opposite)
        cycled = plain.decode(structure_again, again.code)
        teacher = sum(
            plain.teachers[0](upsample_small(p), BatchNormMode(1, "batch")).logits[0].softmax(dim=1)
            for p in (swapped, swapped.flip(-1))
        )
        target = teacher / teacher.sum(dim=1, keepdim=True)
        log_p = again.logits[0].log_softmax(dim=1)
        expected = {
            "recon_x": (plain.decode(s[k], seen[k].code) - x).abs().mean(),
            "recon_xp": (plain.decode(s[k], positives[k].code) - x).abs().mean(),
            "recon_s": (structure_again - s[k]).abs().mean(),
            "recon_f": (again.code - seen[k].code).abs().mean(),
            "recon_x_cyc": (cycled - x).abs().mean(),
            "id": ce(seen[k].logits[0], own) + 0.6 * 0.2 * ce(seen[k].logits[1], own),
            "pid": ce(positives[k].logits[0], own),
            "recon_id": ce(again.logits[0], own),
            "adv": sum(2 * ((score - 1) ** 2).mean() for score in plain.discriminator(swapped)),
            "teacher_kl": (target * (target.log() - log_p)).sum() / BATCH,
            "teacher_fine": ce(again.logits[1], other),
        }
        for name, value in expected.items():
            torch.testing.assert_close(terms[name][k], value, msg=lambda m, n=name: f"{n}: {m}", **EXACT)


# --- whom they reach


@pytest.mark.parametrize("style", ["AB", "normal"])
def test_image_losses_reach_e_a_only_where_the_code_is_attached(style):
    config = tiny_config(
        ID_style=style, pool="avg", **{k: v for k, v in ALL_TERMS.items() if k != "teacher_w"}
    )
    model = tiny_model(config)
    _, terms = phase(model, tiny_batch(config), train_encoder=False)
    for name in IMAGE_TERMS:
        assert reached(terms[name], model.appearance_encoder) == (style == "normal"), name
    for name in ("id", "pid"):
        assert reached(terms[name], model.appearance_encoder)
        assert not any(reached(terms[name], m) for m in (model.structure_encoder, model.decoder, model.mlp))


def test_who_learns_from_which_term():
    config = tiny_config(teacher="given", **ALL_TERMS)
    model, batch = tiny_model(config, 1), tiny_batch(config)
    for train_encoder in (True, False):
        _, terms = phase(model, batch, train_encoder=train_encoder)
        assert gradients(terms["total"], model.discriminator) == []
        for name in ("recon_x", "recon_xp", "recon_x_cyc", "recon_id", "adv"):
            assert all(
                reached(terms[name], m) for m in (model.structure_encoder, model.mlp, model.decoder)
            ), name
        # structure again: E_s alone on a fixed picture, or G through a frozen E_s
        assert reached(terms["recon_s"], model.decoder) == (not train_encoder)
        assert reached(terms["recon_s"], model.structure_encoder)
        # a' is detached in style AB, so recon_f is a number only
        assert not any(reached(terms["recon_f"], module) for module in model.children())
        assert reached(terms["teacher"], model.appearance_encoder)
        assert not reached(terms["teacher"], model.decoder)
        assert all(p.grad is None and not p.requires_grad for p in model.teachers.parameters())


@pytest.mark.parametrize("branch", ["structure", "appearance", "discriminator"])
def test_a_frozen_pass_equals_a_copy_without_gradients(branch):
    config = tiny_config(recon_s_w=0.8, ID_style="normal", pool="avg")
    model, batch = tiny_model(config, dtype=F64), tiny_batch(config, dtype=F64)
    forward, terms = phase(model, batch, train_encoder=False)
    other = copy.deepcopy(model).requires_grad_(False)
    swapped = forward.swapped.flatten(0, 1)
    if branch == "structure":
        again = other.structure_encoder(swapped.mean(dim=1, keepdim=True)).unflatten(0, (2, -1)).flip(0)
        ours, theirs = terms["recon_s"], losses.l1_terms([(again, forward.structure)])[0]
    elif branch == "appearance":
        logits = [
            other.appearance_encoder(upsample_small(x), BatchNormMode(1, "batch")).logits[0]
            for x in forward.swapped
        ]
        ours, theirs = terms["recon_id"], losses.cross_entropy([torch.cat(logits)], batch.labels)
    else:
        scores = [s.unflatten(0, (2, -1)) for s in other.discriminator(swapped)]
        ours, theirs = terms["adv"], losses.generator_term(scores, "lsgan")
    torch.testing.assert_close(ours, theirs, **EXACT)
    parameters = [
        p
        for m in (model.structure_encoder, model.mlp, model.decoder, model.appearance_encoder)
        for p in m.parameters()
    ]
    # terms are computed together, so that one of them gives what only another one reaches a gradient of zero
    options = {"allow_unused": True, "retain_graph": True, "materialize_grads": True}
    for one, two in zip(
        torch.autograd.grad(ours.sum(), parameters, **options),
        torch.autograd.grad(theirs.sum(), parameters, **options),
        strict=True,
    ):
        torch.testing.assert_close(one, two, **EXACT)


def test_the_frozen_encoder_uses_running_statistics_without_train_bn():
    config = tiny_config(train_bn=False, ID_style="normal", pool="avg")
    model, batch = tiny_model(config, dtype=F64), tiny_batch(config, dtype=F64)
    forward, terms = phase(model, batch)  # the statistics as the forward pass has just left them
    logits = model.appearance_encoder(upsample_small(forward.swapped.flatten(0, 1)), BatchNormMode()).logits
    torch.testing.assert_close(terms["recon_id"], losses.cross_entropy(logits, batch.labels), **EXACT)


def test_the_discriminators_terms():
    config = tiny_config(gan_w=0.7, dis__LAMBDA=0.3)
    model, batch = tiny_model(config, dtype=F64), tiny_batch(config, dtype=F64)
    _, forward = both_passes(model, batch)
    terms = discriminator_terms(model, forward.swapped, batch.x)
    for k in range(2):
        real = batch.x[k].clone().requires_grad_()
        value = penalty = 0
        for fake_score, score in zip(
            model.discriminator(forward.swapped[k]), model.discriminator(real), strict=True
        ):
            value = value + (fake_score**2).mean() + ((score - 1) ** 2).mean()
            (gradient,) = torch.autograd.grad(score.sum(), real, retain_graph=True)
            penalty = penalty + 0.3 * gradient.square().sum(dim=(1, 2, 3)).mean()
        torch.testing.assert_close(terms["dis_penalty"][k], penalty, **EXACT)
        torch.testing.assert_close(terms["dis"][k], value + penalty, **EXACT)
    torch.testing.assert_close(terms["total"], 0.7 * terms["dis"].sum(), **EXACT)
    assert reached(terms["total"], model.discriminator)
    assert not any(reached(terms["total"], m) for m in (model.decoder, model.structure_encoder, model.mlp))


# --- appearance passes


@pytest.mark.parametrize("style", ["AB", "normal"])
def test_with_erasing_the_logits_come_from_erased_copies(style):
    config = tiny_config(erasing_p=0.5, ID_style=style)
    model, batch = tiny_model(config, dtype=F64), tiny_batch(config, dtype=F64)
    plain = copy.deepcopy(model)
    encoded = encode_appearance(model, batch, dropout=False)
    assert encoded.logits == ()
    terms = identity_part(model, encoded, batch, Settings(weights_at(config, 0), True, False))
    pictures = [upsample_small(x) for x in (*batch.x, *batch.xp)]
    passes = [plain.appearance_encoder(x, BatchNormMode(1, "update")) for x in pictures]
    erased = [erase(x, box) for x, box in zip(pictures, batch.erasing_boxes, strict=True)]
    assert all((a != b).any() for a, b in zip(pictures, erased, strict=True))
    passes += [plain.appearance_encoder(x, BatchNormMode(1, "update")) for x in erased]
    torch.testing.assert_close(encoded.code, torch.cat([p.code for p in passes[:4]]), **EXACT)
    for name, seen in (("id", passes[4:6]), ("pid", passes[6:])):
        logits = torch.cat([p.logits[0] for p in seen])
        torch.testing.assert_close(terms[name], losses.cross_entropy([logits], batch.labels), **EXACT)
    for name, buffer in plain.appearance_encoder.named_buffers():  # eight passes in this order
        torch.testing.assert_close(model.appearance_encoder.get_buffer(name), buffer, **EXACT)
    assert model.appearance_encoder.backbone.bn1.num_batches_tracked == 8
    assert encoded.code.requires_grad == (style == "normal")


def test_order_of_the_running_statistics_within_a_step():
    config = tiny_config(erasing_p=0.5, teacher="given", lr_g=0, lr_d=0, lr2=0, **ALL_TERMS)
    model, batch = tiny_model(config, 1, F64), tiny_batch(config, dtype=F64)
    plain = copy.deepcopy(model)
    step = tiny_step(model)
    seen = []
    with step.watching(forward_pass, seen):
        step([batch], 0)
    pictures = [upsample_small(x) for x in (*batch.x, *batch.xp)]
    erased = [erase(x, box) for x, box in zip(pictures, batch.erasing_boxes, strict=True)]
    generated = [upsample_small(x) for x in seen[0].swapped.detach()]
    for x in (*pictures, *erased, *generated):
        plain.appearance_encoder(x, BatchNormMode(1, "update"))
    for name, buffer in plain.appearance_encoder.named_buffers():
        torch.testing.assert_close(model.appearance_encoder.get_buffer(name), buffer, **EXACT)


@pytest.mark.parametrize("style", ["AB", "normal", "PCB"])
def test_swapped_only_is_the_forward_passs_and_changes_nothing(style):
    config = tiny_config(ID_style=style, pool="avg")
    model, batch = tiny_model(config, dtype=F64), tiny_batch(config, dtype=F64)
    before = copy.deepcopy(model.state_dict())
    got = swapped_only(model, batch)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not got.requires_grad
    torch.testing.assert_close(got, both_passes(model, batch)[1].swapped, **EXACT)
