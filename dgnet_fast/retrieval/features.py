"""Retrieval features (embeddings) of pictures in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from dgnet_fast.models.appearance_encoder import AppearanceEncoder, joined_features, upsample_small
from dgnet_fast.models.batch_norm import BatchNormMode


@torch.no_grad()
def extract_features(encoder: AppearanceEncoder, pictures: Tensor, *, upsample: bool = True) -> Tensor:
    """Retrieval features (N, F) of normalised pictures (N, 3, H, W): the concatenation of the features of all heads
    (`joined_features`). `dgnet_fast.retrieval.extractor.Extractor` does the same for files, splits and arrays.
    """
    both = upsample_small(torch.cat([pictures, pictures.flip(-1)]), upsample)
    return joined_features(encoder(both, BatchNormMode()).features)
