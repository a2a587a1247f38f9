"""Named sets of options. Values of a configuration file replace those of a preset, and command-line options replace
both.
"""

from __future__ import annotations

from typing import Any

from dgnet_fast.config.fields import ConfigError
from dgnet_fast.config.options import DRAWN, Config, from_dict
from dgnet_fast.config.yaml_files import set_in_tree

PAPER: dict[str, Any] = {
    "ID_stride": 1,
    "pool": "max",
    "teacher": "auto",
    "display_size": 8,
}
"""The paper's run (100 000 steps at 256×128, ResNet-50, teacher trained first): the defaults of every option
but these.
"""

SMALL: dict[str, Any] = {
    # Zero padding lets the few layers know where in the frame they are: without it, 600 steps colour whole pictures
    # instead of clothes.
    "gen": {
        "dim": 8,
        "id_dim": 512,
        "mlp_dim": 128,
        "n_downsample": 2,
        "n_res": 2,
        "pad_type": "zero",
    },
    "dis": {"dim": 8, "n_res": 1, "num_scales": 2},
    "crop_image_height": 64,
    "crop_image_width": 32,
    "crop_pad": 3,
    "erasing_p": 0.0,
    "ID_width": 16,
    "ID_blocks": [1, 1, 1, 1],
    "ID_features": 128,
    "ID_stride": 1,
    "pool": "max",
    "pretrained": "teacher",
    "teacher": "auto",
    "teacher_steps": 300,
    "teacher_batch": 32,
    "teacher_lr": 0.2,  # the baseline's too, which learns too little at 0.1 (docs/learning_experiments.md)
    "synthetic_ids": 256,
    # E_s and G alone, then all together (docs/learning_experiments.md says what each of these was worth)
    "generator_steps": 2000,
    "generator_code_w": 1.0,
    "code_w": 1.0,
    "gray_jitter": 0.3,
    "max_iter": 300,
    "lr_policy": "cosine",
    "beta1": 0.5,
    "lr_g": 0.0005,
    "muon": 40.0,
    "lr_d": 0.0002,
    "lr2": 0.005,
    "real_batch": 32,
    "bn_together": True,
    "ema_decay": 0.99,
    "gan_w": 0.2,
    "recon_id_w": 0.5,
    "warm_iter": 0,
    "warm_teacher_iter": 0,
    "warm_scale": 0.01,
    "log_iter": 10,
    "image_display_iter": 100,
    "image_save_iter": 100,
    "snapshot_save_iter": 200,
    "display_size": 8,
}
"""A whole DG-Net in miniature: every part of the paper's, thinner and on small pictures, its ramps compressed.

For two CPU cores. E_a starts from the teacher's trunk, as the paper's starts from ImageNet."""

SHOWCASE: dict[str, Any] = SMALL | {
    "gen": SMALL["gen"] | {"dim": 16},
    "dis": SMALL["dis"] | {"dim": 16},
    "crop_image_height": 128,
    "crop_image_width": 64,
    "crop_pad": 6,
    "synthetic_ids": 1024,
    "teacher_steps": 2000,
    "teacher_batch": 64,
    "teacher_lr": 0.1,
    "generator_steps": 4200,
    "generator_code_w": 0.5,
    "code_w": 0.5,
}
"""The preset small with pictures twice as high and wide, twice the width of E_s, G and D, 1 024 people, a longer teacher (at 0.1)
and a longer first phase: the run whose pictures README shows (docs/learning.md has its time and scores)."""

PRESETS = {"paper": PAPER, "small": SMALL, "showcase": SHOWCASE}


def preset(name: str) -> dict[str, Any]:
    """The options of a preset as a fresh nested dictionary."""
    if name not in PRESETS:
        raise ConfigError(f"preset is {name!r}; allowed: {', '.join(PRESETS)}")
    return {k: dict(v) if isinstance(v, dict) else v for k, v in PRESETS[name].items()}


def combined(
    values: dict[str, Any], overrides: dict[str, Any], name: str | None, *, by_default: bool = True
) -> tuple[Config, str]:
    """The options of a preset, replaced by ``values`` (a nested dictionary, as a YAML file holds it), replaced by
    ``overrides`` (dotted names); and the name of the preset.

    Without a ``name`` the preset is small for synthetic data and paper for other data, or none at all unless
    ``by_default``; the name is then 'config'. Where ``max_iter`` is given and ``generator_steps`` is not, the preset's first
    phase becomes longer or shorter with it.
    """
    data = overrides.get("data", values.get("data", Config.data))
    name = name or (("small" if data in DRAWN else "paper") if by_default else "")
    tree = preset(name) if name else {}
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            tree[key].update(value)
        else:
            tree[key] = value
    for key, value in overrides.items():
        set_in_tree(tree, key, value)
    if name and "generator_steps" not in values.keys() | overrides.keys():
        _scale_first_phase(tree, preset(name))
    return from_dict(tree), name or "config"


def _scale_first_phase(tree: dict[str, Any], shipped: dict[str, Any]) -> None:
    """A preset's first phase keeps its share of the run when the run is made longer or shorter."""
    if shipped.get("generator_steps") and isinstance(tree["max_iter"], int):
        tree["generator_steps"] = round(shipped["generator_steps"] * tree["max_iter"] / shipped["max_iter"])
