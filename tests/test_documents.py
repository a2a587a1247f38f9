"""Every command and every Python program that the documents show is run as it is printed, on tiny data; what cannot be is
listed, with the reason.

Each page is followed from top to bottom in a folder of its own, in which lie the things that the page takes for granted:
a run, pictures of people, a data set. Placeholders such as ``DIR`` and ``PICTURES...`` are the names of such things.
Commands that train get options that make them small.
"""

from __future__ import annotations

import glob
import re
import shlex
from functools import cache, partial
from pathlib import Path

import pytest
from PIL import Image

from dgnet_fast.__main__ import COMMANDS
from dgnet_fast.data import SyntheticPedestrians
from tests.test_names import MODULES
from tests.tiny import NETWORK, arguments
from tests.tiny_run import DATA, tiny_run

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SMALL = {
    **NETWORK, **DATA, "batch_size": 3, "max_iter": 2, "teacher_steps": 2, "teacher_batch": 4, "generator_steps": 0,
    "num_workers": 1, "amp": "off", "device": "cpu", "log_iter": 1,
    "baseline": False,
}  # fmt: skip

FEWER = {"quality": ["--pairs", "20"]}
"""Options that make other commands cheap."""

FILES = "weights of others that nobody may ship"
MINUTES = "a complete run at full size; the small preset and the tiny one of tests/training stand for it"
ONLY_READ = {
    "--pretrained resnet50.pth": FILES,
    "--inception weights": FILES,
    "dgnet-fast train --out runs/a": "README trains",
    "--synthetic-kind hard --out": "the next training of README is run; tests/data draws these people",
    "outputs/": "a checkpoint of the public code; tests/checkpoints makes such files",
    "latest.yaml": "a configuration of the public code; tests/cases/public_latest.yaml is one",
    "--data NAME": "NAME stands for the name of a data set",
    "market1501+": "two data sets of others",
    "train --data folder": MINUTES,
    "runs/name": "follows the conversion of a checkpoint of the public code",
    "--data market1501 --root DIR --teacher": MINUTES,
    "teacher --data market1501": MINUTES,
    "reproduce": "several complete runs; tests/test_reproduce.py has tiny ones",
    "--network generator": "the line above exports the encoder; tests/test_export.py exports both",
    "--out encoder.pt2": "the lines above export it to ONNX; tests/test_export.py exports to both",
    "demo": "serves until it is stopped; tests/test_demo.py asks it",
    "dgnet-fast unit": "tests/translation trains tiny ones",
    "dgnet-fast trans": "follows the training of UNIT",
    "--preset small --generated": "the preset's own size; tests/training/test_generated.py has a tiny one",
}
"""Commands that are parsed and not run, by what stands in them, and why."""


PYTHON = "python"
FEWER_PEOPLE = ("train_identities=256,", "train_identities=256, test_identities=3,")
"""What a program draws, and fewer people of the same names."""


def steps(page: Path) -> list[tuple[str, str]]:
    """(kind, text) of what a page asks for, in its order: a whole block of Python, and of the shell blocks each line that
    is ours or sets a variable, without continuation.
    """
    found = []
    text = page.read_text(encoding="utf-8")
    for kind, block in re.findall(r"^```(sh|python)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if kind == PYTHON:
            found.append((kind, block.replace(*FEWER_PEOPLE)))
            continue
        lines = block.replace("\\\n", " ").replace("python -m dgnet_fast.", "dgnet-fast ").splitlines()
        found += [
            (kind, line) for line in lines if "torchrun" not in line and re.match(r"dgnet-fast |\w+=", line)
        ]
    return found


def commands(page: Path) -> list[str]:
    """The lines of the shell blocks among `steps`."""
    return [text for kind, text in steps(page) if kind != PYTHON]


def words_of(line: str, variables: dict[str, str]) -> list[str]:
    """The words of a line as a shell gives them to the command: comments gone, variables and patterns replaced."""
    words = []
    for word in shlex.split(line, comments=True)[1:]:
        for name, value in variables.items():
            word = word.replace(f"${name}", value)
        words += sorted(glob.glob(word)) or [word]
    return words


def draw(path: Path, person: int, camera: int, view: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(SyntheticPedestrians(0).draw(person, view, camera, 40, 24)).save(path)


def prepare(folder: Path, lines: list[str]) -> None:
    """What a page takes for granted: the runs that none of its commands makes, people, and a small Market-1501."""
    text = "\n".join(lines)
    for name in set(re.findall(r"runs/(\w+)", text)) - set(re.findall(r"--out runs/(\w+)", text)) | {"a"}:
        tiny_run(folder / "runs" / name)
    for person, camera, view in ((257, 1, 1), (257, 2, 3), (258, 3, 2), (259, 1, 4)):
        draw(folder / f"people/query/{person:04d}_c{camera}_{view:03d}.png", person, camera, view)
        draw(
            folder / f"people/gallery/{person:04d}_c{camera + 1}_{view + 90:03d}.png",
            person,
            camera + 1,
            view + 90,
        )
    for name in ("PICTURES...", "FOLDER"):
        draw(folder / name / "1.png", 1, 1, 1)
    for part, people in (("bounding_box_train", (1, 2)), ("query", (3, 4)), ("bounding_box_test", (3, 4))):
        for person in people:
            for camera in (1,) if part == "query" else (1, 2):
                name = f"{person:04d}_c{camera}s1_{person:06d}_01.jpg"
                draw(folder / "DIR" / part / name, person, camera, 10 * person + camera)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_run(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DGNET_FAST_CACHE", "off")
    variables: dict[str, str] = {}
    names: dict[str, object] = {}
    prepared = cache(partial(prepare, tmp_path, commands(page)))
    for kind, line in steps(page):
        if kind == PYTHON:
            prepared()
            exec(compile(line, page.name, "exec"), names)
            continue
        if re.match(r"\w+=", line):
            variables |= dict(word.split("=", 1) for word in shlex.split(line))
            continue
        words = words_of(line, variables)
        if words[0].startswith("--"):
            continue
        assert words[0] in COMMANDS, line
        module = MODULES[words[0]]
        if any(text in line for text in ONLY_READ):
            module.parser().parse_args(words[1:])
            continue
        prepared()
        if words[0] == "train" and "--resume" not in words or words[0] == "teacher":
            words += arguments(SMALL)
            if "runs/a" in words:
                words[words.index("runs/a")] = "runs/made"
        elif "--resume" in words:
            words[words.index("runs/a")] = "runs/made"
        words += FEWER.get(words[0], [])
        assert module.main(words[1:]) == 0, (line, capsys.readouterr().err[-2000:])


def test_every_reason_is_needed():
    lines = [line for page in PAGES for line in commands(page)]
    assert len(lines) > 50
    assert not [text for text in ONLY_READ if not any(text in line for line in lines)]
