"""Commands in two processes give what they give in one, and go on from what one left."""

from __future__ import annotations

import itertools
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
        ["extract", run, str(places / "people"), "--out", str(to / "features.npz"), *OPTIONS],
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


def labelled_people(folder, shots):
    for file in draw_people(folder, 3, shots):
        (folder / file.name[:4]).mkdir(exist_ok=True)
        file.rename(folder / file.name[:4] / file.name)


def by_one(places, *commands):
    for name, *rest in commands:
        main = {"extract": extract, "evaluate": evaluate, "generate": generate, "quality": quality}[name].main
        assert main(rest) == 0


def by_two(places, commands, **more):
    """Those commands one after the other in two processes: [(status, standard output, standard error)] of each."""
    file = places / "words.json"
    file.write_text(json.dumps([list(map(str, one)) for one in commands]))
    return finish(start(["-m", "tests.distributed.commands", file], **more))


def lines_with(ended, text):
    """The lines of all processes with that text."""
    return [line for _, _, error in ended for line in error.splitlines() if text in line]


def same_files(places, folder):
    one, two = places / "one" / folder, places / "two" / folder
    files = sorted(p.relative_to(one) for p in one.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(two) for p in two.rglob("*") if p.is_file())
    for file in files:
        assert (one / file).read_bytes() == (two / file).read_bytes(), file
    return files


def test_two_processes_go_on_where_one_was_killed(places, monkeypatch, tmp_path):
    """And one picture is not too little for two; each mistake is one line and leaves nothing."""
    two = places / "two"
    extracting, _, generating, _ = words(places, "one")
    by_one(places, extracting, generating)
    extracting, _, generating, _ = words(places, "two")
    interrupted(monkeypatch, Extractor, "rows", 2, extract, extracting[1:])
    assert len(list((two / "features.npz.parts").glob("*.npy"))) == 1
    from dgnet_fast.generation.sets import GeneratedSet

    interrupted(monkeypatch, GeneratedSet, "write", 2, generate, generating[1:])
    assert len((two / "set" / "manifest.csv").read_text().splitlines()) == 3

    first = sorted((places / "people").iterdir())[0]
    for rank, part in itertools.product(range(2), ("train", "query", "gallery")):
        labelled_people(tmp_path / str(rank) / part, shots=3 + rank)
    training = [
        "--teacher",
        "",
        "--pretrained",
        "",
        "--baseline",
        "false",
        "--device",
        "cpu",
        "--out",
        two / "run",
    ]
    folder = [
        "--data",
        "folder",
        "--root",
        tmp_path / "{rank}",
        "--camera-pattern",
        r"c(\d+)",
        "--batch-size",
        "2",
    ]
    few = ["--synthetic-ids", "3", "--synthetic-views", "4", "--batch-size", "7"]
    other = tmp_path / "{rank}" / "query"
    ended = by_two(
        places,
        [
            extracting,
            generating,
            ["extract", places / "run", first, "--out", two / "single.npz", *OPTIONS],
            ["train", "--synthetic-ids", "4", "--batch-size", "2", "--seed", "{rank}", *training],
            ["train", *folder, *training],
            ["train", *few, *training],
            ["extract", places / "run", other, "--out", two / "none.npz", *OPTIONS],
        ],
    )
    assert [status for status, *_ in ended] == [1, 1], ended
    assert ended[1][1] == ""  # results are the first process's

    with np.load(places / "one" / "features.npz") as ours, np.load(two / "features.npz") as theirs:
        for name in ("features", "paths", "fingerprint"):
            assert np.array_equal(ours[name], theirs[name])
        features = ours["features"]
    assert (two / "single.npz").is_file(), ended
    with np.load(two / "single.npz") as single:
        assert np.allclose(single["features"], features[:1], atol=1e-5)
    assert not (two / "features.npz.parts").exists()
    assert len(same_files(places, "set")) == 9 + 2

    for text in (
        "option seed is 1 in process 1 and 0 in process 0",
        "the number of training pictures is 12 in process 1 and 9 in process 0",
        "batch_size is 7 in each of 2 processes; allowed: at most 6, since there are 12 training pictures",
        "the number of pictures is 12 in process 1 and 9 in process 0",
    ):
        assert len(lines_with(ended, text)) == 1, (text, ended)
    assert len(lines_with(ended, "python -m dgnet_fast")) == 4, ended
    assert not (two / "run").exists() and not list(two.glob("none*"))


@pytest.mark.thorough
def test_scores_of_two_processes_are_those_of_one(places, tmp_path):
    _, *ours = words(places, "one")
    _, *theirs = words(places, "two")
    cross = [
        "generate",
        "cross",
        str(places / "run"),
        "--source",
        "synthetic:query",
        "--device",
        "cpu",
        "--batch",
        "3",
        "--out",
    ]
    ours, theirs = (
        [*ours, [*cross, str(places / "one" / "cross")]],
        [*theirs, [*cross, str(places / "two" / "cross")]],
    )
    by_one(places, *ours)
    ended = by_two(
        places, theirs, DGNET_FAST_CACHE=str(tmp_path)
    )  # decoded by the first, mapped by the other
    assert [status for status, *_ in ended] == [0, 0], ended
    assert list(tmp_path.rglob("*.npy")) or list(tmp_path.iterdir())
    one, two = places / "one", places / "two"
    assert (one / "scores.json").read_text() == (two / "scores.json").read_text()
    assert (one / "quality.json").read_text() == (two / "quality.json").read_text().replace("/two/", "/one/")
    same_files(places, "set")
    assert len(same_files(places, "cross")) > 9


def test_another_extractions_parts_are_refused(places, tmp_path, monkeypatch, capsys):
    run, arguments = str(places / "run"), ["--out", str(tmp_path / "f.npz"), *OPTIONS]
    interrupted(monkeypatch, Extractor, "rows", 2, extract, [run, str(places / "people"), *arguments])
    capsys.readouterr()
    first = sorted((places / "people").iterdir())[0]
    line = fails(capsys, extract.main, [run, first, *arguments])
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
    line = fails(capsys, search.main, ["y", "--gallery", "x", "--query", "z"])
    assert "torchrun started 2 processes, and this command runs in one" in line


def test_a_taken_port_is_one_line(places, monkeypatch, capsys):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        place_of(monkeypatch, MASTER_PORT=str(taken.getsockname()[1]), DGNET_FAST_TIMEOUT="5")
        line = fails(capsys, evaluate.main, [places / "run"])
    assert "the port of the first process is taken; set another MASTER_PORT" in line
