"""How generated pictures compare with real ones as sets: Fréchet distance, and diversity of a person's pictures.

The Fréchet distance between two sets of features is FID where the features are those of the 2015 Inception network
(Heusel et al. 2017), which `generation.score_networks` reads from a file. All statistics are float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from dgnet_fast.metrics.image_quality import ssim

Features = Callable[[Tensor], Tensor]


class Gaussian:
    """Mean and covariance of features seen a batch at a time, float64: ``add`` (N, D), then ``mean``, ``covariance``."""

    def __init__(self) -> None:
        self.count = 0
        self._sum: np.ndarray | float = 0.0
        self._squares: np.ndarray | float = 0.0
        self._origin: np.ndarray | None = None

    def add(self, features: Tensor | np.ndarray) -> None:
        x = np.asarray(torch.as_tensor(features).detach().cpu().double())
        if x.ndim != 2:
            raise ValueError(f"features have shape {x.shape}; expected (N, D)")
        if self._origin is None:  # sums around the first mean: no cancellation where features are far from 0
            self._origin = x.mean(axis=0)
        x = x - self._origin
        self.count += len(x)
        self._sum = self._sum + x.sum(axis=0)
        self._squares = self._squares + x.T @ x

    @property
    def mean(self) -> np.ndarray:
        if self._origin is None:
            raise ValueError("0 pictures have no mean; at least 1 is needed")
        return self._origin + self._sum / self.count

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased (N - 1), as in FID."""
        if self.count < 2:
            raise ValueError(f"{self.count} pictures have no covariance; at least 2 are needed")
        mean = self._sum / self.count
        return (self._squares - self.count * np.outer(mean, mean)) / (self.count - 1)


def frechet_distance(one: Gaussian, other: Gaussian) -> float:
    """|m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^½), in float64 (Heusel et al. 2017, eq. 6).

    The trace of the root is the sum of the square roots of the eigenvalues of C1^½ C2 C1^½, which is symmetric:
    exact for singular covariances too, which fewer pictures than features give.
    """
    if one.mean.shape != other.mean.shape:
        raise ValueError(f"features are {len(one.mean)} and {len(other.mean)} long; they must agree")
    c1, c2 = one.covariance, other.covariance
    values, vectors = np.linalg.eigh(c1)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    trace = np.sqrt(np.linalg.eigvalsh(root @ c2 @ root).clip(min=0)).sum()
    difference = one.mean - other.mean
    return float(difference @ difference + np.trace(c1) + np.trace(c2) - 2 * trace)


def gaussian_of(batches: Iterable[Tensor], features: Features) -> Gaussian:
    """The statistics of ``features`` over batches of uint8 pictures (N, 3, H, W)."""
    result = Gaussian()
    for batch in batches:
        result.add(features(batch))
    return result


def same_person_pairs(people: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """``count`` random pairs of different pictures of one person, int64 (count, 2); fewer people weigh no more.

    A person (known, at least two pictures) is drawn first, then two of the pictures. Empty where nobody has two.
    """
    rng = np.random.default_rng(seed)
    groups = [np.flatnonzero(people == person) for person in np.unique(people[people > 0])]
    groups = [group for group in groups if len(group) > 1]
    if not groups:
        return np.empty((0, 2), dtype=np.int64)
    chosen = rng.integers(len(groups), size=count)
    return np.stack([rng.choice(groups[k], size=2, replace=False) for k in chosen])


def mean_ssim(pictures: Tensor, pairs: np.ndarray) -> float:
    """Mean SSIM of pairs of uint8 pictures (N, 3, H, W); for pairs of one person the paper's intra-class SSIM."""
    parts = np.array_split(pairs, max(1, len(pairs) // 64))
    return float(np.concatenate([ssim(pictures[p[:, 0]], pictures[p[:, 1]]) for p in parts]).mean())
