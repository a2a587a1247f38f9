"""DG-Net as graphs that run without dgnet_fast: ONNX files and torch.export archives, which are checked when they are
written.

There are two graphs. The *encoder* maps pictures to retrieval features and appearance codes (E_a). The *generator*
maps pictures that give the appearance and pictures that give the structure to generated pictures (E_a, E_s, the MLPs
and G). The batch size is dynamic; height and width are those of the checkpoint. Fused ops are replaced by their
references, which are plain PyTorch.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dgnet_fast.config.choices import INPUTS
from dgnet_fast.config.extras import need
from dgnet_fast.data.augment import IMAGENET_MEAN, IMAGENET_STD
from dgnet_fast.models.appearance_encoder import joined_features, upsample_small
from dgnet_fast.models.batch_norm import BatchNormMode
from dgnet_fast.models.dgnet import DGNet
from dgnet_fast.models.structure_input import structure_input
from dgnet_fast.ops import registry
from dgnet_fast.report.files import atomically

OPSET = 18
CHECK_BATCHES = (1, 3)
TOLERANCE = 1e-3
"""Largest error of features, codes and pictures (in units of ImageNet's std or of 0 to 1) against the eager model,
relative to the largest value; float32 in another order of summation leaves about 1e-5.
"""


class _Network(nn.Module):
    """A part of DG-Net with the pictures' numbers as ``kind`` says (see `INPUTS`)."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    mean: Tensor
    std: Tensor

    def __init__(self, model: DGNet, kind: str) -> None:
        super().__init__()
        if kind not in INPUTS:
            raise ValueError(f"input is {kind!r}; allowed: {', '.join(INPUTS)}")
        self.kind = kind
        self.upsample, self.single = model.config.ID_upsample, model.config.single
        self.appearance_encoder = model.appearance_encoder
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def _in(self, pictures: Tensor) -> Tensor:
        if self.kind == "normalised":
            return pictures
        unit = pictures.float() / 255 if self.kind == "uint8" else pictures
        return (unit - self.mean) / self.std

    def _out(self, pictures: Tensor) -> Tensor:
        if self.kind == "normalised":
            return pictures
        unit = (pictures * self.std + self.mean).clamp(0, 1)
        return (unit * 255).round().to(torch.uint8) if self.kind == "uint8" else unit


class Encoder(_Network):
    """pictures (N, 3, H, W) → features (N, F), as `dgnet_fast.retrieval.features.extract_features` gives them (mirror
    image included), and appearance codes (N, 4·id_dim).
    """

    inputs, outputs = ("pictures",), ("features", "codes")

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        x = upsample_small(self._in(pictures), self.upsample)
        both = self.appearance_encoder(torch.cat([x, x.flip(-1)]), BatchNormMode())
        return joined_features(both.features), both.code.unflatten(0, (2, -1))[0]


class Generator(_Network):
    """appearances, structures (N, 3, H, W) both → pictures (N, 3, H, W)."""

    inputs, outputs = ("appearances", "structures"), ("pictures",)

    def __init__(self, model: DGNet, kind: str) -> None:
        super().__init__(model, kind)
        if model.config.single != "gray":
            raise ValueError(
                f"single is {model.config.single!r}: OpenCV's edges, which no graph holds; allowed for export: gray"
            )
        self.structure_encoder, self.mlp, self.decoder = model.structure_encoder, model.mlp, model.decoder

    def forward(self, appearances: Tensor, structures: Tensor) -> Tensor:
        code = self.appearance_encoder(
            upsample_small(self._in(appearances), self.upsample), BatchNormMode()
        ).code
        structure = self.structure_encoder(structure_input(self._in(structures), self.single))
        return self._out(self.decoder(structure, self.mlp(code)))


NETWORKS: dict[str, type[_Network]] = {"encoder": Encoder, "generator": Generator}


def decompositions() -> dict[Any, Callable]:
    """Every fused op → its reference, ``reference.forward`` of ops/<op>.py, which has the same signature."""
    aten = torch.ops.aten
    table: dict[Any, Callable] = {
        aten.std_mean.dim: _std_mean,
        aten.adaptive_max_pool2d.default: _adaptive_max_pool2d,
    }
    for name in registry.TABLE:
        op = getattr(torch.ops.dgnet_fast, name).default
        module = importlib.import_module(f"dgnet_fast.ops.{name}")
        table[op] = module.reference.forward
    return table


def _std_mean(x: Tensor, dim: list[int] | None, unbiased: bool = True, keepdim: bool = False) -> Any:
    # torch 2.13's own decomposition of this overload passes it four positional arguments where it takes two
    return torch.std_mean(x, dim, correction=int(unbiased), keepdim=keepdim)


def _adaptive_max_pool2d(x: Tensor, size: list[int]) -> tuple[Tensor, Tensor]:
    """By slices: ONNX has no such pooling, and PyTorch's exporter none for a map that the size does not divide."""
    height, width = x.shape[-2:]
    values, places = [], []
    for i in range(size[0]):
        for j in range(size[1]):
            top, bottom = i * height // size[0], -(-(i + 1) * height // size[0])
            left, right = j * width // size[1], -(-(j + 1) * width // size[1])
            value, place = x[..., top:bottom, left:right].flatten(-2).max(dim=-1)
            values.append(value)
            places.append((top + place // (right - left)) * width + left + place % (right - left))
    largest, where = (torch.stack(y, dim=-1).unflatten(-1, tuple(size)) for y in (values, places))
    return largest, where


def example(model: DGNet, network: _Network, batch: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Random pictures of the network's input kind, one tensor an input."""
    generator = torch.Generator().manual_seed(seed)
    size = (batch, 3, *model.config.picture_size)
    drawn = []
    for _ in network.inputs:
        pictures = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)
        if network.kind != "uint8":
            pictures = pictures.float() / 255
        if network.kind == "normalised":
            pictures = (pictures - network.mean) / network.std
        drawn.append(pictures)
    return tuple(drawn)


def to_program(model: DGNet, name: str, kind: str) -> tuple[_Network, torch.export.ExportedProgram]:
    """The network ``name`` (encoder or generator) and its graph with a dynamic batch, free of fused ops.

    ``model`` is on the CPU in float32.
    """
    if name not in NETWORKS:
        raise ValueError(f"network is {name!r}; allowed: {', '.join(NETWORKS)}")
    network = NETWORKS[name](model, kind).eval().requires_grad_(False)
    batch = torch.export.Dim("batch", min=1, max=65536)
    shapes = tuple({0: batch} for _ in network.inputs)
    with _quiet():
        program = torch.export.export(network, example(model, network, 2), dynamic_shapes=shapes)
        program = program.run_decompositions(decompositions())
    left = sorted({str(n.target) for n in program.graph.nodes if "dgnet_fast" in str(n.target)})
    assert not left, f"ops without a reference in the registry: {left}"
    return network, program


def save_archive(model: DGNet, name: str, kind: str, path: Path, metadata: dict[str, str]) -> float:
    """Write a torch.export archive (.pt2) that ``torch.export.load(path).module()`` runs; returns its error.

    The metadata lies in the archive as the extra file ``dgnet_fast.json``.
    """
    network, program = to_program(model, name, kind)
    with atomically(path) as temporary:
        torch.export.save(program, str(temporary), extra_files={"dgnet_fast.json": json.dumps(metadata)})
        loaded = torch.export.load(str(temporary)).module()
        error = check(model, network, lambda pictures: loaded(*pictures), path)
    return error


def save_onnx(model: DGNet, name: str, kind: str, path: Path, metadata: dict[str, str]) -> float:
    """Write an ONNX file and run it in onnxruntime beside the eager model; returns its error (see `check`).

    Raises ValueError naming what to install where onnx, onnxscript or onnxruntime is missing.
    """
    onnx, onnxruntime = (_needed(package) for package in ("onnx", "onnxruntime"))
    _needed("onnxscript")
    network, program = to_program(model, name, kind)
    with _quiet():
        made = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(network.inputs),
            output_names=list(network.outputs),
            verbose=False,
        )
    assert made is not None  # as it is without dynamo
    proto = made.model_proto
    onnx.helper.set_model_props(proto, metadata)
    onnx.checker.check_model(proto)
    with atomically(path) as temporary:
        onnx.save(proto, str(temporary))
        session = onnxruntime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])

        def run(pictures: tuple[Tensor, ...]) -> list[Tensor]:
            feed = {n: x.numpy() for n, x in zip(network.inputs, pictures, strict=True)}
            return [torch.from_numpy(np.array(y)) for y in session.run(None, feed)]

        error = check(model, network, run, path)
    return error


