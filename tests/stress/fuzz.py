"""Hostile input of every kind that a command reads: YAML, the command line, pictures, checkpoints, CSV, manifests and
indexes. Whatever it is, the command ends within ten seconds with at most one line, and takes no memory for it.
"""

from __future__ import annotations

import copy
import io
import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dgnet_fast import (
    convert,
    demo,
    evaluate,
    export,
    extract,
    generate,
    quality,
    search,
    teacher,
    train,
    visualize,
)
from dgnet_fast.checkpoints.files import load_file
from dgnet_fast.checkpoints.runs import latest_checkpoint
from dgnet_fast.config import load_config, option_names
from dgnet_fast.data.files import load_csv
from dgnet_fast.data.reading import read_picture
from dgnet_fast.generation.scores import open_generated
from dgnet_fast.report.page import write_report
from dgnet_fast.retrieval.extractor import Extractor
from dgnet_fast.retrieval.index import PictureIndex
from tests.stress.harness import HANG, Section, hostile, run
from tests.stress.jobs import Ground

BATCH = 25
"""Cases in one process; if it ends badly, each of them is run alone to find which one it was."""
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, -(10**30), 10**400, 0.5, -0.0, float("nan"), float("inf"), "", "x",
    "\0", "\n", "é\udcff", "a" * 100_000, [], [1], [[[[[]]]]], {}, {"a": 1}, {1: 2}, (), b"x", "1e999", "../../etc/passwd",
)  # fmt: skip


def yaml_text(rng: random.Random, ground: Ground) -> str:
    kind = rng.randrange(12)
    names = option_names()
    if kind == 0:
        anchors = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n"
        return anchors + "".join(
            f"a{k}: &a{k} [{','.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, rng.randrange(2, 12))
        )
    if kind == 1:
        return rng.choice("[{") * rng.randrange(1, 3000) + rng.choice(("", "]", "}", "a: 1"))
    if kind == 2:
        tag = rng.choice(
            ("!!python/object/apply:os.system", "!!binary", "!!timestamp", "!!int", "!!set", "!x", "!!omap")
        )
        return f"{rng.choice(names).split('.')[0]}: {tag} {rng.choice(('[ls]', 'x', '2001-99-99', '9' * 5000, '{a: 1}'))}"
    if kind == 3:
        whole = (ground.given / "run" / "config.yaml").read_text()
        return whole[: rng.randrange(len(whole))]
    if kind == 4:
        whole = bytearray((ground.given / "run" / "config.yaml").read_bytes())
        for _ in range(rng.randrange(1, 20)):
            whole[rng.randrange(len(whole))] = rng.randrange(256)
        return whole.decode("latin-1")
    if kind == 5:
        return "".join(
            chr(rng.choice((rng.randrange(128), rng.randrange(0xD800)))) for _ in range(rng.randrange(200))
        )
    lines = []
    for _ in range(rng.randrange(1, 8)):
        name, value = rng.choice(names), rng.choice(ODD)
        text = json.dumps(value, default=str) if not isinstance(value, str) else value[:5000]
        lines.append(f"{name.split('.')[-1] if rng.random() < 0.8 else name}: {text}")
    branch = rng.choice(("", "gen:\n ", "dis:\n "))
    return branch + ("\n " if branch else "\n").join(lines)


def yaml_case(rng: random.Random, ground: Ground, folder: Path) -> Callable[[], Any]:
    path = folder / "options.yaml"
    path.write_text(yaml_text(rng, ground), encoding="utf-8", errors="surrogateescape")
    return lambda: load_config(path)


COMMANDS: tuple[Any, ...] = (
    convert,
    evaluate,
    export,
    extract,
    generate,
    quality,
    search,
    visualize,
    demo,
    train,
    teacher,
)


def command_case(rng: random.Random, ground: Ground, folder: Path) -> Callable[[], Any]:
    """A command with random options and values; most name things that do not exist, so it ends before any work."""
    module = rng.choice(COMMANDS)
    parser = module.parser()
    spellings = [s for action in parser._actions for s in action.option_strings if s not in ("-h", "--help")]
    values = ["", "x", "-1", "0", "1e999", "nan", "9" * 40, "../x", "\udcff", "a" * 300, str(folder), "/dev/null", "é\n",
              "synthetic:gallery", "synthetic", "[", "~nobody/x", "auto", "/proc/self/mem", "'", "--", "=", "1,2"]  # fmt: skip
    words: list[str] = []
    if module is generate:
        words.append(rng.choice(("pair", "grid", "set", "cross", "interpolate", "figure", "x")))
    if rng.random() < 0.7:
        words.append(rng.choice((str(ground.given / "run"), str(folder), "nowhere", "")))
    for _ in range(rng.randrange(6)):
        words.append(rng.choice(spellings))
        if rng.random() < 0.8:
            words.append(rng.choice(values))
    if module in (train, teacher):  # the work itself is not what is tried here
        words += [
            "--max-iter" if module is train else "--teacher-steps", "1", "--data", "folder", "--root", rng.choice(values),
            "--out", str(folder / "out"),
        ]  # fmt: skip
    if module is demo:
        words += ["--port", rng.choice(("-1", "99999", "x")), "--gallery", "none"]

    def body() -> Any:
        return module.main(words)

    return body


