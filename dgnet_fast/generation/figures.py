"""Figures as in the paper, by name, from any pictures and any checkpoint."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from dgnet_fast.config.choices import FIGURES
from dgnet_fast.data.pictures import NOBODY, Pictures
from dgnet_fast.generation.codes import Swapper, interpolate, reconstructions
from dgnet_fast.generation.pairs import all_pairs, spread
from dgnet_fast.models.dgnet import DGNet
from dgnet_fast.report.grid import image_grid, picture_rows


def draw_figure(
    name: str, model: DGNet, pictures: Pictures, *, count: int = 6, steps: int = 8, seed: int = 0
) -> Image.Image:
    """The figure ``name`` (see `FIGURES`) with ``count`` people drawn from ``pictures`` by ``seed``.

    Raises ValueError for an unknown name, or if there are fewer than two people to draw.
    """
    size = model.config.picture_size
    chosen = spread(pictures, count, seed)
    if name not in FIGURES:
        raise ValueError(f"figure is {name!r}; allowed: {', '.join(FIGURES)}")
    if len(chosen) < 2:
        raise ValueError(f"{pictures.label} has {len(chosen)} person to draw; a figure needs at least 2")
    people = pictures.choose(chosen)
    shown = people.decode(*size)
    if name == "swap":
        swapper, pairs = Swapper(model, people, people), all_pairs(people, people)
        cells = torch.cat([swapper(part) for part in np.array_split(pairs, len(people))])
        return image_grid(shown, shown, cells.unflatten(0, (len(people), len(people))))
    if name == "reconstruction":
        positives = pictures.choose([_other_picture(pictures, index) for index in chosen]).decode(*size)
        made = reconstructions(model, shown, positives)
        captions = ["picture", "same id", "self", "same id", "cycle"]
        rows = [[x, p, *kinds] for x, p, kinds in zip(shown, positives, made, strict=True)]
        return picture_rows(rows, captions, breaks=(2,))
    of = "structure" if name.startswith("structure") else "appearance"
    labels = [f"{k / (steps - 1):.2f}" for k in range(steps)] if steps > 1 else []
    rows = []
    for k, first in enumerate(shown):
        last, fixed = shown[(k + 1) % len(shown)], shown[(k + 2) % len(shown)]
        rows.append([fixed, first, *interpolate(model, first, last, fixed, steps, of=of), last])
    captions = ["structure" if of == "appearance" else "appearance", "from", *labels, "to"]
    return picture_rows(rows, captions, breaks=(1, 2, 2 + steps))


def _other_picture(pictures: Pictures, index: int) -> int:
    """Another picture of the same person; the picture itself if there is no other."""
    person = pictures.people[index]
    same = np.flatnonzero(pictures.people == person) if person != NOBODY else np.array([index])
    others = same[same != index]
    return int(others[0]) if len(others) else index
