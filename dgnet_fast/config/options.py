"""All options in one tree. Each option has a type, a documentation and a range of allowed values; the tree is read from
YAML and written to YAML.

The options of the model, the objective and the schedule keep the names of the public code's YAML files, so that those
files load unchanged and old notes stay readable. Options that the public code does not have are documented beside them
in the same place. ``Config`` is the whole tree; ``Config.gen``, ``Config.dis`` and ``Config.reid`` are its branches.

An unknown key, a value of the wrong type or a value outside the allowed range raises ``ConfigError``, a ``ValueError``
that names the key, the value and what is allowed.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dgnet_fast.config.combinations import check_combinations
from dgnet_fast.config.fields import ConfigError, check_value, coerce, option
from dgnet_fast.config.networks import DiscriminatorConfig, GeneratorConfig
from dgnet_fast.config.reid import ReidConfig
from dgnet_fast.config.shown import shown
from dgnet_fast.config.yaml_files import read_yaml, set_in_tree

DRAWN = ("synthetic", "synthetic-a", "synthetic-b")
"""Data sets that are drawn and have no folder: pedestrians, and those of two cities that look different."""
DATASETS = (
    *DRAWN, "market1501", "folder", "csv",
    "dukemtmc-reid", "msmt17", "cuhk03-np-labelled", "cuhk03-np-detected", "veri776",
)  # fmt: skip
SEVERAL = "+"
"""The sign between the names of several data sets."""


@dataclass
class Config:
    """All options of a run."""

    gen: GeneratorConfig = field(default_factory=GeneratorConfig)
    dis: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    reid: ReidConfig = field(default_factory=ReidConfig)

    # --- data
    data: str = option(
        "synthetic", "data set, or several data sets joined by +", choices=DATASETS, several=SEVERAL
    )
    data_root: str = option(
        "",
        "folder of the data set (for csv the file; synthetic needs none); for several data sets one folder that holds them "
        "all, or one folder each, separated by commas",
    )
    camera_pattern: str = option("", "regular expression that finds the camera in a file name (folder only)")
    skip_unreadable: bool = option(False, "leave out pictures that cannot be read, and count them")
    synthetic_kind: str = option(
        "plain",
        "kind of synthetic people: in plain every person has clothes of their own; in hard all people share 12 outfits and "
        "change them, and the cameras differ more",
        choices=("plain", "hard"),
    )
    synthetic_ids: int = option(64, "number of synthetic identities to train on", low=2, high=100000)
    synthetic_views: int = option(16, "number of synthetic pictures of each identity", low=4, high=10000)
    synthetic_test_ids: int = option(
        32, "number of synthetic identities kept for the test", low=2, high=100000
    )
    crop_image_height: int = option(
        256, "height of the pictures in the networks", low=16, high=4096, unit="pixels"
    )
    crop_image_width: int = option(
        128, "width of the pictures in the networks", low=8, high=4096, unit="pixels"
    )
    crop_pad: int = option(10, "padding at each edge before the random crop", low=0, high=1024, unit="pixels")
    erasing_p: float = option(0.5, "probability of random erasing in the identity losses", low=0, high=1)
    single: str = option("gray", "input of E_s: the grey picture, or its edges", choices=("gray", "edge"))
    gray_jitter: float = option(
        0.0, "standard deviation of the random channel weights of the grey picture, in training", low=0
    )
    num_workers: int = option(8, "number of threads that decode pictures", low=0, high=1024)
    data_cache: str = option(
        "auto",
        "folder of the cache of decoded pictures, or off; auto means $DGNET_FAST_CACHE, otherwise dgnet_fast in $XDG_CACHE_HOME "
        "or ~/.cache",
    )
    pictures_on: str = option(
        "auto",
        "where the training pictures are: held on the device, or copied from the host for each step; auto means on the device "
        "if they take at most a quarter of its free memory",
        choices=("auto", "device", "host"),
    )

    # --- appearance encoder and teacher
    ID_class: int = option(
        0, "identities of the training set; 0 means counted from the data", low=0, high=10000000
    )
    ID_style: str = option(
        "AB",
        "kind of re-identification network: AB is the paper's, with two heads; normal has one head; PCB has one for each strip",
        choices=("AB", "normal", "PCB"),
    )
    ID_stride: int = option(
        2, "stride of the last stage of E_a in style AB (always 2 in normal, always 1 in PCB)", choices=(1, 2)
    )
    ID_width: int = option(
        64,
        "channels of the first stage of E_a (64 is ResNet-50); the last has 32 times as many",
        low=1,
        high=2048,
    )
    ID_blocks: list[int] = option(
        [3, 4, 6, 3], "bottleneck blocks in the four stages of E_a (3 4 6 3 is ResNet-50)"
    )
    ID_features: int = option(
        512, "length of the feature of each head in styles AB and normal", low=1, high=65536
    )
    ID_upsample: bool = option(
        True, "double pictures of at most 128 pixels in height before E_a, the teacher and erasing"
    )
    pool: str = option("avg", "pooling at the end of E_a", choices=("max", "avg"))
    norm_id: bool = option(False, "L2-normalise the appearance code (only in style normal)")
    pretrained: str = option(
        "",
        "weights from which the backbone of E_a starts: torchvision's ResNet-50 ImageNet file (the teacher then starts from it "
        "too), or 'teacher' for the backbone of this run's teacher; '' starts from random weights",
    )
    train_bn: bool = option(
        True, "use batch statistics in the BatchNorms of the teacher and of a constant E_a"
    )
    teacher: str = option(
        "",
        "teacher: 'auto' trains one first; otherwise files, or names NAME of folders ./models/NAME as in the public code, "
        "separated by commas; '' means no teacher",
    )
    teacher_style: int = option(
        0,
        "label of a generated picture in the primary loss: 0 the teacher's soft label, 1 its argmax, 2 the identity of the appearance, "
        "3 a uniform label, 4 the soft label restricted to the two identities",
        choices=(0, 1, 2, 3, 4),
    )
    teacher_steps: int = option(24000, "length of the teacher's training (teacher auto)", low=1, unit="steps")
    teacher_batch: int = option(
        32, "batch size in the training of the teacher, for each process", low=2, high=65536
    )
    teacher_lr: float = option(0.05, "learning rate of the teacher's head; its backbone has a tenth", low=0)
    teacher_stride: int = option(2, "stride of the last stage of a teacher trained here", choices=(1, 2))
    baseline: bool = option(
        True,
        "at the end, train the baseline for as many steps as E_a had in total (teacher_steps + max_iter) and score it beside "
        "DG-Net; false saves this time",
    )
    baseline_batch: int = option(
        0,
        "its batch size, for each process; 0: with it the baseline sees as many real pictures in all as E_a and its teacher",
        low=0,
        high=65536,
    )
    generator_steps: int = option(
        0, "length of a first phase that trains E_s and G alone", low=0, unit="steps"
    )
    generator_lr: float = option(0.001, "learning rate of this first phase (Adam); it falls to 0", low=0)
    generator_code_w: float = option(
        0.0, "weight, in this first phase, of the appearance code that E_a finds in swapped pictures", low=0
    )

    # --- objective
    gan_w: float = option(1.0, "weight of the adversarial loss", low=0)
    id_w: float = option(1.0, "weight of the identity loss of the pictures", low=0)
    pid_w: float = option(1.0, "weight of the identity loss of the positives", low=0)
    recon_x_w: float = option(5.0, "weight of the self-reconstruction", low=0)
    recon_xp_w: float = option(5.0, "weight of the same-identity reconstruction", low=0)
    recon_id_w: float = option(0.5, "weight of the identity loss of generated pictures", low=0)
    recon_f_w: float = option(0.0, "initial weight of the reconstruction of the appearance code", low=0)
    code_w: float = option(
        0.0, "weight of the appearance code that E_a finds in swapped pictures, with its gradient", low=0
    )
    recon_s_w: float = option(0.0, "initial weight of the reconstruction of the structure code", low=0)
    recon_x_cyc_w: float = option(0.0, "initial weight of the cycle reconstruction", low=0)
    teacher_w: float = option(0.0, "initial weight of the teacher loss (primary and fine-grained)", low=0)
    train_on_generated: bool = option(
        True, "E_a learns from generated pictures; false, with all else the same, shows what they are worth"
    )
    fine_on_generated: bool = option(
        True,
        "the second head learns who gives a generated picture its structure; false: it learns from real pictures alone",
    )
    T_w: float = option(1.0, "weight of the primary (KL) loss within the teacher loss", low=0)
    B_w: float = option(0.2, "weight of the fine-grained loss within the teacher loss", low=0)
    max_w: float = option(1.0, "largest value of recon_f_w and recon_s_w", low=0)
    max_cyc_w: float = option(2.0, "largest value of recon_x_cyc_w", low=0)
    max_teacher_w: float = option(2.0, "largest value of teacher_w", low=0)
    warm_iter: int = option(30000, "step after which the reconstruction weights rise", low=0, unit="steps")
    warm_teacher_iter: int = option(30000, "step after which teacher_w rises", low=0, unit="steps")
    warm_scale: float = option(0.0005, "increase of a rising weight in each step", low=0)
    use_encoder_again: float = option(
        0.5,
        "probability that the reconstruction of the structure code trains E_s; otherwise E_s is held constant and G is trained",
        low=-1,
        high=1,
    )

    # --- optimisation
    batch_size: int = option(
        8, "batch size: pictures in each of the two streams, for each process", low=1, high=65536
    )
    real_batch: int = option(
        0,
        "further real pictures in each step, from which E_a alone learns (a batch of its own to BatchNorm, as the teacher's)",
        low=0,
        high=65536,
    )
    max_iter: int = option(100000, "length of the training", low=1, unit="steps")
    lr_g: float = option(0.0001, "learning rate of E_s and G (Adam)", low=0)
    muon: float = option(
        0.0,
        "rate of Muon, as a multiple of Adam's, for convolutions and MLPs of what makes pictures; 0: Adam for all",
        low=0,
    )
    lr_d: float = option(0.0001, "learning rate of D (Adam)", low=0)
    lr2: float = option(0.002, "learning rate of E_a (SGD); its heads have ten times as much", low=0)
    beta1: float = option(0.0, "first beta of Adam", low=0, high=0.9999)
    beta2: float = option(0.999, "second beta of Adam", low=0, high=0.99999)
    weight_decay: float = option(0.0005, "weight decay of all three optimisers", low=0)
    lr_policy: str = option(
        "multistep", "rate schedule; cosine ends at 0", choices=("constant", "step", "multistep", "cosine")
    )
    warm_up: int = option(
        0, "length of the linear rise of all learning rates at the start", low=0, unit="steps"
    )
    step_size: int = option(
        60000, "first decay; multistep decays again at 1.5 and 1.75 times this step", low=1, unit="steps"
    )
    gamma: float = option(0.1, "factor of each decay of the learning rates of E_s, G and D", low=0)
    gamma2: float = option(0.1, "factor of each decay of the learning rate of E_a", low=0)
    ema_decay: float = option(
        0.0, "decay of the averaged weights that samples and scores use; 0 means none", low=0, high=0.99999
    )
    accumulate: int = option(
        1, "number of batches whose gradients are added up before each update", low=1, high=65536
    )
    bn_parts: int = option(
        1,
        "number of equal parts of each batch that have BatchNorm statistics of their own, as if each were a process's batch",
        low=1,
        high=65536,
    )
    bn_together: bool = option(
        False,
        "E_a's BatchNorms as the baseline has them: all real pictures of a step are one batch, and they alone move the running "
        "statistics; false: each stream's pictures are one, as in the paper",
    )
    sync_bn: bool = option(
        False, "several processes: BatchNorm statistics over the batches of all of them, and not of each"
    )
    send_gradients: str = option(
        "as-is",
        "several processes: dtype in which gradients are summed over them; bf16 sends half as much",
        choices=("as-is", "bf16"),
    )
    amp: str = option(
        "auto", "mixed precision; auto means bf16 where it is fast", choices=("auto", "bf16", "fp16", "off")
    )
    compile: bool = option(
        False,
        "compile the passes and parts of the step, and the teacher's step, with torch.compile; on a CPU only the parts that "
        "decode pictures, since only these gain there",
    )
    cuda_graphs: str = option(
        "auto",
        "record the steps as CUDA graphs; auto means where possible, and goes on without where it fails",
        choices=("auto", "on", "off"),
    )
    side_by_side: bool = option(
        True,
        "let the parts of a recorded step of one process run beside each other on the GPU, which takes more of its memory",
    )
    checkpoint_activations: bool = option(
        False, "compute activations of E_a and G again in the backward pass: less memory, same numbers"
    )
    seed: int = option(
        0, "seed of weights, data order, augmentation and dropout", low=0, high=4611686018427387904
    )
    device: str = option("auto", "auto, cpu, cuda or cuda:N; auto takes CUDA if there is one")
    max_bad_steps: int = option(
        10, "consecutive steps with non-finite losses that end the run (on CUDA up to as many later)", low=1
    )

    # --- what a run writes
    log_iter: int = option(10, "interval between two lines of metrics.jsonl", low=1, unit="steps")
    image_display_iter: int = option(5000, "interval between two sample grids", low=1, unit="steps")
    image_save_iter: int = option(
        5000, "as image_display_iter (public files have both); the smaller value counts", low=1, unit="steps"
    )
    eval_iter: int = option(
        0,
        "interval between two evaluations on the test people during training; the checkpoint with the best mAP is kept as "
        "checkpoints/best.pt, which is thus selected on the test people; 0 means one evaluation at the end",
        low=0,
        unit="steps",
    )
    snapshot_save_iter: int = option(10000, "interval between two checkpoints", low=1, unit="steps")
    track: str = option(
        "",
        "also send the log to experiment trackers: wandb, mlflow, or both separated by a comma (extras of the same names)",
    )
    keep_checkpoints: int = option(3, "number of newest checkpoints that are kept", low=1)
    display_size: int = option(16, "number of pictures in a row of a sample grid", low=1, high=256)

    # --- accepted for old files, without effect or in one value only
    apex: bool = option(False, "old name of amp; true means amp fp16")
    new_size: int = option(128, "accepted from old files, without effect (see crop_image_height)", low=0)
    input_dim_a: int = option(1, "number of channels in the input of E_s", choices=(1,))
    input_dim_b: int = option(1, "number of channels in the input of E_s", choices=(1,))
    sqrt: bool = option(False, "accepted from old files; it never had an effect")
    use_decoder_again: bool = option(True, "accepted from old files; it never had an effect")
    vgg_w: float = option(
        0.0, "perceptual loss; it never worked in the public code and is refused here", choices=(0, 0.0)
    )
    epoch_iteration: int = option(0, "accepted from old files, without effect", low=0)
    vgg_model_path: str = option("", "accepted from old files, without effect")

    @property
    def picture_size(self) -> tuple[int, int]:
        """Height and width of the pictures, in pixels."""
        return self.crop_image_height, self.crop_image_width

    def validate(self) -> Config:
        """Check every option and the combinations of options; returns self. Raises ConfigError."""
        for name, spec, owner in walk(self):
            check_value(name, getattr(owner, spec.name), spec)
        check_combinations(self)
        return self

    def to_dict(self) -> dict[str, Any]:
        """All options as a plain nested dictionary."""
        return dataclasses.asdict(self)

    def to_yaml(self) -> str:
        """The complete tree as YAML text, which `load_config` reads again."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    def replace(self, **changes: Any) -> Config:
        """A validated copy with changes; two underscores (``gen__dim=8``) or a dot name an option of a branch."""
        tree = self.to_dict()
        for key, value in changes.items():
            set_in_tree(tree, key.replace("__", "."), value)
        return from_dict(tree)


