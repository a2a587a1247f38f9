"""Names that options of commands allow. They stand apart from the modules that do the work, because those import torch
and the --help of a command does not wait for it.
"""

from __future__ import annotations

FIGURES = {
    "swap": "every person in the structure of every other person",
    "interpolation": "from one appearance to another, with the same structure",
    "structure-interpolation": "from one structure to another, with the same appearance",
    "reconstruction": "pictures reconstructed from their own codes, from another picture of the same person, and through the cycle",
}
"""Figures as in the paper, drawn by `dgnet_fast.generation.figures`."""

FILE_TYPES = {"png": ".png", "jpg": ".jpg"}
"""File types of the pictures of a generated set, and their suffixes."""

FID_RESIZES = ("legacy", "clean")
"""How `dgnet_fast.generation.score_networks.inception` makes pictures 299×299."""

MAPS = ("pca", "tsne")
"""Methods of `dgnet_fast.retrieval.embedding`."""

NETWORKS = ("encoder", "generator")
"""The graphs of `dgnet_fast.checkpoints.graphs`."""

INPUTS = {
    "uint8": "uint8, 0 to 255 RGB; normalisation inside; generated pictures come out as uint8",
    "unit": "float32, 0 to 1 RGB; normalisation inside; generated pictures come out as float32, 0 to 1",
    "normalised": "float32, (x / 255 - mean) / std with ImageNet's mean and std: normalisation outside; "
    "generated pictures come out in the same normalisation, not clamped",
}
"""Which numbers an exported graph takes."""

TRACKERS = ("wandb", "mlflow")
"""Experiment trackers of `dgnet_fast.report.trackers`."""
