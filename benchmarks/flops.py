"""Least FLOPs of networks and of the step, counted by PyTorch on shapes alone (meta tensors).

A convolution after nearest upsampling is counted with nine taps, whoever computes it; norms, activations and
losses are not counted (about a percent).
"""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.plain import Decoder, Discriminator, Encoder, StructureEncoder
from dgnet_fast.config import Config
from dgnet_fast.models.appearance_encoder import appearance_input_size, build_appearance_encoder

LEAST_TAPS = 3  # 3×3 for the 5×5 after upsampling


def _count(call) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def _passes(net: torch.nn.Module, *inputs: torch.Tensor) -> dict[str, float]:
    """FLOPs of a network's passes: forward; weights: gradient of the weights; inputs: gradient of the inputs."""

    def run(weights: bool, grads: bool) -> None:
        net.requires_grad_(weights)
        outputs = net(*(one.detach().requires_grad_(grads) for one in inputs))
        total = sum(one.sum() for one in _tensors(outputs))
        if weights or grads:
            total.backward()

    forward = _count(lambda: run(False, False))
    return {
        "forward": forward,
        "inputs": _count(lambda: run(False, True)) - forward,
        "weights": _count(lambda: run(True, False)) - forward,
        "both": _count(lambda: run(True, True)) - forward,
    }


def _tensors(outputs) -> list[torch.Tensor]:
    if torch.is_tensor(outputs):
        return [outputs]
    return [tensor for one in outputs for tensor in _tensors(one)]


NETWORKS = ("E_s", "G", "D", "E_a")


def _network(name: str, config: Config) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    """A network and its inputs for one picture (two for E_a, whose BatchNorms want them)."""
    height, width = config.crop_image_height, config.crop_image_width
    if name == "E_s":
        return StructureEncoder(config), (torch.empty(1, 1, height, width),)
    if name == "G":
        channels, scale = StructureEncoder(config).channels, 2**config.gen.n_downsample
        structure = torch.empty(1, channels, height // scale, width // scale)
        return Decoder(config, channels, LEAST_TAPS), (structure, torch.empty(1, 4 * config.gen.id_dim))
    if name == "D":
        return Discriminator(config), (torch.empty(1, 3, height, width),)
    return Encoder(config, build_appearance_encoder(config)), (
        torch.empty(2, 3, *appearance_input_size(config)),
    )


def network_flops(config: Config, names: tuple[str, ...] = NETWORKS) -> dict[str, dict[str, float]]:
    """FLOPs of one picture through each network, by pass (see `_passes`)."""
    counted = {}
    for name in names:
        with torch.device("meta"):
            net, inputs = _network(name, config)
        counted[name] = {which: value / len(inputs[0]) for which, value in _passes(net, *inputs).items()}
    return counted


def step_flops(config: Config, after_ramps: bool) -> float:
    """Least FLOPs of one training step with random erasing: what the losses need, nothing twice.

    The gradient penalty adds a backward of D to its inputs, and the double backward, which costs what the backward
    to the weights does.
    """
    net = network_flops(config)
    pictures = 2 * config.batch_size
    e_s, g, d, e_a = (net[name] for name in NETWORKS)
    total = e_s["forward"] + e_s["weights"]  # structures of x
    total += 2 * e_a["forward"]  # codes of x and xp, no gradient
    total += 2 * (e_a["forward"] + e_a["weights"])  # identity losses of x and xp
    total += 3 * (g["forward"] + g["both"])  # swap, self, same identity
    total += d["forward"] + d["weights"]  # D on fakes
    total += d["forward"] + d["inputs"] + 2 * d["weights"]  # D on real pictures, with the penalty
    total += d["forward"] + d["inputs"]  # adversarial term of G
    total += e_a["forward"] + e_a["inputs"]  # identity of the swap
    if after_ramps:
        total += (
            e_s["forward"] + (e_s["weights"] + e_s["inputs"]) / 2
        )  # structure again, branches alternating
        total += g["forward"] + g["both"]  # cycle
        total += e_a["forward"] + e_a["weights"]  # student
        total += 2 * e_a["forward"]  # the teacher, E_a's like, on picture and mirror image
    return pictures * total
