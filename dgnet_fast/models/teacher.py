"""The label that teachers give a generated picture (paper section 3.2, "primary feature learning")."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dgnet_fast.models.appearance_encoder import AppearanceEncoder
from dgnet_fast.models.batch_norm import BatchNormMode
from dgnet_fast.models.typed import ModuleList


@torch.no_grad()
def teacher_labels(
    teachers: Sequence[AppearanceEncoder] | ModuleList[AppearanceEncoder],
    pictures: Tensor,
    appearance_ids: Tensor,
    structure_ids: Tensor,
    *,
    ids: int,
    style: int,
    batch_statistics: bool,
    together: bool = False,
) -> Tensor:
    """Soft labels (S, B, ids) of generated pictures (S, B, 3, H, W); S streams are separate batches to
    BatchNorm.

    ``style`` 0: softmax of a picture plus that of its mirror image, summed over the teachers and
    renormalised; 1: the argmax of that as one-hot; 2: one-hot of the appearance id; 3: uniform; 4: style 0
    masked to the appearance and structure ids and renormalised. ``appearance_ids`` and ``structure_ids`` are
    (S, B). With ``batch_statistics`` (``train_bn``) the teacher's BatchNorms use each batch's statistics, in
    the order picture, mirror image, stream after stream; ``together`` (``bn_together``): of all pictures at once.
    """
    streams, batch = pictures.shape[:2]
    dtype = pictures.dtype if pictures.dtype == torch.float64 else torch.float32
    if style == 2:
        return F.one_hot(appearance_ids, ids).to(dtype)
    if style == 3:
        return torch.full((streams, batch, ids), 1.0 / ids, dtype=dtype, device=pictures.device)
    if not teachers:
        raise ValueError(
            f"teacher_style {style} needs a teacher and none was given; styles 2 and 3 need none"
        )
    both = torch.stack([pictures, pictures.flip(-1)], dim=1).flatten(0, 2)  # stream, mirror, sample
    groups = 1 if together else 2 * streams
    mode = BatchNormMode(groups, "update") if batch_statistics else BatchNormMode()
    label = torch.zeros(streams, batch, ids, dtype=dtype, device=pictures.device)
    for teacher in teachers:
        logits = teacher(both, mode).logits[0].to(dtype)
        label += logits.softmax(dim=1).view(streams, 2, batch, ids).sum(dim=1)
    if style == 1:
        return F.one_hot(label.argmax(dim=-1), ids).to(dtype)
    if style == 4:
        allowed = F.one_hot(appearance_ids, ids) + F.one_hot(structure_ids, ids)
        label = label * (allowed > 0)
    return label / label.sum(dim=-1, keepdim=True)
