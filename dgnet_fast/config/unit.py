"""Options of UNIT (Liu, Breuel and Kautz, NIPS 2017), as one tree like that of DG-Net.

The options of the networks, the objective and the schedule keep the names and the defaults of the public code's YAML
files, which load unchanged. Options that the public code does not have stand beside them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dgnet_fast.config.fields import ConfigError, check_value, option
from dgnet_fast.config.networks import ACTIVATIONS, PADDINGS
from dgnet_fast.config.options import (
    Config,
    GeneratorConfig,
    assign,
    walk,
)
from dgnet_fast.config.yaml_files import read_mapping, set_in_tree

COMMAND = "python -m dgnet_fast.unit"
MUNIT_ONLY = {
    "gen": ("style_dim", "mlp_dim"),
    "": ("recon_s_w", "recon_c_w"),
}
"""Options of MUNIT's files, which the trainer of UNIT cannot run."""
COMPILED_DOMAINS = 3
"""torch.compile serves a function in at most eight forms; a part of the step has two for each two domains."""
DATA = (
    "camera_pattern", "crop_image_height", "crop_image_width", "synthetic_ids", "synthetic_views", "synthetic_test_ids",
    "seed",
)  # fmt: skip
"""Options by which pictures are found or drawn, as those of DG-Net."""


def as_dgnet(name: str) -> Any:
    """DG-Net's option of this name, with its default and allowed values."""
    spec = next(one for one in dataclasses.fields(Config) if one.name == name)
    return field(default=spec.default, metadata=spec.metadata)


@dataclass
class UnitGeneratorConfig:
    """Options of the encoders and the decoders, one of each for each domain."""

    dim: int = option(
        64, "channels of the first convolution of an encoder; all widths scale with it", low=1, high=1024
    )
    activ: str = option("relu", "activation function of encoders and decoders", choices=ACTIVATIONS)
    n_downsample: int = option(
        2, "stride-2 convolutions of an encoder, and upsampling layers of a decoder", low=1, high=6
    )
    n_res: int = option(4, "number of residual blocks of an encoder, and of a decoder", low=1, high=64)
    pad_type: str = option("reflect", "padding of the convolutions", choices=PADDINGS)


@dataclass
class UnitDiscriminatorConfig:
    """Options of the discriminators, one for each domain."""

    dim: int = option(64, "channels of the first convolution; they double in each layer", low=1, high=1024)
    norm: str = option("none", "normalisation, not in the first layer", choices=("none", "in", "ln", "bn"))
    activ: str = option("lrelu", "activation function", choices=ACTIVATIONS)
    n_layer: int = option(4, "number of stride-2 convolutions at each scale", low=1, high=12)
    gan_type: str = option("lsgan", "kind of adversarial loss", choices=("lsgan", "nsgan"))
    num_scales: int = option(
        3, "number of picture scales; each has half the size of the one before", low=1, high=12
    )
    pad_type: str = option("reflect", "padding of the convolutions", choices=PADDINGS)


