"""Generated pictures beyond training: swaps, grids, interpolations, and whole sets that a kill cannot spoil.

``x_j^i = G(a_i, s_j)`` (paper section 3.1): appearance of picture i, structure of picture j. Codes are
computed once a picture and kept in a bounded store, so a set of N×M pictures costs N + M encodings.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dgnet_fast.config import DATASETS, SEVERAL, Config
from dgnet_fast.data import ChosenPictures, Split, decode_split, denormalize, normalize
from dgnet_fast.data.base import UNKNOWN_CAMERA
from dgnet_fast.data.files import FileSplit, picture_files
from dgnet_fast.models.appearance_encoder import AppearanceEncoder, upsample_small
from dgnet_fast.models.batch_norm import BatchNormMode, fold_batch_norms
from dgnet_fast.models.dgnet import DGNet
from dgnet_fast.models.structure_input import structure_input

SPLITS = ("train", "query", "gallery", "multi_query")
NOBODY = -1
"""Person of a picture whose identity is unknown: equal to no other person."""
STORE_BYTES = 256 * 2**20
"""Codes kept by one store: 256 structure codes or 8192 appearance codes of the paper's size."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Pictures:
    """Pictures to generate from. ``label`` says where they come from, ``people`` int64 (N,) who is on each
    (`NOBODY` where unknown).
    """

    label: str
    split: Split
    people: np.ndarray

    def __len__(self) -> int:
        return len(self.split)

    def choose(self, indices: Sequence[int]) -> Pictures:
        """Only these pictures, in this order."""
        chosen = np.asarray(indices, dtype=np.int64)
        return Pictures(self.label, ChosenPictures.of(self.split, chosen), self.people[chosen])

    def decode(self, height: int, width: int, workers: int | None = None) -> Tensor:
        """All of them, uint8 (N, 3, height, width)."""
        return decode_split(self.split, height, width, workers=workers)


def open_pictures(source: str, config: Config) -> Pictures:
    """The pictures that ``source`` names: a file, a folder, or ``DATASET:SPLIT`` such as ``market1501:gallery``.

    A folder is read with all folders below it, in order of path; where it has folders, they are the people.
    Of a data set junk is left out; its folder and options are those of ``config`` (``data_root``, …). Raises
    ValueError for a source that is neither, or empty.
    """
    name, _, part = source.partition(":")
    if all(one in DATASETS for one in name.split(SEVERAL)) and not Path(source).exists():
        return _of_dataset(source, name, part, config)
    path = Path(source)
    if not path.exists():
        raise ValueError(
            f"no such picture, folder or data set: {source!r}; a data set is named with its split, as in market1501:gallery"
        )
    files, root = picture_files([path]), path if path.is_dir() else path.parent
    names = [file.relative_to(root).as_posix() for file in files]
    folders = sorted({str(file.parent) for file in files})
    people = [folders.index(str(file.parent)) + 1 if file.parent != root else NOBODY for file in files]
    unknown = np.full(len(files), UNKNOWN_CAMERA, dtype=np.int64)
    people = np.array(people, dtype=np.int64)
    return Pictures(source, FileSplit(people, unknown, names, root), people)


def _of_dataset(source: str, name: str, part: str, config: Config) -> Pictures:
    from dgnet_fast.training.run import dataset_of

    if part not in SPLITS:
        raise ValueError(f"{source!r} names no split; allowed: {', '.join(f'{name}:{s}' for s in SPLITS)}")
    dataset = dataset_of(config.replace(data=name))
    split = dataset.splits.get(part)
    if split is None:
        raise ValueError(f"the data set {name!r} has no split {part!r} here")
    everybody = Pictures(source, split, np.where(split.ids > 0, split.ids, NOBODY))
    return everybody.choose(np.flatnonzero(split.ids >= 0))


