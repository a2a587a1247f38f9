"""Score generated pictures: FID and intra-class SSIM against real ones, diversity, and the truth where it is known.

    python -m dgnet_fast.quality DIR --real market1501:gallery --root MARKET --inception inception-2015-12-05.pt
    python -m dgnet_fast.quality DIR --real synthetic:gallery --checkpoint RUN

DIR is a set of `python -m dgnet_fast.generate`, or any folder of pictures. With --checkpoint come the Fréchet distance over
its own re-id features (which needs no other file, and is not FID), the reconstruction errors, and, for drawn data, the swaps
against their truth. docs/generation.md writes down what is compared with what.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dgnet_fast.cli import Parser, run_command
from dgnet_fast.config import Config, ConfigError
from dgnet_fast.data import normalize
from dgnet_fast.evaluation import extract_features
from dgnet_fast.generate import source_config
from dgnet_fast.generated_set import read_description, read_manifest
from dgnet_fast.generation import Pictures, open_pictures, reconstructions
from dgnet_fast.interchange import load_generator
from dgnet_fast.metrics import psnr, ssim
from dgnet_fast.metrics.generation import (
    Features,
    frechet_distance,
    gaussian_of,
    inception,
    lpips,
    mean_ssim,
    same_person_pairs,
)
from dgnet_fast.models.dgnet import DGNet
from dgnet_fast.training.run import dataset_of, print_tables, resolve_device


def parser() -> Parser:
    made = Parser(prog="python -m dgnet_fast.quality", description=__doc__)
    made.add_argument("generated", type=Path, metavar="DIR", help="generated set, or a folder of pictures")
    made.add_argument(
        "--real", required=True, metavar="SOURCE", help="real pictures: folder or DATASET:SPLIT"
    )
    made.add_argument("--root", help="folder of the data set")
    made.add_argument(
        "--camera-pattern", help="regular expression that finds the camera in a file name (data set 'folder')"
    )
    made.add_argument("--inception", type=Path, metavar="FILE", help="TorchScript Inception of 2015, for FID")
    made.add_argument(
        "--lpips", type=Path, metavar="FILE", help="TorchScript VGG-16 with LPIPS weights, for diversity"
    )
    made.add_argument(
        "--checkpoint", type=Path, help="checkpoint that made the set: re-id features, reconstructions, truth"
    )
    made.add_argument("--config", type=Path, metavar="FILE", help="options of a public checkpoint")
    made.add_argument(
        "--limit", type=int, metavar="N", help="compare at most N pictures of each side (default all)"
    )
    made.add_argument(
        "--pairs", type=int, default=1000, metavar="N", help="pairs for SSIM and LPIPS (default 1000)"
    )
    made.add_argument("--seed", type=int, default=0, help="of what is drawn at random (default 0)")
    made.add_argument("--batch", type=int, default=64, metavar="N", help="pictures per pass (default 64)")
    made.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    made.add_argument("--json", type=Path, metavar="FILE", help="also write the tables to this file")
    return made


def open_generated(folder: Path) -> tuple[Pictures, tuple[int, int] | None]:
    """The pictures of a generated set, each the person who gives its appearance, and their size; or a plain folder."""
    if not (folder / "manifest.csv").is_file():
        return open_pictures(str(folder), Config()), None
    description, rows = read_description(folder), read_manifest(folder)
    if not rows:
        raise ValueError(f"{folder} is a set without a picture so far")
    everything = open_pictures(str(folder), Config())
    place = {name: k for k, name in enumerate(everything.split.names)}
    gone = [row.file for row in rows if row.file not in place]
    if gone:
        raise ValueError(f"{folder}: {len(gone)} pictures of the manifest are not there, such as {gone[0]}")
    chosen = everything.choose([place[row.file] for row in rows])
    people = np.array([row.appearance_id for row in rows], dtype=np.int64)
    return Pictures(str(folder), chosen.split, people), (description["height"], description["width"])


def _sample(pictures: Pictures, most: int | None, seed: int) -> Pictures:
    if most is None or len(pictures) <= most:
        return pictures
    return pictures.choose(np.sort(np.random.default_rng(seed).permutation(len(pictures))[:most]))


def _batches(pictures: Pictures, size: tuple[int, int], batch: int) -> Iterator[Tensor]:
    for first in range(0, len(pictures), batch):
        yield pictures.choose(range(first, min(first + batch, len(pictures)))).decode(*size)


def _halves(pictures: Pictures, seed: int) -> tuple[Pictures, Pictures]:
    order = np.random.default_rng(seed).permutation(len(pictures))
    return pictures.choose(order[::2]), pictures.choose(order[1::2])


def frechet_row(
    title: str,
    features: Features,
    real: Pictures,
    generated: Pictures,
    size: tuple[int, int],
    args: argparse.Namespace,
) -> list[Any]:
    """[title, distance of generated to real, distance between two halves of the real]."""
    whole, made = (gaussian_of(_batches(p, size, args.batch), features) for p in (real, generated))
    one, other = (gaussian_of(_batches(p, size, args.batch), features) for p in _halves(real, args.seed))
    return [title, round(frechet_distance(made, whole), 3), round(frechet_distance(one, other), 3)]


def set_table(
    real: Pictures, generated: Pictures, size: tuple[int, int], model: DGNet | None, args: argparse.Namespace
) -> dict:
    """Distances between the sets, and the likeness of one person's pictures within each."""
    device = resolve_device(args.device)
    rows = []
    if args.inception:
        rows.append(frechet_row("FID", inception(args.inception, device), real, generated, size, args))
    if model is not None:

        def own(pictures: Tensor) -> Tensor:
            x = normalize(pictures.to(device))
            return extract_features(model.appearance_encoder, x, upsample=model.config.ID_upsample)

        rows.append(
            frechet_row(
                "Fréchet distance over the checkpoint's re-id features", own, real, generated, size, args
            )
        )
    notes = [
        f"{len(generated)} generated and {len(real)} real pictures, all at {size[0]}x{size[1]}; real ones resized bicubically",
        "distances: between generated and real; beside it between two random halves of the real, the floor at that count",
        f"intra-class: {args.pairs} random pairs of different pictures of one person (of a generated picture: who gives the appearance)",
    ]
    distances = {"intra-class SSIM": mean_ssim}
    if args.lpips:
        measure = lpips(args.lpips, device)

        def mean_lpips(pictures: Tensor, pairs: np.ndarray) -> float:
            parts = np.array_split(pairs, -(-len(pairs) // args.batch))
            return float(
                np.concatenate([measure(pictures[p[:, 0]], pictures[p[:, 1]]) for p in parts]).mean()
            )

        distances["intra-class LPIPS"] = mean_lpips
    for name, measure_pairs in distances.items():
        row: list[Any] = [name]
        for pictures in (generated, real):
            pairs = same_person_pairs(pictures.people, args.pairs, args.seed)
            if not len(pairs):
                row.append(None)
                continue
            used, places = np.unique(pairs, return_inverse=True)
            decoded = pictures.choose(used).decode(*size)
            row.append(round(measure_pairs(decoded, places.reshape(pairs.shape)), 4))
        rows.append(row)
    if not args.inception:
        notes.append("no FID: --inception FILE names its network (docs/weights_and_data.md)")
    return {
        "title": "Generated pictures beside real ones",
        "columns": ["", "generated", "real"],
        "rows": rows,
        "notes": notes,
    }


def reconstruction_table(
    model: DGNet, real: Pictures, size: tuple[int, int], args: argparse.Namespace
) -> dict:
    """How well real pictures come back from their own codes, from the same person's, and around the cycle."""
    chosen = _sample(real, min(args.pairs, 256), args.seed)
    positives = []
    for k in range(len(chosen)):
        same = np.flatnonzero(real.people == chosen.people[k]) if chosen.people[k] > 0 else []
        names = [i for i in same if real.split.names[i] != chosen.split.names[k]]
        positives.append(names[0] if names else None)
    known = [k for k, i in enumerate(positives) if i is not None]
    shown, others = chosen.choose(known), real.choose([positives[k] for k in known])
    if len(shown) < 2:
        raise ValueError(f"{real.label} has no people with two pictures; reconstruction needs them")
    pictures = shown.decode(*size)
    made = []
    for part in torch.arange(len(shown)).split(max(2, args.batch // 2)):
        rows = part if len(part) > 1 else torch.cat([part, part[:1]])
        made.append(
            reconstructions(model, pictures[rows], others.choose(rows.numpy()).decode(*size))[: len(part)]
        )
    table = []
    for k, name in enumerate(("its own codes", "same person's appearance", "around the cycle")):
        x = torch.cat(made)[:, k]
        error = (x.float() - pictures.float()).abs().mean().item()
        table.append(
            [
                name,
                round(error, 2),
                round(float(psnr(x, pictures).mean()), 2),
                round(float(ssim(x, pictures).mean()), 4),
            ]
        )
    return {
        "title": "Reconstruction of real pictures",
        "columns": ["", "mean error (of 255)", "PSNR (dB)", "SSIM"],
        "rows": table,
        "notes": [f"{len(shown)} pictures"],
    }


def truth_table(model: DGNet, folder: Path, generated: Pictures, size: tuple[int, int]) -> dict | None:
    """Swaps of drawn people against the pictures that they should be; None where the truth is not known."""
    description, rows = read_description(folder), read_manifest(folder)
    label = description["appearances"]
    if label != description["structures"] or not label.startswith("synthetic:"):
        return None
    source = open_pictures(label, model.config.replace(data="synthetic"))
    if (model.config.data, size) != (
        "synthetic",
        (model.config.crop_image_height, model.config.crop_image_width),
    ):
        return None
    split = dataset_of(model.config).splits[label.partition(":")[2]]
    kept = source.split.indices
    truth, structure = [], []
    for row in rows:
        if source.split.names[row.appearance_index] != row.appearance:
            raise ValueError(
                f"{folder} was drawn from other synthetic data than the checkpoint's options describe"
            )
        i, j = int(kept[row.appearance_index]), int(kept[row.structure_index])
        truth.append(split.truth(i, j, keep_body=True))
        structure.append(split.load(j))
    wanted, copies = (
        torch.from_numpy(np.stack(x)).permute(0, 3, 1, 2).contiguous() for x in (truth, structure)
    )
    lines = []
    for name, x in (("swaps", generated.decode(*size)), ("structure picture left as it is", copies)):
        lines.append([name, round(float(psnr(x, wanted).mean()), 2), round(float(ssim(x, wanted).mean()), 4)])
    return {
        "title": "Swaps against the drawn truth",
        "columns": ["", "PSNR (dB)", "SSIM"],
        "rows": lines,
        "notes": [f"{len(rows)} swaps", "a swap must beat the last row"],
    }


def body(argv: list[str] | None) -> int:
    args = parser().parse_args(argv)
    for name in ("limit", "pairs", "batch"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name} is {value}; allowed: at least 1")
    device = resolve_device(args.device)
    model = None
    if args.checkpoint:
        model = load_generator(args.checkpoint, config_file=args.config)[0]
        model.to(device, memory_format=torch.channels_last)
    config = model.config if model is not None else Config()
    generated, size = open_generated(args.generated)
    size = size or (config.crop_image_height, config.crop_image_width)
    real = _sample(open_pictures(args.real, source_config(config, args.real, args)), args.limit, args.seed)
    tables = []
    if model is not None:
        if (args.generated / "set.json").is_file() and (
            table := truth_table(model, args.generated, generated, size)
        ):
            tables.append(table)
        if size == (config.crop_image_height, config.crop_image_width):
            tables.append(reconstruction_table(model, real, size, args))
    generated = _sample(generated, args.limit, args.seed)
    tables.insert(0, set_table(real, generated, size, model, args))
    print_tables(tables)
    if args.json:
        args.json.write_text(json.dumps(tables, indent=1))
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(lambda: body(argv), "python -m dgnet_fast.quality")


if __name__ == "__main__":
    sys.exit(main())
