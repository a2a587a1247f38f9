"""Hostile input of every kind that a command reads: YAML, the command line, pictures, checkpoints, CSV, manifests and
indexes. Whatever it is, the command ends within ten seconds with at most one line, and takes no memory for it.
"""

from __future__ import annotations

import copy
import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dgnet_fast import (
    train,
    unit,
)
from dgnet_fast.checkpoints.files import load_file
from dgnet_fast.checkpoints.runs import latest_checkpoint
from dgnet_fast.checkpoints.unit import load_unit
from dgnet_fast.data.files import load_csv
from dgnet_fast.generation.scores import open_generated
from dgnet_fast.report.page import write_report
from dgnet_fast.retrieval.extractor import Extractor
from dgnet_fast.retrieval.index import PictureIndex
from dgnet_fast.translation.sets import read_translated
from tests.stress.harness import HANG, RAN, Budget, Section, hostile, preload, run, with_modules
from tests.stress.jobs import JOBS, OPTIONS, Ground
from tests.stress.text_cases import ODD, command_case, picture_case, yaml_case
from tests.tiny import arguments


class Code:
    """An object that runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(RAN),)


BATCH = 25
"""Cases in one process; if it ends badly, each of them is run alone to find which one it was."""


def _mutated(value: Any, rng: random.Random, depth: int = 0) -> Any:
    """A copy of nested values with one of them replaced, removed or renamed, or with a tensor of another kind."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        made = dict(value)
        key = rng.choice(list(made))
        kind = rng.random()
        if kind < 0.1 + 0.1 * depth:
            del made[key]
        elif kind < 0.15:
            made[rng.choice([k for k in ODD if isinstance(k, (str, int, float, type(None)))])] = made.pop(key)
        else:
            made[key] = _mutated(made[key], rng, depth + 1)
        return made
    if isinstance(value, list) and value and rng.random() < 0.7:
        made = list(value)
        at = rng.randrange(len(made))
        made[at] = _mutated(made[at], rng, depth + 1)
        return made
    if isinstance(value, torch.Tensor):
        kinds: tuple[Callable[[], Any], ...] = (
            lambda: value.double(), lambda: value[None], lambda: value.flatten()[:0], lambda: value.to(torch.complex64),
            lambda: torch.full_like(value, float("nan")) if value.is_floating_point() else value + 1,
            lambda: value.to_sparse(), lambda: torch.zeros(1).expand(10**9), lambda: value.bool(),
            lambda: torch.zeros(1).expand(value.shape or (2,)), lambda: torch.empty(10**12, device="meta"), lambda: "text",
        )  # fmt: skip
        return rng.choice(kinds)()
    return rng.choice([Code(), *(v for v in ODD if v != 10**400)])


def checkpoint_case(rng: random.Random, ground: Ground, folder: Path) -> Callable[[], Any]:
    """A file that torch.save wrote, with well-formed but wrong entries; or a damaged one of any format."""
    whole = latest_checkpoint(ground.given / "run")
    assert whole is not None
    path = folder / rng.choice(
        ("step_00000007.pt", "id_00000007.pt", "best.pt", "teacher.pt", "x.safetensors", "net_last.pth")
    )
    kind = rng.random()
    if kind < 0.75 and path.suffix != ".safetensors":
        content = copy.copy(load_file(rng.choice((whole, ground.root / "damage" / "teacher.pt"))))
        if rng.random() < 0.3 and isinstance(content.get("config"), dict):  # sizes that are never allocated
            name = rng.choice(
                ("gen", "dis", "ID_width", "ID_blocks", "ID_features", "ID_class", "synthetic_ids")
            )
            value = rng.choice((10**6, 10**9, 10**5, 64))
            config = dict(content["config"])
            config[name] = dict(config[name], dim=value, n_res=value) if name in ("gen", "dis") else value
            if name == "ID_blocks":
                config[name] = [value] * 4
            content["config"] = config
        else:
            for _ in range(rng.randrange(1, 3)):
                content = _mutated(content, rng) if isinstance(content, dict) else content
        torch.save(content, path)
    else:
        source = rng.choice((whole, ground.root / "damage" / "one.safetensors"))
        data = bytearray(source.read_bytes())
        for _ in range(rng.randrange(1, 6)):
            at = rng.randrange(len(data)) if data else 0
            if rng.random() < 0.3:
                data = data[: rng.randrange(len(data) + 1)]
            elif data:
                data[at : at + rng.randrange(1, 9)] = rng.randbytes(rng.randrange(9))
        path.write_bytes(pickle.dumps(Code()) if rng.random() < 0.1 else data)
    (folder / "config.yaml").write_bytes((ground.given / "run" / "config.yaml").read_bytes())
    return lambda: Extractor(path, device="cpu")


