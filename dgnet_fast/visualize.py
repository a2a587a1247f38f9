"""Look into a checkpoint: a map of its features, where its heads look, and results for each camera.

python -m dgnet_fast.visualize RUN                                        into RUN/visual, and into RUN/report.html
python -m dgnet_fast.visualize RUN --data market1501 --root DIR --out DIR --method tsne
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dgnet_fast.cli import Parser, chunks_progress, run_command
from dgnet_fast.config import ConfigError
from dgnet_fast.data import ReidDataset, normalize
from dgnet_fast.evaluation import split_features
from dgnet_fast.extras import need
from dgnet_fast.generation import Pictures, spread
from dgnet_fast.metrics import evaluate_retrieval
from dgnet_fast.models.dgnet import DGNet
from dgnet_fast.report.activation import HEAD_NAMES, activation_maps, activation_page
from dgnet_fast.report.embedding import METHODS, embedding_map
from dgnet_fast.report.page import write_report
from dgnet_fast.training.checkpoint import load_for_use
from dgnet_fast.training.run import dataset_of, print_tables, resolve_device

FILES = ("embedding.png", "activation.png", "cameras.json")


def parser() -> Parser:
    made = Parser(prog="python -m dgnet_fast.visualize", description=__doc__)
    made.add_argument(
        "checkpoint", type=Path, help="run folder, step_*.pt, *.safetensors, or a public id_*.pt"
    )
    made.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the pictures (default: RUN/visual, drawn anew)"
    )
    made.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="options of a public checkpoint (default: config.yaml near it)",
    )
    made.add_argument("--data", help="data set (default: the checkpoint's)")
    made.add_argument("--root", help="folder of the data set")
    made.add_argument(
        "--camera-pattern", help="regular expression that finds the camera in a file name (folder data)"
    )
    made.add_argument(
        "--method", default="pca", choices=METHODS, help="of the map; tsne needs scikit-learn (default pca)"
    )
    made.add_argument("--people", type=int, default=16, metavar="N", help="people on the map (default 16)")
    made.add_argument(
        "--pictures", type=int, default=6, metavar="N", help="pictures with activation maps (default 6)"
    )
    made.add_argument("--seed", type=int, default=0, help="of which people are shown (default 0)")
    made.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    made.add_argument(
        "--allow-extra", action="store_true", help="let extra entries of a public checkpoint through"
    )
    return made


def camera_table(
    dataset: ReidDataset, query: torch.Tensor, gallery: torch.Tensor, weight: float
) -> dict[str, Any]:
    """Retrieval scores of the queries of each camera, from features (Q, F) and (G, F)."""
    labels = dataset.gallery.ids, dataset.gallery.cameras
    rows = []
    for camera in [*np.unique(dataset.query.cameras).tolist(), None]:
        chosen = np.ones(len(query), bool) if camera is None else dataset.query.cameras == camera
        one = evaluate_retrieval(
            query[torch.from_numpy(chosen)], dataset.query.ids[chosen], dataset.query.cameras[chosen], gallery, *labels,
            second_half_weight=weight,
        )  # fmt: skip
        name = "all" if camera is None else "unknown" if camera < 0 else f"camera {camera}"
        values = (round(100 * v, 1) for v in (one.rank[1], one.rank[5], one.mAP, one.mINP))
        rows.append([name, one.num_valid, *values])
    return {
        "title": "Retrieval for each query camera",
        "columns": ["", "queries", "Rank-1", "Rank-5", "mAP", "mINP"],
        "rows": rows,
        "notes": ["percent, over queries with a valid match; mAP: step-wise"],
    }


def _features(model: DGNet, dataset: ReidDataset) -> dict[str, torch.Tensor]:
    config = model.config
    size = config.crop_image_height, config.crop_image_width
    return {
        name: split_features(
            model.appearance_encoder, split, *size, upsample=config.ID_upsample, workers=config.num_workers or 1,
            progress=chunks_progress(f"features of {name}"),
        )
        for name, split in (("query", dataset.query), ("gallery", dataset.gallery))
    }  # fmt: skip


def draw(model: DGNet, dataset: ReidDataset, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Write the map, the activation maps and the table of cameras into ``folder``; returns the table."""
    config = model.config
    features = _features(model, dataset)
    gallery = dataset.gallery
    rng = np.random.default_rng(args.seed)
    known = np.unique(gallery.ids[gallery.ids > 0])
    shown = np.flatnonzero(np.isin(gallery.ids, rng.permutation(known)[: args.people]))
    embedding_map(
        features["gallery"][torch.from_numpy(shown)], gallery.ids[shown], gallery.cameras[shown],
        folder / "embedding.png", method=args.method, seed=args.seed,
    )  # fmt: skip
    people = Pictures("gallery", gallery, np.where(gallery.ids > 0, gallery.ids, -1))
    people = people.choose(np.flatnonzero(gallery.ids > 0))
    pictures = people.choose(spread(people, args.pictures, args.seed)).decode(
        config.crop_image_height, config.crop_image_width
    )
    device = next(model.parameters()).device
    maps, _ = activation_maps(
        model.appearance_encoder, normalize(pictures.to(device)), upsample=config.ID_upsample
    )
    activation_page(pictures, maps, HEAD_NAMES[model.appearance_encoder.style]).save(
        folder / "activation.png"
    )
    weight = 0.5 if model.appearance_encoder.style == "AB" else 1.0
    table = camera_table(dataset, features["query"], features["gallery"], weight)
    (folder / "cameras.json").write_text(json.dumps(table, indent=1))
    return table


def body(argv: list[str] | None) -> int:
    args = parser().parse_args(argv)
    for name in ("people", "pictures"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name} is {getattr(args, name)}; allowed: at least 1")
    run = args.checkpoint if (args.checkpoint / "config.yaml").is_file() else None
    folder = args.out or (run / "visual" if run else None)
    if folder is None:
        raise ConfigError(f"{args.checkpoint} is no run folder: give --out DIR")
    if args.out and (there := [name for name in FILES if (folder / name).exists()]):
        raise ConfigError(f"{folder} holds {', '.join(there)} already; choose another --out")
    if args.method == "tsne":
        need("sklearn", "visualize", "t-SNE")
    device = resolve_device(args.device)
    model, _ = load_for_use(args.checkpoint, config_file=args.config, allow_extra=args.allow_extra)
    changes = {"data": args.data, "data_root": args.root, "camera_pattern": args.camera_pattern}
    dataset = dataset_of(model.config.replace(**{k: v for k, v in changes.items() if v is not None}))
    folder.mkdir(parents=True, exist_ok=True)
    table = draw(model.eval().to(device, memory_format=torch.channels_last), dataset, folder, args)
    print_tables([table])
    for name in FILES[:2]:
        print(folder / name)
    if run and not args.out:
        print(f"report: {write_report(run)}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(lambda: body(argv), "python -m dgnet_fast.visualize")


if __name__ == "__main__":
    sys.exit(main())
