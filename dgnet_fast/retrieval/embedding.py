"""A map of features (embeddings): each picture is a point, and each person has a colour."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dgnet_fast.config.extras import need
from dgnet_fast.report.files import atomically

METHODS = ("pca", "tsne")
MARKERS = "os^Dvp*X"
_PERPLEXITY = 30.0


def pca(features: Tensor, dimensions: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Principal components of features (N, D), in float64: coordinates (N, dimensions), and the share of the
    variance that each holds.

    Each axis points to where its largest loading is positive, so that the same features give the same map.
    """
    if features.ndim != 2 or min(features.shape) < dimensions:
        raise ValueError(
            f"features have shape {tuple(features.shape)}; a map of {dimensions} dimensions needs at least as many of each"
        )
    x = features.double() - features.double().mean(dim=0)
    _, values, axes = torch.linalg.svd(x, full_matrices=False)
    axes = axes[:dimensions]
    signs = axes.gather(1, axes.abs().argmax(dim=1, keepdim=True)).sign()
    share = values.square() / values.square().sum().clamp(min=torch.finfo(torch.float64).tiny)
    return (x @ (axes * signs).T).numpy(), share[:dimensions].numpy()


def tsne(features: Tensor, seed: int = 0) -> np.ndarray:
    """t-SNE coordinates (N, 2) by scikit-learn; ValueError names it where it is not installed."""
    need("sklearn", "visualize", "t-SNE")
    from sklearn.manifold import TSNE

    perplexity = min(_PERPLEXITY, (len(features) - 1) / 3)
    made = TSNE(2, perplexity=perplexity, init="pca", random_state=seed)
    return made.fit_transform(features.numpy())


def embedding_map(
    features: Tensor,
    people: np.ndarray,
    cameras: np.ndarray,
    path: Path,
    *,
    method: str = "pca",
    names: Sequence[str] | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Draw features (N, D) as a map to ``path`` (.png); returns the coordinates (N, 2).

    Every one of the ``people`` (int64 (N,)) has a colour, every one of the ``cameras`` a marker. ``names`` are the
    people's, in order of ``np.unique(people)``.
    """
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if method not in METHODS:
        raise ValueError(f"method is {method!r}; allowed: {', '.join(METHODS)}")
    if method == "pca":
        points, share = pca(features)
        axes_names = [f"component {k + 1} ({100 * s:.1f} % of the variance)" for k, s in enumerate(share)]
    else:
        points, axes_names = tsne(features, seed), ["t-SNE 1", "t-SNE 2"]
    figure = Figure(figsize=(8.4, 6.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    known = np.unique(people)
    colours = colormaps["hsv" if len(known) > 20 else "tab20"](np.arange(len(known)) / max(len(known), 20))
    for c, camera in enumerate(np.unique(cameras)):
        here = cameras == camera
        axes.scatter(
            *points[here].T,
            s=26,
            c=colours[np.searchsorted(known, people[here])],
            marker=MARKERS[c % len(MARKERS)],
            edgecolors="#1a202c",
            linewidths=0.3,
            label=f"camera {camera}" if camera >= 0 else "camera unknown",
        )
    for k, person in enumerate(known[:60]):
        label = str(person) if names is None else names[k]
        centre = np.median(points[people == person], axis=0)
        axes.annotate(label, (centre[0], centre[1]), fontsize=7, ha="center", va="center", color="#1a202c",
                      bbox={"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.6})  # fmt: skip
    axes.set_xlabel(axes_names[0], fontsize=9)
    axes.set_ylabel(axes_names[1], fontsize=9)
    axes.set_title(f"{len(points)} pictures of {len(known)} people", fontsize=11, loc="left")
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="best")
    with atomically(path, sync=False) as temporary:
        figure.savefig(temporary)
    return points