def resume_case(rng: random.Random, ground: Ground, folder: Path) -> Callable[[], Any]:
    """A run whose checkpoint has wrong optimisers, precision, step, names or averages; to be resumed."""
    source = ground.root / "trained"
    out = folder / "run"
    shutil.copytree(source, out)
    path = latest_checkpoint(out)
    assert path is not None
    content = load_file(path)
    part = rng.choice(
        ("optimisers", "precision", "step", "class_names", "average", "model", "config", "format")
    )
    content[part] = _mutated(content.get(part), rng)
    torch.save(content, path)
    return lambda: train.main(["-q", "--resume", "--out", str(out), "--max-steps", "1"])


def csv_case(rng: random.Random, ground: Ground, folder: Path) -> Callable[[], Any]:
    values = ["", "a.png", "0001", "-1", "0000", "train", "query", "gallery", "multi_query", "9" * 30, "é", "\0", '"', "\n", "x" * 200_000,
              "１２"]  # fmt: skip
    lines = [
        rng.choice(("path,id,camera,split", "path,id,split", "id,path", "", "path,id,camera,split,more"))
    ]
    for _ in range(rng.randrange(12)):
        lines.append(",".join(rng.choice(values) for _ in range(rng.choice((4, 4, 4, 3, 5)))))
    path = folder / "data.csv"
    path.write_bytes("\n".join(lines).encode() + rng.choice((b"", b"\n", b"\xff\xfe", b'"')))
    return lambda: load_csv(path)


def _damaged_json(path: Path, rng: random.Random, target: Path) -> None:
    if rng.random() < 0.7:
        content = _mutated(json.loads(path.read_text()), rng)
        if (
            isinstance(content, dict) and rng.random() < 0.7
        ):  # as an older version wrote it, without a checksum
            content["format"] = str(content.get("format")).replace(".2", ".1")
        target.write_text(json.dumps(content, default=str))
        return
    target.write_text(
        rng.choice(
            ("", "null", "[", "[" * 100_000, "{}", "[1]", '"x"', path.read_text()[: rng.randrange(200)])
        )
    )


def manifest_case(rng: random.Random, ground: Ground, folder: Path) -> Callable[[], Any]:
    source, made = ground.root / "damage" / "set", folder / "set"
    shutil.copytree(source, made)
    if rng.random() < 0.5:
        _damaged_json(source / "set.json", rng, made / "set.json")
    _damaged_manifest(source / "manifest.csv", rng, made / "manifest.csv")
    return lambda: open_generated(made)


def _damaged_manifest(path: Path, rng: random.Random, target: Path) -> None:
    lines = path.read_text().splitlines()
    for _ in range(rng.randrange(4)):
        at = rng.randrange(len(lines))
        cells = lines[at].split(",")
        cells[rng.randrange(len(cells))] = rng.choice(
            ("", "x", "9" * 30, "-5", "../../x.png", '"', "\0", "a" * 140_000)
        )
        lines[at] = ",".join(cells)
    target.write_text("\n".join(lines) + "\n")


def index_case(rng: random.Random, ground: Ground, folder: Path) -> Callable[[], Any]:
    source, made = ground.root / "damage" / "index", folder / "index"
    shutil.copytree(source, made)
    extractor = ground.__dict__["extractor"]
    if rng.random() < 0.7:
        _damaged_json(source / "index.json", rng, made / "index.json")
    else:
        content = json.loads((source / "index.json").read_text())
        content["format"] = content["format"].replace(".2", ".1")
        (made / "index.json").write_text(json.dumps(content))
        vectors = made / content["vectors"]
        data = bytearray(vectors.read_bytes())
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(min(64, len(data)))] = rng.randrange(256)
        vectors.write_bytes(data)
    return lambda: PictureIndex.open(made, extractor)


def log_case(rng: random.Random, ground: Ground, folder: Path) -> Callable[[], Any]:
    """A run folder whose log, results or environment are damaged: its report is still made."""
    made = folder / "run"
    made.mkdir()
    records = [json.dumps({"step": k, "phase": "train", "total": 1.0}) for k in range(1, 5)]
    for _ in range(rng.randrange(4)):
        records[rng.randrange(4)] = rng.choice(
            ("", "[]", "{}", "{", '{"step": "x", "phase": 1}', '{"step": 1, "phase": "train", "a": []}', "[" * 100_000,
             '{"step": 1e400, "phase": "t"}', '{"step": 3, "phase": "train", "total": "Infinity"}')
        )  # fmt: skip
    (made / "metrics.jsonl").write_bytes("\n".join(records).encode() + rng.choice((b"\n", b"", b"\xff\n")))
    for name in ("results.json", "environment.json"):
        (made / name).write_text(
            json.dumps(rng.choice([v for v in ODD if not isinstance(v, bytes)]), default=str)
        )
    return lambda: write_report(made)


