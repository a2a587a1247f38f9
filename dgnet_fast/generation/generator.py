"""The generator of a checkpoint as an object: swaps, grids and interpolations of any pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dgnet_fast.checkpoints.loading import load_generator
from dgnet_fast.config.device import resolve_device
from dgnet_fast.data.inputs import pictures_of
from dgnet_fast.generation.codes import appearance_codes, decode_codes, interpolate, structure_codes
from dgnet_fast.models.dgnet import DGNet
from dgnet_fast.models.typed import in_channels_last
from dgnet_fast.report.grid import image_grid, to_image


class Generator:
    """E_a, E_s and G of a checkpoint: the appearance of one picture in the structure of another.

    Pictures are given as paths, PIL pictures, NumPy arrays uint8 (H, W, 3) or tensors (3, H, W), or as lists of
    these, as `dgnet_fast.Extractor` takes them. They are resized bicubically to the size of the network, which is the
    size of what is generated.

    Example:
        >>> from dgnet_fast import Generator
        >>> generator = Generator.load("runs/a")
        >>> generator.size  # height and width, in pixels
        (40, 24)
        >>> swapped = generator.swap("anna.png", "ben.png")  # Anna's clothes, Ben's pose
        >>> swapped.size  # a PIL picture: width and height
        (24, 40)
        >>> generator.grid(["anna.png", "ben.png"]).save("grid.png")
        >>> len(generator.interpolate("anna.png", "ben.png", steps=5))
        5
    """

    def __init__(self, model: DGNet, *, batch: int = 32) -> None:
        """The generator of a model in memory, on the device where it is."""
        if batch < 1:
            raise ValueError(f"batch is {batch}; it must be at least 1")
        self.model, self.batch = model.eval(), batch
        self.size = model.config.picture_size

    @classmethod
    def load(
        cls,
        checkpoint: str | Path,
        *,
        device: str = "auto",
        batch: int = 32,
        config_file: str | Path | None = None,
        allow_extra: bool = False,
    ) -> Generator:
        """The generator of a checkpoint.

        Args:
            checkpoint: a run folder, one of its checkpoints, a .safetensors file, or public files (with gen_*.pt).
            device: auto, cpu, cuda or cuda:N.
            batch: number of pictures in one pass.
            config_file, allow_extra: as in `dgnet_fast.checkpoints.loading.load_for_use`, for public checkpoints.

        Raises:
            ValueError: the checkpoint cannot be read or has no generator, or there is no such device.
        """
        where = resolve_device(device)
        model, _ = load_generator(checkpoint, config_file=config_file, allow_extra=allow_extra)
        return cls(in_channels_last(model, where), batch=batch)

    def pictures(self, pictures: Any) -> Tensor:
        """Pictures in any form as uint8 (N, 3, H, W) at the size of the network."""
        return pictures_of(pictures, *self.size)

    def swap_tensors(self, appearances: Tensor, structures: Tensor) -> Tensor:
        """uint8 (N, 3, H, W) both → uint8 (N, 3, H, W) on the CPU: the appearance of the nth picture of the first in
        the structure of the nth picture of the second.
        """
        if appearances.shape != structures.shape:
            raise ValueError(
                f"appearances have shape {tuple(appearances.shape)} and structures {tuple(structures.shape)}; they must be equal"
            )
        made = []
        for first, second in zip(appearances.split(self.batch), structures.split(self.batch), strict=True):
            codes = appearance_codes(self.model, first), structure_codes(self.model, second)
            made.append(decode_codes(self.model, *codes))
        return torch.cat(made)

    def swap(self, appearance: Any, structure: Any) -> Any:
        """The appearance of one picture in the structure of another: a PIL picture. If either is a list of pictures,
        the result is a list; a single picture is then combined with each of the others.
        """
        several = any(isinstance(x, (list, tuple)) for x in (appearance, structure))
        first, second = self.pictures(appearance), self.pictures(structure)
        count = max(len(first), len(second))
        first, second = (x.expand(count, -1, -1, -1) if len(x) == 1 else x for x in (first, second))
        made = [to_image(one) for one in self.swap_tensors(first, second)]
        return made if several or count > 1 else made[0]

    def grid(self, appearances: Any, structures: Any = None) -> Image.Image:
        """One page of all swaps: each row is a structure, each column an appearance. Without ``structures`` every
        picture is combined with every other.
        """
        columns = self.pictures(appearances)
        rows = columns if structures is None else self.pictures(structures)
        cells = [self.swap_tensors(columns, one[None].expand_as(columns)) for one in rows]
        return image_grid(rows, columns, torch.stack(cells))

    def interpolate(
        self, first: Any, last: Any, fixed: Any = None, *, steps: int = 8, of: str = "appearance"
    ) -> list[Image.Image]:
        """Pictures along the straight line between the codes of two pictures, both ends included.

        Args:
            first, last: the pictures whose codes are the ends.
            fixed: the picture that gives the other code (default: ``first``).
            steps: number of pictures, at least 2.
            of: appearance or structure: the code that changes.
        """
        start, end, held = (self.pictures(one)[0] for one in (first, last, first if fixed is None else fixed))
        return [to_image(one) for one in interpolate(self.model, start, end, held, steps, of=of)]
