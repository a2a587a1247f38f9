"""The layout of the public code's checkpoints: which of their entries is which of our tensors.

Its checkpoints are ``gen_*.pt`` (E_s, MLPs and G), ``id_*.pt`` (E_a) and ``dis_*.pt`` (D), each ``{'a':
state_dict}``, and a teacher's ``net_last.pth`` (a bare state dict). Each of our tensors maps to one of its
entries, or, for the stacked MLP weights, to eight. Entries that no computation reads (AdaIN's dummy
statistics, the ImageNet classifier) are listed apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dgnet_fast.models.appearance_encoder import AppearanceEncoder
from dgnet_fast.models.decoder import STRIPS, AppearanceMlp
from dgnet_fast.models.dgnet import DGNet
from dgnet_fast.models.discriminator import WassersteinDiscriminator
from dgnet_fast.models.structure_encoder import ASPP_DILATIONS

IMAGENET_CLASSES = 1000


class Slot(NamedTuple):
    """Where an entry lives in our state: tensor name, and the row of it for a stacked tensor."""

    name: str
    row: int | None = None

    def read(self, state: dict[str, Tensor]) -> Tensor:
        value = state[self.name]
        return value if self.row is None else value[self.row]


class Layout(NamedTuple):
    """slots: entry name → where it is in our module's state dict. unused: entry name → what a fresh file
    holds there.
    """

    slots: dict[str, Slot]
    unused: dict[str, Tensor]


def renamed(module: nn.Module, prefixes: dict[str, str]) -> dict[str, Slot]:
    """Entries of ``module``'s state dict under the names that the longest matching prefix gives them."""
    ordered = sorted(prefixes, key=len, reverse=True)
    slots = {}
    for name in module.state_dict():
        ours = next((p for p in ordered if name.startswith(p)), None)
        if ours is not None:
            slots[prefixes[ours] + name[len(ours) :]] = Slot(name)
    return slots


def _attention(ours: str, theirs: str) -> dict[str, str]:
    pairs = {f"{ours}.{part}.": f"{theirs}.{part}_conv." for part in ("query", "key", "value")}
    return pairs | {f"{ours}.gamma": f"{theirs}.gamma"}


