"""Two commands in one folder, in an order that is fixed: the second one runs at the worst moment of the first (row 6 of
docs/reliability.md); and what an interrupted one leaves.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest

from dgnet_fast import extract, generate, search, train, translate
from dgnet_fast.checkpoints import runs
from dgnet_fast.checkpoints.files import load_file, save_atomically
from dgnet_fast.checkpoints.loading import load_for_use
from dgnet_fast.checkpoints.runs import latest_checkpoint
from dgnet_fast.report.files import is_free, locked
from dgnet_fast.retrieval import index as index_module
from dgnet_fast.retrieval.extractor import Extractor
from dgnet_fast.retrieval.index import PictureIndex
from dgnet_fast.retrieval.parts import read_rows
from tests.tiny_run import draw_people, fails, tiny_run


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A run, and six pictures."""
    base = tmp_path_factory.mktemp("races")
    return tiny_run(base / "run")[1], draw_people(base / "people", people=2, shots=3)


def command(run, *words):
    return search.main([str(run), "-q", "--device", "cpu", *map(str, words)])


def before(monkeypatch, module, name, other):
    """Let ``other()`` run once, immediately before ``module.name`` is called the next time."""
    wanted, left = getattr(module, name), [other]

    def called(*args, **kwargs):
        if left:
            left.pop()()
        return wanted(*args, **kwargs)

    monkeypatch.setattr(module, name, called)


def listed(index, run):
    return [entry.path for entry in PictureIndex.open(index, Extractor(run)).entries]


def test_6_an_index_that_another_saved_meanwhile_stays(given, tmp_path, monkeypatch, capsys):
    pytest.importorskip("faiss")
    run, pictures = given
    index = tmp_path / "index"

    def other():
        assert command(run, "--gallery", *pictures[:3], "--save", index) == 0
        assert command(run, "--gallery", index, "--add", *pictures[3:]) == 0

    before(monkeypatch, search, "locked", other)
    said = fails(capsys, search.main, [run, "-q", "--gallery", *pictures[:3], "--save", index])
    assert f"--save {index} exists; give the name of a new folder" in said
    assert listed(index, run) == [str(p.resolve()) for p in pictures]


def test_6_two_first_saves(given, tmp_path, monkeypatch, capsys):
    pytest.importorskip("faiss")
    run, pictures = given
    index = tmp_path / "index"
    refused = []

    def other():
        refused.append(fails(capsys, search.main, [run, "-q", "--gallery", *pictures, "--save", index]))

    before(monkeypatch, search, "extractor_of", other)
    assert command(run, "--gallery", *pictures[:3], "--save", index) == 0
    assert f"{index} is in use by process {os.getpid()}" in refused[0]
    assert listed(index, run) == [str(p.resolve()) for p in pictures[:3]]


def test_6_an_index_is_read_while_pictures_are_added(given, tmp_path, monkeypatch):
    pytest.importorskip("faiss")
    run, pictures = given
    index = tmp_path / "index"
    assert command(run, "--gallery", *pictures[:3], "--save", index) == 0
    before(
        monkeypatch,
        index_module,
        "_exact",
        lambda: command(run, "--gallery", index, "--add", *pictures[3:]),
    )
    assert len(listed(index, run)) == 6


def test_10_a_first_save_that_was_interrupted_is_begun_again(given, tmp_path, monkeypatch, capsys):
    pytest.importorskip("faiss")
    run, pictures = given
    index = tmp_path / "index"

    def full(*_):
        raise OSError(28, "No space left on device", str(index / "index.json"))

    with monkeypatch.context() as patched:
        patched.setattr(index_module, "write_text", full)
        fails(capsys, search.main, [run, "-q", "--gallery", *pictures, "--save", index])
    (index / "lists-64.faiss").write_bytes(b"x")  # of a large gallery
    assert len(os.listdir(index)) == 2
    assert command(run, "--gallery", *pictures[:3], "--save", index) == 0
    assert len(listed(index, run)) == 3 and len(os.listdir(index)) == 2
    (index / "index.json").rename(index / "notes.txt")
    fails(capsys, search.main, [run, "-q", "--gallery", *pictures, "--save", index])
    assert len(os.listdir(index)) == 2


def test_6_a_run_is_read_while_it_is_trained(given, tmp_path, monkeypatch):
    run = shutil.copytree(given[0], tmp_path / "run")
    old = latest_checkpoint(run)

    def trained_on():
        save_atomically(load_file(old) | {"step": 8}, old.with_name("step_00000008.pt"))
        old.unlink()

    before(monkeypatch, runs, "load_file", trained_on)
    assert load_for_use(run)[1]["step"] == 8


def test_6_two_extractions_to_one_file(given, tmp_path, monkeypatch, capsys):
    run, pictures = given
    words = [str(run), *map(str, pictures), "-q", "--out", str(tmp_path / "f.npz")]
    refused = []
    with monkeypatch.context() as patched:
        before(patched, Extractor, "rows", lambda: refused.append(fails(capsys, extract.main, words)))
        assert extract.main(words) == 0
    assert f"f.npz.parts is in use by process {os.getpid()}" in refused[0]
    assert os.listdir(tmp_path) == ["f.npz"] and len(np.load(tmp_path / "f.npz")["features"]) == 6
    (tmp_path / "f.npz").unlink()
    before(monkeypatch, extract, "locked", lambda: (extract.main(words), capsys.readouterr()))
    assert "f.npz exists" in fails(capsys, extract.main, words)
    assert os.listdir(tmp_path) == ["f.npz"]


LOOP = """
import os, sys
from dgnet_fast.report.files import InUse, locked
held = 0
while held < 300:
    try:
        with locked(sys.argv[1]):
            held += 1
            with open(sys.argv[2], "x"):  # nobody else is here
                pass
            os.unlink(sys.argv[2])
    except InUse:
        pass
"""