def walk(config: Any) -> typing.Iterator[tuple[str, dataclasses.Field, Any]]:
    """Yield (dotted name, field, owner object) of every option."""
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


def differing(there: Config, here: Config) -> str | None:
    """The first option that differs, in words; None if all options are the same."""
    ours, theirs = here.to_dict(), there.to_dict()
    for name, value in theirs.items():
        if ours[name] != value:
            return f"{name} {value!r}, and not {ours[name]!r}"
    return None


def _hints(owner: Any) -> dict[str, Any]:
    return typing.get_type_hints(type(owner))


def unknown_key(
    name: str, names: list[str] | None = None, command: str = "python -m dgnet_fast.train"
) -> ConfigError:
    """The error for a key that is no option; it suggests the option with the closest name. ``names`` are the options
    of another tree than `Config`, and ``command`` is what has them.
    """
    close = difflib.get_close_matches(name, names or option_names(), n=1, cutoff=0.4)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return ConfigError(f"unknown option {name!r}{hint} ({command} --help lists all)")


def from_dict(values: dict[str, Any]) -> Config:
    """Build and validate a Config from a nested dictionary. Options that are absent have their defaults."""
    config = Config()
    assign(config, values)
    return config.validate()


def assign(owner: Any, values: dict[str, Any], prefix: str = "", **unknown: Any) -> None:
    """Write a nested dictionary into a tree of options. ``unknown``: further arguments of `unknown_key`."""
    hints = _hints(owner)
    for key, value in values.items():
        if key not in hints:
            raise unknown_key(f"{prefix}{key}", **unknown)
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, dict):
                raise ConfigError(f"{prefix}{key} is {shown(value)}; allowed: a mapping of options")
            assign(getattr(owner, key), value, f"{prefix}{key}.", **unknown)
        else:
            setattr(owner, key, coerce(f"{prefix}{key}", value, hints[key]))


def load_config(path: str | Path, overrides: dict[str, Any] | None = None) -> Config:
    """Read a YAML file (ours or one of the public code) and apply overrides; their names may be dotted."""
    tree = read_yaml(path)
    for name, value in (overrides or {}).items():
        set_in_tree(tree, name, value)
    return from_dict(tree)
