"""Checkpoints from each form into each other: the same tensors, the same pictures, nothing overwritten."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from dgnet_fast import convert
from dgnet_fast.checkpoints.fingerprint import fingerprint, model_state
from dgnet_fast.checkpoints.loading import load_for_use, load_generator
from dgnet_fast.checkpoints.runs import read_run
from dgnet_fast.checkpoints.safetensors import load_safetensors, save_safetensors
from dgnet_fast.training.run import run_training
from tests.tiny_run import STEP, fails, tiny_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("convert") / "run")


def into(kind, source, out):
    assert convert.main([str(source), "--to", kind, "--out", str(out)]) == 0
    return out


def test_around_through_every_form(run, tmp_path, capsys):
    model, path = run
    public = into("public", path, tmp_path / "public")
    assert sorted(p.name for p in public.iterdir()) == [
        "config.yaml",
        f"dis_{STEP:08d}.pt",
        f"gen_{STEP:08d}.pt",
        f"id_{STEP:08d}.pt",
    ]
    file = into("safetensors", public / f"id_{STEP:08d}.pt", tmp_path / "new" / "m.safetensors")
    again = into("run", file, tmp_path / "again")
    out = capsys.readouterr().out
    assert out.count(f"read back equal; weights {fingerprint(model)}") == 3
    for source in (public, file, again):
        found, known = load_for_use(source)
        assert known["step"] == STEP
        assert found.config == model.config
        theirs = model_state(found)
        assert theirs.keys() == model_state(model).keys()
        assert all(value.equal(theirs[name]) for name, value in model_state(model).items())


def test_safetensors_holds_plain_tensors_and_the_class_names(run, tmp_path):
    model, path = run
    file = into("safetensors", path, tmp_path / "m.safetensors")
    plain = load_file(file)
    assert plain["decoder.to_rgb.conv.weight"].equal(model.decoder.to_rgb.conv.weight)
    assert load_safetensors(file)[1]["class_names"] == ["1", "2", "3", "4", "5"]


def test_a_converted_run_resumes(run, tmp_path):
    file = into("safetensors", run[1], tmp_path / "m.safetensors")
    folder = into("run", file, tmp_path / "run")
    config = run[0].config.replace(snapshot_save_iter=100, image_display_iter=100, image_save_iter=100)
    assert run_training(config, folder, resume=True, max_steps=STEP + 1)["step"] == STEP + 1
    trained = read_run(folder / "checkpoints" / f"step_{STEP + 1:08d}.pt")
    assert trained["step"] == STEP + 1
    before = model_state(run[0])["decoder.to_rgb.conv.weight"]
    assert not trained["model"]["decoder.to_rgb.conv.weight"].equal(before)


def test_the_fingerprint_is_of_what_generates(run, tmp_path):
    model = tiny_run(tmp_path / "same")[0]
    assert fingerprint(model) == fingerprint(run[0]) and len(fingerprint(model)) == 16
    with torch.no_grad():
        model.discriminator.scales[0].to_score.bias += 1
    assert fingerprint(model) == fingerprint(run[0])
    with torch.no_grad():
        model.decoder.to_rgb.conv.bias[0] += 1e-6
    assert fingerprint(model) != fingerprint(run[0])


def test_a_set_without_generator_or_discriminator(run, tmp_path, capsys):
    public = into("public", run[1], tmp_path / "public")
    (public / f"dis_{STEP:08d}.pt").unlink()
    capsys.readouterr()
    into("run", public, tmp_path / "run")
    assert "no dis_*.pt in the source: D is written with its fresh weights" in capsys.readouterr().err
    (public / f"gen_{STEP:08d}.pt").unlink()
    words = [public, "--to", "run", "--out", tmp_path / "other"]
    assert "has no gen_*.pt beside it" in fails(capsys, convert.main, words)
    assert not (tmp_path / "other").exists()
    with pytest.raises(ValueError, match="no gen_"):
        load_generator(public)


def test_mistakes_are_one_line(run, tmp_path, capsys):
    def line(*words):
        return fails(capsys, convert.main, words)

    assert "no such checkpoint: nowhere" in line("nowhere", "--to", "run", "--out", tmp_path / "a")
    assert "allowed with --to safetensors" in line(run[1], "--to", "safetensors", "--out", tmp_path / "a.pt")
    file = tmp_path / "mine.safetensors"
    file.write_bytes(b"mine")
    assert "exists already" in line(run[1], "--to", "safetensors", "--out", file)
    assert file.read_bytes() == b"mine"
    assert "exists already" in line(run[1], "--to", "public", "--out", run[1])
    assert "not a readable safetensors file" in line(file, "--to", "run", "--out", tmp_path / "a")
    save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors")
    assert "of format None" in line(tmp_path / "x.safetensors", "--to", "run", "--out", tmp_path / "a")
    assert "invalid choice" in fails(capsys, convert.main, [run[1], "--to", "onnx", "--out", "a"], status=2)


def test_a_file_that_misses_a_tensor(run, tmp_path):
    file = save_safetensors(run[0], {"step": 1, "class_names": None}, tmp_path / "m.safetensors")
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    state = load_file(file)
    del state["decoder.to_rgb.conv.bias"]
    save_file(state, file, metadata)
    with pytest.raises(ValueError, match="m.safetensors is damaged"):
        load_safetensors(file)
