"""A finished generated set as training data of the baseline: its pictures, with the soft labels of a teacher."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dgnet_fast.checkpoints.teachers import load_teachers
from dgnet_fast.config import Config, ConfigError
from dgnet_fast.data import TrainBatches, normalize
from dgnet_fast.data.pictures import open_pictures
from dgnet_fast.distributed import processes
from dgnet_fast.generation.sets import read_description, read_manifest
from dgnet_fast.models.appearance_encoder import AppearanceEncoder, upsample_small
from dgnet_fast.models.teacher import teacher_labels
from dgnet_fast.training.seeds import derive_seed


class GeneratedBatches:
    """Batches of generated pictures (B, 3, H, W), augmented as real ones are, with their soft labels (B, ids).

    A pure function of (seed, step). ``pictures`` uint8 (N, 3, H, W), ``labels`` (N, ids), ``batch_size`` even.
    """

    def __init__(
        self, pictures: Tensor, labels: Tensor, *, batch_size: int, seed: int, pad: int, device: torch.device
    ) -> None:
        # A picture's label in TrainBatches is its place, which finds its soft label.
        self.batches = TrainBatches(
            pictures, np.arange(len(pictures)), batch_size=batch_size // 2, seed=seed, pad=pad, device=device,
            part=processes.part(),
        )  # fmt: skip
        self.labels = labels.to(device)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Normalised pictures and their soft labels of ``step``."""
        batch = self.batches.batch(step)
        return batch.x.flatten(0, 1), self.labels[batch.labels.flatten()]


@torch.no_grad()
def soft_labels(
    teachers: list[AppearanceEncoder], pictures: Tensor, config: Config, batch: int = 64
) -> Tensor:
    """The teachers' soft labels (N, ids) of uint8 pictures (N, 3, H, W): softmax of picture plus mirror image,
    renormalised.

    As in joint training (``teacher_style`` 0), but with the running statistics of BatchNorm, because a set has no
    batches.
    """
    device = next(teachers[0].parameters()).device
    nobody = torch.zeros(1, 1, dtype=torch.long)  # style 0 asks for no identities
    rows = []
    for part in pictures.split(batch):
        x = upsample_small(normalize(part.to(device)), config.ID_upsample)[None]
        rows.append(
            teacher_labels(teachers, x, nobody, nobody, ids=config.ID_class, style=0, batch_statistics=False)[
                0
            ]
        )
    return torch.cat(rows)


def load_generated(
    folder: Path, labeller: str, config: Config, class_names: list[str], device: torch.device
) -> GeneratedBatches:
    """The set in ``folder`` labelled by the teacher file ``labeller``, which must know the training set's people.

    Raises ValueError if the folder holds no finished set, if the pictures have another size, or if the teacher does
    not fit.
    """
    description, rows = read_description(folder), read_manifest(folder)
    size = config.picture_size
    if (description["height"], description["width"]) != size:
        raise ConfigError(
            f"{folder} has pictures of {description['height']}x{description['width']}, the options say {size[0]}x{size[1]}"
        )
    if len(rows) < description["count"]:
        raise ConfigError(f"{folder} has {len(rows)} of {description['count']} pictures; finish it first")
    if len(rows) < config.teacher_batch:
        raise ConfigError(
            f"{folder} has {len(rows)} pictures, fewer than teacher_batch ({config.teacher_batch})"
        )
    teachers = load_teachers(config.replace(teacher=labeller), class_names)
    if not teachers:
        raise ConfigError("--generated needs the teacher that labels its pictures: --labeller FILE")
    pictures = open_pictures(str(folder), config).decode(*size, config.num_workers or 1)
    labels = soft_labels([one.eval().to(device) for one in teachers], pictures, config)
    return GeneratedBatches(
        pictures,
        labels,
        batch_size=2 * max(1, config.teacher_batch // 2),
        seed=derive_seed(config.seed, "generated"),
        pad=config.crop_pad,
        device=device,
    )