def unit_case(rng: random.Random, ground: Ground, folder: Path) -> Callable[[], Any]:
    """A checkpoint of UNIT with wrong entries, to be used or resumed."""
    out = folder / "run"
    shutil.copytree(ground.root / "unit", out)
    path = latest_checkpoint(out)
    assert path is not None
    content = load_file(path)
    for _ in range(rng.randrange(1, 3)):
        part = rng.choice(list(content))
        content[part] = _mutated(content[part], rng)
    torch.save(content, path)
    if rng.random() < 0.3:
        return lambda: unit.main(["-q", "--resume", "--out", str(out), "--max-steps", "1"])
    return lambda: load_unit(out)


def translated_case(rng: random.Random, ground: Ground, folder: Path) -> Callable[[], Any]:
    source, made = ground.root / "translated", folder / "set"
    shutil.copytree(source, made)
    if rng.random() < 0.5:
        _damaged_json(source / "set.json", rng, made / "set.json")
    _damaged_manifest(source / "manifest.csv", rng, made / "manifest.csv")
    return lambda: read_translated(made)


KINDS: dict[str, Callable[[random.Random, Ground, Path], Callable[[], Any]]] = {
    "YAML": yaml_case, "command line": command_case, "pictures": picture_case, "checkpoints": checkpoint_case,
    "resumed checkpoints": resume_case, "CSV": csv_case, "generated sets": manifest_case, "search indexes": index_case,
    "logs and reports": log_case, "UNIT checkpoints": unit_case, "translated sets": translated_case,
}  # fmt: skip


def prepare(ground: Ground, kinds: tuple[str, ...] = tuple(KINDS)) -> None:
    """What the cases are made from; `damage.targets` makes the rest."""
    from tests.stress.damage import targets

    targets(ground)
    ground.__dict__["extractor"] = Extractor(ground.given / "run", device="cpu")
    place = ground.place()
    for name in ("unit", "translate"):
        job = next(job for job in JOBS if job.name == name)
        done = run(lambda job=job: job.run(place))
        assert done.status == 0, done.text
    for part in ("unit", "translated"):
        (place.job / part).rename(ground.root / part)
    if "resumed checkpoints" in kinds:
        _train_one(ground)
    names = ground.root / "modules.txt"
    for kind in kinds:
        run(with_modules(names, lambda kind=kind: _many(kind, list(range(5)), ground)))
        preload(names)


def _train_one(ground: Ground) -> None:
    words = [
        "-q",
        *arguments(OPTIONS | {"teacher": "", "pretrained": "", "ema_decay": 0.5}),
        "--out",
        str(ground.root / "trained"),
    ]
    done = run(lambda: train.main([*words, "--max-steps", "1"]))
    assert done.status == 0, done.text


def attempt(kind: str, seed: int, ground: Ground) -> int:
    """One case, in this process: 0 if it was taken, 1 if it was refused as it should be."""
    rng = random.Random(seed)
    folder = ground.root / f"fuzz-{kind.replace(' ', '-')}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    np.random.seed(seed % 2**32)
    try:
        status = KINDS[kind](rng, ground, folder)()
    except ValueError:
        return 1
    except SystemExit as stop:
        return 1 if stop.code else 0
    return 1 if isinstance(status, int) and status else 0


def hostile_input(
    ground: Ground, budget: Budget, rng: random.Random, kinds: tuple[str, ...] = tuple(KINDS)
) -> list[Section]:
    """Cases of every kind in turn, `BATCH` in a process."""
    sections = {kind: Section(f"hostile {kind}") for kind in kinds}
    while budget.allows(sum(section.cases for section in sections.values())):
        for kind in kinds:
            count = 2 if kind == "resumed checkpoints" else BATCH
            seeds = [rng.randrange(2**31) for _ in range(count)]
            result = run(
                lambda kind=kind, seeds=seeds: _many(kind, seeds, ground),
                timeout=HANG * count,
                hostile_memory=True,
            )
            section = sections[kind]
            if RAN.exists():
                RAN.rmdir()
                section.count(f"{kind}, one of the seeds {seeds}: code was run")
            if result.status == 0 and hostile(result) is None:
                section.cases += count
                section.notes["refused"] = section.notes.get("refused", 0) + result.text.count("refused\n")
                continue
            for seed in seeds:
                alone = run(
                    lambda kind=kind, seed=seed: _many(kind, [seed], ground),
                    timeout=HANG,
                    hostile_memory=True,
                )
                problem = hostile(alone)
                if problem is None and alone.status:
                    problem = f"status {alone.status}"
                section.count(problem and f"{kind}, seed {seed}: {problem}")
    return list(sections.values())


def _many(kind: str, seeds: list[int], ground: Ground) -> int:
    for seed in seeds:
        print("refused" if attempt(kind, seed, ground) else "taken", flush=True)
    return 0
