"""Faults of the commands around UNIT: `unit`, `translate` and `transfer` keep the promises of docs/reliability.md too. The
id of each test is its row there.
"""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch

from dgnet_fast import transfer, translate, unit
from dgnet_fast.checkpoints.files import load_file, save_atomically
from dgnet_fast.checkpoints.unit import load_unit
from dgnet_fast.config.unit import UnitConfig
from dgnet_fast.report.files import locked, read_checked, write_checked
from dgnet_fast.translation.folder import manifest_lines, read_description
from dgnet_fast.translation.sets import Row, read_translated
from dgnet_fast.translation.step import UnitStep
from dgnet_fast.translation.transfer import read_cells
from tests.tiny_run import draw_people, fails

TINY = """
    --gen.dim 4 --gen.n-res 1 --gen.n-downsample 1 --dis.dim 4 --dis.n-layer 2 --crop-image-height 32 --crop-image-width 16
    --batch-size 2 --device cpu --data-cache off --num-workers 1 --max-iter 4 --snapshot-save-iter 2 --image-display-iter 4
    --display-size 2 --log-iter 1
""".split()


def files_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run between two folders that were named relative to the working folder, stopped after two steps."""
    base = tmp_path_factory.mktemp("unit")
    for name in ("one", "two"):
        draw_people(base / name, 2, 3)
    before = os.getcwd()
    os.chdir(base)
    try:
        words = [*TINY, "-q", "--a", "one", "--b", "two", "--out", str(base / "run"), "--max-steps", "2"]
        assert unit.main(words) == 0
    finally:
        os.chdir(before)
    return base


@pytest.fixture
def again(stopped, tmp_path):
    return shutil.copytree(stopped / "run", tmp_path / "run")


@pytest.mark.parametrize(
    "more, problem",
    [
        (["--batch-size", "99"], "batch_size is 99; allowed: at most 6"),
        (["--gen.dim", "8"], "does not fit the options: size mismatch for encoders.0"),
        (["--vgg-w", "1", "--vgg-weights", "gone.pth"], "gone.pth"),
        (["--gen.dim", "1000000000"], "gen.dim is 1000000000; allowed: at most 1024"),
        (["--gen.dim", "1024", "--gen.n-downsample", "2", "--gen.n-res", "64"], "networks of at least"),
    ],
)
def test_a_resume_of_unit_that_fails_changes_nothing(again, more, problem, capsys):
    before = files_of(again)
    assert problem in fails(capsys, unit.main, ["-q", "--resume", "--out", again, *more])
    assert files_of(again) == before


def test_1_options_of_unit_are_compared_on_resume(again, capsys):
    file = again / "config.yaml"
    text = file.read_text()
    file.write_text(text.replace("lr: 0.0001", "lr: 0.0003"))
    resume = ["-q", "--resume", "--out", again]
    assert "config.yaml is damaged, or was changed by hand" in fails(capsys, unit.main, resume)
    file.write_text("\n".join(text.replace("lr: 0.0001", "lr: 0.0003").splitlines()[:-1]) + "\n")
    assert "lr is 0.0003 in config.yaml, and" in fails(capsys, unit.main, resume)
    file.write_text("")
    assert "config.yaml" in fails(capsys, unit.main, resume)
    file.write_text(text)
    assert unit.main([*map(str, resume), "--lr", "0.0003", "--max-steps", "3"]) == 0
    assert "lr: 0.0003" in file.read_text()


def test_l_paths_of_unit_are_absolute_and_a_moved_source_is_named(
    again, stopped, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert unit.main(["-q", "--resume", "--out", str(again), "--max-steps", "3"]) == 0
    capsys.readouterr()
    (stopped / "one").rename(stopped / "moved")
    try:
        said = fails(capsys, unit.main, ["-q", "--resume", "--out", again])
        assert f"no such picture, folder or data set: '{stopped / 'one'}'" in said
    finally:
        (stopped / "moved").rename(stopped / "one")


def test_6_two_in_the_folder_of_unit_are_refused(again, tmp_path, capsys):
    said = f"is in use by process {os.getpid()}"
    with locked(again):
        assert said in fails(capsys, unit.main, ["-q", "--resume", "--out", again])
    with locked(tmp_path / "set"):
        words = ["-q", again, again.parent / "x", "--out", tmp_path / "set"]
        draw_people(tmp_path / "x", 1, 2)
        assert said in fails(capsys, translate.main, words)


def test_11_a_signal_to_unit_is_told_by_the_status(again, monkeypatch):
    step = UnitStep.__call__

    def call(self, *args):
        os.kill(os.getpid(), 15)
        return step(self, *args)

    monkeypatch.setattr(UnitStep, "__call__", call)
    assert unit.main(["-q", "--resume", "--out", str(again)]) == 128 + 15
    assert load_unit(again)[1]["step"] == 3


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"step": "7"}, "step is '7'; expected a whole number"),
        ({"config": None}, "config is None; expected a mapping"),
        ({"config": {"gen": {"dim": 10**6}}}, "gen.dim is 1000000; allowed"),
        ({"config": {"gen": {"dim": 512}}}, "networks of at least"),
        ({"model": 3}, "model is 3; expected tensors by name"),
        ({"model": {"x": torch.zeros(10_000)}}, "does not fit the options"),
        ({"optimisers": []}, "optimisers is []; expected a mapping"),
        ({"optimisers": {}}, "optimisers: gen is None; expected the state of an optimiser"),
    ],
)
def test_7_entries_of_a_checkpoint_of_unit_are_compared(again, change, problem, capsys):
    newest = again / "checkpoints" / "step_00000002.pt"
    content = load_file(newest)
    config = content["config"] | change.pop("config") if isinstance(change.get("config"), dict) else None
    save_atomically(content | change | ({"config": config} if config else {}), newest)
    before = files_of(again)
    assert problem in fails(capsys, unit.main, ["-q", "--resume", "--out", again])
    assert files_of(again) == before


def test_j_weights_of_unit_that_are_not_finite(again, capsys):
    newest = again / "checkpoints" / "step_00000002.pt"
    content = load_file(newest)
    next(iter(content["model"].values())).fill_(float("nan"))
    save_atomically(content, newest)
    said = fails(capsys, translate.main, ["-q", again, "x", "--out", again.parent / "set"])
    assert f"{newest} holds weights that are not finite" in said


@pytest.fixture(scope="module")
def translated(stopped):
    out = stopped / "set"
    words = [stopped / "run", stopped / "one", "--out", out, "--device", "cpu", "-q", "--batch", "4"]
    assert translate.main([*map(str, words)]) == 0
    return out, words


def test_9_a_translated_set_keeps_its_batch_and_4_is_continued(translated, tmp_path):
    out, words = translated
    copy = shutil.copytree(out, tmp_path / "set")
    listed = manifest_lines(copy, Row._fields)
    (copy / listed[1][0]).unlink()
    (copy / "dataset.csv").unlink()
    text = (copy / "manifest.csv").read_text()
    (copy / "manifest.csv").write_text(text[: text.rfind("\n", 0, -2) + 9])  # killed within the last line
    again = [copy if word == out else 3 if word == "4" else word for word in words]
    assert translate.main([*map(str, again)]) == 0
    ours, theirs = files_of(copy), files_of(out)
    assert {k: v for k, v in ours.items() if k != "manifest.csv"} == {
        k: v for k, v in theirs.items() if k != "manifest.csv"
    }
    assert read_description(copy)["batch"] == 4 and sorted(manifest_lines(copy, Row._fields)) == sorted(
        listed
    )


def test_2_a_flipped_bit_in_a_translated_set(translated, tmp_path, capsys):
    out, words = translated
    copy = shutil.copytree(out, tmp_path / "set")
    data = (copy / "set.json").read_bytes()
    for at in range(0, 8 * len(data), 37):
        changed = bytearray(data)
        changed[at // 8] ^= 1 << at % 8
        (copy / "set.json").write_bytes(changed)
        with pytest.raises(ValueError, match=r"set\.json"):
            read_translated(copy)
    (copy / "set.json").write_bytes(data)
    lines = (copy / "manifest.csv").read_text().splitlines()
    (copy / "manifest.csv").write_text(
        "\n".join([lines[0], *lines[2:], lines[1].replace("one", "two")]) + "\n"
    )
    again = [copy if word == out else word for word in words]
    assert "manifest.csv is damaged: it says" in fails(capsys, translate.main, again)


@pytest.mark.parametrize(
    "line", ["x,y", ",,,,,,,", "a,b,1e3,0,train,a,b,c", '"' + "a" * 140_000, "a,b,\x00,0,train,a,b,c"]
)
def test_7_a_hostile_manifest_of_a_translated_set(translated, tmp_path, line):
    copy = shutil.copytree(translated[0], tmp_path / "set")
    with open(copy / "manifest.csv", "a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=r"manifest\.csv, line \d+"):
        read_translated(copy)


def test_7_scores_of_a_comparison_are_compared(tmp_path):
    file = tmp_path / "cells.json"
    whole = {"what": {}, "cells": {"x": {"0": {"Rank-1": 1.0, "Rank-5": 1.0, "Rank-10": 1.0, "mAP": 2.0}}}}
    write_checked(file, whole)
    assert read_cells(file) == whole
    data = bytearray(file.read_bytes())
    data[data.index(b"2.0")] = ord("7")
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"cells\.json is damaged: its checksum"):
        read_cells(file)
    for bad in ("", "[", "[]", "{}", "null", "[" * 100_000, json.dumps(whole | {"cells": {"x": {"0": 3}}}),
                json.dumps(whole | {"cells": []}), json.dumps(whole | {"cells": {"x": {"0": {"mAP": 1}}}})):  # fmt: skip
        file.write_text(bad)
        with pytest.raises(ValueError, match=r"cells\.json is damaged"):
            read_cells(file)
    file.write_text(json.dumps(whole))  # of a version without checksums
    assert read_checked(file, ("what", "cells"), "") == whole


def test_c_transfer_asks_first(translated, tmp_path, capsys):
    """What would fail after the baselines were trained is said before."""
    common = ["-q", "--from-data", "synthetic", "--to-data", "synthetic", "--translated", translated[0]]
    out = tmp_path / "out"
    said = fails(
        capsys,
        transfer.main,
        [*common, "--out", out, "--json", tmp_path / "gone" / "x" / "y.json", "--unit", "nowhere"],
    )
    assert "nowhere" in said and not out.exists()
    (tmp_path / "file").write_text("")
    said = fails(capsys, transfer.main, [*common, "--out", tmp_path / "file"])
    assert "file" in said


def test_7_options_of_unit_have_bounds():
    """Each whole number has an upper bound, or is a number of steps or of files."""
    from dgnet_fast.config import walk

    free = {"max_iter", "step_size", "max_bad_steps", "log_iter", "image_display_iter", "image_save_iter", "snapshot_save_iter",
            "keep_checkpoints"}  # fmt: skip
    for name, spec, owner in walk(UnitConfig()):
        value = getattr(owner, spec.name)
        if type(value) is int and not name.startswith("new_size") and spec.metadata["choices"] is None:
            assert name in free or spec.metadata["high"] is not None, name