def test_6_a_lock_whose_folder_comes_and_goes(tmp_path):
    """Each holder makes the folder and removes it, while two others try."""
    begun = [
        subprocess.Popen([sys.executable, "-c", LOOP, str(tmp_path / "run"), str(tmp_path / "alone")])
        for _ in range(3)
    ]
    assert [one.wait() for one in begun] == [0, 0, 0]
    assert os.listdir(tmp_path) in ([], ["run"])  # the folder stays where one held it that had not made it
    assert not (tmp_path / "run").exists() or os.listdir(tmp_path / "run") == []


def test_3_a_full_disk_at_the_lock_names_its_file(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match=r"No space left on device: .*run/\.lock"), locked(tmp_path / "run"):
        pass
    assert os.listdir(tmp_path) == []


def test_10_the_vectors_of_a_killed_addition_are_removed(given, tmp_path, monkeypatch):
    """Killed when the list of pictures was replaced, and the same pictures are added again: there is nothing to do."""
    pytest.importorskip("faiss")
    run, pictures = given
    index = tmp_path / "index"
    assert command(run, "--gallery", *pictures, "--save", index) == 0
    (index / "vectors-00000003-01a3997e.faiss").write_bytes(b"x")
    assert command(run, "--gallery", index, "--add", *pictures) == 0
    assert len(os.listdir(index)) == 2


def test_10_a_folder_that_only_has_the_name_of_parts_stays(given, tmp_path):
    pytest.importorskip("faiss")
    run, pictures = given
    (tmp_path / "index.parts").mkdir()
    (tmp_path / "index.parts" / "mine.txt").write_text("kept")
    assert command(run, "--gallery", *pictures, "--save", tmp_path / "index") == 0
    assert os.listdir(tmp_path / "index.parts") == ["mine.txt"]
    parts_of_another = tmp_path / "f.npz.parts"
    parts_of_another.mkdir()
    for name in ("parts.json", "part-000000000.npy", "mine.txt"):
        (parts_of_another / name).write_text("{}")
    words = [run, *pictures, "-q", "--overwrite", "--out", tmp_path / "f.npz"]
    assert extract.main([str(word) for word in words]) == 0
    assert os.listdir(parts_of_another) == ["mine.txt"]


def test_2_a_flipped_bit_in_a_part_of_an_extraction_is_computed_again(given, tmp_path, monkeypatch, caplog):
    run, pictures = given
    words = [str(run), *map(str, pictures), "--batch", "2", "-q", "--out"]
    assert extract.main([*words, str(tmp_path / "whole.npz")]) == 0

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(extract, "write_features", killed)
        assert extract.main([*words, str(tmp_path / "f.npz")]) == 130
    part = tmp_path / "f.npz.parts" / "part-000000002.npy"
    data = bytearray(part.read_bytes())
    data[-20] ^= 1
    part.write_bytes(data)
    with pytest.raises(ValueError, match="part-000000002.npy is damaged"):
        read_rows(part)
    assert extract.main([*words, str(tmp_path / "f.npz")]) == 0
    assert (tmp_path / "f.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_3_no_room_for_a_part_of_an_extraction(given, tmp_path, capsys):
    """NumPy says nothing when its last bytes do not fit."""
    run, pictures = given
    words = [run, *pictures, "-q", "--out", tmp_path / "f.npz"]
    before_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, before_limit[1]))
    try:
        said = fails(capsys, extract.main, words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before_limit)
    assert "part-000000000.npy: File too large" in said
    assert extract.main([str(word) for word in words]) == 0 and os.listdir(tmp_path) == ["f.npz"]


def test_6_a_lock_leaves_that_of_another_alone(tmp_path):
    folder = tmp_path / "parts"
    with locked(folder):
        for name in os.listdir(folder):
            (folder / name).unlink()
        folder.rmdir()
        with locked(folder):
            (folder / "x").touch()
        (folder / ".lock").write_text("")
        other = (folder / ".lock").stat()
    assert os.path.samestat((folder / ".lock").stat(), other)
    assert not is_free(folder) and is_free(folder, ("x",)) and is_free(tmp_path / "new")


def test_10_an_extraction_that_failed_at_once_does_not_block_its_folder(given, tmp_path, capsys):
    run, pictures = given
    (tmp_path / "bad.png").write_text("no picture")
    words = ["-q", "--out", tmp_path / "f.npz"]
    assert "bad.png" in fails(capsys, extract.main, [run, tmp_path / "bad.png", *words])
    assert extract.main([*map(str, [run, *pictures, *words])]) == 0
    assert sorted(os.listdir(tmp_path)) == ["bad.png", "f.npz"]


@pytest.mark.parametrize(
    "command, words, problem",
    [
        (train, ["--out", ""], "--out: it is empty; allowed: the name of a file or a folder"),
        (generate, ["interpolate", "RUN", "--first", "a", "--last", "b", "--fixed", "c", "--steps", 10**9, "--out", "x.png"],
         "--steps is 1000000000; allowed: at most 1000"),
        (generate, ["set", "RUN", "--source", "HERE", "--count", 1, "--out", "HERE/made"], "lies in"),
        (translate, ["RUN", "HERE", "--out", "HERE/made"], "lies in"),
    ],
)  # fmt: skip
def test_c_places_and_sizes_that_cannot_be_right(command, words, problem, given, tmp_path, capsys):
    words = [str(word).replace("RUN", str(given[0])).replace("HERE", str(tmp_path)) for word in words]
    said = fails(
        capsys,
        command.main,
        ["-q", *words] if command is not generate else [*words, "-q"],
        2 if "empty" in problem else 1,
    )
    assert problem in said and os.listdir(tmp_path) == []
