"""Class activation maps: which positions of its last feature map each head of E_a uses (Zhou et al., CVPR 2016)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dgnet_fast.models.appearance_encoder import AppearanceEncoder, Head, upsample_small
from dgnet_fast.models.batch_norm import BatchNormMode

HEAD_NAMES = {
    "AB": ("f_prim", "f_fine"),
    "normal": ("head",),
    "PCB": tuple(f"strip {k + 1}" for k in range(4)),
}
_STRENGTH = 0.55  # of the colour over the picture


def channel_weights(head: Head, classes: Tensor) -> tuple[Tensor, Tensor]:
    """What each channel of the pooled map adds to the logits of ``classes`` (N,): (N, C), and the rest (N,).

    Bottleneck, BatchNorm with its running statistics and classifier are linear one after the other in evaluation,
    so logit = weights · pooled + rest, exactly.
    """
    factor = head.norm.weight / (head.norm.running_var + head.norm.eps).sqrt()
    into_features = head.classifier.weight[classes] * factor
    weights = into_features @ head.bottleneck.weight
    shift = (head.bottleneck.bias - head.norm.running_mean) * factor + head.norm.bias
    return weights, head.classifier.weight[classes] @ shift + head.classifier.bias[classes]


@torch.no_grad()
def activation_maps(
    encoder: AppearanceEncoder, pictures: Tensor, classes: Tensor | None = None, *, upsample: bool = True
) -> tuple[Tensor, Tensor]:
    """Maps (heads, N, h, w) of normalised pictures (N, 3, H, W), and the classes (heads, N) that they are of.

    A map is the sum over channels of weight times activation: with average pooling its mean is the class's logit but
    for a constant. ``classes`` (N,) says whose map is wanted; None takes each head's most likely one. In style PCB a
    head's map is that of its strip, 0 elsewhere.
    """
    x = encoder.backbone(upsample_small(pictures, upsample), BatchNormMode())
    logits = encoder(upsample_small(pictures, upsample), BatchNormMode()).logits
    maps, chosen = [], []
    for k, (head, scores) in enumerate(zip(encoder.heads, logits, strict=True)):
        wanted = scores.argmax(dim=1) if classes is None else classes.to(scores.device)
        weights, _ = channel_weights(head, wanted)
        here = torch.einsum("nc,nchw->nhw", weights, x)
        if encoder.style == "PCB":
            strip = torch.zeros_like(here)
            first, last = (
                k * here.shape[1] // len(encoder.heads),
                (k + 1) * here.shape[1] // len(encoder.heads),
            )
            strip[:, first:last] = here[:, first:last]
            here = strip
        maps.append(here)
        chosen.append(wanted)
    return torch.stack(maps), torch.stack(chosen)


def overlay(pictures: Tensor, maps: Tensor) -> Tensor:
    """uint8 pictures (N, 3, H, W) with their maps (N, h, w) as colour over them: uint8 (N, 3, H, W).

    Each map is scaled from 0 (and below) to its own largest value.
    """
    from matplotlib import colormaps

    size = pictures.shape[2:]
    large = F.interpolate(maps[:, None].float().clamp(min=0), size=size, mode="bilinear", align_corners=False)
    large = (large / large.amax(dim=(2, 3), keepdim=True).clamp(min=1e-12))[:, 0].cpu().numpy()
    colour = colormaps["jet"](large)[..., :3] * 255
    mixed = (1 - _STRENGTH) * pictures.permute(0, 2, 3, 1).cpu().numpy() + _STRENGTH * colour
    return torch.from_numpy(np.rint(mixed).astype(np.uint8)).permute(0, 3, 1, 2)


def activation_page(pictures: Tensor, maps: Tensor, names: Sequence[str]) -> Image.Image:
    """One row a picture: the picture, then the overlay of each head's map (heads, N, h, w) under its name."""
    from dgnet_fast.report.grid import picture_rows

    shown = [overlay(pictures, one) for one in maps]
    rows = [[picture, *(one[k] for one in shown)] for k, picture in enumerate(pictures)]
    return picture_rows(rows, ["picture", *names], breaks=(1,))
