"""Appearance encoder E_a: a ResNet whose pooled map is the appearance code, with identity heads (paper
section 3.2).

Three styles: ``AB`` (the paper's: two heads f_prim and f_fine, code detached), ``normal`` (one head, code
attached; also the teacher) and ``PCB`` (one head per horizontal strip).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgnet_fast.config import Config
from dgnet_fast.models.batch_norm import BatchNormMode, Found, GroupedBatchNorm, update_running_statistics
from dgnet_fast.models.resnet import ResNet
from dgnet_fast.models.typed import ModuleList

STRIPS = 4
PCB_FEATURES = 256
HEAD_DROPOUT = (0.5, 0.75)
SMALL_HEIGHT = 128
"""Pictures of at most this height are doubled before E_a, the teacher and erasing."""


class Appearance(NamedTuple):
    """code (N, 4·C) channel-major; logits: one (N, ids) per head; features: each head's (N, F) after its
    BatchNorm.
    """

    code: Tensor
    logits: tuple[Tensor, ...]
    features: tuple[Tensor, ...]


class Head(nn.Module):
    """Linear → BatchNorm → dropout → linear classifier: (N, C) → features (N, F) and logits (N, ids)."""

    def __init__(
        self, channels: int, features: int, ids: int, dropout: float, generator: torch.Generator | None
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.bottleneck = nn.Linear(channels, features)
        self.norm = GroupedBatchNorm(features)
        self.classifier = nn.Linear(features, ids)
        nn.init.kaiming_normal_(self.bottleneck.weight, mode="fan_out", generator=generator)
        nn.init.normal_(self.classifier.weight, std=0.001, generator=generator)
        for layer in (self.bottleneck, self.classifier):
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, mode: BatchNormMode, dropout: bool) -> tuple[Tensor, Tensor]:
        features = self.norm(self.bottleneck(x), mode)
        return features, self.classifier(F.dropout(features, self.dropout, dropout))


def upsample_small(x: Tensor, enabled: bool = True) -> Tensor:
    """Double a picture of at most 128 pixels height (nearest), as E_a and the teacher want it."""
    if enabled and x.shape[2] <= SMALL_HEIGHT:
        return F.interpolate(x, scale_factor=2, mode="nearest")
    return x


def appearance_input_size(config: Config) -> tuple[int, int]:
    """(height, width) of what E_a sees of a picture."""
    height, width = config.picture_size
    factor = 2 if config.ID_upsample and height <= SMALL_HEIGHT else 1
    return height * factor, width * factor


class AppearanceEncoder(nn.Module):
    """E_a (and the teacher): pictures (N, 3, H, W), already doubled by `upsample_small`, → `Appearance`.

    ``mode`` says how BatchNorm treats the pass and ``dropout`` whether the heads drop; ``module.training`` is
    not read, so a pass depends on its arguments alone.
    """

    def __init__(
        self,
        ids: int,
        *,
        style: str = "AB",
        pool: str = "avg",
        stride: int = 2,
        width: int = 64,
        blocks: tuple[int, ...] = (3, 4, 6, 3),
        features: int = 512,
        normalise_code: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.style, self.pool, self.ids = style, pool, ids
        self.normalise_code = normalise_code and style == "normal"
        self.backbone = ResNet(width, blocks, stride, generator)
        channels = self.backbone.channels
        if style == "PCB":
            sizes = [(PCB_FEATURES, HEAD_DROPOUT[0])] * STRIPS  # the public code passes 1 here by mistake
        elif style == "AB":
            sizes = [(features, p) for p in HEAD_DROPOUT]
        elif style == "normal":
            sizes = [(features, HEAD_DROPOUT[0])]
        else:
            raise ValueError(f"style is {style!r}; allowed: AB, normal, PCB")
        self.heads = ModuleList(Head(channels, n, ids, p, generator) for n, p in sizes)

    def code_of(self, x: Tensor, mode: BatchNormMode) -> Tensor:
        """The appearance code alone, (N, 4·C), through which gradients flow to the pictures whatever the style."""
        found: list[Found] = []
        code = self._strips(self.backbone(x, mode._replace(found=found))).flatten(1)
        update_running_statistics(found)
        return self._scaled(code)

    @property
    def _averages(self) -> bool:
        return self.style == "PCB" or self.pool == "avg"

    def _strips(self, x: Tensor) -> Tensor:
        if self._averages:
            return F.adaptive_avg_pool2d(x, (STRIPS, 1))
        height, width = x.shape[2:]
        if height % STRIPS:
            return F.adaptive_max_pool2d(x, (STRIPS, 1))
        # The same values, indices and gradients; PyTorch's adaptive kernel for GPUs reads channels_last without
        # coalescing (157 us a call on an H200, 1.3 ms a step).
        return F.max_pool2d(x, (height // STRIPS, width))

    def _whole(self, x: Tensor, strips: Tensor) -> Tensor:
        """Pooled over the whole map, (N, C); the largest of the strips is the largest of all, and they are small."""
        pooled = F.adaptive_avg_pool2d(x, (1, 1)) if self._averages else F.max_pool2d(strips, (STRIPS, 1))
        return pooled.flatten(1)

    def _scaled(self, code: Tensor) -> Tensor:
        return code / (code.norm(dim=1, keepdim=True) + 1e-8) if self.normalise_code else code

    def forward(
        self, x: Tensor, mode: BatchNormMode, *, dropout: bool = False, attached: bool = False
    ) -> Appearance:
        """``attached``: gradients flow through the code in style AB too, as in the other styles."""
        found: list[Found] = []
        mode = mode._replace(found=found)
        x = self.backbone(x, mode)
        strips = self._strips(x)
        code = self._scaled(strips.flatten(1))
        if self.style == "AB" and not attached:
            code = code.detach()
        if self.style == "PCB":
            inputs = F.dropout(strips, HEAD_DROPOUT[0], dropout).squeeze(3).unbind(2)
        else:
            inputs = [self._whole(x, strips)] * len(self.heads)
        features, logits = zip(
            *(head(i, mode, dropout) for head, i in zip(self.heads, inputs, strict=True)), strict=True
        )
        update_running_statistics(found)
        return Appearance(code, logits, features)


def joined_features(heads: Sequence[Tensor]) -> Tensor:
    """Retrieval features (N, heads·F) from each head's features (2N, F) of N pictures and then of their mirror images.

    Every head's feature is L2-normalised, summed over the picture and its mirror image and normalised again (paper
    section 4.1): 1024 numbers in style AB.
    """
    halves = [F.normalize(one.float(), dim=1).unflatten(0, (2, -1)).sum(dim=0) for one in heads]
    return torch.cat([F.normalize(half, dim=1) for half in halves], dim=1)


def build_appearance_encoder(config: Config, generator: torch.Generator | None = None) -> AppearanceEncoder:
    """E_a as the options say. In style normal the stride is 2 and in PCB 1, whatever ID_stride says."""
    stride = {"AB": config.ID_stride, "normal": 2, "PCB": 1}[config.ID_style]
    encoder = AppearanceEncoder(
        config.ID_class,
        style=config.ID_style,
        pool=config.pool,
        stride=stride,
        width=config.ID_width,
        blocks=tuple(config.ID_blocks),
        features=config.ID_features,
        normalise_code=config.norm_id,
        generator=generator,
    )
    encoder.backbone.checkpoint = config.checkpoint_activations
    return encoder


def build_teacher(config: Config, stride: int, generator: torch.Generator | None = None) -> AppearanceEncoder:
    """The baseline network that teaches: one head, average pooling, a stride of its own."""
    return AppearanceEncoder(
        config.ID_class,
        style="normal",
        pool="avg",
        stride=stride,
        width=config.ID_width,
        blocks=tuple(config.ID_blocks),
        features=config.ID_features,
        generator=generator,
    )
