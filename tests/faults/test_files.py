"""Faults of files: damaged, cut, hostile, locked, without room; the id of each test is its row in docs/reliability.md."""

from __future__ import annotations

import errno
import os
import re
import resource
import subprocess
import sys

import pytest
import torch

from dgnet_fast.checkpoints.files import load_file, save_atomically
from dgnet_fast.checkpoints.loading import load_encoder, load_for_use
from dgnet_fast.checkpoints.runs import latest_checkpoint, saved_options, write_options
from dgnet_fast.checkpoints.safetensors import save_safetensors
from dgnet_fast.checkpoints.teachers import save_teachers
from dgnet_fast.config import ConfigError, load_config
from dgnet_fast.config.places import with_absolute_paths
from dgnet_fast.models.appearance_encoder import build_teacher
from dgnet_fast.models.dgnet import DGNet
from dgnet_fast.models.size import least_weights
from dgnet_fast.report.files import (
    InUse,
    atomic_folder,
    atomically,
    check_writable,
    locked,
    write_bytes,
    write_new,
    write_text,
)
from dgnet_fast.training.optim import Optimisers, Precision
from tests.tiny import tiny_config, tiny_model
from tests.tiny_run import tiny_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("run") / "run")


def content_of(run):
    return load_file(latest_checkpoint(run[1]))


# 2: checksums


@pytest.mark.parametrize("place", [0, 40, 1000, -3000, -40, -30, -26, -20, -9, -1])
def test_2_a_flipped_bit_is_refused(tmp_path, place):
    path = tmp_path / "x.pt"
    save_atomically({"x": torch.arange(3000.0)}, path)
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)
    with pytest.raises(ValueError, match="x.pt is not a readable checkpoint"):
        load_file(path)


def test_2_files_of_others_are_compared_with_the_zips_own_checksums(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"x": torch.arange(3000.0)}, path)
    assert load_file(path)["x"][7] == 7
    data = bytearray(path.read_bytes())
    data[data.index(torch.arange(3000.0).numpy().tobytes()[400:500])] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="damaged: the checksum of its entry"):
        load_file(path)


def test_10_safetensors_have_the_same_bytes(run, tmp_path):
    model, known = load_for_use(run[1])
    files = [save_safetensors(model, known, tmp_path / f"{k}.safetensors").read_bytes() for k in range(2)]
    assert files[0] == files[1]
    data = bytearray(files[0])
    data[-7] ^= 1  # in D, which no fingerprint covers
    (tmp_path / "bad.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match="bad.safetensors is damaged"):
        load_for_use(tmp_path / "bad.safetensors")


# K, R, H: by content


@pytest.mark.parametrize("name", ["best.pt", "step_00000007 (1).pt", "model_final.pth", "renamed.bin"])
def test_k_files_are_known_by_their_content(run, tmp_path, name):
    model, known = load_for_use(run[1])
    if name.endswith("bin"):
        save_safetensors(model, known, tmp_path / "a.safetensors").rename(tmp_path / name)
    else:
        (tmp_path / name).write_bytes(latest_checkpoint(run[1]).read_bytes())
    assert load_for_use(tmp_path / name)[1]["step"] == 7


@pytest.mark.parametrize("place", ["", "teacher.pt", "net_last.pth"])
def test_r_a_teacher_gives_features(tmp_path, place):
    from dgnet_fast.checkpoints.teachers import export_public_teacher

    config = tiny_config()
    wanted = build_teacher(config, 2)
    if place != "net_last.pth":
        save_teachers(tmp_path / "teacher.pt", [wanted], [2], list("abcde"), config)
    export_public_teacher(wanted, tmp_path / "net_last.pth")
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    encoder, options, known = load_encoder(tmp_path / place)
    for name, value in wanted.state_dict().items():
        assert torch.equal(encoder.state_dict()[name], value)
    assert options.picture_size == config.picture_size and known["step"] == config.teacher_steps
    with pytest.raises(
        ValueError, match="is a teacher, which makes features and no pictures|holds no checkpoint"
    ):
        load_for_use(tmp_path / place)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "content", [b"<!DOCTYPE html>", b"", b"hello", b"PK\3\4" + b"x" * 50, b"\x80\4\x95.", b"\x80\2.", None]
)
def test_h_what_is_no_weight_file_is_said_in_our_words(tmp_path, content):
    path = tmp_path / "w.pth"
    if content is not None:
        path.write_bytes(content)
    else:
        torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(ValueError, match="w.pth is not a readable weight file") as caught:
        load_file(path, "weight file")
    assert "weights_only" not in str(caught.value) and "\x1b" not in str(caught.value)
    assert re.search("(tensors|damaged|empty)[^:]*$", str(caught.value))


