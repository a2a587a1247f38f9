"""What a program calls: the public names, their examples, and the two commands that are functions too."""

from __future__ import annotations

import doctest
import importlib
import inspect
import subprocess
import sys

import pytest
import torch

import dgnet_fast
from dgnet_fast import Config, Extractor, Generator
from tests.tiny_run import DATA, draw_people, tiny_run

EXAMPLES = (
    "dgnet_fast.generation.generator",
    "dgnet_fast.retrieval.evaluation",
    "dgnet_fast.retrieval.extractor",
    "dgnet_fast.training.train",
    "dgnet_fast.data.datasets",
    "dgnet_fast.ops.adain_act",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what the examples name: a run, two pictures and a file of options."""
    folder = tmp_path_factory.mktemp("examples")
    model, _ = tiny_run(folder / "runs" / "a")
    for path, name in zip(draw_people(folder / "people", 2, 1), ("anna.png", "ben.png"), strict=True):
        path.rename(folder / name)
    options = model.config.replace(**DATA, batch_size=2, baseline=False, ID_class=0)
    (folder / "options.yaml").write_text(options.to_yaml())
    return folder


@pytest.mark.parametrize("module", EXAMPLES)
def test_the_examples_of_the_docstrings_run(module, place, monkeypatch):
    monkeypatch.chdir(place)
    found = doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS)
    assert found.attempted and not found.failed


def test_dir_shows_what_is_public_and_all_of_it_is_there():
    assert dir(dgnet_fast) == sorted([*dgnet_fast.__all__, "__version__"])
    for name in dgnet_fast.__all__:
        assert inspect.getdoc(getattr(dgnet_fast, name)), name
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = dgnet_fast.trian


def test_importing_the_package_imports_nothing_else():
    code = "import sys, dgnet_fast; assert not {'torch', 'numpy', 'yaml'} & set(sys.modules), 'heavy'"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_train_and_evaluate_are_commands_and_functions():
    from dgnet_fast.retrieval.evaluation import evaluate
    from dgnet_fast.training.train import train

    assert dgnet_fast.train.main and dgnet_fast.evaluate.main
    assert inspect.signature(dgnet_fast.train) == inspect.signature(train)
    assert inspect.signature(dgnet_fast.evaluate) == inspect.signature(evaluate)


def test_a_swap_is_the_decoded_codes_of_both_pictures(place):
    generator = Generator.load(place / "runs" / "a", device="cpu", batch=2)
    a, b = (generator.pictures(place / name) for name in ("anna.png", "ben.png"))
    model = generator.model
    wanted = model.swap(*(dgnet_fast.data.normalize(x) for x in (a, b)))
    wanted = dgnet_fast.data.denormalize(wanted)
    made = generator.swap_tensors(a, b)
    assert (made.int() - wanted.int()).abs().max() <= 1
    three = generator.swap([place / "anna.png"] * 3, place / "ben.png")
    assert len(three) == 3 and torch.equal(generator.pictures(three)[0], made[0])
    path = generator.interpolate(place / "anna.png", place / "ben.png", place / "ben.png", steps=3)
    assert (generator.pictures(path)[0].int() - made[0].int()).abs().max() <= 1
    with pytest.raises(ValueError, match="a picture is a int"):
        generator.swap(3, place / "ben.png")


def test_train_takes_options_mappings_and_files(place, tmp_path):
    with pytest.raises(ValueError, match="batch_size is 0; allowed: at least 1"):
        dgnet_fast.train({"data": "synthetic"}, tmp_path / "run", batch_size=0)
    with pytest.raises(ValueError, match="resume needs the run folder"):
        dgnet_fast.train(resume=True)
    with pytest.raises(ValueError, match="already holds a run"):
        (tmp_path / "config.yaml").write_text("seed: 1\n")
        dgnet_fast.train(Config(), tmp_path)


def test_scores_are_those_of_the_command(place, capsys):
    scores = dgnet_fast.evaluate(place / "runs" / "a", device="cpu")["single"]
    assert dgnet_fast.evaluate.main([str(place / "runs" / "a"), "--device", "cpu"]) == 0
    assert f"{100 * scores.mAP:.2f}" in capsys.readouterr().out
    assert Extractor(place / "runs" / "a", device="cpu")(place / "anna.png").shape[0] == 1
