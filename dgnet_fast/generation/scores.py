"""Scores of generated pictures: compared with real pictures, with the pictures they were made from, and with the truth
if it is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dgnet_fast.config import Config
from dgnet_fast.config.shown import one_line
from dgnet_fast.data import ChosenPictures, decode_split, denormalize, normalize
from dgnet_fast.data.datasets import dataset_of
from dgnet_fast.data.drawn.dataset import SyntheticSplit
from dgnet_fast.data.pictures import Pictures, open_pictures
from dgnet_fast.distributed import processes
from dgnet_fast.distributed.sharing import digest_of, shared_out
from dgnet_fast.generation.codes import reconstructions
from dgnet_fast.generation.score_networks import Lpips
from dgnet_fast.generation.sets import read_description, read_manifest
from dgnet_fast.metrics import colour_error, psnr, ssim
from dgnet_fast.metrics.generation import (
    Features,
    frechet_distance,
    gaussian_of,
    mean_ssim,
    same_person_pairs,
)
from dgnet_fast.models.dgnet import DGNet
from dgnet_fast.report.progress import Progress
from dgnet_fast.retrieval.extractor import Extractor

LIKENESS = {
    "psnr": ("PSNR (dB)", 2),
    "ssim": ("SSIM", 3),
    "clothes_colour": ("clothes: colour error", 2),
    "clothes_psnr": ("clothes: PSNR (dB)", 2),
    "rest_psnr": ("rest: PSNR (dB)", 2),
    "rest_ssim": ("rest: SSIM", 3),
}
"""What `likeness` measures: for each name, the heading in a table and the number of digits."""


def likeness(ours: Tensor, wanted: Tensor, clothes: np.ndarray) -> dict[str, np.ndarray]:
    """Scores (N,) of pictures uint8 (N, 3, H, W): PSNR in dB and SSIM on the whole picture; the mean colour difference
    CIEDE2000 and PSNR on the clothes (bool (N, H, W)); PSNR and SSIM outside the clothes. NaN if a region is empty.
    """
    return {
        "psnr": psnr(ours, wanted),
        "ssim": ssim(ours, wanted),
        "clothes_colour": colour_error(ours, wanted, clothes),
        "clothes_psnr": psnr(ours, wanted, clothes),
        "rest_psnr": psnr(ours, wanted, ~clothes),
        "rest_ssim": ssim(ours, wanted, ~clothes),
    }


class Truth(NamedTuple):
    """The true picture of a swap: ``picture`` uint8 (H, W, 3), and ``clothes`` bool (H, W), True where it shows
    clothes.
    """

    picture: np.ndarray
    clothes: np.ndarray


def score_pictures(
    model: DGNet, pictures: Tensor, pairs: np.ndarray, truth: Callable[[int, int], Truth]
) -> dict[str, dict[str, float]]:
    """`likeness` of reconstructions ("recon"), of swaps ("swap"), and of the unchanged structure picture ("copy"),
    which a swap must beat.

    ``pictures``: uint8 (N, 3, H, W). ``pairs``: (M, 2) of (appearance i, structure j). ``truth(i, j)`` is the true
    picture of that swap, which only synthetic data has.
    """
    device = next(model.parameters()).device
    rows: dict[str, list[dict[str, np.ndarray]]] = {"recon": [], "swap": [], "copy": []}
    for part in torch.from_numpy(pairs).split(32):
        appearance, structure = (normalize(pictures[part[:, k]].to(device)) for k in (0, 1))
        swapped = denormalize(model.swap(appearance, structure)).cpu()
        rebuilt = denormalize(model.swap(structure, structure)).cpu()
        target, clothes = (np.stack(x) for x in zip(*(truth(int(i), int(j)) for i, j in part), strict=True))
        own_clothes = np.stack([truth(int(j), int(j)).clothes for j in part[:, 1]])
        target = torch.from_numpy(target).permute(0, 3, 1, 2)
        original = pictures[part[:, 1]]
        rows["recon"].append(likeness(rebuilt, original, own_clothes))
        rows["swap"].append(likeness(swapped, target, clothes))
        rows["copy"].append(likeness(original, target, clothes))
    return {
        name: {k: float(np.nanmean(np.concatenate([one[k] for one in parts]))) for k in parts[0]}
        for name, parts in rows.items()
    }


SWAP_PAIRS = 64
"""Number of pairs of test pictures whose swaps are compared with the truth."""


def drawn_scores(model: DGNet, gallery: SyntheticSplit) -> tuple[dict[str, dict[str, float]], int]:
    """`score_pictures` of synthetic test pictures, and the number of swaps; the same seed gives the same swaps."""
    people = np.flatnonzero(gallery.ids > 0)
    rng = np.random.default_rng(model.config.seed)
    pairs = rng.choice(people, size=(SWAP_PAIRS, 2))
    pairs = pairs[gallery.ids[pairs[:, 0]] != gallery.ids[pairs[:, 1]]]
    pictures = decode_split(gallery, *model.config.picture_size)

    def truth(i: int, j: int) -> Truth:
        return Truth(gallery.truth(i, j, keep_body=True), gallery.clothes_mask(i, j, keep_body=True))

    return score_pictures(model, pictures, pairs, truth), len(pairs)


def picture_table(model: DGNet, gallery: SyntheticSplit) -> dict[str, Any]:
    """Table of reconstructions and swaps of synthetic test pictures, compared with the truth."""
    scores, count = drawn_scores(model, gallery)
    share = scores["swap"]["clothes_colour"] / scores["copy"]["clothes_colour"]
    word = (
        "better than leaving the picture as it is"
        if share < 1
        else "no better than leaving the picture as it is"
    )
    names = {"recon": "reconstruction", "swap": "swap", "copy": "structure picture left as it is"}
    return {
        "title": "Pictures of people never trained on, against the truth",
        "columns": ["", *(title for title, _ in LIKENESS.values())],
        "rows": [
            [label, *(round(scores[k][one], digits) for one, (_, digits) in LIKENESS.items())]
            for k, label in names.items()
        ],
        "notes": [
            f"{count} swaps; the truth of a swap is drawn: the clothes of one in the pose, build, place and camera of the other",
            "the last row compares the unchanged structure picture with the swap's truth: on the clothes a swap must beat it, "
            "off the clothes it is already right",
            "colour error: mean CIEDE2000, less is better; clothes: top and trousers, shorts or skirt; rest: all other pixels",
        ],
        "verdict": f"Swaps on the clothes: {word}, with {share:.2f} times its colour error.",
    }


def open_generated(folder: Path) -> tuple[Pictures, tuple[int, int] | None]:
    """The pictures of a generated set and their size; the person of a picture is the one who gives its appearance. A
    plain folder of pictures has no size (None).
    """
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


@dataclass(frozen=True)
class Comparison:
    """How sets of pictures are compared: ``size`` (height, width) in pixels, ``device``, ``batch`` pictures in one
    pass, ``pairs`` for SSIM and LPIPS, drawn with ``seed``, and the TorchScript files of Inception (for FID) and
    LPIPS, if given. ``trusted`` runs files that are not the published ones, and ``progress`` makes a callback from the
    name of what is computed.
    """

    size: tuple[int, int]
    device: torch.device
    batch: int = 64
    pairs: int = 1000
    seed: int = 0
    inception: Features | None = None
    fid_resize: str = "legacy"
    lpips: Lpips | None = None
    progress: Callable[[str], Progress] | None = None


RESIZED = {
    "legacy": "pictures made 299x299 by the bilinear filter of TensorFlow 1, without antialiasing",
    "clean": "pictures made 299x299 by Pillow's bicubic filter with antialiasing, as clean-fid does it",
}
"""What each of `config.choices.FID_RESIZES` does, for the notes of a table."""


def sample(pictures: Pictures, most: int | None, seed: int) -> Pictures:
    if most is None or len(pictures) <= most:
        return pictures
    return pictures.choose(np.sort(np.random.default_rng(seed).permutation(len(pictures))[:most]))


def _features(pictures: Pictures, features: Features, how: Comparison, what: str) -> Iterator[Tensor]:
    """Features of pictures, batch by batch, which all processes of a run compute together."""
    show = how.progress(what) if how.progress else None
    count = len(pictures)

    def of(rows: range) -> Tensor:
        return features(pictures.choose(rows).decode(*how.size)).cpu()

    parts = [range(first, min(first + how.batch, count)) for first in range(0, count, how.batch)]
    for rows, found in zip(parts, shared_out(of, parts), strict=True):
        yield found
        if show is not None:
            show(rows.stop, count)


def floor_count(real: Pictures, generated: Pictures) -> int:
    """How many real pictures are compared with the other real ones for the floor: as many as were generated, at most
    half.
    """
    return min(len(generated), len(real) // 2)


def frechet_row(
    title: str, features: Features, real: Pictures, generated: Pictures, how: Comparison
) -> list[Any]:
    """[title, distance between generated and real pictures, floor]. The floor is the distance between `floor_count`
    real pictures and the other real ones.

    The Fréchet distance falls when pictures are added, so a floor is only comparable at the same number of pictures. If
    more pictures were generated than half of the real ones, the floor uses half of the real ones.
    """
    count = floor_count(real, generated)
    order = np.random.default_rng(how.seed).permutation(len(real))
    parts = real, generated, real.choose(order[:count]), real.choose(order[count:])
    names = ("real pictures", "generated pictures", "some real pictures", "the other real pictures")
    whole, made, some, rest = (
        gaussian_of(_features(part, features, how, f"{title}: {name}"), lambda x: x)
        for part, name in zip(parts, names, strict=True)
    )
    return [title, round(frechet_distance(made, whole), 3), round(frechet_distance(some, rest), 3)]


def set_table(real: Pictures, generated: Pictures, model: DGNet | None, how: Comparison) -> dict[str, Any]:
    """Table of the distances between the two sets, and of the similarity of one person's pictures within each set. Raises
    ValueError, on all processes of a run, if one has other pictures or options.
    """
    processes.check_same(
        {
            "the list of real pictures": digest_of(real.split.names),
            "the list of generated pictures": digest_of(generated.split.names),
            "the size, batch, pairs and seed": (how.size, how.batch, how.pairs, how.seed),
            "the number of scripts": sum(one is not None for one in (how.inception, how.lpips)),
        }
    )
    rows = []
    if how.inception:
        rows.append(frechet_row(f"FID ({how.fid_resize})", how.inception, real, generated, how))
    if model is not None:
        own = Extractor.of(model.appearance_encoder, model.config, batch=how.batch)
        processes.check_same({"the network": own.fingerprint})
        name = "Fréchet distance over the checkpoint's re-id features"
        rows.append(frechet_row(name, own, real, generated, how))
    notes = [
        f"{len(generated)} generated and {len(real)} real pictures, all at {how.size[0]}x{how.size[1]}; real ones resized bicubically",
        "distances: of the generated to all real pictures; beside it the floor, "
        f"of {floor_count(real, generated)} real ones to the other real ones",
        f"intra-class: {how.pairs} random pairs of different pictures of one person (of a generated picture: who gives the appearance)",
    ]
    distances = {"intra-class SSIM": mean_ssim}
    if how.lpips:
        measure = how.lpips.distance

        def mean_lpips(pictures: Tensor, pairs: np.ndarray) -> float:
            parts = np.array_split(pairs, -(-len(pairs) // how.batch))
            return float(
                np.concatenate([measure(pictures[p[:, 0]], pictures[p[:, 1]]) for p in parts]).mean()
            )

        distances[f"intra-class LPIPS ({how.lpips.network})"] = mean_lpips
    for name, measure_pairs in distances.items():
        row: list[Any] = [name]
        for pictures in (generated, real):
            pairs = same_person_pairs(pictures.people, how.pairs, how.seed)
            if not len(pairs):
                row.append(None)
                continue
            used, places = np.unique(pairs, return_inverse=True)
            decoded = pictures.choose(used).decode(*how.size)
            row.append(round(measure_pairs(decoded, places.reshape(pairs.shape)), 4))
        rows.append(row)
    if how.inception:
        notes.append(f"FID ({how.fid_resize}): {RESIZED[how.fid_resize]}")
    else:
        notes.append("no FID: --inception FILE names its network (docs/weights_and_data.md)")
    return {
        "title": "Generated pictures beside real ones",
        "columns": ["", "generated", "real"],
        "rows": rows,
        "notes": notes,
    }


def reconstruction_table(model: DGNet, real: Pictures, how: Comparison) -> dict[str, Any]:
    """Table of how well real pictures are reconstructed: from their own codes, with the appearance of another picture
    of the same person, and through the cycle.
    """
    chosen = sample(real, min(how.pairs, 256), how.seed)
    positives = []
    for k in range(len(chosen)):
        same = np.flatnonzero(real.people == chosen.people[k]) if chosen.people[k] > 0 else []
        names = [i for i in same if real.split.names[i] != chosen.split.names[k]]
        positives.append(names[0] if names else None)
    known = [k for k, i in enumerate(positives) if i is not None]
    shown, others = chosen.choose(known), real.choose([positives[k] for k in known])
    if len(shown) < 2:
        raise ValueError(f"{real.label} has no people with two pictures; reconstruction needs them")
    pictures = shown.decode(*how.size)
    made = []
    for part in torch.arange(len(shown)).split(max(2, how.batch // 2)):
        rows = part if len(part) > 1 else torch.cat([part, part[:1]])
        made.append(
            reconstructions(model, pictures[rows], others.choose(rows.numpy()).decode(*how.size))[: len(part)]
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
    """Table of swaps of synthetic people compared with their true pictures; None if the truth is not known."""
    description, rows = read_description(folder), read_manifest(folder)
    label = description["appearances"]
    if label != description["structures"] or not label.startswith("synthetic:"):
        return None
    source = open_pictures(label, model.config.replace(data="synthetic"))
    if (model.config.data, size) != (
        "synthetic",
        model.config.picture_size,
    ):
        return None
    split = dataset_of(model.config).splits[label.partition(":")[2]]
    assert isinstance(split, SyntheticSplit) and isinstance(source.split, ChosenPictures)
    kept = source.split.indices
    truth, clothes, structure = [], [], []
    for row in rows:
        for index in (row.appearance_index, row.structure_index):
            if not 0 <= index < len(kept):
                raise ValueError(f"{folder}: the manifest names picture {index} of {len(kept)}")
        if one_line(source.split.names[row.appearance_index]) != row.appearance:
            raise ValueError(
                f"{folder} was drawn from other synthetic data than the checkpoint's options describe"
            )
        i, j = int(kept[row.appearance_index]), int(kept[row.structure_index])
        truth.append(split.truth(i, j, keep_body=True))
        clothes.append(split.clothes_mask(i, j, keep_body=True))
        structure.append(split.load(j))
    wanted, copies = (
        torch.from_numpy(np.stack(x)).permute(0, 3, 1, 2).contiguous() for x in (truth, structure)
    )
    lines = []
    for name, x in (("swaps", generated.decode(*size)), ("structure picture left as it is", copies)):
        scores = likeness(x, wanted, np.stack(clothes))
        lines.append(
            [name, *(round(float(np.nanmean(scores[k])), digits) for k, (_, digits) in LIKENESS.items())]
        )
    return {
        "title": "Swaps against the drawn truth",
        "columns": ["", *(title for title, _ in LIKENESS.values())],
        "rows": lines,
        "notes": [f"{len(rows)} swaps", "on the clothes a swap must beat the last row"],
    }
