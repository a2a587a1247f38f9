"""The compiled step: one graph a part, the eager numbers, and no recompilation along the ramps."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from dgnet_fast import teacher
from dgnet_fast.config import ConfigError
from dgnet_fast.models.appearance_encoder import build_teacher
from dgnet_fast.models.dgnet import DGNet
from dgnet_fast.training import parts, runner, teacher_loop
from dgnet_fast.training.schedule import Weights, WeightTensors
from dgnet_fast.training.step import TrainingStep
from dgnet_fast.training.teacher_loop import TeacherBatch, teacher_terms
from tests.tiny import ALL_TERMS, NETWORK, arguments, tiny_batch, tiny_config, tiny_model, tiny_step
from tests.tiny_run import DATA

# float32, other orders of summation: terms came out up to 7e-6 apart over three steps of ten configurations
BOUND = {"rtol": 1e-4, "atol": 1e-5}
SMALL = {"gen__n_res": 1, "dis__n_res": 0, "dis__num_scales": 1}


@pytest.fixture
def compiled_with(fresh_compiler, monkeypatch):
    """The step compiles with a backend of our choice; gives its counter of graphs."""

    def use(backend: str) -> CompileCounterWithBackend:
        counter = CompileCounterWithBackend(backend)
        options = {"fullgraph": True, "dynamic": False, "backend": counter}
        monkeypatch.setattr(runner, "compile_part", lambda f: torch.compile(f, **options))
        monkeypatch.setattr(TrainingStep, "COMPILED_ON_CPU", None)  # all, as on a GPU
        return counter

    return use


def test_weights_are_written_in_place():
    weights = WeightTensors(torch.device("cpu"), torch.float64)
    first = weights.set(Weights(0.0, 0.25, 0.0, 0.0))
    assert first.recon_s_w.item() == 0.25 and tuple(first)[0::2] == (0.0, 0.0) and first.teacher_w == 0.0
    second = weights.set(Weights(0.5, 0.75, 0.0, 0.0))
    assert second.recon_s_w is first.recon_s_w and first.recon_s_w.item() == 0.75
    assert second.recon_f_w.item() == 0.5
    assert weights.set(Weights(0.0, 0.0, 0.0, 0.0)) == (0.0, 0.0, 0.0, 0.0)


EVERY_PART = [
    parts.encode_appearance, parts.identity_part, parts.forward_pass, parts.fake_part, parts.real_part,
    parts.adversarial_part, parts.teacher_part, parts.reconstruction_part,
]  # fmt: skip


@pytest.mark.parametrize("everywhere", [True, False], ids=["every part", "what a CPU compiles"])
def test_parts_compile_whole_and_static(everywhere):
    """What the trainer asks of torch.compile."""
    asked = []
    config = tiny_config(compile=True, teacher="given", **ALL_TERMS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch, "compile", lambda function, **options: asked.append((function, options)) or function
        )
        if everywhere:
            patch.setattr(TrainingStep, "COMPILED_ON_CPU", None)
        step = tiny_step(tiny_model(config, 1))
        for number in range(2):
            step([tiny_batch(config)], number)
        step([tiny_batch(config)] * 2, 2)  # gradients of two batches
    whole = [parts.forward_pass, parts.reconstruction_part, parts.swapped_only]
    if everywhere:
        whole = [*EVERY_PART, parts.swapped_only]
    assert asked == [(part, {"fullgraph": True, "dynamic": False}) for part in whole]


def test_the_teachers_step_is_not_compiled_on_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(
        teacher_loop, "compile_part", lambda part: pytest.fail(f"{part.__name__} is compiled")
    )
    options = NETWORK | DATA | {"teacher_steps": 1, "teacher_batch": 4, "device": "cpu", "compile": True}
    assert teacher.main([*arguments(options), "--out", str(tmp_path), "--quiet"]) == 0


@pytest.mark.thorough
@pytest.mark.parametrize("amp", [None, torch.bfloat16], ids=["fp32", "bf16"])
def test_no_recompilation_after_warm_up(compiled_with, amp):
    """Before the ramps, along them, through both branches: eleven graphs in all, then none."""
    counter = compiled_with("eager")
    config = tiny_config(
        compile=True,
        teacher="given",
        erasing_p=0.5,
        warm_iter=2,
        warm_teacher_iter=2,
        warm_scale=0.01,
        **SMALL,
    )
    step = tiny_step(tiny_model(config, 1), amp, dropout=True)
    graphs, branches = [], set()
    plain = step.update

    def update(batches, plan):
        branches.add(plan.train_encoder)
        return plain(batches, plan)

    step.update = update
    for number in range(12):
        if number == 11:
            assert branches == {True, False}
        terms = step([tiny_batch(config, number)], number).terms
        assert ("teacher" in terms) == ("recon_x_cyc" in terms) == (number > 2)
        graphs.append(counter.frame_count)
        if number == 2:
            branches.clear()
    assert graphs[:3] == [7, 7, 7]  # two passes, two parts of D, identities, adversarial, reconstruction
    assert graphs[-1] == 11  # the teacher, identities as weighted with it, reconstruction in its two branches
    last_new = graphs.index(11)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for number in range(12, 16):  # further up the ramps
            step([tiny_batch(config, number)], number)
    assert counter.frame_count == 11 and last_new < 11


VARIANTS = {
    "paper": {"teacher": "given", "erasing_p": 0.5, "use_encoder_again": 1.0, **ALL_TERMS},
    "others": {
        "ID_style": "normal", "pool": "avg", "norm_id": True, "train_bn": False, "use_encoder_again": -1.0,
        "dis__gan_type": "nsgan", "dis__non_local": 2, "dis__dim": 8, "gen__non_local": 1, "gen__dec": "series",
        "gen__activ": "prelu", "teacher": "given", "teacher_style": 4, **ALL_TERMS,
    },
    "ours": {
        "teacher": "given", "erasing_p": 0.0, "use_encoder_again": 1.0, "real_batch": 4, "bn_together": True, "code_w": 0.5,
        "T_w": 0.0, "gray_jitter": 0.3, "gen__pad_type": "zero", **ALL_TERMS,
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["paper", *(pytest.param(n, marks=pytest.mark.thorough) for n in ("others", "ours"))]
)
def test_the_compiled_step_equals_the_eager_one(compiled_with, name):
    """Through AOTAutograd, which takes the step apart as Inductor has it: penalty, buffers, frozen views."""
    compiled_with("aot_eager")
    options = SMALL | VARIANTS[name]
    batches = [tiny_batch(tiny_config(**options), seed) for seed in range(2)]
    results = []
    for compiled in (False, True):
        config = tiny_config(compile=compiled, **options)
        step = tiny_step(tiny_model(config, 1))
        terms = [step([batch], number).terms for number, batch in enumerate(batches)]
        results.append((terms, step.model.state_dict()))
    (eager_terms, eager), (terms, state) = results
    for one, two in zip(eager_terms, terms, strict=True):
        assert one.keys() == two.keys()
        for term, value in one.items():
            torch.testing.assert_close(torch.tensor(two[term]), torch.tensor(value), msg=term, **BOUND)
    for entry, value in eager.items():
        # Adam moves a weight by its rate whatever the size of the gradient: rounding decides where that is zero
        torch.testing.assert_close(state[entry], value, rtol=1e-3, atol=4e-4, msg=entry)


@pytest.mark.thorough
def test_the_compiled_step_in_bf16(compiled_with):
    """As autocast has it, with copies in the weights' place: the terms of a first step and every network's gradients,
    which are summed up in another order, far nearer to the eager ones than these are to float32's (E_s: 0.01 and 0.42).
    """
    compiled_with("aot_eager")
    options = SMALL | VARIANTS["paper"]
    terms, gradients = [], []
    for amp, compiled in ((None, False), (torch.bfloat16, False), (torch.bfloat16, True)):
        config = tiny_config(compile=compiled, **options)
        model = tiny_model(config, 1)
        step, found = tiny_step(model, amp), {}
        step.move = partial(collect_gradients, model, found)
        terms.append(step([tiny_batch(config)], 0).terms)
        gradients.append(found)
    _, eager, compiled = terms
    assert eager.keys() == compiled.keys()
    for term, value in eager.items():
        torch.testing.assert_close(torch.tensor(compiled[term]), torch.tensor(value), msg=term, **BOUND)
    precise, eager, compiled = gradients
    assert precise.keys() == eager.keys() == compiled.keys()
    assert precise.keys() >= {name for name, _ in model.named_children()} - {"teachers"}
    for network, gradient in eager.items():
        off = (compiled[network] - gradient).norm()
        assert off <= 0.03 * gradient.norm() and off <= 0.1 * (gradient - precise[network]).norm(), network


def collect_gradients(model: DGNet, found: dict[str, torch.Tensor], phase: str) -> None:
    """In the place of a phase's optimisers: ``found``'s gradients by network."""
    for network, child in model.named_children():
        gradients = [p.grad.flatten() for p in child.parameters() if p.grad is not None]
        if gradients and (phase == "dis") == (network == "discriminator"):
            found[network] = torch.cat(gradients)


@pytest.mark.thorough
@pytest.mark.skipif(
    torch.__version__ < "2.11",
    reason="on a CPU the Inductor of PyTorch 2.10 writes C++ of G that does not compile",
)
def test_pictures_and_penalty_through_inductor(fresh_compiler):
    """With the default backend, whose code checks the memory order of every result: E_s and G, and what torch.compile
    takes hardest, since it differentiates twice. (All parts take minutes.)
    """
    config = tiny_config(**SMALL)
    model, batch = tiny_model(config), tiny_batch(config)
    code = torch.randn(4 * config.batch_size, model.mlp.code_length)

    def pictures(call):
        made = call(model, batch, code)
        leaves, how = list(model.decoder.parameters()), {"allow_unused": True, "materialize_grads": True}
        return made, torch.autograd.grad(made.swapped.square().mean(), leaves, **how)

    def penalty(call):
        terms = call(model, batch.x, batch.x)
        return terms, torch.autograd.grad(terms["total"], list(model.discriminator.parameters()))

    for function, result in ((parts.forward_pass, pictures), (parts.real_part, penalty)):
        expected, got = result(function), result(runner.compile_part(function))
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("other", [{"single": "edge"}, {"checkpoint_activations": True}, {"dis__norm": "bn"}])
def test_what_cannot_be_compiled_is_refused(other):
    with pytest.raises(ConfigError, match="compile"):
        tiny_config(compile=True, **other)


@pytest.mark.parametrize("generated", [False, True], ids=["plain", "strong with generated pictures"])
def test_the_teachers_step_compiles_whole(compiled_with, generated):
    """One graph, forward and backward, and the eager numbers."""
    counter = compiled_with("aot_eager")
    config = tiny_config()
    if generated:
        config.reid.smoothing, config.reid.triplet_w = 0.1, 0.5
    batch = tiny_batch(config)
    more = (batch.x[0], torch.rand(len(batch.x[0]), config.ID_class).softmax(dim=1)) if generated else ()
    given = TeacherBatch(batch.x.flatten(0, 1), batch.labels, *(more or (None, None)))
    results = []
    for terms_of in (teacher_terms, runner.compile_part(teacher_terms)):
        teacher = build_teacher(config, 1, torch.Generator().manual_seed(0))
        torch.manual_seed(0)
        terms = terms_of(teacher, given, config, 0.7)
        next(iter(terms.values())).backward()
        results.append([*terms.values(), *(p.grad for p in teacher.parameters())])
    assert counter.frame_count == 1
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one, **BOUND)
