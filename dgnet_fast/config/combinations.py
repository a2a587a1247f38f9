"""Which options of a run go together."""

from __future__ import annotations

from typing import Any

from dgnet_fast.config.choices import TRACKERS
from dgnet_fast.config.fields import ConfigError
from dgnet_fast.config.shown import shown

MOST_DRAWN = 4_000_000
"""Synthetic pictures of a data set; a list of their names takes 0.4 GB."""


def check_combinations(config: Any) -> None:
    """Raise ConfigError, naming an option, its value and what is allowed, if options of ``config`` (a `Config`) do not go
    together.
    """
    if unknown := [one for one in config.track.split(",") if one not in ("", *TRACKERS)]:
        raise ConfigError(f"track is {unknown[0]!r}; allowed: {', '.join(TRACKERS)}, separated by commas")
    if config.reid.triplet_w and config.reid.views < 2:
        raise ConfigError(
            f"reid.triplet_w is {config.reid.triplet_w} with reid.views {config.reid.views}; the triplet loss needs at least 2 views"
        )
    if config.gray_jitter and config.single == "edge":
        raise ConfigError(f"gray_jitter is {config.gray_jitter}; with single edge allowed: 0")
    if config.compile and (
        config.single == "edge" or config.checkpoint_activations or config.dis.norm == "bn"
    ):
        raise ConfigError(
            "compile is True; allowed: single gray, checkpoint_activations False, dis.norm not bn"
        )
    if config.sync_bn and config.compile:
        raise ConfigError("sync_bn is True; with compile allowed: False")
    for name, default in (("sync_bn", False), ("bn_parts", 1)):
        if config.dis.norm == "bn" and getattr(config, name) != default:
            raise ConfigError(f"{name} is {getattr(config, name)}; with dis.norm bn allowed: {default}")
    if config.bn_together and config.bn_parts > 1:
        raise ConfigError(f"bn_parts is {config.bn_parts}; with bn_together allowed: 1")
    if config.real_batch % 2:
        raise ConfigError(
            f"real_batch is {config.real_batch}; allowed: even numbers, since half of it goes to each stream"
        )
    for name in ("batch_size", "teacher_batch", "baseline_batch", "real_batch"):
        if getattr(config, name) % config.bn_parts:
            raise ConfigError(
                f"{name} is {getattr(config, name)}; with bn_parts {config.bn_parts} it must be a multiple of {config.bn_parts}"
            )
    if config.gen.id_dim != 32 * config.ID_width:
        raise ConfigError(
            f"gen.id_dim is {config.gen.id_dim}, but E_a's last stage has 32 * ID_width = {32 * config.ID_width} channels"
        )
    if len(config.ID_blocks) != 4 or min(config.ID_blocks) < 1 or max(config.ID_blocks) > 128:
        raise ConfigError(f"ID_blocks is {shown(config.ID_blocks)}; allowed: four numbers from 1 to 128")
    drawn = (config.synthetic_ids + config.synthetic_test_ids) * config.synthetic_views
    if drawn > MOST_DRAWN:
        raise ConfigError(
            f"synthetic_views is {config.synthetic_views} for {config.synthetic_ids} + {config.synthetic_test_ids} identities, "
            f"which makes {drawn} pictures; allowed: at most {MOST_DRAWN}"
        )
    multiple = 2**config.gen.n_downsample
    for name in ("crop_image_height", "crop_image_width"):
        if getattr(config, name) % multiple:
            raise ConfigError(
                f"{name} is {getattr(config, name)}; with gen.n_downsample {config.gen.n_downsample} it must be a multiple of {multiple}"
            )
    smallest = min(config.crop_image_height, config.crop_image_width) // multiple
    if config.gen.pad_type == "reflect" and smallest <= 9:
        raise ConfigError(
            f"pictures of {config.crop_image_height}x{config.crop_image_width} leave a structure code {smallest} wide; "
            "E_s pads it by 9 with reflection, so it must be at least 10: take larger pictures, a smaller "
            "gen.n_downsample or another gen.pad_type"
        )
