"""How many numbers the networks of given options hold at least, known before any of them is allocated."""

from __future__ import annotations

import os

from dgnet_fast.config import Config, ConfigError
from dgnet_fast.config.unit import UnitConfig

BYTES_IN_TRAINING = 16
"""Bytes for each weight: itself, its gradient, and two moments."""


def least_weights(config: Config) -> int:
    """A lower bound of the number of weights, from the convolutions and linear layers of the greatest parts; at usual
    options it is more than half of the number.
    """
    gen, dis = config.gen, config.dis
    structure = gen.dim * 2**gen.n_downsample
    total = 4 * gen.n_res * 9 * structure**2  # two convolutions in each residual block of E_s and G
    total += gen.mlp_dim * gen.id_dim
    total += sum(17 * n * (config.ID_width * 2**k) ** 2 for k, n in enumerate(config.ID_blocks))
    if config.ID_style != "PCB":  # whose heads have a size of their own
        total += config.ID_features * 32 * config.ID_width + config.ID_class * config.ID_features
    if dis.gan_type != "wgan":
        total += dis.num_scales * 2 * dis.n_res * 9 * (dis.dim * 2**dis.n_layer) ** 2 // 4
    return total


def check_size(config: Config, available: int, what: str) -> None:
    """Raise ConfigError if the networks of ``config`` have more weights than ``available`` numbers, which ``what``
    holds.
    """
    if (least := least_weights(config)) > available:
        raise ConfigError(
            f"the options describe networks of at least {least} weights, and {what} {available}: gen.dim {config.gen.dim}, "
            f"gen.n_res {config.gen.n_res}, gen.mlp_dim {config.gen.mlp_dim}, ID_width {config.ID_width}, ID_blocks "
            f"{config.ID_blocks}, ID_features {config.ID_features}, ID_class {config.ID_class}, dis.dim {config.dis.dim}"
        )


def least_unit_weights(config: UnitConfig) -> int:
    """`least_weights` of UNIT: residual blocks, and the last convolutions of the discriminators."""
    gen, dis = config.gen, config.dis
    code = gen.dim * 2**gen.n_downsample
    total = 4 * gen.n_res * 9 * code**2
    if dis.n_layer > 1:
        total += dis.num_scales * 16 * (dis.dim * 2 ** (dis.n_layer - 1)) ** 2 // 2
    return config.domains * total


def check_unit_size(config: UnitConfig, available: int, what: str) -> None:
    """`check_size` of UNIT."""
    if (least := least_unit_weights(config)) > available:
        gen, dis = config.gen, config.dis
        raise ConfigError(
            f"the options describe networks of at least {least} weights, and {what} {available}: {config.domains} domains, "
            f"gen.dim {gen.dim}, gen.n_downsample {gen.n_downsample}, gen.n_res {gen.n_res}, dis.dim {dis.dim}, dis.n_layer "
            f"{dis.n_layer}, dis.num_scales {dis.num_scales}"
        )


def check_fits_memory(config: Config | UnitConfig) -> None:
    """Raise ConfigError if the weights, gradients and optimisers of a training need more than the memory of the
    machine.
    """
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    available, what = memory // BYTES_IN_TRAINING, "the memory of this machine is enough to train"
    if isinstance(config, UnitConfig):
        check_unit_size(config, available, what)
    else:
        check_size(config, available, what)