def spread(pictures: Pictures, count: int, seed: int = 0, *, skip: Sequence[int] = ()) -> list[int]:
    """Indices of ``count`` pictures for a figure: of different people where they are known, drawn with ``seed``.

    ``skip`` are people to leave out. Fewer come back where there are not as many.
    """
    order = np.random.default_rng(seed).permutation(len(pictures))
    seen, chosen = set(skip), []
    for index in order.tolist():
        person = int(pictures.people[index])
        if person != NOBODY and person in seen:
            continue
        seen.add(person)
        chosen.append(index)
        if len(chosen) == count:
            break
    return chosen


def random_pairs(appearances: Pictures, structures: Pictures, count: int, seed: int) -> np.ndarray:
    """``count`` different (appearance, structure) pairs of different people, int64 (count, 2), in random order.

    The same arguments give the same pairs. Raises ValueError where there are not as many.
    """
    rows, columns = len(appearances), len(structures)
    rng = np.random.default_rng(seed)

    def allowed(pair: np.ndarray) -> np.ndarray:
        one, other = appearances.people[pair // columns], structures.people[pair % columns]
        return pair[(one != other) | (one == NOBODY)]

    if count * 4 > rows * columns:  # a large share of all: choose among all
        found = rng.permutation(allowed(np.arange(rows * columns)))
    else:
        found = np.empty(0, dtype=np.int64)
        for _ in range(64):
            drawn = allowed(rng.integers(0, rows * columns, 2 * count))
            found = np.concatenate([found, drawn])
            found = found[np.sort(np.unique(found, return_index=True)[1])]
            if len(found) >= count:
                break
    if len(found) < count:
        raise ValueError(
            f"--count is {count}; {appearances.label} and {structures.label} give {len(found)} pairs of different people"
        )
    return np.stack([found[:count] // columns, found[:count] % columns], axis=1)


def all_pairs(appearances: Pictures, structures: Pictures) -> np.ndarray:
    """Every (appearance, structure), int64 (N·M, 2), one structure after the other."""
    structure, appearance = np.divmod(
        np.arange(len(appearances) * len(structures)), np.int64(len(appearances))
    )
    return np.stack([appearance, structure], axis=1)


@torch.no_grad()
def appearance_codes(model: DGNet, pictures: Tensor, encoder: AppearanceEncoder | None = None) -> Tensor:
    """Appearance codes (N, 4·id_dim) of uint8 pictures (N, 3, H, W), on the model's device.

    ``encoder`` is used in place of the model's: a copy of it with folded BatchNorms.
    """
    pictures = normalize(pictures.to(next(model.parameters()).device))
    encoder = encoder or model.appearance_encoder
    return encoder(upsample_small(pictures, model.config.ID_upsample), BatchNormMode()).code


@torch.no_grad()
def structure_codes(model: DGNet, pictures: Tensor) -> Tensor:
    """Structure codes (N, C, h, w) of uint8 pictures (N, 3, H, W), on the model's device."""
    pictures = normalize(pictures.to(next(model.parameters()).device))
    return model.structure_encoder(structure_input(pictures, model.config.single))


@torch.no_grad()
def decode_codes(model: DGNet, appearance: Tensor, structure: Tensor) -> Tensor:
    """Pictures uint8 (N, 3, H, W) on the CPU from codes."""
    return denormalize(model.decode(structure, appearance)).cpu()


class CodeStore:
    """The codes of one kind of a source's pictures: computed when first asked for, the most recent kept.

    ``encode`` is `appearance_codes` or `structure_codes`; at most ``limit`` bytes stay on the model's device.
    """

    def __init__(
        self,
        model: DGNet,
        pictures: Pictures,
        encode: Callable[[DGNet, Tensor], Tensor],
        *,
        workers: int | None = None,
        limit: int = STORE_BYTES,
    ) -> None:
        self.model, self.pictures, self.encode = model, pictures, encode
        self.workers, self.limit = workers, limit
        self._kept: OrderedDict[int, Tensor] = OrderedDict()

    def get(self, indices: Sequence[int]) -> Tensor:
        """Codes (N, …) of the pictures at ``indices``, repeats allowed."""
        config = self.model.config
        wanted = list(dict.fromkeys(int(i) for i in indices))
        new = [i for i in wanted if i not in self._kept]
        if new:
            size = config.crop_image_height, config.crop_image_width
            codes = self.encode(self.model, self.pictures.choose(new).decode(*size, self.workers))
            self._kept.update(zip(new, codes, strict=True))
        for i in wanted:
            self._kept.move_to_end(i)
        result = torch.stack([self._kept[int(i)] for i in indices])
        each = result[0].numel() * result.element_size()
        while len(self._kept) > max(1, self.limit // each):
            self._kept.popitem(last=False)
        return result


class Swapper:
    """Generates pictures of pairs from two sources: ``swapper(pairs)`` → uint8 (N, 3, H, W) on the CPU.

    Its appearance encoder is a folded copy of the model's as it is now.
    """

    def __init__(
        self, model: DGNet, appearances: Pictures, structures: Pictures, workers: int | None = None
    ) -> None:
        self.model = model
        encode = partial(appearance_codes, encoder=fold_batch_norms(model.appearance_encoder))
        self.appearance = CodeStore(model, appearances, encode, workers=workers)
        self.structure = CodeStore(model, structures, structure_codes, workers=workers)

    def __call__(self, pairs: np.ndarray) -> Tensor:
        return decode_codes(self.model, self.appearance.get(pairs[:, 0]), self.structure.get(pairs[:, 1]))


def interpolate(
    model: DGNet, first: Tensor, last: Tensor, fixed: Tensor, steps: int, *, of: str = "appearance"
) -> Tensor:
    """Pictures along the straight line between two codes: uint8 (steps, 3, H, W).

    ``first``, ``last`` and ``fixed`` are uint8 (3, H, W). With ``of`` "appearance" the appearance moves from
    first to last in the structure of fixed; with "structure" the structure moves and fixed gives the
    appearance. Both ends are included. Raises ValueError for fewer than two steps or another ``of``.
    """
    if steps < 2:
        raise ValueError(f"--steps is {steps}; allowed: at least 2")
    if of not in ("appearance", "structure"):
        raise ValueError(f"of is {of!r}; allowed: appearance, structure")
    moving, still = (
        (appearance_codes, structure_codes) if of == "appearance" else (structure_codes, appearance_codes)
    )
    ends = moving(model, torch.stack([first, last]))
    share = torch.linspace(0, 1, steps, device=ends.device).view(-1, *[1] * (ends.ndim - 1))
    path = torch.lerp(ends[:1], ends[1:], share)
    held = still(model, fixed[None])
    held = held.expand(steps, *held.shape[1:])
    return decode_codes(model, path, held) if of == "appearance" else decode_codes(model, held, path)


def reconstructions(model: DGNet, pictures: Tensor, positives: Tensor) -> Tensor:
    """The paper's reconstructions of uint8 pictures (N, 3, H, W): uint8 (N, 3, 3, H, W), kinds second.

    Self-reconstruction G(a_i, s_i); same-identity G(a of ``positives``, s_i); and the cycle: the picture made
    again from codes of generated pictures, G(E_a(G(a_i, s_j)), E_s(G(a_j, s_i))) with j the next picture.
    """
    appearance, structure = appearance_codes(model, pictures), structure_codes(model, pictures)
    self_made = decode_codes(model, appearance, structure)
    same_person = decode_codes(model, appearance_codes(model, positives), structure)
    other = torch.roll(torch.arange(len(pictures)), -1).to(appearance.device)
    clothes = decode_codes(model, appearance, structure[other])
    pose = decode_codes(model, appearance[other], structure)
    cycle = decode_codes(model, appearance_codes(model, clothes), structure_codes(model, pose))
    return torch.stack([self_made, same_person, cycle], dim=1)


def to_image(picture: Tensor) -> Image.Image:
    """A Pillow image of one uint8 picture (3, H, W)."""
    return Image.fromarray(np.ascontiguousarray(picture.cpu().permute(1, 2, 0).numpy()))
