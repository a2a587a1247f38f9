"""Visualise a checkpoint: a map of its features, class activation maps of its heads, and the scores for each camera.

dgnet-fast visualize RUN  writes RUN/visual, and adds it to RUN/report.html
dgnet-fast visualize RUN --data market1501 --root DIR --out DIR --method tsne
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgnet_fast.cli.output import print_tables
from dgnet_fast.cli.parser import Parser, program, run_command
from dgnet_fast.cli.shared_options import add_checkpoint, add_data_set, add_device, data_set_config
from dgnet_fast.config import ConfigError
from dgnet_fast.config.choices import MAPS
from dgnet_fast.config.extras import need
from dgnet_fast.report.files import atomically, check_writable, write_json
from dgnet_fast.report.progress import progress
from dgnet_fast.report.tables import TABLES

if TYPE_CHECKING:
    from dgnet_fast.data import ReidDataset
    from dgnet_fast.models.dgnet import DGNet

FILES = ("embedding.png", "activation.png", "cameras.json")


def parser() -> Parser:
    made = Parser(prog=program("visualize"), description=__doc__)
    add_checkpoint(made)
    made.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder of the pictures (default: RUN/visual, whose pictures are replaced)",
    )
    add_data_set(made)
    made.add_argument(
        "--method",
        default="pca",
        choices=MAPS,
        help="method of the map; tsne needs scikit-learn (default pca)",
    )
    made.add_argument(
        "--people", type=int, default=16, metavar="N", help="number of people on the map (default 16)"
    )
    made.add_argument(
        "--pictures",
        type=int,
        default=6,
        metavar="N",
        help="number of pictures with activation maps (default 6)",
    )
    made.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed that chooses the people (default 0)"
    )
    add_device(made, batch=None)
    return made


def draw(model: DGNet, dataset: ReidDataset, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Write the map, the activation maps and the table of cameras into ``folder``. Returns the table."""
    import numpy as np
    import torch

    from dgnet_fast.data import normalize
    from dgnet_fast.data.pictures import Pictures
    from dgnet_fast.generation.pairs import spread
    from dgnet_fast.retrieval.activation import HEAD_NAMES, activation_maps, activation_page
    from dgnet_fast.retrieval.embedding import embedding_map
    from dgnet_fast.retrieval.extractor import Extractor
    from dgnet_fast.retrieval.tables import camera_table

    config = model.config
    extractor, gallery = Extractor.of(model.appearance_encoder, config), dataset.gallery
    features = {
        name: extractor.split(split, progress=progress(f"features of {name}"))
        for name, split in (("query", dataset.query), ("gallery", gallery))
    }
    rng = np.random.default_rng(args.seed)
    known = np.unique(gallery.ids[gallery.ids > 0])
    shown = np.flatnonzero(np.isin(gallery.ids, rng.permutation(known)[: args.people]))
    embedding_map(
        features["gallery"][torch.from_numpy(shown)], gallery.ids[shown], gallery.cameras[shown],
        folder / "embedding.png", method=args.method, seed=args.seed,
    )  # fmt: skip
    people = Pictures("gallery", gallery, np.where(gallery.ids > 0, gallery.ids, -1))
    people = people.choose(np.flatnonzero(gallery.ids > 0))
    pictures = people.choose(spread(people, args.pictures, args.seed)).decode(*config.picture_size)
    device = next(model.parameters()).device
    maps, _ = activation_maps(
        model.appearance_encoder, normalize(pictures.to(device)), upsample=config.ID_upsample
    )
    with atomically(folder / "activation.png", sync=False) as temporary:
        activation_page(pictures, maps, HEAD_NAMES[model.appearance_encoder.style]).save(temporary)
    table = camera_table(dataset, features["query"], features["gallery"], extractor.second_half_weight)
    write_json(folder / "cameras.json", {TABLES: [table]})
    return table


def body(argv: list[str] | None) -> int:
    args = parser().parse_args(argv)
    from dgnet_fast.checkpoints.loading import load_for_use
    from dgnet_fast.config.device import resolve_device
    from dgnet_fast.data.datasets import dataset_of
    from dgnet_fast.models.typed import in_channels_last
    from dgnet_fast.report.page import write_report

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
    if folder.is_file():
        raise ConfigError(f"--out {folder} is a file; allowed: the name of a folder")
    check_writable(folder, "--out")
    device = resolve_device(args.device)
    model, _ = load_for_use(args.checkpoint, config_file=args.config, allow_extra=args.allow_extra)
    dataset = dataset_of(data_set_config(model.config, args))
    folder.mkdir(parents=True, exist_ok=True)
    table = draw(in_channels_last(model.eval(), device), dataset, folder, args)
    report = write_report(run) if run and not args.out else None
    print_tables([table])
    for name in FILES[:2]:
        print(folder / name)
    if report:
        print(f"report: {report}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    return run_command(lambda: body(argv), program("visualize"))


if __name__ == "__main__":
    sys.exit(main())
