"""The jobs that are interrupted: every command that writes something it may go on with. What the interrupted job leaves
in the end must be what the undisturbed job leaves.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image

from dgnet_fast import convert, extract, generate, search, teacher, train, translate, unit
from dgnet_fast.checkpoints.files import load_file
from dgnet_fast.checkpoints.fingerprint import digest
from dgnet_fast.checkpoints.loading import load_for_use
from dgnet_fast.checkpoints.runs import latest_checkpoint, read_run
from dgnet_fast.checkpoints.unit import read_unit, save_unit
from dgnet_fast.cli.parser import run_command
from dgnet_fast.config import from_dict
from dgnet_fast.data import datasets, load_pictures
from dgnet_fast.data.datasets import dataset_of
from dgnet_fast.generation import scores as picture_scores
from dgnet_fast.generation.sets import read_manifest
from dgnet_fast.models.unit import Unit
from dgnet_fast.report import curves
from dgnet_fast.report.files import atomically, write_text
from dgnet_fast.retrieval.index import read_entries
from dgnet_fast.training.optim import Precision
from dgnet_fast.translation import scores as translation_scores
from dgnet_fast.translation.folder import manifest_lines, read_description
from dgnet_fast.translation.sets import Row
from dgnet_fast.translation.step import UnitOptimisers
from tests.tiny import NETWORK, arguments
from tests.tiny_run import draw_people, tiny_run
from tests.tiny_unit import tiny_config as unit_config

OPTIONS: dict[str, Any] = NETWORK | {
    "synthetic_ids": 3, "synthetic_views": 4, "synthetic_test_ids": 2, "batch_size": 2, "max_iter": 3,
    "snapshot_save_iter": 1, "keep_checkpoints": 2, "log_iter": 1, "image_display_iter": 2, "display_size": 2,
    "teacher": "auto", "teacher_steps": 2, "teacher_batch": 4, "real_batch": 4, "generator_steps": 2, "baseline": False,
    "num_workers": 1, "amp": "off",
    "device": "cpu", "data_cache": "off",
}  # fmt: skip

UNIT = """
    --gen.dim 4 --gen.n-res 1 --gen.n-downsample 1 --dis.dim 4 --dis.n-layer 2 --synthetic-ids 3 --synthetic-test-ids 2
    --synthetic-views 4 --crop-image-height 32 --crop-image-width 16 --batch-size 2 --device cpu --data-cache off
    --image-display-iter 2 --snapshot-save-iter 1 --log-iter 1 --display-size 2 --num-workers 1 --max-iter 3
    --keep-checkpoints 2 --amp off
