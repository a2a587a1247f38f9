"""Translated pictures compared with their truth, which drawn pictures have."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dgnet_fast.config import DRAWN
from dgnet_fast.config.unit import UnitConfig
from dgnet_fast.data import ChosenPictures
from dgnet_fast.data.drawn.cities import pedestrians_of
from dgnet_fast.data.drawn.dataset import SyntheticSplit
from dgnet_fast.data.pictures import Pictures, open_pictures
from dgnet_fast.metrics import colour_error, psnr, ssim
from dgnet_fast.models.unit import Unit
from dgnet_fast.translation.batches import to_network, to_pictures

MEASURES = {"PSNR (dB)": (psnr, 2), "SSIM": (ssim, 3), "colour error": (colour_error, 2)}
PICTURES = 128
"""Number of test pictures of each domain that are compared."""


class Look(NamedTuple):
    """How a drawn source looks: its city ('' for none) and its camera (None: that of each picture)."""

    city: str
    camera: int | None


def look_of(source: str) -> Look | None:
    """The look of a source; None if its pictures are not drawn."""
    name, _, rest = source.partition(":")
    if name not in DRAWN:
        return None
    camera = rest.partition(":camera=")[2]
    return Look(name.partition("-")[2], int(camera) if camera else None)


def truth(pictures: Pictures, look: Look) -> Tensor:
    """The pictures of a drawn source (`open_pictures`) as another source shows them: uint8 (N, 3, H, W)."""
    assert isinstance(pictures.split, ChosenPictures)
    drawn, indices = pictures.split, np.arange(len(pictures))
    while isinstance(drawn, ChosenPictures):  # what was chosen of what was chosen
        indices, drawn = drawn.indices[indices], drawn.source
    assert isinstance(drawn, SyntheticSplit)
    people = pedestrians_of(drawn.pedestrians.seed, look.city)
    made = []
    for k in indices.tolist():
        camera = int(drawn.cameras[k]) if look.camera is None else look.camera
        who = int(drawn.identities[k]), int(drawn.views[k])
        made.append(people.draw(*who, camera, drawn.height, drawn.width))
    return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2)


def matched_colours(x: Tensor, style: Tensor) -> Tensor:
    """Pictures uint8 (N, 3, H, W) with the mean and the spread that each channel has in all pictures of ``style``, by one
    linear curve a channel that is fitted to all of them together. It learns nothing else, so what a network is worth
    shows beside it.
    """
    ours, theirs = x.float(), style.float()
    dims = (0, 2, 3)
    scale = theirs.std(dims, keepdim=True) / ours.std(dims, keepdim=True)
    moved = (ours - ours.mean(dims, keepdim=True)) * scale + theirs.mean(dims, keepdim=True)
    return moved.round().clamp(0, 255).to(torch.uint8)


@torch.no_grad()
def translated(model: Unit, pictures: Tensor, source: int, target: int, batch: int = 32) -> Tensor:
    """Pictures uint8 (N, 3, H, W) of one domain as another, on the CPU; model in evaluation mode."""
    device = next(model.parameters()).device
    parts = pictures.split(batch)
    return torch.cat(
        [to_pictures(model.translate(to_network(x.to(device)), source, target)).cpu() for x in parts]
    )


def test_pictures(source: str, config: UnitConfig, domain: int) -> Pictures:
    """Pictures of a drawn source that were never trained on, spread over its test people."""
    name, _, camera = source.partition(":camera=")
    dataset = name.partition(":")[0]
    suffix = f":camera={camera}" if camera else ""
    found = open_pictures(f"{dataset}:gallery{suffix}", config.data_config(domain))
    count = min(PICTURES, len(found))
    return found.choose(np.linspace(0, len(found) - 1, count).astype(int))


def truth_scores(model: Unit) -> dict[tuple[int, int], dict[str, dict[str, float]]] | None:
    """For every pair (source, target) of domains the scores of what was compared with the truth: "translated", "left as it
    is" and "colours matched"; each MEASURES. None if the sources are not drawn.
    """
    config = model.config
    looks = [look_of(one) for one in config.sources]
    if not looks or any(look is None for look in looks):
        return None
    shown = [test_pictures(one, config, d) for d, one in enumerate(config.sources)]
    pictures = [one.decode(*config.picture_size) for one in shown]
    found = {}
    for k in range(len(looks)):
        for target, look in enumerate(looks):
            if k == target or look is None:
                continue
            wanted = truth(shown[k], look)
            ways = {
                "translated": translated(model, pictures[k], k, target),
                "left as it is": pictures[k],
                "colours matched": matched_colours(pictures[k], pictures[target]),
            }
            found[k, target] = {
                way: {name: float(measure(x, wanted).mean()) for name, (measure, _) in MEASURES.items()}
                for way, x in ways.items()
            }
    return found


def truth_table(model: Unit) -> dict[str, Any] | None:
    """The table of `truth_scores`, the mean over pairs where there are more than two domains; None without a truth."""
    scores = truth_scores(model)
    if scores is None:
        return None
    labels = model.config.sources
    if len(labels) == 2:
        groups = {
            f"{short(labels[k])} → {short(labels[target])}": [one] for (k, target), one in scores.items()
        }
    else:
        groups = {f"mean of {len(scores)} pairs of domains": list(scores.values())}
    rows, verdicts = [], []
    for name, members in groups.items():
        means = {
            way: {m: float(np.mean([one[way][m] for one in members])) for m in MEASURES} for way in members[0]
        }
        rows += [
            [f"{name}: {way}", *(round(values[m], digits) for m, (_, digits) in MEASURES.items())]
            for way, values in means.items()
        ]
        ours, nothing = means["translated"], means["left as it is"]
        share = ours["colour error"] / nothing["colour error"]
        better = ours["PSNR (dB)"] - nothing["PSNR (dB)"]
        verdicts.append(f"{name}: {better:+.2f} dB against doing nothing, {share:.2f} times its colour error")
    return {
        "title": "Translated pictures of people never trained on, against the truth",
        "columns": ["", *MEASURES],
        "rows": rows,
        "notes": [
            *verdicts,
            "the truth: the same person in the same view, drawn as the other domain shows it; no training picture has a partner",
            "colour error: mean CIEDE2000, less is better; colours matched: mean and spread of each channel, and nothing learned",
        ],
    }


def short(source: str) -> str:
    """The name of a domain in tables and grids."""
    name, _, rest = source.partition(":")
    camera = rest.partition(":camera=")[2]
    return f"camera {camera}" if camera else name.rpartition("/")[2] or source
