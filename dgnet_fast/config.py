"""The one tree of options: typed, documented, validated; YAML in and out.

The options of the model, the objective and the schedule keep the names of the public DG-Net YAML files, so
that those files load unchanged and old notes stay readable; everything that the public files do not have is
documented beside them in the same place. ``Config`` is the whole tree, ``Config.gen`` and ``Config.dis`` its
two branches.

An unknown key, a value of the wrong type or one outside the allowed range raises ``ConfigError``, a
``ValueError`` that names the key, the value and what is allowed.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml


class ConfigError(ValueError):
    """An option has an unknown name or a value that is not allowed."""


def option(
    default: Any,
    help: str,  # noqa: A002 - argparse's own word
    *,
    choices: tuple | None = None,
    low: float | None = None,
    high: float | None = None,
    unit: str = "",
    several: str = "",
) -> Any:
    """A dataclass field that carries its documentation, allowed values and unit.

    With ``several`` the value may be several of the choices, separated by that sign.
    """
    metadata = {
        "help": help, "choices": choices, "low": low, "high": high, "unit": unit, "several": several
    }  # fmt: skip
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


ACTIVATIONS = ("relu", "lrelu", "prelu", "selu", "tanh")
PADDINGS = ("zero", "reflect", "replicate")
DATASETS = (
    "synthetic", "market1501", "folder", "csv",
    "dukemtmc-reid", "msmt17", "cuhk03-np-labelled", "cuhk03-np-detected", "veri776",
)  # fmt: skip
SEVERAL = "+"
"""Between the names of several data sets."""


@dataclass
class GeneratorConfig:
    """Structure encoder E_s, decoder G and the MLPs between appearance code and AdaIN."""

    activ: str = option("lrelu", "activation of E_s, G and the MLPs", choices=ACTIVATIONS)
    dec: str = option("basic", "residual block of the decoder", choices=("basic", "series", "parallel"))
    dim: int = option(16, "channels of the first convolution of E_s; all widths scale with it", low=1)
    dropout: float = option(0.0, "dropout on the structure code in the decoder", low=0.0, high=0.999)
    id_dim: int = option(2048, "length of a strip of the appearance code (E_a's channels)", low=1)
    mlp_dim: int = option(512, "hidden width of the AdaIN MLPs", low=1)
    mlp_norm: str = option("none", "normalisation inside the AdaIN MLPs", choices=("none", "in"))
    n_downsample: int = option(2, "stride-2 convolutions of E_s, and upsamplings of G", low=1, high=6)
    n_res: int = option(4, "residual blocks of E_s and of G", low=1)
    non_local: int = option(0, "1: a self-attention block after G's residual blocks", choices=(0, 1))
    pad_type: str = option("reflect", "padding of the convolutions of E_s and G", choices=PADDINGS)
    tanh: bool = option(False, "tanh on the structure code")
    init: str = option("kaiming", "initialisation", choices=("gaussian", "kaiming", "xavier", "orthogonal"))


@dataclass
class DiscriminatorConfig:
    """Multi-scale discriminator D."""

    LAMBDA: float = option(0.01, "weight of the gradient penalty on real pictures", low=0.0)
    activ: str = option("lrelu", "activation", choices=ACTIVATIONS)
    dim: int = option(32, "channels of the first convolution", low=1)
    gan_type: str = option("lsgan", "adversarial loss", choices=("lsgan", "nsgan", "wgan"))
    n_layer: int = option(2, "stride-2 convolutions of each scale", low=1)
    n_res: int = option(4, "residual blocks of each scale", low=0)
    non_local: int = option(
        0, "self-attention: 1 after the residual blocks, 2 also before", choices=(0, 1, 2)
    )
    norm: str = option("none", "normalisation", choices=("none", "in", "ln", "bn"))
    num_scales: int = option(3, "picture scales, each half the one before", low=1)
    pad_type: str = option("reflect", "padding of the convolutions", choices=PADDINGS)


@dataclass
class Config:
    """All options of a run."""

    gen: GeneratorConfig = field(default_factory=GeneratorConfig)
    dis: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)

    # --- data
    data: str = option("synthetic", "data set, or several joined by +", choices=DATASETS, several=SEVERAL)
    data_root: str = option(
        "",
        "folder of the data set (csv: the file; not needed for synthetic); of several sets: one that holds "
        "them all, or one each, separated by commas",
    )
    camera_pattern: str = option("", "regular expression for the camera in a file name (folder data only)")
    skip_unreadable: bool = option(False, "leave out pictures that cannot be read, and count them")
    synthetic_ids: int = option(64, "synthetic identities to train on", low=2)
    synthetic_views: int = option(16, "synthetic pictures of each identity", low=2)
    synthetic_test_ids: int = option(32, "synthetic identities kept for the test", low=2)
    crop_image_height: int = option(256, "height of the pictures", low=16, unit="pixels")
    crop_image_width: int = option(128, "width of the pictures", low=8, unit="pixels")
    crop_pad: int = option(10, "edge padding before the random crop", low=0, unit="pixels")
    erasing_p: float = option(0.5, "probability of erasing pictures of the identity losses", low=0, high=1)
    single: str = option("gray", "what E_s sees of a picture", choices=("gray", "edge"))
    gray_jitter: float = option(0.0, "spread of the channels' weights in that grey, in training", low=0)
    num_workers: int = option(8, "threads that decode pictures", low=0)
    data_cache: str = option(
        "auto",
        "folder that keeps decoded pictures, or off; auto: $DGNET_FAST_CACHE, else dgnet_fast in $XDG_CACHE_HOME or ~/.cache",
    )
    pictures_on: str = option(
        "auto",
        "training pictures held on the device, or streamed from the host; auto: held if a quarter of its free memory is enough",
        choices=("auto", "device", "host"),
    )

    # --- appearance encoder and teacher
    ID_class: int = option(0, "identities of the training set; 0: counted from the data", low=0)
    ID_style: str = option("AB", "re-identification network", choices=("AB", "normal", "PCB"))
    ID_stride: int = option(
        2,
        "stride of E_a's last stage in style AB (normal is always 2 and PCB always 1, as in the public code)",
        choices=(1, 2),
    )
    ID_width: int = option(
        64, "channels of E_a's first stage (64: ResNet-50); the last stage has 32 times as many", low=1
    )
    ID_blocks: list[int] = option([3, 4, 6, 3], "bottleneck blocks of E_a's four stages (3 4 6 3: ResNet-50)")
    ID_features: int = option(512, "length of each head's feature in styles AB and normal", low=1)
    ID_upsample: bool = option(
        True, "double pictures of at most 128 pixels height before E_a, the teacher and erasing"
    )
    pool: str = option("avg", "pooling of E_a", choices=("max", "avg"))
    norm_id: bool = option(False, "L2-normalise the appearance code (style normal)")
    pretrained: str = option(
        "",
        "start of E_a's trunk (and, if it is a file, the teacher's): torchvision's ResNet-50 ImageNet file, or 'teacher' for "
        "the trunk of the teacher that this run trains; '' starts from random weights",
    )
    train_bn: bool = option(True, "frozen copies and the teacher use batch statistics in their BatchNorms")
    teacher: str = option(
        "",
        "teacher: 'auto' trains one first; else comma-separated files or ./models/NAME (public layout); '' for none",
    )
    teacher_style: int = option(
        0,
        "label of a generated picture: 0 soft, 1 its argmax, 2 appearance id, 3 uniform, 4 soft on the two ids",
        choices=(0, 1, 2, 3, 4),
    )
    teacher_steps: int = option(
        24000, "steps of the teacher's own training (teacher: auto)", low=1, unit="steps"
    )
    teacher_batch: int = option(32, "batch of the teacher's own training", low=2)
    teacher_lr: float = option(0.05, "learning rate of the teacher's head (its trunk has a tenth)", low=0)
    teacher_stride: int = option(2, "stride of the teacher's last stage when we train it", choices=(1, 2))
    generator_steps: int = option(0, "steps in which E_s and G learn alone first", low=0, unit="steps")
    generator_lr: float = option(0.002, "their learning rate (Adam), falling to 0", low=0)

    # --- objective
    gan_w: float = option(1.0, "weight of the adversarial term", low=0)
    id_w: float = option(1.0, "weight of the identity term", low=0)
    pid_w: float = option(1.0, "weight of the identity term on positives", low=0)
    recon_x_w: float = option(5.0, "weight of self-reconstruction", low=0)
    recon_xp_w: float = option(5.0, "weight of same-identity reconstruction", low=0)
    recon_id_w: float = option(0.5, "weight of the identity term on generated pictures", low=0)
    recon_f_w: float = option(0.0, "initial weight of appearance-code reconstruction", low=0)
    recon_s_w: float = option(0.0, "initial weight of structure-code reconstruction", low=0)
    recon_x_cyc_w: float = option(0.0, "initial weight of the cycle reconstruction", low=0)
    teacher_w: float = option(0.0, "initial weight of the teacher term (primary and fine-grained)", low=0)
    T_w: float = option(1.0, "share of the primary (KL) loss within the teacher term", low=0)
    B_w: float = option(0.2, "share of the fine-grained loss within the teacher term", low=0)
    max_w: float = option(1.0, "ceiling of recon_f_w and recon_s_w", low=0)
    max_cyc_w: float = option(2.0, "ceiling of recon_x_cyc_w", low=0)
    max_teacher_w: float = option(2.0, "ceiling of teacher_w", low=0)
    warm_iter: int = option(30000, "step after which the reconstruction weights rise", low=0, unit="steps")
    warm_teacher_iter: int = option(30000, "step after which teacher_w rises", low=0, unit="steps")
    warm_scale: float = option(0.0005, "rise of a ramped weight per step", low=0)
    use_encoder_again: float = option(
        0.5,
        "probability that structure reconstruction trains E_s (else a frozen copy of it trains G)",
        low=-1,
        high=1,
    )

    # --- optimisation
    batch_size: int = option(8, "pictures of each of the two streams", low=1)
    max_iter: int = option(100000, "training steps", low=1, unit="steps")
    lr_g: float = option(0.0001, "learning rate of E_s and G (Adam)", low=0)
    lr_d: float = option(0.0001, "learning rate of D (Adam)", low=0)
    lr2: float = option(0.002, "learning rate of E_a (SGD; its heads have ten times as much)", low=0)
    beta1: float = option(0.0, "Adam's first beta", low=0, high=0.9999)
    beta2: float = option(0.999, "Adam's second beta", low=0, high=0.99999)
    weight_decay: float = option(0.0005, "weight decay of all three optimisers", low=0)
    lr_policy: str = option(
        "multistep", "rate schedule; cosine ends at 0", choices=("constant", "step", "multistep", "cosine")
    )
    warm_up: int = option(0, "steps over which all learning rates rise", low=0, unit="steps")
    step_size: int = option(60000, "first decay (multistep: more at x1.5, x1.75)", low=1, unit="steps")
    gamma: float = option(0.1, "decay factor of E_s, G and D", low=0)
    gamma2: float = option(0.1, "decay factor of E_a", low=0)
    ema_decay: float = option(
        0.0, "weights' moving average, for samples and use; 0: none", low=0, high=0.99999
    )
    accumulate: int = option(1, "batches whose gradients are added up before an update", low=1)
    amp: str = option(
        "auto", "mixed precision; auto: bf16 where it is fast", choices=("auto", "bf16", "fp16", "off")
    )
    compile: bool = option(False, "torch.compile the step's passes and parts, one graph each")
    cuda_graphs: str = option(
        "auto", "record steps as CUDA graphs; auto: where it can be done", choices=("auto", "on", "off")
    )
    checkpoint_activations: bool = option(
        False, "compute activations of E_a and G again in the backward pass: less memory, same numbers"
    )
    seed: int = option(0, "seed of weights, data order, augmentation and dropout", low=0)
    device: str = option("auto", "device: auto, cpu, cuda or cuda:N")
    max_bad_steps: int = option(
        10, "consecutive non-finite steps after which the run stops; on CUDA up to as many later", low=1
    )

    # --- what a run writes
    log_iter: int = option(10, "steps between lines of metrics.jsonl", low=1, unit="steps")
    image_display_iter: int = option(5000, "steps between sample grids", low=1, unit="steps")
    image_save_iter: int = option(
        5000, "as image_display_iter (public files have both; the smaller one holds)", low=1, unit="steps"
    )
    snapshot_save_iter: int = option(10000, "steps between checkpoints", low=1, unit="steps")
    keep_checkpoints: int = option(3, "checkpoints kept (the newest)", low=1)
    display_size: int = option(16, "pictures in a sample grid's row", low=1)

    # --- accepted for old files, without effect or in one value only
    apex: bool = option(False, "old name: true means amp fp16")
    new_size: int = option(128, "accepted from old files; crop_image_* give the size", low=0)
    input_dim_a: int = option(1, "channels that E_s sees", choices=(1,))
    input_dim_b: int = option(1, "channels that E_s sees", choices=(1,))
    sqrt: bool = option(False, "accepted from old files; never had an effect")
    use_decoder_again: bool = option(True, "accepted from old files; never had an effect")
    vgg_w: float = option(
        0.0, "perceptual loss: never worked in the public code, refused here", choices=(0, 0.0)
    )
    epoch_iteration: int = option(0, "accepted from old files; computed there", low=0)
    vgg_model_path: str = option("", "accepted from old files; no perceptual loss here")

    def validate(self) -> Config:
        """Check every option and their combinations; returns self."""
        for name, spec, owner in walk(self):
            _check_value(name, getattr(owner, spec.name), spec)
        if self.compile and (self.single == "edge" or self.checkpoint_activations or self.dis.norm == "bn"):
            raise ConfigError(
                "compile is True; allowed: single gray, checkpoint_activations False, dis.norm not bn"
            )
        if self.gray_jitter and self.single == "edge":
            raise ConfigError(f"gray_jitter is {self.gray_jitter}; with single edge allowed: 0")
        if self.gen.id_dim != 32 * self.ID_width:
            raise ConfigError(
                f"gen.id_dim is {self.gen.id_dim}, but E_a's last stage has 32 * ID_width = {32 * self.ID_width} channels"
            )
        if len(self.ID_blocks) != 4 or min(self.ID_blocks) < 1:
            raise ConfigError(f"ID_blocks is {self.ID_blocks}; allowed: four numbers of at least 1")
        multiple = 2**self.gen.n_downsample
        for name in ("crop_image_height", "crop_image_width"):
            if getattr(self, name) % multiple:
                raise ConfigError(
                    f"{name} is {getattr(self, name)}; with gen.n_downsample {self.gen.n_downsample} it must be a multiple of {multiple}"
                )
        smallest = min(self.crop_image_height, self.crop_image_width) // multiple
        if self.gen.pad_type == "reflect" and smallest <= 9:
            raise ConfigError(
                f"pictures of {self.crop_image_height}x{self.crop_image_width} leave a structure code {smallest} wide; "
                "E_s pads it by 9 with reflection, so it must be at least 10: take larger pictures, a smaller "
                "gen.n_downsample or another gen.pad_type"
            )
        return self

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionary of all options."""
        return dataclasses.asdict(self)

    def to_yaml(self) -> str:
        """The resolved tree as YAML, loadable again with `load_config`."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    def replace(self, **changes: Any) -> Config:
        """A validated copy; branches are named with a dot or two underscores (``gen__dim=8``)."""
        tree = self.to_dict()
        for key, value in changes.items():
            set_in_tree(tree, key.replace("__", "."), value)
        return from_dict(tree)


def walk(config: Config) -> typing.Iterator[tuple[str, dataclasses.Field, Any]]:
    """Yields (dotted name, field, owner object) of every option."""
    for spec in dataclasses.fields(config):
        value = getattr(config, spec.name)
        if dataclasses.is_dataclass(value):
            for inner in dataclasses.fields(value):
                yield f"{spec.name}.{inner.name}", inner, value
        else:
            yield spec.name, spec, config


def option_names() -> list[str]:
    """Dotted names of all options."""
    return [name for name, _, _ in walk(Config())]


def _hints(owner: Any) -> dict[str, Any]:
    return typing.get_type_hints(type(owner))


def coerce(name: str, value: Any, kind: Any) -> Any:
    """Bring a YAML or command-line value to the option's type, or raise ConfigError.

    Whole floats pass as ints and ints as floats (old files say ``beta1: 0``); text is accepted for numbers
    because YAML reads ``1e-4`` as text.
    """
    if kind is bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, (int, float)) and value in (0, 1):
            return bool(value)
        if isinstance(value, str) and value.lower() in ("true", "yes", "on", "1", "false", "no", "off", "0"):
            return value.lower() in ("true", "yes", "on", "1")
        raise ConfigError(f"{name} is {value!r}; allowed: true or false")
    if kind in (int, float):
        if isinstance(value, bool):
            value = int(value) if name.endswith("non_local") else value
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                pass
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(
                f"{name} is {value!r}; allowed: {'a whole number' if kind is int else 'a number'}"
            )
        if kind is int and (not math.isfinite(value) or value != int(value)):
            raise ConfigError(f"{name} is {value!r}; allowed: a whole number")
        return kind(value)
    if kind is str:
        if value is None:
            return ""
        if isinstance(value, bool) and name == "amp":  # YAML reads a bare `off` as false
            return "auto" if value else "off"
        if isinstance(value, str):
            return value
        raise ConfigError(f"{name} is {value!r}; allowed: text")
    if isinstance(kind, types.GenericAlias) and typing.get_origin(kind) is list:
        if isinstance(value, str):
            value = value.replace(",", " ").split()
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{name} is {value!r}; allowed: a list")
        return [coerce(name, v, typing.get_args(kind)[0]) for v in value]
    raise AssertionError(f"no rule for {kind}")


def _check_value(name: str, value: Any, spec: dataclasses.Field) -> None:
    meta = spec.metadata
    parts = value.split(meta["several"]) if meta["several"] else [value]
    if meta["choices"] is not None and any(part not in meta["choices"] for part in parts):
        allowed = ", ".join(str(c) for c in dict.fromkeys(meta["choices"]))
        raise ConfigError(f"{name} is {value!r}; allowed: {allowed}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{name} is {value!r}; allowed: a finite number")
    if meta["low"] is not None and value < meta["low"]:
        raise ConfigError(f"{name} is {value!r}; allowed: at least {meta['low']}")
    if meta["high"] is not None and value > meta["high"]:
        raise ConfigError(f"{name} is {value!r}; allowed: at most {meta['high']}")


def unknown_key(name: str) -> ConfigError:
    """The error for a key that no option has, with the closest one."""
    names = option_names()
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return ConfigError(f"unknown option {name!r}{hint} (python -m dgnet_fast.train --help lists all)")


def set_in_tree(tree: dict, dotted: str, value: Any) -> None:
    """Set ``tree['a']['b']`` for ``'a.b'``."""
    *path, last = dotted.split(".")
    for part in path:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{part} is {tree!r}; allowed: a mapping of options")
    tree[last] = value


def from_dict(values: dict[str, Any]) -> Config:
    """Build and validate a Config from a nested dictionary; absent options take their defaults."""
    config = Config()
    _assign(config, values, "")
    return config.validate()


def _assign(owner: Any, values: dict[str, Any], prefix: str) -> None:
    hints = _hints(owner)
    for key, value in values.items():
        if key not in hints:
            raise unknown_key(f"{prefix}{key}")
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, dict):
                raise ConfigError(f"{prefix}{key} is {value!r}; allowed: a mapping of options")
            _assign(getattr(owner, key), value, f"{prefix}{key}.")
        else:
            setattr(owner, key, coerce(f"{prefix}{key}", value, hints[key]))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; errors name the file."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"no such configuration file: {path}")
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {str(error).splitlines()[0]}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}; allowed: a mapping of options")
    if "data_root" in values and "data" not in values:
        values["data"] = "folder"  # the public files point at a prepared folder-per-identity tree
    return values


def load_config(path: str | Path, overrides: dict[str, Any] | None = None) -> Config:
    """Read a YAML file (ours or the public implementation's) and apply dotted overrides."""
    tree = read_yaml(path)
    for name, value in (overrides or {}).items():
        set_in_tree(tree, name, value)
    return from_dict(tree)