@torch.no_grad()
def check(model: DGNet, network: _Network, run: Callable[[tuple[Tensor, ...]], Any], path: Path) -> float:
    """Largest error of ``run`` against the eager network on random pictures, relative to the largest value.

    Several batch sizes. uint8 pictures may differ by one step, where rounding falls either way. Raises
    ValueError where the error is larger than `TOLERANCE`.
    """
    worst = 0.0
    for batch in CHECK_BATCHES:
        pictures = example(model, network, batch, seed=batch)
        wanted, found = network(*pictures), run(pictures)
        wanted, found = ((x,) if isinstance(x, Tensor) else x for x in (wanted, found))
        for ours, theirs in zip(wanted, found, strict=True):
            difference = (ours.double() - theirs.double()).abs()
            if ours.dtype == torch.uint8:
                difference = (difference - 1).clamp(min=0)
            worst = max(worst, float(difference.max() / ours.double().abs().max()))
    if not worst <= TOLERANCE:
        raise ValueError(f"{path}: the graph errs by {worst:.2g} against the model; allowed: {TOLERANCE}")
    return worst


def metadata_of(model: DGNet, name: str, kind: str, known: dict[str, Any], weights: str) -> dict[str, str]:
    """What a graph says of itself: which network of which checkpoint, what goes in and what comes out."""
    config = model.config
    return {
        "producer": "dgnet_fast",
        "network": name,
        "input": kind,
        "normalisation": "outside" if kind == "normalised" else "inside",
        "input_description": INPUTS[kind],
        "mean": ", ".join(map(str, IMAGENET_MEAN)),
        "std": ", ".join(map(str, IMAGENET_STD)),
        "height": str(config.crop_image_height),
        "width": str(config.crop_image_width),
        "resize": "bicubic",
        "inputs": ", ".join(NETWORKS[name].inputs),
        "outputs": ", ".join(NETWORKS[name].outputs),
        "checkpoint": Path(known["source"]).name,
        "step": str(known["step"]),
        "weights": weights,
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without PyTorch's remarks on itself: deprecations in its own files, and torchvision's absence."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(level)


def _needed(package: str) -> Any:
    need(package, "export", "ONNX export")
    return importlib.import_module(package)
