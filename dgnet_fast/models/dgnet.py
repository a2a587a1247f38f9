"""DG-Net on one page: the four networks, the teachers, and the codes → pictures flow.

s = E_s(gray(x))          structure code        (N, 8·dim, H/4, W/4)
a = E_a(x)                appearance code       (N, 4·id_dim)
x' = G(s, mlp(a))         picture: appearance of one, structure of another
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dgnet_fast.config import Config
from dgnet_fast.models.appearance_encoder import AppearanceEncoder, build_appearance_encoder, upsample_small
from dgnet_fast.models.batch_norm import BatchNormMode, set_batch_norms
from dgnet_fast.models.decoder import AppearanceMlp, Decoder
from dgnet_fast.models.discriminator import Discriminator
from dgnet_fast.models.structure_encoder import StructureEncoder
from dgnet_fast.models.structure_input import structure_input
from dgnet_fast.models.typed import ModuleList


class DGNet(nn.Module):
    """All networks of a run. ``teachers`` are E_a-like baselines that label generated pictures; they are not
    trained.

    Raises ValueError when ``config.ID_class`` is 0: the number of identities must be known by now.
    """

    def __init__(self, config: Config, teachers: list[AppearanceEncoder] | None = None) -> None:
        super().__init__()
        if config.ID_class < 1:
            raise ValueError(
                f"ID_class is {config.ID_class}; the networks need the number of identities (at least 1)"
            )
        self.config = config
        # PyTorch's layers draw first weights of their own from the caller's generator; ours take their place
        with torch.random.fork_rng(devices=[]):
            self._build(config, torch.Generator().manual_seed(config.seed))
        self.teach(teachers or [])

    def teach(self, teachers: list[AppearanceEncoder]) -> None:
        """Let these teachers label the generated pictures."""
        self.teachers = ModuleList(teachers).requires_grad_(False)
        set_batch_norms(self, parts=self.config.bn_parts, synced=self.config.sync_bn)

    def _build(self, config: Config, generator: torch.Generator) -> None:
        self.structure_encoder = StructureEncoder(config.gen, generator)
        channels = self.structure_encoder.channels
        self.mlp = AppearanceMlp(config.gen, channels, generator)
        self.decoder = Decoder(config.gen, channels, generator)
        self.decoder.checkpoint = config.checkpoint_activations
        self.appearance_encoder = build_appearance_encoder(config, generator)
        self.discriminator = Discriminator(config.dis, generator)

    def generator_parameters(self) -> list[nn.Parameter]:
        """Parameters of E_s, the MLPs and G: one optimiser's."""
        return [p for m in (self.structure_encoder, self.mlp, self.decoder) for p in m.parameters()]

    def decode(self, structure: Tensor, code: Tensor) -> Tensor:
        """Structure codes (N, C, h, w) and appearance codes (N, 4·id_dim) → pictures (N, 3, H, W)."""
        return self.decoder(structure, self.mlp(code))

    @torch.no_grad()
    def encode(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised pictures (N, 3, H, W) → (structure codes, appearance codes), as in evaluation."""
        structure = self.structure_encoder(structure_input(pictures, self.config.single))
        upsampled = upsample_small(pictures, self.config.ID_upsample)
        return structure, self.appearance_encoder(upsampled, BatchNormMode()).code

    @torch.no_grad()
    def swap(self, appearance_of: Tensor, structure_of: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) with the appearance of the first and the structure of the second argument."""
        structure, _ = self.encode(structure_of)
        _, code = self.encode(appearance_of)
        return self.decode(structure, code)