""".split()


@dataclass(frozen=True)
class Place:
    """The folders of one case: ``job`` is what the job writes into, ``given`` what was there before."""

    given: Path
    job: Path


@dataclass(frozen=True)
class Job:
    """``run(place)`` runs the job to its end, or goes on with what is there, and returns its exit status;
    ``outcome(place)`` is what it left.
    """

    name: str
    run: Callable[[Place], int]
    outcome: Callable[[Place], Any]

    def quick(self, place: Place) -> int:
        """`run` with empty curves in its report, in the same files: drawing them is more than half of a training of three
        steps.
        """
        with patch.object(curves, "_draw", _empty_curves):
            return self.run(place)


def _empty_curves(title: str, series: Any, path: Path, *, noisy: bool) -> None:
    with atomically(path, sync=False) as temporary:
        Image.new("L", (8, 8)).save(temporary)


@contextlib.contextmanager
def few_pictures() -> Iterator[None]:
    """A context in which trainings are scored on a few drawn pictures: their scores are no more than a part of their
    outcome here.
    """
    small = partial(datasets.load_synthetic, distractors=4, junk=2)
    with (
        patch.object(datasets, "load_synthetic", small),
        patch.object(picture_scores, "SWAP_PAIRS", 8),
        patch.object(translation_scores, "PICTURES", 4),
    ):
        yield


def _file(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@few_pictures()
def _train(place: Place) -> int:
    folder = place.job / "run"
    if (folder / "config.yaml").is_file():
        return train.main(["-q", "--resume", "--out", str(folder)])
    return train.main(["-q", *arguments(OPTIONS), "--out", str(folder)])


def _trained(place: Place) -> Any:
    folder = place.job / "run"
    newest = latest_checkpoint(folder)
    assert newest is not None
    content = read_run(newest)
    logs = [(folder / p / "metrics.jsonl").read_text() for p in ("", "teacher", "generator")]
    left = [p.name for p in folder.rglob(".*")]
    return digest(content["model"]), content["step"], logs, (folder / "results.json").read_text(), left


@few_pictures()
def _teacher(place: Place) -> int:
    folder = place.job / "teacher"
    if (folder / "results.json").is_file():
        return 0
    return teacher.main(["-q", *arguments(OPTIONS), "--out", str(folder)])


def _taught(place: Place) -> Any:
    folder = place.job / "teacher"
    files = [digest(load_file(folder / "teacher.pt")["teachers"][0]["state"])]
    files.append(digest(load_file(folder / "net_last.pth")))
    texts = [folder / n for n in ("opts.yaml", "results.json", "teacher/metrics.jsonl")]
    return files, [p.read_text() for p in texts], [p.name for p in folder.rglob(".*")]


def _cache(place: Place) -> int:
    return run_command(lambda: _fill_cache(place), "caching")


def _fill_cache(place: Place) -> int:
    config = from_dict({}).replace(**OPTIONS)
    split = dataset_of(config).train
    pictures = load_pictures(split, *config.picture_size, place.job, workers=1)
    kept = getattr(pictures, "tensor", pictures)
    write_text(place.job / "pictures.txt", hashlib.sha256(kept.numpy().tobytes()).hexdigest())
    return 0


def _cached(place: Place) -> Any:
    left = [p.name for p in place.job.iterdir() if p.name.endswith((".part", ".tmp"))]
    return (place.job / "pictures.txt").read_text(), left


def _set(place: Place) -> int:
    words = ["set", place.given / "run", "--source", "synthetic:gallery", "--count", 5, "--batch", 2]
    return generate.main([*map(str, words), "-q", "--out", str(place.job / "set")])


def _made(place: Place) -> Any:
    folder = place.job / "set"
    return sorted((row, _file(folder / row.file)) for row in read_manifest(folder)), sorted(
        p.name for p in folder.rglob(".*")
    )


def _search(place: Place) -> int:
    index, common = place.job / "index", ["-q", str(place.given / "run")]
    pictures = sorted((place.given / "people").iterdir())
    if not (index / "index.json").is_file():
        status = search.main([*common, "--gallery", *map(str, pictures[:3]), "--save", str(index)])
        if status:
            return status
    return search.main([*common, "--gallery", str(index), "--add", *map(str, pictures[3:])])


def _found(place: Place) -> Any:
    folder = place.job / "index"
    content = read_entries(folder)
    vectors = (folder / content["vectors"]).read_bytes()
    return content["pictures"], hashlib.sha256(vectors).hexdigest(), sorted(p.name for p in folder.iterdir())


def _convert(place: Place) -> int:
    for to, name in (("run", "again"), ("public", "public"), ("safetensors", "one.safetensors")):
        if not (place.job / name).exists():
            words = ["-q", str(place.given / "run"), "--to", to, "--out", str(place.job / name)]
            if status := convert.main(words):
                return status
    return 0


def _converted(place: Place) -> Any:
    found = [
        digest(load_for_use(place.job / name)[0].state_dict())
        for name in ("again", "public", "one.safetensors")
    ]
    return found, [p.name for p in place.job.rglob(".*")], _file(place.job / "one.safetensors")


def _extract(place: Place) -> int:
    words = [place.given / "run", place.given / "people", "--out", place.job / "f.npz"]
    return extract.main(["-q", "--overwrite", *map(str, words)])


def _extracted(place: Place) -> Any:
    return _file(place.job / "f.npz"), [p.name for p in place.job.iterdir()]


@few_pictures()
def _unit(place: Place) -> int:
    folder = place.job / "unit"
    if (folder / "config.yaml").is_file():
        return unit.main(["-q", "--resume", "--out", str(folder)])
    return unit.main([*UNIT, "-q", "--out", str(folder)])


def _united(place: Place) -> Any:
    folder = place.job / "unit"
    newest = latest_checkpoint(folder)
    assert newest is not None
    content = read_unit(newest)
    texts = [(folder / name).read_text() for name in ("metrics.jsonl", "results.json")]
    return digest(content["model"]), content["step"], texts, [p.name for p in folder.rglob(".*")]


def _translate(place: Place) -> int:
    words = [
        place.given / "unit",
        place.given / "people",
        "--batch",
        2,
        "--device",
        "cpu",
        "--out",
        place.job / "translated",
    ]
    return translate.main(["-q", *map(str, words)])


def make_unit(run: Path) -> None:
    """Write a run of UNIT that is not trained."""
    config = unit_config()
    model = Unit(config)
    precision = Precision(None, torch.device("cpu"))
    save_unit(run / "checkpoints", 1, model, UnitOptimisers(model, config), precision, keep=1)


def _translated(place: Place) -> Any:
    folder = place.job / "translated"
    read_description(folder)
    rows = sorted(manifest_lines(folder, Row._fields))
    return (
        rows,
        [_file(folder / row[0]) for row in rows],
        _file(folder / "dataset.csv"),
        sorted(p.name for p in folder.rglob(".*")),
    )


JOBS = (
    Job("training", _train, _trained),
    Job("teacher", _teacher, _taught),
    Job("caching", _cache, _cached),
    Job("generate set", _set, _made),
    Job("search index", _search, _found),
    Job("convert", _convert, _converted),
    Job("extract", _extract, _extracted),
    Job("unit", _unit, _united),
    Job("translate", _translate, _translated),
)


class Ground:
    """A folder in which cases get places of their own."""

    def __init__(self, root: Path) -> None:
        self.root, self.number = root, 0
        self.given = root / "given"
        tiny_run(self.given / "run")
        draw_people(self.given / "people", people=2, shots=3)
        make_unit(self.given / "unit")
        os.mkfifo(root / "pipe")  # stands for /dev/null, which an account that may must not replace

    def place(self) -> Place:
        """A new place, under a path that is the same for all: paths are part of outcomes."""
        job = self.root / "job"
        shutil.rmtree(job, ignore_errors=True)
        job.mkdir()
        return Place(self.given, job)

    @cache  # noqa: B019 - a ground lives as long as its campaign
    def wanted(self, job: Job) -> tuple[str, float]:
        """What the undisturbed job leaves, as text, and the seconds of the processor that it takes with empty curves when its
        modules are imported.
        """
        from tests.stress.harness import preload, run, with_modules

        names = self.root / "modules.txt"

        def whole(body: Callable[[Place], int]) -> tuple[Place, float]:
            place = self.place()
            done = run(with_modules(names, lambda: body(place)))
            assert done.status == 0, f"{job.name}: {done.text[-2000:]}"
            preload(names)
            return place, done.computed

        whole(job.run)
        place, seconds = whole(job.quick)
        return outcome_of(job, place), seconds


def outcome_of(job: Job, place: Place) -> str:
    return json.dumps(job.outcome(place), default=str)