# 7: entries


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"step": "7"}, "step is '7'; expected a whole number"),
        ({"step": -1}, "step is -1; expected a whole number"),
        ({"class_names": 5}, "class_names is 5; expected a list of texts"),
        ({"config": []}, r"config is \[\]; expected a mapping"),
        ({"config": {"gen": {"dim": 10**9}}}, "pt: gen.dim is 1000000000; allowed: at most"),
        ({"config": {"gen": {"n_res": 10**6}}}, "pt: gen.n_res is 1000000; allowed: at most"),
        ({"config": {"synthetic_ids": 10**9}}, "pt: synthetic_ids is 1000000000; allowed"),
        ({"config": {"ID_class": 5}}, "describe networks of at least .* weights, and .*pt holds"),
        ({"model": None}, "model is None; expected tensors by name"),
        ({"model": {"x": torch.zeros(1).expand(10**9)}}, "'x' has 1000000000 numbers, and the file fewer"),
        ({"average": {"x": "y"}}, "average holds 'x': a str; expected a tensor"),
        ({"optimisers": [1]}, r"optimisers is \[1\]; expected a mapping"),
    ],
)
def test_7_entries_of_a_checkpoint_are_compared_before_anything_is_built(run, tmp_path, change, problem):
    path = tmp_path / "step_00000007.pt"
    torch.save(content_of(run) | change, path)
    with pytest.raises(ValueError, match=problem) as caught:
        load_for_use(path)
    assert "step_00000007.pt" in str(caught.value) and len(str(caught.value)) < 800


@pytest.mark.parametrize("name", ["config", "step", "class_names", "model"])
def test_7_a_missing_entry_of_a_checkpoint_is_named(run, tmp_path, name):
    content = content_of(run)
    del content[name]
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=f"x.pt: {name} is (missing|None); expected"):
        load_for_use(tmp_path / "x.pt")


@pytest.mark.parametrize(
    "spoil, problem",
    [
        (lambda s: s.pop("gen"), "optimisers: gen is None; expected the state of an optimiser"),
        (lambda s: s["id"].update(param_groups=[]), r"id: param_groups is \[\]; expected a list"),
        (lambda s: s["gen"]["state"][0].update(exp_avg=torch.zeros(1)), "gen: 'exp_avg' of parameter 0"),
        (lambda s: s["dis"]["state"].update({10**6: {}}), "dis: 1000000 is no parameter"),
        (lambda s: s["dis"]["param_groups"][0].update(betas="x"), "dis: betas is 'x'; expected such as"),
    ],
)
def test_7_states_of_optimisers_are_compared(spoil, problem):
    model = tiny_model(tiny_config())
    optimisers = Optimisers(model, model.config)
    optimisers.create_state()
    state = optimisers.state_dict()
    spoil(state)
    with pytest.raises(ValueError, match=problem):
        Optimisers(model, model.config).check(state, "x.pt")
    with pytest.raises(ValueError, match="x.pt: precision: gen is .*; expected scale"):
        Precision(None, torch.device("cpu")).check({"gen": {"scale": "big"}}, "x.pt")


@pytest.mark.parametrize("changes", [{}, {"ID_style": "PCB"}, {"dis__gan_type": "wgan"}, {"dis__n_res": 0}])
def test_7_the_least_number_of_weights_is_a_lower_bound(changes):
    config = tiny_config(**changes)
    count = sum(p.numel() for p in DGNet(config).parameters())
    assert 0.05 * count < least_weights(config) <= count


# 7, I: YAML


@pytest.mark.parametrize(
    "text, problem",
    [
        ("", "is empty"),
        ("a: &a [1]\nb: *a\n", "line 2, column 4: not valid YAML here: an alias"),
        ("lr_g: 1\nlr_d: 2\nlr_g: 3\n", "line 3, column 1: .*lr_g is also given in line 1"),
        ("[" * 1000, "line 1, column .*levels of nesting"),
        ("batch_size: !!python/object/apply:os.system [ls]", "line 1, column 13"),
        ("seed: !!timestamp 2001-99-99", "not valid YAML"),
        ("lr_g: 1e-4\n  x: [", "line 2, column"),
        ("seed: " + "9" * 6000, "not valid YAML|seed is"),
        ("batch_size: " + "[" * 10 + "]" * 10, "batch_size is .*allowed: a whole number"),
        ("\xff", "unknown option|is no text|holds a str"),
    ],
)
def test_7_yaml_of_any_kind_is_one_short_line_with_its_place(tmp_path, text, problem):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=problem) as caught:
        load_config(path)
    assert len(str(caught.value)) < 400 + len(str(path)) and "\n" not in str(caught.value)


# 1: config.yaml


