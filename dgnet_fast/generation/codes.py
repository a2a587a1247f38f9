"""Codes of pictures, and pictures that are generated from codes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from dgnet_fast.data import denormalize, normalize
from dgnet_fast.data.pictures import Pictures
from dgnet_fast.models.appearance_encoder import AppearanceEncoder, upsample_small
from dgnet_fast.models.batch_norm import BatchNormMode, fold_batch_norms
from dgnet_fast.models.dgnet import DGNet
from dgnet_fast.models.structure_input import structure_input

STORE_BYTES = 256 * 2**20
"""Bytes of codes that one store keeps: 256 structure codes or 8192 appearance codes at the paper's size."""

PASS = 8
"""Pictures that are encoded in one pass."""


@torch.no_grad()
def appearance_codes(model: DGNet, pictures: Tensor, encoder: AppearanceEncoder | None = None) -> Tensor:
    """Appearance codes (N, 4·id_dim) of uint8 pictures (N, 3, H, W), on the model's device.

    ``encoder`` is used in place of the encoder of the model; it may be a copy with folded BatchNorms.
    """
    pictures = normalize(pictures.to(next(model.parameters()).device))
    encoder = encoder or model.appearance_encoder
    return encoder(upsample_small(pictures, model.config.ID_upsample), BatchNormMode()).code


@torch.no_grad()
def structure_codes(model: DGNet, pictures: Tensor) -> Tensor:
    """Structure codes (N, C, h, w) of uint8 pictures (N, 3, H, W), on the model's device."""
    pictures = normalize(pictures.to(next(model.parameters()).device))
    return model.structure_encoder(structure_input(pictures, model.config.single))


@torch.no_grad()
def decode_codes(model: DGNet, appearance: Tensor, structure: Tensor) -> Tensor:
    """Pictures uint8 (N, 3, H, W) on the CPU from codes."""
    return denormalize(model.decode(structure, appearance)).cpu()


class CodeStore:
    """The codes of one kind for the pictures of a source. They are computed when first asked for; the most recent are
    kept.

    ``encode`` is `appearance_codes` or `structure_codes`; at most ``limit`` bytes stay on the model's device.
    """

    def __init__(
        self,
        model: DGNet,
        pictures: Pictures,
        encode: Callable[[DGNet, Tensor], Tensor],
        *,
        workers: int | None = None,
        limit: int = STORE_BYTES,
    ) -> None:
        self.model, self.pictures, self.encode = model, pictures, encode
        self.workers, self.limit = workers, limit
        self._kept: OrderedDict[int, Tensor] = OrderedDict()

    def get(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """Codes (N, …) of the pictures at ``indices``, which may contain repetitions."""
        config = self.model.config
        wanted = list(dict.fromkeys(int(i) for i in indices))
        new = [i for i in wanted if i not in self._kept]
        if new:
            size = config.picture_size
            # always passes of the same size: the size of a pass can change the last bits of a code, and a set that is
            # continued asks for its pictures in other company
            filled = new + new[-1:] * (-len(new) % PASS)
            pictures = self.pictures.choose(filled).decode(*size, self.workers)
            codes = torch.cat([self.encode(self.model, part) for part in pictures.split(PASS)])
            self._kept.update(zip(new, codes[: len(new)], strict=True))
        for i in wanted:
            self._kept.move_to_end(i)
        result = torch.stack([self._kept[int(i)] for i in indices])
        each = result[0].numel() * result.element_size()
        while len(self._kept) > max(1, self.limit // each):
            self._kept.popitem(last=False)
        return result


class Swapper:
    """Generates pictures of pairs from two sources: ``swapper(pairs)`` → uint8 (N, 3, H, W) on the CPU.

    Its appearance encoder is a copy of the present one of the model, with folded BatchNorms.
    """

    def __init__(
        self, model: DGNet, appearances: Pictures, structures: Pictures, workers: int | None = None
    ) -> None:
        self.model = model
        encode = partial(appearance_codes, encoder=fold_batch_norms(model.appearance_encoder))
        self.appearance = CodeStore(model, appearances, encode, workers=workers)
        self.structure = CodeStore(model, structures, structure_codes, workers=workers)

    def __call__(self, pairs: np.ndarray) -> Tensor:
        return decode_codes(self.model, self.appearance.get(pairs[:, 0]), self.structure.get(pairs[:, 1]))


def interpolate(
    model: DGNet, first: Tensor, last: Tensor, fixed: Tensor, steps: int, *, of: str = "appearance"
) -> Tensor:
    """Pictures along the straight line between two codes: uint8 (steps, 3, H, W).

    ``first``, ``last`` and ``fixed`` are uint8 (3, H, W). With ``of`` "appearance" the appearance goes from that of
    ``first`` to that of ``last``, in the structure of ``fixed``. With "structure" the structure goes from ``first`` to
    ``last``, and ``fixed`` gives the appearance. Both ends are included. Raises ValueError for fewer than two steps or
    another ``of``.
    """
    if steps < 2:
        raise ValueError(f"steps is {steps}; allowed: at least 2")
    if of not in ("appearance", "structure"):
        raise ValueError(f"of is {of!r}; allowed: appearance, structure")
    moving, still = (
        (appearance_codes, structure_codes) if of == "appearance" else (structure_codes, appearance_codes)
    )
    ends = moving(model, torch.stack([first, last]))
    share = torch.linspace(0, 1, steps, device=ends.device).view(-1, *[1] * (ends.ndim - 1))
    path = torch.lerp(ends[:1], ends[1:], share)
    held = still(model, fixed[None])
    held = held.expand(steps, *held.shape[1:])
    return decode_codes(model, path, held) if of == "appearance" else decode_codes(model, held, path)


def reconstructions(model: DGNet, pictures: Tensor, positives: Tensor) -> Tensor:
    """The paper's reconstructions of uint8 pictures (N, 3, H, W): uint8 (N, 3, 3, H, W); the
    second dimension is the kind of reconstruction.

    The kinds are the self-reconstruction G(a_i, s_i), the same-identity reconstruction with the appearance of
    ``positives`` and s_i, and the cycle reconstruction from the codes of generated pictures,
    G(E_a(G(a_i, s_j)), E_s(G(a_j, s_i))), where j is the next picture.
    """
    appearance, structure = appearance_codes(model, pictures), structure_codes(model, pictures)
    self_made = decode_codes(model, appearance, structure)
    same_person = decode_codes(model, appearance_codes(model, positives), structure)
    other = torch.roll(torch.arange(len(pictures)), -1).to(appearance.device)
    clothes = decode_codes(model, appearance, structure[other])
    pose = decode_codes(model, appearance[other], structure)
    cycle = decode_codes(model, appearance_codes(model, clothes), structure_codes(model, pose))
    return torch.stack([self_made, same_person, cycle], dim=1)


@torch.no_grad()
def swap_cells(model: DGNet, structures: Tensor, appearances: Tensor) -> Tensor:
    """All swaps of uint8 pictures: structures (R, 3, H, W) with appearances (C, 3, H, W). Returns uint8 (R, C, 3, H, W)
    for a sample grid.
    """
    device = next(model.parameters()).device
    structure, _ = model.encode(normalize(structures.to(device)))
    _, code = model.encode(normalize(appearances.to(device)))
    rows = [denormalize(model.decode(one.expand(len(code), *one.shape), code)).cpu() for one in structure]
    return torch.stack(rows)
