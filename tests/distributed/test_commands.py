"""Commands in two processes give what they give in one, and go on from what one left."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dgnet_fast import evaluate, extract, generate, quality
from dgnet_fast.distributed.launch import launched
from dgnet_fast.retrieval.extractor import Extractor
from tests.distributed.launching import environment, finish, start
from tests.tiny_run import draw_people, fails, tiny_run

OPTIONS = ["--device", "cpu", "--batch", "5"]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A run, pictures, and what each command writes: by one process in ``one``, by two in ``two``."""
    folder = tmp_path_factory.mktemp("together")
    _, run = tiny_run(folder / "run")
    draw_people(folder / "people")
    for name in ("one", "two"):
        (folder / name).mkdir()
    return folder


def words(places, out):
    run, to = str(places / "run"), places / out
    return [
        ["extract", str(places / "people"), "--checkpoint", run, "--out", str(to / "features.npz"), *OPTIONS],
        ["evaluate", run, "--json", str(to / "scores.json"), *OPTIONS],
        ["generate", "set", run, "--source", "synthetic:gallery", "--count", "9", "--out", str(to / "set"), "--device", "cpu",
         "--batch", "2"],
        ["quality", str(to / "set"), "--real", "synthetic:gallery", "--checkpoint", run, "--pairs", "40",
         "--json", str(to / "quality.json"), *OPTIONS],
    ]  # fmt: skip


class Killed(BaseException):
    pass


def interrupted(monkeypatch, owner, name, calls, command, arguments):
    """Run a command that is killed at a call of ``owner.name``."""
    plain, seen = getattr(owner, name), []

    def dying(*args, **kwargs):
        seen.append(1)
        if len(seen) == calls:
            raise Killed
        return plain(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, dying)
        with pytest.raises(Killed):
            command.main(arguments)


@pytest.mark.thorough
def test_two_processes_go_on_where_one_was_killed_and_give_what_one_gives(places, monkeypatch, capfd):
    one, two = places / "one", places / "two"
    for name, *rest in words(places, "one"):
        assert {"extract": extract, "evaluate": evaluate, "generate": generate, "quality": quality}[
            name
        ].main(rest) == 0
    extracting, _, generating, _ = words(places, "two")
    interrupted(monkeypatch, Extractor, "rows", 2, extract, extracting[1:])
    assert len(list((two / "features.npz.parts").glob("*.npy"))) == 1
    from dgnet_fast.generation.sets import GeneratedSet

    interrupted(monkeypatch, GeneratedSet, "write", 2, generate, generating[1:])
    assert len((two / "set" / "manifest.csv").read_text().splitlines()) == 3

    different = ["train", "--seed", "{rank}", "--device", "cpu", "--out", str(two / "run"), "--teacher", ""]
    (places / "words.json").write_text(json.dumps([*words(places, "two"), different]))
    ended = finish(start(["-m", "tests.distributed.commands", places / "words.json"]))
    assert [status for status, *_ in ended] == [1, 1], ended
    assert ended[1][1] == ""  # results are the first process's

    with np.load(one / "features.npz") as ours, np.load(two / "features.npz") as theirs:
        for name in ("features", "paths", "fingerprint"):
            assert np.array_equal(ours[name], theirs[name])
    assert not (two / "features.npz.parts").exists()
    assert (one / "scores.json").read_text() == (two / "scores.json").read_text()
    assert (one / "quality.json").read_text() == (two / "quality.json").read_text().replace("/two/", "/one/")
    files = sorted(p.relative_to(one) for p in (one / "set").rglob("*") if p.is_file())
    assert len(files) == 9 + 2
    for file in files:
        assert (one / file).read_bytes() == (two / file).read_bytes(), file

    lines = [line for _, _, error in ended for line in error.splitlines() if "option seed" in line]
    assert len(lines) == 1, ended
    assert "option seed is 1 in process 1 and 0 in process 0" in lines[0]
    assert not (two / "run").exists()


def test_another_extractions_parts_are_refused(places, tmp_path, monkeypatch, capsys):
    arguments = ["--checkpoint", str(places / "run"), "--out", str(tmp_path / "f.npz"), *OPTIONS]
    interrupted(monkeypatch, Extractor, "rows", 2, extract, [str(places / "people"), *arguments])
    capsys.readouterr()
    first = sorted((places / "people").iterdir())[0]
    line = fails(capsys, extract.main, [first, *arguments])
    assert "f.npz.parts holds the parts of another extraction" in line and "remove the folder" in line
    assert len(list((tmp_path / "f.npz.parts").glob("*.npy"))) == 1


def place_of(monkeypatch, **changes):
    for name, value in (environment(0, 2, 29999) | changes).items():
        if name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "DGNET_FAST_TIMEOUT"):
            monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    "changes, problem",
    [
        ({"RANK": "2"}, "RANK is 2; with WORLD_SIZE 2 allowed: 0 to 1"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE is 'many'; allowed: a whole number"),
        (
            {"DGNET_FAST_TIMEOUT": "soon"},
            "DGNET_FAST_TIMEOUT is 'soon'; allowed: a number of seconds above 0",
        ),
    ],
)
def test_a_launcher_that_says_nonsense(monkeypatch, changes, problem):
    place_of(monkeypatch, **changes)
    with pytest.raises(ValueError) as caught:
        launched()
    assert problem in str(caught.value)


def test_what_the_launcher_did_not_set_is_named(places, monkeypatch, capsys):
    place_of(monkeypatch)
    monkeypatch.delenv("MASTER_PORT")
    line = fails(capsys, evaluate.main, [places / "run"])
    assert "WORLD_SIZE is 2 and MASTER_PORT is not set; start the processes with torchrun" in line


def test_one_picture_is_not_for_several_processes(places, monkeypatch, capsys):
    from dgnet_fast import search

    place_of(monkeypatch)
    line = fails(capsys, search.main, ["--gallery", "x", "--checkpoint", "y", "--query", "z"])
    assert "torchrun started 2 processes, and this command runs in one" in line


def test_a_taken_port_is_one_line(places, monkeypatch, capsys):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        place_of(monkeypatch, MASTER_PORT=str(taken.getsockname()[1]), DGNET_FAST_TIMEOUT="5")
        line = fails(capsys, evaluate.main, [places / "run"])
    assert "the port of the first process is taken; set another MASTER_PORT" in line