def test_1_a_damaged_config_is_refused(tmp_path):
    write_options(tmp_path, tiny_config(lr_g=1e-3))
    path = tmp_path / "config.yaml"
    whole = path.read_text()
    assert saved_options(tmp_path)["lr_g"] == 1e-3
    for text, problem in [
        (whole.replace("0.001", "0.009"), "is damaged, or was changed by hand"),
        ("".join(whole.splitlines(keepends=True)[:30]), "is not whole, or of another version: it lacks"),
        ("", "is empty"),
    ]:
        path.write_text(text)
        with pytest.raises(ConfigError, match=problem):
            saved_options(tmp_path)
    path.write_text("".join(whole.splitlines(keepends=True)[:-1]).replace("0.001", "0.002"))  # by hand
    assert saved_options(tmp_path)["lr_g"] == 2e-3


def test_l_paths_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/data/x")
    (tmp_path / "models" / "best").mkdir(parents=True)
    config = with_absolute_paths(
        tiny_config(
            data="folder+csv",
            data_root="a, ~/b.csv",
            teacher="best,auto2",
            pretrained="w.pth",
            data_cache="c",
        )
    )
    assert config.data_root == f"{tmp_path}/a,/data/x/b.csv" and config.pretrained == f"{tmp_path}/w.pth"
    assert config.teacher == f"{tmp_path}/models/best,auto2" and config.data_cache == f"{tmp_path}/c"


# 3, 6, 10, O: room, locks, leftovers


@pytest.mark.parametrize(
    "write", [lambda p: save_atomically(torch.zeros(9999), p), lambda p: write_text(p, "x" * 9999)]
)
def test_3_no_room_names_the_file_and_keeps_the_old_one(tmp_path, write):
    path = tmp_path / "x.pt"
    path.write_text("old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError) as caught:
            write(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["x.pt"]


def test_3_a_full_disk_behind_another_error_is_found(tmp_path):
    for error in (
        RuntimeError("write: No space left on device (os error 28)"),
        RuntimeError("unexpected pos 64 vs 0"),
    ):
        with pytest.raises(OSError) as caught, atomically(tmp_path / "x"):
            try:
                raise OSError(errno.ENOSPC, "No space left on device")
            except OSError:
                raise error  # noqa: B904 - as torch.save does
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "x"))


LOCKED = """
import sys
from dgnet_fast.report.files import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_6_a_lock_names_who_holds_it_and_ends_with_the_process(tmp_path):
    other = subprocess.Popen(
        [sys.executable, "-c", LOCKED, str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout.readline() == "held\n"
    with (
        pytest.raises(InUse, match=f"run is in use by process {other.pid} on .* since .*-c"),
        locked(tmp_path / "run"),
    ):
        pass
    other.kill()
    other.wait()
    with locked(tmp_path / "run"), locked(tmp_path / "a" / "b"):
        assert (tmp_path / "run" / ".lock").exists() and (tmp_path / "a" / "b" / ".lock").exists()
    assert os.listdir(tmp_path / "run") == []
    assert not (tmp_path / "a").exists()  # it was made for the lock, and nothing is in it


def test_10_what_killed_processes_left_is_removed(tmp_path):
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom dgnet_fast.report.files import atomically, atomic_folder\n"
        "p = Path(sys.argv[1])\n"
        "with atomically(p / 'a.txt') as t, atomic_folder(p / 'b') as f:\n"
        "    t.write_text('x'); (f / 'y').write_text('z'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert len(os.listdir(tmp_path)) == 2
    with atomic_folder(tmp_path / "b") as folder:
        (folder / "y").write_text("whole")
    assert os.listdir(tmp_path) == ["b"]
    with pytest.raises(OSError), atomic_folder(tmp_path / "b") as folder:
        (folder / "y").write_text("other")
    assert (tmp_path / "b" / "y").read_text() == "whole"
    write_new(tmp_path / "c", b"1")
    with pytest.raises(FileExistsError):
        write_new(tmp_path / "c", b"2")
    assert (tmp_path / "c").read_bytes() == b"1" and sorted(os.listdir(tmp_path)) == ["b", "c"]


def test_6_devices_and_pipes_are_never_replaced_and_links_stay(tmp_path):
    """An account that may write in /dev must not make a file of /dev/null with --json."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "to_pipe").symlink_to("pipe")
    for name in ("pipe", "to_pipe"):
        for write in (check_writable, lambda path: write_bytes(path, b"x")):
            with pytest.raises(OSError, match="it is a device or a pipe; allowed: the name of a file"):
                write(tmp_path / name)
    write_bytes(tmp_path / "link", b"one")
    write_bytes(tmp_path / "link", b"two")
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"two" and len(os.listdir(tmp_path)) == 4
