"""Hostile input that is not of our own formats: YAML, the command line, and pictures."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from dgnet_fast import (
    convert,
    cross_evaluate,
    demo,
    evaluate,
    export,
    extract,
    generate,
    quality,
    reproduce,
    search,
    teacher,
    train,
    transfer,
    translate,
    unit,
    validate,
    visualize,
)
from dgnet_fast.config import load_config, option_names
from dgnet_fast.config.unit import load_unit_config
from dgnet_fast.data.reading import read_picture
from tests.stress.harness import RAN
from tests.stress.jobs import Ground

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
            ("!!python/object/apply:os.mkdir", "!!binary", "!!timestamp", "!!int", "!!set", "!x", "!!omap")
        )
        value = rng.choice((json.dumps([str(RAN)]), "x", "2001-99-99", "9" * 5000, "{a: 1}"))
        return f"{rng.choice(names).split('.')[0]}: {tag} {value}"
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
    load = rng.choice((load_config, load_config, load_unit_config))
    return lambda: load(path)


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
    unit,
    translate,
    transfer,
    reproduce,
    cross_evaluate,
    validate,
)


def command_case(rng: random.Random, ground: Ground, folder: Path) -> Callable[[], Any]:
    """A command with random options and values; most name things that do not exist, so it ends before any work."""
    module = rng.choice(COMMANDS)
    parser = module.parser()
    spellings = [s for action in parser._actions for s in action.option_strings if s not in ("-h", "--help")]
    values = ["", "x", "-1", "0", "1e999", "nan", "9" * 40, "../x", "\udcff", "a" * 300, str(folder), str(ground.root / "pipe"), "é\n",
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
    if module is unit:
        words += [
            "--a",
            "nowhere",
            "--b",
            rng.choice(values),
            "--out",
            str(folder / "out"),
            "--max-iter",
            "1",
        ]
    if module is reproduce:
        words[:0] = ["ablation"]
    if module in (translate, transfer):
        words += ["--out", str(folder / "out")]
    if module in (train, teacher, reproduce):  # the work itself is not what is tried here
        words += [
            "--teacher-steps" if module is teacher else "--max-iter", "1", "--data", "folder", "--root", rng.choice(values),
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
