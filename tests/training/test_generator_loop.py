"""E_s and G alone before the whole: what is learned, and interruptions."""

from __future__ import annotations

import contextlib
import math
import shutil
import signal
import sys

import pytest
import torch

from dgnet_fast import train
from dgnet_fast.checkpoints.files import load_file
from dgnet_fast.checkpoints.loading import load_for_use
from dgnet_fast.checkpoints.runs import read_run
from dgnet_fast.models.appearance_encoder import upsample_small
from dgnet_fast.models.batch_norm import BatchNormMode
from dgnet_fast.report.log import read_metrics
from dgnet_fast.training import generator_loop
from dgnet_fast.training.generator_loop import errors, held_constant, rate_factor
from dgnet_fast.training.losses import deviation_of
from tests.tiny import tiny_batch, tiny_config, tiny_model
from tests.training.test_run import STEPS, assert_same_outcome, words

OPTIONS = {
    "generator_steps": 5,
    "generator_code_w": 0.5,
    "gray_jitter": 0.3,
    "lr_policy": "cosine",
    "warm_up": 2,
    "ema_decay": 0.5,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run with every option of the recipe that the paper lacks."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert train.main(words(folder, **OPTIONS)) == 0
    return folder


def test_own_and_positive_codes_are_mixed(monkeypatch):
    config = tiny_config(generator_steps=1)
    model, batch = tiny_model(config), tiny_batch(config)
    drawn = torch.tensor([0.1, 0.9, 0.2, 0.8, 0.7, 0.3])
    monkeypatch.setattr(torch, "rand", lambda *size, device: drawn.view(size))
    squared, absolute, _ = errors(model, batch)
    for k in range(2):
        x, seen = (
            batch.x[k],
            torch.where((drawn[3 * k : 3 * k + 3] < 0.5).view(3, 1, 1, 1), batch.xp[k], batch.x[k]),
        )
        code = model.appearance_encoder(upsample_small(seen), BatchNormMode(1, "batch")).code
        rebuilt = model.decode(model.structure_encoder(x.mean(dim=1, keepdim=True)), code)
        torch.testing.assert_close(absolute[k], (rebuilt - x).abs().mean(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(squared[k], (rebuilt - x).square().mean(), rtol=1e-4, atol=1e-5)
    before = {name: b.clone() for name, b in model.appearance_encoder.named_buffers()}
    with held_constant(model.appearance_encoder):
        errors(model, batch)[0].sum().backward()
    assert all(p.requires_grad for p in model.appearance_encoder.parameters())
    assert all(torch.equal(b, before[name]) for name, b in model.appearance_encoder.named_buffers())
    assert all(p.grad is None for p in model.appearance_encoder.parameters())
    for name in generator_loop.TRAINED:
        assert sum(p.grad.abs().sum() for p in getattr(model, name).parameters() if p.grad is not None) > 0, (
            name
        )


def test_codes_of_swaps():
    config = tiny_config(generator_steps=1)
    model, batch = tiny_model(config), tiny_batch(config)
    batch = batch._replace(xp=batch.x)  # one code, whichever is drawn
    deviation = torch.linspace(0.5, 2, 4 * config.gen.id_dim)
    with held_constant(model.appearance_encoder):
        code = errors(model, batch, deviation).code
        gradient = torch.autograd.grad(code.sum(), list(model.decoder.parameters()), allow_unused=True)
    codes, again = [], []
    for k in range(2):
        codes.append(model.appearance_encoder(upsample_small(batch.x[k]), BatchNormMode(1, "batch")).code)
    for k in range(2):
        swap = model.decode(model.structure_encoder(batch.x[k].mean(dim=1, keepdim=True)), codes[1 - k])
        again.append(model.appearance_encoder(upsample_small(swap), BatchNormMode(1, "batch")).code)
        wanted = ((again[k] - codes[1 - k]) / deviation).square().mean()
        torch.testing.assert_close(code[k], wanted, rtol=1e-4, atol=1e-5)
    assert sum(g.abs().sum() for g in gradient if g is not None) > 0
    rows = torch.tensor([[0.0, 1.0], [2.0, 1.0]])
    torch.testing.assert_close(deviation_of(rows), torch.tensor([2**0.5, 0.05 * 2**0.5]))


def test_the_rate_falls_from_full_to_nothing():
    config = tiny_config(generator_steps=4)
    wanted = [1, 0.5 * (1 + math.sqrt(0.5)), 0.5, 0.5 * (1 - math.sqrt(0.5))]
    assert [rate_factor(config, step) for step in range(4)] == pytest.approx(wanted)


def test_what_the_run_leaves(whole):
    records = read_metrics(whole / "generator" / "metrics.jsonl")
    assert [r["step"] for r in records] == [1, 2, 3, 4, 5] and all(r["phase"] == "generator" for r in records)
    assert (whole / "generator.pt").is_file() and not (whole / "generator" / "state.pt").exists()
    content = read_run(whole / "checkpoints" / f"step_{STEPS:08d}.pt")
    used, _ = load_for_use(whole)
    for name, value in used.state_dict().items():
        assert torch.equal(value, content["average"].get(name, content["model"][name])), name
    moved = [n for n, v in content["average"].items() if not torch.equal(v, content["model"][n])]
    assert any(n.startswith("decoder.") for n in moved)
    assert not any(n.startswith("discriminator.") for n in content["average"])


def test_stopping_and_resuming_gives_the_same(whole, tmp_path, capsys):
    folder = tmp_path / "run"
    assert train.main([*words(folder, **OPTIONS), "--max-steps", "3"]) == 0
    assert train.main(["--resume", "--out", str(folder)]) == 0
    assert_same_outcome(folder, whole)
    ours, theirs = (read_run(f / "checkpoints" / f"step_{STEPS:08d}.pt")["average"] for f in (folder, whole))
    assert all(torch.equal(value, ours[name]) for name, value in theirs.items())


def test_a_signal_while_e_s_and_g_learn_alone(whole, tmp_path, capsys, monkeypatch):
    folder, plain = tmp_path / "run", generator_loop.errors
    calls = []

    def loss(*arguments):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGTERM)
        return plain(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(generator_loop, "errors", loss)
        assert train.main(words(folder, **OPTIONS)) == 128 + signal.SIGTERM
    assert "stopped after step 2, saved" in capsys.readouterr().out
    assert (folder / "generator" / "state.pt").is_file() and not (folder / "generator.pt").exists()
    assert train.main(["--resume", "--out", str(folder)]) == 0
    assert [r["step"] for r in read_metrics(folder / "generator" / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    assert_same_outcome(folder, whole)


def test_a_first_phase_that_is_there_is_loaded_and_not_announced(whole, tmp_path, capsys):
    for name in ("teacher.pt", generator_loop.GENERATOR):
        shutil.copyfile(whole / name, tmp_path / name)
    assert train.main(words(tmp_path, **OPTIONS)) == 0
    said = capsys.readouterr().err
    assert f"E_s and G: loaded from {tmp_path / 'generator.pt'}" in said
    assert "to be trained: all networks together" in said
    assert_same_outcome(tmp_path, whole)


def test_a_loss_that_is_not_finite_is_named(tmp_path, capsys, monkeypatch):
    bad = torch.full((2,), math.nan, requires_grad=True)
    monkeypatch.setattr(generator_loop, "errors", lambda *a: generator_loop.Errors(bad, bad, None))
    assert train.main(words(tmp_path / "run", **OPTIONS)) == 1
    err = capsys.readouterr().err.splitlines()
    assert err[-1].endswith("squared is nan at step 1 of E_s and G alone; lower --generator-lr (now 0.001)")


def test_copies_of_weights_give_the_numbers_of_autocast(tmp_path, monkeypatch):
    class Autocast:
        """No copies: each layer's weight is cast where it is taken."""

        def __init__(self, *args, **options):
            pass

        def in_place(self):
            return contextlib.nullcontext()

        def refresh(self):
            pass

    # its op takes weights in float32 and adds up the gradients of their two uses there: on CPUs that do not multiply bf16
    monkeypatch.setattr(sys.modules["dgnet_fast.ops.conv3x3"], "_FILTERED", (torch.float32,))
    found = []
    for name in ("copies", "autocast"):
        if name == "autocast":
            monkeypatch.setattr(generator_loop, "WeightCopies", Autocast)
        assert train.main([*words(tmp_path / name, **OPTIONS, amp="bf16"), "--max-steps", "1"]) == 0
        found.append(load_file(tmp_path / name / "generator.pt"))
    for network in generator_loop.TRAINED:
        for key, value in found[0][network].items():
            torch.testing.assert_close(value, found[1][network][key], msg=f"{network} {key}")


def test_another_networks_file_is_refused(whole, tmp_path):
    model = tiny_model(tiny_config(gen__mlp_dim=8))
    networks = {name: getattr(model, name) for name in generator_loop.TRAINED}
    with pytest.raises(
        ValueError, match="does not fit the options: .*mlp|does not fit the options: .*weights"
    ):
        generator_loop._load(networks, load_file(whole / "generator.pt"), whole / "generator.pt")
    with pytest.raises(ValueError, match="is not what E_s and G alone leave"):
        generator_loop._load(networks, {"format": "other"}, whole / "generator.pt")
