"""What E_s sees of a picture: its grey value, or an edge map of it (``single: gray | edge``)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dgnet_fast.data import denormalize

CANNY_LOW, CANNY_HIGH = 10, 200
EDGE_NOISE = 0.1


def structure_input(pictures: Tensor, kind: str = "gray", jitter: float = 0.0) -> Tensor:
    """Normalised pictures (N, 3, H, W) → (N, 1, H, W).

    ``gray`` is the mean of the three normalised channels and differentiable. With ``jitter`` each picture's channels get
    weights of their own, 1/3 plus normal numbers of this standard deviation (from torch's global generator) less their
    mean, so that they add up to 1: what is grey stays as it is, and what is coloured becomes lighter or darker. E_s then
    cannot tell G how light coloured clothes were, and G has to ask the appearance code. ``edge`` is OpenCV's Canny edge
    map of the grey picture at −0.5 / 0.5 with Gaussian noise of standard deviation 0.1 from torch's global
    generator; it is made on the host and carries no gradient.
    """
    if kind == "gray" and jitter:
        drawn = torch.randn(
            len(pictures), pictures.shape[1], 1, 1, device=pictures.device, dtype=pictures.dtype
        )
        weights = jitter * (drawn - drawn.mean(dim=1, keepdim=True)) + 1 / pictures.shape[1]
        return (weights * pictures).sum(dim=1, keepdim=True)
    if kind == "gray":
        return pictures.mean(dim=1, keepdim=True)
    if kind != "edge":
        raise ValueError(f"single is {kind!r}; allowed: gray, edge")
    import cv2  # only this option needs it

    colour = denormalize(pictures.detach()).permute(0, 2, 3, 1).cpu().numpy()
    edges = [cv2.Canny(cv2.cvtColor(one, cv2.COLOR_RGB2GRAY), CANNY_LOW, CANNY_HIGH) for one in colour]
    maps = torch.from_numpy(np.stack(edges)).to(pictures.device, pictures.dtype).unsqueeze(1) / 255 - 0.5
    return maps + EDGE_NOISE * torch.randn_like(maps)
