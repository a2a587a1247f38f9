"""The ROC curve of one or more models as a picture."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from dgnet_fast.report.files import atomically


def save_roc(curves: Mapping[str, tuple[np.ndarray, np.ndarray]], path: str | os.PathLike[str]) -> None:
    """Draw ROC curves, name → (false accept rate, true accept rate), both (N,) in 0..1, into a PNG. The false accept
    rate is on a logarithmic axis, since small rates are what matters.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 3.8), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    smallest = min((far[far > 0].min() for far, _ in curves.values() if (far > 0).any()), default=1e-4)
    for name, (far, accepted) in curves.items():
        axes.step(np.maximum(far, smallest), accepted, where="post", label=name, linewidth=1.6)
    axes.set_xscale("log")
    axes.set_xlim(smallest, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("false accept rate (pairs of different people)")
    axes.set_ylabel("true accept rate (same person)")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    with atomically(path) as temporary:
        figure.savefig(temporary, format="png")
