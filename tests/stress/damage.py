"""Flipped bits in every file that is read back: the file is refused, or gives exactly what was written."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dgnet_fast.checkpoints.fingerprint import digest
from dgnet_fast.checkpoints.loading import load_for_use
from dgnet_fast.checkpoints.runs import latest_checkpoint, saved_options
from dgnet_fast.checkpoints.safetensors import save_safetensors
from dgnet_fast.checkpoints.teachers import load_teachers, save_teachers
from dgnet_fast.data import cached_pictures
from dgnet_fast.data.datasets import dataset_of
from dgnet_fast.generation.sets import read_description
from dgnet_fast.models.appearance_encoder import build_teacher
from dgnet_fast.report.files import write_json
from dgnet_fast.retrieval.extractor import Extractor
from dgnet_fast.retrieval.index import Entry, PictureIndex
from tests.stress.harness import Budget, Section
from tests.stress.jobs import Ground


def targets(ground: Ground) -> dict[str, tuple[Path, Callable[[], Any]]]:
    """Name → a file and a function that reads it; what it returns must not change."""
    folder = ground.root / "damage"
    folder.mkdir(exist_ok=True)
    model, known = load_for_use(ground.given / "run")
    config = model.config
    checkpoint = latest_checkpoint(ground.given / "run")
    assert checkpoint is not None
    save_safetensors(model, known, folder / "one.safetensors")
    names = [str(k) for k in range(config.ID_class)]
    save_teachers(folder / "teacher.pt", [build_teacher(config, 2)], [2], names, config)
    extractor = Extractor(ground.given / "run", device="cpu")
    paths = sorted((ground.given / "people").iterdir())
    index = PictureIndex(extractor, 32)
    vectors = extractor.to_unit(extractor.files(paths))
    index = PictureIndex(extractor, vectors.shape[1])
    index.add(vectors, [Entry(str(path)) for path in paths])
    if not (folder / "index").exists():
        index.save(folder / "index")
    if not (folder / "set" / "set.json").exists():
        place = ground.place()
        from tests.stress.harness import run
        from tests.stress.jobs import JOBS

        job = next(job for job in JOBS if job.name == "generate set")
        assert run(lambda: job.run(place)).status == 0
        (place.job / "set").rename(folder / "set")
    train = dataset_of(config).train
    cached_pictures(train, *config.picture_size, folder / "cache", workers=1)
    cache = next((folder / "cache").glob("*.pictures"))
    write_json(folder / "plain.json", {})

    def read_index() -> Any:
        found = PictureIndex.open(folder / "index", extractor)
        return found.entries, found.search(vectors[:2], 3)[0].tolist()

    def read_cache() -> Any:  # a damaged file is made again, which is what it is for
        found = cached_pictures(train, *config.picture_size, folder / "cache", workers=1)
        return None if found is None else found.tensor.sum().item()

    def of(path: Path) -> Callable[[], Any]:
        def read() -> Any:
            found, step = load_for_use(path)
            return digest(found.state_dict()), step["step"], step["class_names"], found.config

        return read

    return {
        "checkpoint": (checkpoint, of(checkpoint)),
        "safetensors": (folder / "one.safetensors", of(folder / "one.safetensors")),
        "teacher": (
            folder / "teacher.pt",
            lambda: digest(load_teachers(config.replace(teacher=str(folder / "teacher.pt")))[0].state_dict()),
        ),
        "config.yaml": (
            ground.given / "run" / "config.yaml",
            lambda: json.dumps(saved_options(ground.given / "run")),
        ),
        "index.json": (folder / "index" / "index.json", read_index),
        "index vectors": (next((folder / "index").glob("*.faiss")), read_index),
        "set.json": (folder / "set" / "set.json", lambda: json.dumps(read_description(folder / "set"))),
        "picture cache": (cache, read_cache),
    }


def flipped_bits(ground: Ground, budget: Budget, rng: random.Random) -> Section:
    """Flip one bit in one of the `targets`, and read it."""
    section = Section("one flipped bit")
    found = targets(ground)
    whole = {name: (path.read_bytes(), read()) for name, (path, read) in found.items()}
    while budget.allows(section.cases):
        name = rng.choice(("checkpoint", *found))
        path, read = found[name]
        data, wanted = whole[name]
        at = rng.randrange(8 * len(data))
        if rng.random() < 0.3:  # the parts without tensors are small: the first and the last bytes
            at = rng.choice(
                (rng.randrange(min(8 * 4096, 8 * len(data))), 8 * len(data) - 1 - rng.randrange(800))
            )
        changed = bytearray(data)
        changed[at // 8] ^= 1 << at % 8
        path.write_bytes(changed)
        problem = None
        try:
            got = read()
            if got != wanted:
                problem = f"{name}: bit {at} of {8 * len(data)}: read as something else"
            elif name != "picture cache":
                problem = f"{name}: bit {at} of {8 * len(data)}: not noticed (with the same content)"
        except ValueError:
            section.note("refused")
        except Exception as error:
            problem = f"{name}: bit {at}: {type(error).__name__}: {error}"
        finally:
            path.write_bytes(data)
        section.count(problem)
        section.note(name)
    return section
