"""The pictures of the domains, and the batches of a step."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dgnet_fast.config import ConfigError
from dgnet_fast.config.unit import UnitConfig
from dgnet_fast.data import MappedPictures, cache_folder, load_pictures, place
from dgnet_fast.data.files import unlabelled
from dgnet_fast.data.pictures import NOBODY, Pictures, open_pictures
from dgnet_fast.report.progress import progress
from dgnet_fast.translation.parts import Pair
from dgnet_fast.translation.step import UnitBatch

BUILT_IN = ("synthetic-a:train", "synthetic-b:train")
"""Sources of a run that names none."""

logger = logging.getLogger(__name__)


def to_network(pictures: Tensor) -> Tensor:
    """uint8 (…, 3, H, W) → float32 in [-1, 1], as UNIT's networks want pictures."""
    return pictures.float().mul_(1 / 127.5).sub_(1)


def to_pictures(x: Tensor) -> Tensor:
    """Network output in [-1, 1] → uint8, rounded: exact values, no stretching of the contrast."""
    return x.float().add(1).mul(127.5).round_().clamp_(0, 255).to(torch.uint8)


def open_domains(config: UnitConfig) -> list[Pictures]:
    """The training pictures of every domain, as the options name them: ``sources``, or ``data_root`` with trainA and
    trainB or ``data_folder_train_*`` with ``data_list_train_*`` as in public files. ValueError for what is not there.
    """
    if config.sources:
        return [open_pictures(one, config.data_config(d)) for d, one in enumerate(config.sources)]
    if config.data_root:
        return [open_pictures(str(Path(config.data_root) / f"train{s}"), config.data_config()) for s in "AB"]
    found = []
    for name in ("a", "b"):
        folder, listed = (getattr(config, f"data_{kind}_train_{name}") for kind in ("folder", "list"))
        if not folder:
            raise ConfigError(f"there are no pictures of domain {name}: give its source with --{name} SOURCE")
        if not listed:
            found.append(open_pictures(folder, config.data_config()))
            continue
        if not Path(listed).is_file():
            raise ValueError(f"data_list_train_{name}: no such file {listed}")
        lines = [line.strip() for line in Path(listed).read_text().splitlines()]
        paths = [Path(folder) / line for line in lines if line]
        missing = next((p for p in paths if not p.is_file()), None)
        if missing or not paths:
            raise ValueError(f"{listed}: {f'no such picture {missing}' if missing else 'the list is empty'}")
        split = unlabelled(paths)
        found.append(Pictures(listed, split, np.full(len(split), NOBODY, dtype=np.int64)))
    return found


def camera_sources(source: str, config: UnitConfig) -> list[str]:
    """A source for each camera of ``source``, which names a data set and its split. ValueError where it has no two."""
    if ":camera=" in source:
        raise ConfigError(f"--cameras is {source!r}; allowed: DATASET:SPLIT, without a camera")
    cameras = np.unique(open_pictures(source, config.data_config(0)).split.cameras)
    known = [int(one) for one in cameras if one >= 0]
    if len(known) < 2:
        raise ValueError(f"--cameras {source!r} has {len(known)} known cameras; allowed: at least 2")
    return [f"{source}:camera={one}" for one in known]


def decoded(
    domains: Sequence[Pictures], config: UnitConfig, device: torch.device
) -> list[Tensor | MappedPictures]:
    """The pictures of every domain at the size of the networks, on the device if they take little of it."""
    made = []
    for pictures in domains:
        found = load_pictures(
            pictures.split,
            *config.picture_size,
            cache_folder(config.data_cache),
            workers=config.num_workers or 1,
            progress=progress(f"decoding {pictures.label}"),
        )
        made.append(place(found, device))
        logger.info(f"domain {len(made)}: {len(found)} pictures of {pictures.label}")
    return made


def check_batch(counts: Sequence[int], batch_size: int, labels: Sequence[str] = ()) -> None:
    """Raise ConfigError if a domain has fewer pictures than a batch. ``counts``: pictures of each domain."""
    for number, count in enumerate(counts):
        if count < batch_size:
            label = labels[number] if labels else f"domain {number + 1}"
            raise ConfigError(
                f"{label} has {count} pictures and batch_size is {batch_size}; allowed: at most {count}"
            )


class DomainBatches:
    """Batches of a pair of domains, each a pure function of (seed, step, pair).

    Every domain goes through shuffles of its own, apart from the others, and drops the last incomplete batch. Pictures
    are mirrored with probability ½; they have the size of the networks already.
    """

    def __init__(
        self,
        pictures: Sequence[Tensor | MappedPictures],
        *,
        batch_size: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
        labels: Sequence[str] = (),
    ) -> None:
        self._mapped = {k: p for k, p in enumerate(pictures) if isinstance(p, MappedPictures)}
        self.pictures = [p.tensor if isinstance(p, MappedPictures) else p for p in pictures]
        check_batch([len(one) for one in self.pictures], batch_size, labels)
        self.batch_size, self.seed, self.device = batch_size, seed, torch.device(device)
        self._shuffles: dict[int, tuple[int, np.ndarray]] = {}

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(np.random.SeedSequence((self.seed, *key))))

    def indices(self, step: int, domain: int) -> np.ndarray:
        """The pictures (B,) of a domain that step ``step`` (from 0) has."""
        count = len(self.pictures[domain])
        epoch, position = divmod(step, count // self.batch_size)
        known = self._shuffles.get(domain)
        if known is None or known[0] != epoch:
            known = epoch, self._rng(0, domain, epoch).permutation(count)
            self._shuffles[domain] = known
        return known[1][position * self.batch_size :][: self.batch_size]

    def batch(self, step: int, pair: Pair) -> UnitBatch:
        """The batch of ``step``; the same whatever was asked before, so a run can resume anywhere."""
        streams = []
        for stream, domain in enumerate(pair):
            source = self.pictures[domain]
            chosen = torch.from_numpy(self.indices(step, domain)).to(source.device)
            x = source.index_select(0, chosen).to(self.device)
            mirrored = torch.from_numpy(self._rng(1, stream, step).random(len(x)) < 0.5).to(self.device)
            streams.append(torch.where(mirrored[:, None, None, None], x.flip(3), x))
        for domain, mapped in self._mapped.items():
            mapped.release()
            if len(self.pictures) == 2:  # of more domains, the next step's pair is not known here
                mapped.expect(self.indices(step + 1, domain))
        return UnitBatch(to_network(torch.stack(streams)))