@dataclass
class UnitConfig:
    """All options of a run of UNIT."""

    gen: UnitGeneratorConfig = field(default_factory=UnitGeneratorConfig)
    dis: UnitDiscriminatorConfig = field(default_factory=UnitDiscriminatorConfig)

    # --- data
    sources: list[str] = option(
        [], "one source for each domain: folder, or DATASET:SPLIT, and perhaps :camera=N"
    )
    roots: list[str] = option([], "folder of the data sets: one for all sources, or one for each")
    camera_pattern: str = as_dgnet("camera_pattern")
    synthetic_ids: int = as_dgnet("synthetic_ids")
    synthetic_views: int = as_dgnet("synthetic_views")
    synthetic_test_ids: int = as_dgnet("synthetic_test_ids")
    crop_image_height: int = option(
        256, "height of the pictures in the networks", low=4, high=4096, unit="pixels"
    )
    crop_image_width: int = option(
        256, "width of the pictures in the networks", low=4, high=4096, unit="pixels"
    )
    num_workers: int = as_dgnet("num_workers")
    data_cache: str = as_dgnet("data_cache")

    # --- objective
    gan_w: float = option(1.0, "weight of the adversarial loss", low=0)
    recon_x_w: float = option(10.0, "weight of the reconstruction of a picture", low=0)
    recon_kl_w: float = option(0.01, "weight of the mean square of the code", low=0)
    recon_x_cyc_w: float = option(10.0, "weight of the cycle reconstruction; 0 leaves the cycle out", low=0)
    recon_kl_cyc_w: float = option(0.01, "weight of the mean square of the code in the cycle", low=0)
    vgg_w: float = option(0.0, "weight of the perceptual loss", low=0)
    vgg_weights: str = option("", "file of the VGG-16 weights of the perceptual loss (docs/unit.md)")
    vgg_channels: str = option(
        "bgr", "order of the colours that these weights were trained with", choices=("bgr", "rgb")
    )

    # --- optimisation
    init: str = option(
        "kaiming", "initialisation", choices=("gaussian", "kaiming", "xavier", "orthogonal", "default")
    )
    same_start: bool = option(
        False,
        "begin with the same weights in all domains, so that a translation begins as a reconstruction (not in the public code)",
    )
    batch_size: int = option(1, "pictures of each of the two domains of a step", low=1, high=65536)
    max_iter: int = option(1000000, "length of the training", low=1, unit="steps")
    lr: float = option(0.0001, "learning rate (Adam)", low=0)
    beta1: float = option(0.5, "first beta of Adam", low=0, high=0.9999)
    beta2: float = as_dgnet("beta2")
    muon: float = as_dgnet("muon")
    weight_decay: float = option(0.0001, "weight decay of all weights", low=0)
    lr_policy: str = option("step", "rate schedule", choices=("constant", "step"))
    step_size: int = option(100000, "interval between two decays of the rate", low=1, unit="steps")
    gamma: float = option(0.5, "factor of each decay", low=0)
    accumulate: int = as_dgnet("accumulate")
    amp: str = as_dgnet("amp")
    compile: bool = option(False, "compile the passes and parts of the step with torch.compile")
    cuda_graphs: str = as_dgnet("cuda_graphs")
    checkpoint_activations: bool = option(
        False,
        "compute activations of encoders and decoders again in the backward pass: less memory, same numbers",
    )
    seed: int = option(
        0, "seed of weights, data order, augmentation and noise", low=0, high=4611686018427387904
    )
    device: str = as_dgnet("device")
    max_bad_steps: int = as_dgnet("max_bad_steps")

    # --- what a run writes
    log_iter: int = as_dgnet("log_iter")
    image_display_iter: int = option(1000, "interval between two sample grids", low=1, unit="steps")
    image_save_iter: int = option(
        10000, "as image_display_iter (public files have both); the smaller value counts", low=1, unit="steps"
    )
    snapshot_save_iter: int = as_dgnet("snapshot_save_iter")
    keep_checkpoints: int = as_dgnet("keep_checkpoints")
    display_size: int = option(4, "number of pictures of each domain in a sample grid", low=1, high=256)

    # --- accepted from public files
    data_root: str = option("", "public files: folder with trainA and trainB")
    data_folder_train_a: str = option("", "public files: folder of the first domain")
    data_folder_train_b: str = option("", "public files: folder of the second domain")
    data_list_train_a: str = option("", "public files: text file with one relative path a line")
    data_list_train_b: str = option("", "public files: text file with one relative path a line")
    data_folder_test_a: str = option("", "accepted from public files, without effect")
    data_folder_test_b: str = option("", "accepted from public files, without effect")
    data_list_test_a: str = option("", "accepted from public files, without effect")
    data_list_test_b: str = option("", "accepted from public files, without effect")
    new_size: int = option(256, "accepted from public files, without effect (see crop_image_height)", low=0)
    new_size_a: int = option(256, "accepted from public files, without effect", low=0)
    new_size_b: int = option(256, "accepted from public files, without effect", low=0)
    input_dim_a: int = option(3, "channels of the pictures; the public code's loader gives 3", choices=(3,))
    input_dim_b: int = option(3, "channels of the pictures; the public code's loader gives 3", choices=(3,))
    recon_h_w: float = option(0.0, "accepted from public files; it never had an effect")

    @property
    def picture_size(self) -> tuple[int, int]:
        """Height and width of the pictures, in pixels."""
        return self.crop_image_height, self.crop_image_width

    @property
    def domains(self) -> int:
        """Number of domains: 2, or more where there are more sources."""
        return max(2, len(self.sources))

    def validate(self) -> UnitConfig:
        """Check every option and the combinations of options; returns self. Raises ConfigError."""
        for name, spec, owner in walk(self):
            check_value(name, getattr(owner, spec.name), spec)
        if len(self.sources) == 1:
            raise ConfigError(f"sources is {self.sources}; allowed: none, or at least two")
        if len(self.roots) not in (0, 1, self.domains):
            raise ConfigError(f"roots has {len(self.roots)} folders; allowed: 1, or one for each source")
        if self.compile and self.checkpoint_activations:
            raise ConfigError("compile is True; allowed: checkpoint_activations False")
        if self.compile and self.domains > COMPILED_DOMAINS:
            raise ConfigError(
                f"compile is True for {self.domains} domains; allowed: False, or at most {COMPILED_DOMAINS} domains (a part is "
                "compiled anew for each two domains, and PyTorch stops at eight times)"
            )
        multiple = 2**self.gen.n_downsample
        for name in ("crop_image_height", "crop_image_width"):
            if getattr(self, name) % multiple:
                raise ConfigError(
                    f"{name} is {getattr(self, name)}; with gen.n_downsample {self.gen.n_downsample} it must be a multiple of {multiple}"
                )
        self._check_reflection()
        return self

    def _check_reflection(self) -> None:
        """Reflection needs more pixels than it adds; PyTorch would say so in the first step."""
        side = min(self.picture_size)
        if self.gen.pad_type == "reflect":
            smallest = side // 2**self.gen.n_downsample
            if smallest < 2 or side < 4:
                raise ConfigError(
                    f"pictures of {self.crop_image_height}x{self.crop_image_width} leave a code {smallest} wide; reflection needs at "
                    "least 2: take larger pictures, a smaller gen.n_downsample or another gen.pad_type"
                )
        for scale in range(self.dis.num_scales):
            smallest = side
            for _ in range(scale):
                smallest = (smallest + 1) // 2
            smallest //= 2 ** (self.dis.n_layer - 1)  # what the last stride-2 layer reads
            if smallest < 2:
                raise ConfigError(
                    f"pictures of {self.crop_image_height}x{self.crop_image_width} are {smallest} wide before the last layer "
                    f"of scale {scale + 1} of D, which needs at least 2: take larger pictures, a smaller dis.n_layer or a "
                    "smaller dis.num_scales"
                )

    def data_config(self, domain: int | None = None) -> Config:
        """The options that `open_pictures` wants for the source of a domain (None: without a folder)."""
        root = "" if domain is None or not self.roots else self.roots[domain if len(self.roots) > 1 else 0]
        # networks that take any size: `Config` is checked with them, though only its data are used
        return Config(
            gen=GeneratorConfig(pad_type="zero", n_downsample=1),
            data_root=root,
            **{name: getattr(self, name) for name in DATA},
        )

    def to_dict(self) -> dict[str, Any]:
        """All options as a plain nested dictionary."""
        return dataclasses.asdict(self)

    def to_yaml(self) -> str:
        """The complete tree as YAML text, which `load_unit_config` reads again."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    def replace(self, **changes: Any) -> UnitConfig:
        """A validated copy with changes; two underscores (``gen__dim=8``) or a dot name an option of a branch."""
        tree = self.to_dict()
        for key, value in changes.items():
            set_in_tree(tree, key.replace("__", "."), value)
        return unit_from_dict(tree)


def unit_from_dict(values: dict[str, Any]) -> UnitConfig:
    """Build and validate a UnitConfig from a nested dictionary. Options that are absent have their defaults."""
    for branch, names in MUNIT_ONLY.items():
        part = values.get(branch, {}) if branch else values
        for name in names:
            if isinstance(part, dict) and name in part:
                dotted = f"{branch}.{name}" if branch else name
                raise ConfigError(
                    f"{dotted} belongs to MUNIT, whose networks are others; UNIT's files have no such option"
                )
    config = UnitConfig()
    assign(config, values, names=[name for name, _, _ in walk(UnitConfig())], command=COMMAND)
    return config.validate()


def load_unit_config(path: str | Path, overrides: dict[str, Any] | None = None) -> UnitConfig:
    """Read a YAML file (ours or one of the public code) and apply overrides; their names may be dotted."""
    tree = read_mapping(path)
    for name, value in (overrides or {}).items():
        set_in_tree(tree, name, value)
    return unit_from_dict(tree)


SMALL_UNIT: dict[str, Any] = {
    "gen": {"dim": 16, "n_res": 2, "n_downsample": 1},
    "dis": {"dim": 16, "n_layer": 3, "num_scales": 2},
    "crop_image_height": 64,
    "crop_image_width": 32,
    "batch_size": 2,
    "max_iter": 1200,
    "same_start": True,
    "lr": 0.0005,
    "muon": 40.0,
    "step_size": 800,
    "gamma": 0.3,
    "image_display_iter": 200,
    "image_save_iter": 200,
    "snapshot_save_iter": 400,
    "display_size": 6,
}
"""A whole UNIT in miniature, for the built-in cities and two CPU cores: every part, thinner and on small pictures."""

PEDESTRIANS: dict[str, Any] = {"crop_image_height": 256, "crop_image_width": 128}
"""The public options at the size of pictures of pedestrians."""

UNIT_PRESETS = {"small": SMALL_UNIT, "pedestrians": PEDESTRIANS, "public": {}}
"""Named sets of options; public are the defaults of the public code, whose pictures are 256×256."""
