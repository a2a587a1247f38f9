"""Query expansion: a query is replaced by a weighted mean of itself and its nearest gallery images.

Average query expansion (Chum et al., ICCV 2007) with the weights of alpha query expansion (Radenović et al.,
TPAMI 2019). No label is used.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dgnet_fast.metrics.retrieval import ieee_float32_matmul


def expand_queries(
    query: Tensor, gallery: Tensor, *, neighbours: int = 10, alpha: float = 3.0, chunk: int = 256
) -> Tensor:
    """Expanded queries, float32 (Q, D) of unit length.

    normalise(q + Σ sᵏ g) over the `neighbours` nearest g of the gallery, s their cosine (0 where negative)
    and k = `alpha`; 0 is plain average query expansion.

    Args:
        query: (Q, D) floating point; normalised here.
        gallery: (G, D), on any device.
        chunk: queries expanded at once; memory is about 4 bytes x `chunk` x (G + `neighbours` x D).

    Raises:
        ValueError: shapes that do not fit, fewer than 1 neighbour or a negative alpha.
    """
    if query.ndim != 2 or gallery.ndim != 2 or query.shape[1] != gallery.shape[1] or not len(gallery):
        raise ValueError(
            f"query and gallery features have shapes {tuple(query.shape)} and {tuple(gallery.shape)}; "
            "expected (Q, D) and (G, D)"
        )
    if neighbours < 1 or chunk < 1 or not 0 <= alpha < float("inf"):
        raise ValueError(
            f"neighbours is {neighbours}, alpha {alpha} and chunk {chunk}; allowed: at least 1, 0 and 1"
        )
    query = F.normalize(query.float(), dim=1)
    gallery = F.normalize(gallery.to(query.device).float(), dim=1)
    rows = []
    for part in query.split(chunk):
        with ieee_float32_matmul():
            scores, nearest = (part @ gallery.T).topk(min(neighbours, len(gallery)), dim=1)
        weights = scores.clamp(min=0) ** alpha
        rows.append(F.normalize(part + (weights[:, :, None] * gallery[nearest]).sum(1), dim=1))
    return torch.cat(rows) if rows else query