def picture_case(rng: random.Random, ground: Ground, folder: Path) -> Callable[[], Any]:
    data = io.BytesIO()
    size = rng.choice(((4, 6), (32, 64), (1, 1)))
    mode = rng.choice(("RGB", "L", "P", "RGBA", "1", "CMYK", "I;16", "I", "F", "LA"))
    image = Image.new(mode, size)
    kinds = (
        "PNG",
        "JPEG",
        "BMP",
        "WEBP",
        "TIFF",
        "PPM",
        "GIF",
        "TGA",
        "PCX",
        "ICO",
        "SGI",
        "JPEG2000",
        "DDS",
        "IM",
        "MSP",
    )
    try:
        image.save(data, rng.choice(kinds))
    except (OSError, ValueError, KeyError):
        image.convert("RGB").save(data, rng.choice(kinds[:6]))
    content = bytearray(data.getvalue())
    for _ in range(rng.randrange(12)):
        kind = rng.randrange(4)
        at = rng.randrange(len(content)) if content else 0
        if kind == 0 and content:
            content[at] = rng.randrange(256)
        elif kind == 1 and content:
            content[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x7f\xff\xff\xff"))
        elif kind == 2:
            content = content[: rng.randrange(len(content) + 1)]
        else:
            content[at:at] = rng.randbytes(rng.randrange(8))
    if rng.random() < 0.05:  # a small file that says it is huge
        bomb = io.BytesIO()
        Image.new("1", (16000, 16000)).save(bomb, "PNG")
        content = bytearray(bomb.getvalue())
    name = folder / f"a.{rng.choice(('png', 'jpg', 'tif', 'webp', 'gif'))}"
    name.write_bytes(content)
    return lambda: read_picture(name)


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
    return rng.choice([v for v in ODD if v != 10**400])


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
        path.write_bytes(data)
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
    lines = (source / "manifest.csv").read_text().splitlines()
    for _ in range(rng.randrange(4)):
        at = rng.randrange(len(lines))
        cells = lines[at].split(",")
        cells[rng.randrange(len(cells))] = rng.choice(
            ("", "x", "9" * 30, "-5", "../../x.png", '"', "\0", "a" * 140_000)
        )
        lines[at] = ",".join(cells)
    (made / "manifest.csv").write_text("\n".join(lines) + "\n")
    return lambda: open_generated(made)


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


KINDS: dict[str, Callable[[random.Random, Ground, Path], Callable[[], Any]]] = {
    "YAML": yaml_case, "command line": command_case, "pictures": picture_case, "checkpoints": checkpoint_case,
    "resumed checkpoints": resume_case, "CSV": csv_case, "generated sets": manifest_case, "search indexes": index_case,
    "logs and reports": log_case,
}  # fmt: skip


def prepare(ground: Ground, kinds: tuple[str, ...] = tuple(KINDS)) -> None:
    """What the cases are made from; `damage.targets` makes the rest."""
    from tests.stress.damage import targets
    from tests.stress.jobs import OPTIONS
    from tests.tiny import arguments

    targets(ground)
    ground.__dict__["extractor"] = Extractor(ground.given / "run", device="cpu")
    if "resumed checkpoints" not in kinds:
        return
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
    ground: Ground,
    seconds: float,
    rng: random.Random,
    kinds: tuple[str, ...] = tuple(KINDS),
    cases: int | None = None,
) -> list[Section]:
    """Cases of every kind in turn, `BATCH` in a process."""
    sections = {kind: Section(f"hostile {kind}") for kind in kinds}
    until = time.monotonic() + seconds
    while time.monotonic() < until and (cases is None or sum(s.cases for s in sections.values()) < cases):
        for kind in kinds:
            count = 2 if kind == "resumed checkpoints" else BATCH
            seeds = [rng.randrange(2**31) for _ in range(count)]
            result = run(lambda kind=kind, seeds=seeds: _many(kind, seeds, ground), timeout=HANG * count)
            section = sections[kind]
            if result.status == 0 and hostile(result) is None and "memory" not in result.text:
                section.cases += count
                section.notes["refused"] = section.notes.get("refused", 0) + result.text.count("refused\n")
                continue
            for seed in seeds:
                alone = run(lambda kind=kind, seed=seed: _many(kind, [seed], ground), timeout=HANG)
                problem = hostile(alone)
                if problem is None and alone.status:
                    problem = f"status {alone.status}"
                section.count(problem and f"{kind}, seed {seed}: {problem}")
    return list(sections.values())


def _many(kind: str, seeds: list[int], ground: Ground) -> int:
    for seed in seeds:
        print("refused" if attempt(kind, seed, ground) else "taken", flush=True)
    return 0