def _residual(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.conv1.": f"{theirs}.model.0.", f"{ours}.conv2.": f"{theirs}.model.1."}


def _mlp_slots(mlp: AppearanceMlp) -> Iterator[tuple[str, Slot]]:
    groups: list[tuple[str, str, Sized]] = [
        ("weights", "fc.weight", mlp.weights),
        ("biases", "fc.bias", mlp.biases),
        ("slopes", "activation.weight", mlp.slopes or []),
    ]
    for k in range(mlp.COUNT):
        net = f"mlp_{'w' if k < STRIPS else 'b'}{k % STRIPS + 1}"
        for ours, theirs, tensors in groups:
            for layer in range(len(tensors)):
                yield f"{net}.model.{layer}.{theirs}", Slot(f"mlp.{ours}.{layer}", k)


def generator_layout(model: DGNet) -> Layout:
    """``gen_*.pt``: E_s, the eight MLPs and G."""
    encoder, decoder = model.structure_encoder, model.decoder
    prefixes = {}
    for i in range(len(encoder.stem)):
        prefixes[f"structure_encoder.stem.{i}."] = f"enc_content.model.{i}."
    after = len(encoder.stem)
    for r in range(len(encoder.residual)):
        prefixes |= _residual(f"structure_encoder.residual.{r}", f"enc_content.model.{after}.model.{r}")
    aspp = f"enc_content.model.{after + 1}"
    prefixes["structure_encoder.aspp.point."] = f"{aspp}.conv1."
    prefixes["structure_encoder.aspp.fuse."] = f"{aspp}.fuse."
    for k, dilation in enumerate(ASPP_DILATIONS):
        branch = f"{aspp}.conv{2 * dilation}"
        prefixes[f"structure_encoder.aspp.reduce.{k}."] = f"{branch}.0."
        prefixes[f"structure_encoder.aspp.dilated.{k}."] = f"{branch}.1."

    unused = {}
    for r in range(len(decoder.residual)):
        block = f"dec.model.1.model.{r}"
        prefixes |= _residual(f"decoder.residual.{r}", block)
        for half in (0, 1):
            unused[f"{block}.model.{half}.norm.running_mean"] = torch.zeros(decoder.channels)
            unused[f"{block}.model.{half}.norm.running_var"] = torch.ones(decoder.channels)
    position = 2
    if decoder.attention is not None:
        prefixes |= _attention("decoder.attention", f"dec.model.{position}")
        position += 1
    for k in range(len(decoder.upsample)):
        prefixes[f"decoder.upsample.{k}."] = f"dec.model.{position + 1}."
        position += 2
    for k in range(len(decoder.refine)):
        prefixes[f"decoder.refine.{k}."] = f"dec.model.{position}."
        position += 1
    prefixes["decoder.to_rgb."] = f"dec.model.{position}."
    return Layout(renamed(model, prefixes) | dict(_mlp_slots(model.mlp)), unused)


def discriminator_layout(model: DGNet) -> Layout:
    """``dis_*.pt``: D."""
    prefixes = {}
    for k, net in enumerate(model.discriminator.scales):
        ours, theirs = f"discriminator.scales.{k}", f"cnns.{k}"
        if isinstance(net, WassersteinDiscriminator):
            theirs = "cnn"
        for i in range(len(net.stem)):
            prefixes[f"{ours}.stem.{i}."] = f"{theirs}.{i}."
        position = len(net.stem)
        if not isinstance(net, WassersteinDiscriminator):
            if net.attention_before is not None:
                prefixes |= _attention(f"{ours}.attention_before", f"{theirs}.{position}")
                position += 1
            for r in range(len(net.residual)):
                prefixes |= _residual(f"{ours}.residual.{r}", f"{theirs}.{position}")
                position += 1
            if net.attention_after is not None:
                prefixes |= _attention(f"{ours}.attention_after", f"{theirs}.{position}")
                position += 1
        prefixes[f"{ours}.to_score."] = f"{theirs}.{position}."
    return Layout(renamed(model, prefixes), {})


def encoder_layout(encoder: AppearanceEncoder, *, teacher: bool = False) -> Layout:
    """``id_*.pt`` (E_a) or, with ``teacher``, ``net_last.pth``; slots name tensors of the encoder itself."""
    prefixes = {"backbone.": "model."}
    numbers = {"AB": ["1", "2"], "normal": [""], "PCB": ["0", "1", "2", "3"]}[encoder.style]
    for k, number in enumerate(numbers):
        ours, theirs = f"heads.{k}", f"classifier{number}"
        prefixes[f"{ours}.bottleneck."] = f"{theirs}.add_block.0."
        prefixes[f"{ours}.norm."] = f"{theirs}.add_block.1."
        prefixes[f"{ours}.classifier."] = f"{theirs}.classifier.0."
    unused = {}
    if not teacher:
        unused = {
            "model.fc.weight": torch.zeros(IMAGENET_CLASSES, encoder.backbone.channels),
            "model.fc.bias": torch.zeros(IMAGENET_CLASSES),
        }
    return Layout(renamed(encoder, prefixes), unused)


def export_state(
    module: nn.Module, layout: Layout, unused: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Our module's tensors as a state dict in the public layout; ``unused`` gives kept values of unused
    entries.
    """
    state = module.state_dict()
    entries = {name: slot.read(state).detach().clone() for name, slot in layout.slots.items()}
    return entries | layout.unused | {k: v for k, v in (unused or {}).items() if k in layout.unused}


@torch.no_grad()
def import_state(
    module: nn.Module, layout: Layout, entries: dict[str, Tensor], *, source: str, allow_extra: bool = False
) -> dict[str, Tensor]:
    """Copy a state dict in the public layout into our module; returns the values of its unused entries.

    Strict: ValueError names missing, extra and wrongly shaped entries and changes nothing. ``allow_extra``
    lets extra entries through (the released model carries non-local weights that no network of its options
    uses).
    """
    state = module.state_dict()
    entries = dict(entries)
    for name, slot in layout.slots.items():  # files older than PyTorch 0.4.1 do not count batches
        if name.endswith("num_batches_tracked"):
            entries.setdefault(name, state[slot.name])
    missing = [n for n in layout.slots if n not in entries]
    extra = [n for n in entries if n not in layout.slots and n not in layout.unused]
    wrong = [
        f"{n} is {tuple(entries[n].shape)}, expected {tuple(slot.read(state).shape)}"
        for n, slot in layout.slots.items()
        if n in entries and entries[n].shape != slot.read(state).shape
    ]
    problems = [f"missing {_some(missing)}"] if missing else []
    problems += [f"extra {_some(extra)}"] if extra and not allow_extra else []
    problems += [f"other shapes: {_some(wrong)}"] if wrong else []
    if problems:
        hint = (
            "; --allow-extra lets extra entries through"
            if problems[0].startswith("extra") and len(problems) == 1
            else ""
        )
        raise ValueError(
            f"{source} does not fit the network that the options describe: {'; '.join(problems)}{hint}"
        )
    for name, slot in layout.slots.items():
        slot.read(state).copy_(entries[name])
    return {n: entries[n].clone() for n in layout.unused if n in entries}


def _some(names: list[str], limit: int = 4) -> str:
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
