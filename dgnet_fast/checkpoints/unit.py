"""UNIT's models in files: our runs, the public code's ``gen_*.pt`` and ``dis_*.pt``, and the weights of VGG-16."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dgnet_fast.checkpoints.files import load_file, save_atomically
from dgnet_fast.checkpoints.public_layout import Layout, export_state, import_state, renamed
from dgnet_fast.checkpoints.runs import NAME, Stateful, checkpoints_in, latest_checkpoint, load_latest
from dgnet_fast.checkpoints.schema import check_finite, check_fit, check_step, check_tensors
from dgnet_fast.config import ConfigError
from dgnet_fast.config.shown import shown
from dgnet_fast.config.unit import UnitConfig, load_unit_config, unit_from_dict
from dgnet_fast.models.size import check_unit_size
from dgnet_fast.models.unit import VGG_STAGES, Unit, UnitDiscriminator, Vgg16
from dgnet_fast.report.files import write_text

FORMAT = "dgnet_fast.unit.1"
PUBLIC = re.compile(r"(gen|dis)_(\d{8,})\.pt$")
DOMAINS = "abcdefghijklmnopqrstuvwxyz"
"""Names of the domains in public files, which have a and b."""
STATISTICS = (".running_mean", ".running_var", ".num_batches_tracked")
VGG_HINT = (
    "the perceptual loss needs the weights of VGG-16: --vgg-weights FILE, a state dict conv1_1.weight … conv5_3.bias for "
    "BGR pictures of 0..255 (docs/unit.md says where there are some), or --vgg-w 0"
)


# ---- the layout of the public files


def generator_layout(model: Unit, domain: int) -> Layout:
    """Entries of one domain of ``gen_*.pt``: encoder and decoder."""
    ours_enc, ours_dec = f"encoders.{domain}", f"decoders.{domain}"
    encoder, decoder = model.encoders[domain], model.decoders[domain]
    prefixes = {f"{ours_enc}.stem.{i}.": f"enc.model.{i}." for i in range(len(encoder.stem))}
    for ours, theirs, blocks in (
        (ours_enc, f"enc.model.{len(encoder.stem)}", encoder.residual),
        (ours_dec, "dec.model.0", decoder.residual),
    ):
        for r in range(len(blocks)):
            prefixes[f"{ours}.residual.{r}.conv1."] = f"{theirs}.model.{r}.model.0."
            prefixes[f"{ours}.residual.{r}.conv2."] = f"{theirs}.model.{r}.model.1."
    for j in range(len(decoder.upsample)):
        prefixes[f"{ours_dec}.upsample.{j}."] = f"dec.model.{2 * (j + 1)}."
    prefixes[f"{ours_dec}.to_rgb."] = f"dec.model.{2 * len(decoder.upsample) + 1}."
    return Layout(renamed(model, prefixes), {})


def discriminator_layout(model: Unit, domain: int) -> Layout:
    """Entries of one domain of ``dis_*.pt``."""
    prefixes = {}
    network: UnitDiscriminator = model.discriminators[domain]
    for k, net in enumerate(network.scales):
        ours, theirs = f"discriminators.{domain}.scales.{k}", f"cnns.{k}"
        prefixes |= {f"{ours}.stem.{i}.": f"{theirs}.{i}." for i in range(len(net.stem))}
        prefixes[f"{ours}.to_score."] = f"{theirs}.{len(net.stem)}."
    return Layout(renamed(model, prefixes), {})


LAYOUTS = {"gen": generator_layout, "dis": discriminator_layout}


def public_files(path: Path) -> dict[str, Path]:
    """The public files that belong to ``path`` (one of them, or a folder: the newest pair): {'gen': ..., 'dis': ...}."""
    folder, number = path, None
    if path.is_file():
        named = PUBLIC.search(path.name)
        if named is None:
            raise ValueError(
                f"{path} is no public checkpoint of UNIT; allowed: a name such as gen_00100000.pt"
            )
        folder, number = path.parent, named[2]
    elif not path.is_dir():
        raise ValueError(f"no such checkpoint: {path}")
    elif (path / "checkpoints").is_dir():
        folder = path / "checkpoints"
    found: dict[str, dict[str, Path]] = {}
    for candidate in folder.iterdir():
        if match := PUBLIC.search(candidate.name):
            found.setdefault(match[2], {})[match[1]] = candidate
    if not found:
        raise ValueError(
            f"{path} holds no checkpoint of UNIT: expected step_*.pt of ours, or gen_*.pt of the public code"
        )
    return found[number or max(found, key=int)]


def import_public_unit(model: Unit, files: dict[str, Path]) -> None:
    """Load public ``gen`` and ``dis`` files (those given) strictly. ValueError names what does not fit.

    Running statistics of instance norms, which files from PyTorch 0.3 hold, are passed over.
    """
    for kind, path in files.items():
        content = load_file(path)
        names = DOMAINS[: len(model.encoders)]
        if not isinstance(content, dict) or any(not isinstance(content.get(one), dict) for one in names):
            raise ValueError(
                f"{path} is not a public checkpoint of UNIT: expected a dictionary with the entries {', '.join(names)}"
            )
        for domain, name in enumerate(names):
            entries, layout = content[name], LAYOUTS[kind](model, domain)
            _refuse_munit(path, entries)
            known = {k: v for k, v in entries.items() if k in layout.slots or not k.endswith(STATISTICS)}
            import_state(model, layout, known, source=f"{path}, {name}")


def _refuse_munit(path: Path, entries: dict[str, Tensor]) -> None:
    for begin, what in (("enc_style.", "MUNIT"), ("mlp.", "MUNIT"), ("enc_content.", "MUNIT or DG-Net")):
        if any(name.startswith(begin) for name in entries):
            raise ValueError(f"{path} is a checkpoint of {what}, not of UNIT: it has entries {begin}*")
    if any(name.endswith(("weight_u", "weight_bar")) for name in entries):
        raise ValueError(f"{path} has spectral norm (norm: sn), which UNIT's code does not have")


def export_public_unit(model: Unit, folder: Path, step: int) -> list[Path]:
    """Write ``gen_`` and ``dis_XXXXXXXX.pt`` that the public code loads, and ``config.yaml``; returns the paths.

    ValueError for more than two domains, which the public code cannot have.
    """
    if len(model.encoders) != 2:
        raise ValueError(f"the model has {len(model.encoders)} domains; the public code has exactly two")
    paths = []
    for kind, layout in LAYOUTS.items():
        content = {name: export_state(model, layout(model, d)) for d, name in enumerate(DOMAINS[:2])}
        paths.append(folder / f"{kind}_{step:08d}.pt")
        save_atomically(content, paths[-1])
    write_text(folder / "config.yaml", model.config.to_yaml())
    return paths


# ---- VGG-16


def load_vgg(network: Vgg16, path: str | Path, channels: str = "bgr") -> None:
    """Load the weights of the perceptual loss. Raises ConfigError without a file and ValueError for one that does not fit.

    Names ``conv1_1.weight`` (the public code's cached file) or those of torchvision's layout, ``features.0.weight``.
    The weights must belong to the original Caffe training (0..255, means subtracted), which no name shows.
    ``channels`` is the order of the colours that they were trained with, bgr or rgb.
    """
    if not path:
        raise ConfigError(VGG_HINT)
    if str(path).endswith(".t7"):
        raise ConfigError(f"{path} is a Torch7 file, which PyTorch has not read since 1.0; {VGG_HINT}")
    entries = load_file(path, "file of VGG-16 weights")
    if not isinstance(entries, dict) or not all(isinstance(v, Tensor) for v in entries.values()):
        raise ValueError(f"{path} is no state dict of VGG-16; {VGG_HINT}")
    entries = {name.removeprefix("module."): value for name, value in entries.items()}
    if "features.0.weight" in entries:
        entries = _from_torchvision(entries)
    layout = Layout(renamed(network, {"convs.": ""}), {})
    if channels == "rgb" and "conv1_1.weight" in entries:
        entries["conv1_1.weight"] = entries["conv1_1.weight"].flip(1)
    import_state(network, layout, entries, source=str(path))


def _from_torchvision(entries: dict[str, Tensor]) -> dict[str, Tensor]:
    """``features.N`` as ``convS_K``; layers after conv5_3 and the classifier are left out."""
    place, found = 0, {}
    for stage, widths in enumerate(VGG_STAGES, 1):
        for k in range(1, len(widths) + 1):
            for part in ("weight", "bias"):
                if (name := f"features.{place}.{part}") in entries:
                    found[f"conv{stage}_{k}.{part}"] = entries[name]
            place += 2  # a convolution and its ReLU
        place += 1  # the pooling
    return found


# ---- our runs


def save_unit(
    folder: Path, step: int, model: Unit, optimisers: Stateful, precision: Stateful, *, keep: int
) -> Path:
    """Write ``folder/step_XXXXXXXX.pt`` after ``step`` finished steps and drop all but the newest ``keep``."""
    path = folder / NAME.format(step)
    save_atomically(
        {
            "format": FORMAT,
            "step": step,
            "config": model.config.to_dict(),
            "model": unit_state(model),
            "optimisers": optimisers.state_dict(),
            "precision": precision.state_dict(),
        },
        path,
    )
    for old in checkpoints_in(folder)[:-keep]:
        old.unlink(missing_ok=True)
    return path


def unit_state(model: Unit) -> dict[str, Tensor]:
    """The state of all networks but VGG-16, which does not change."""
    return {k: v for k, v in model.state_dict().items() if not k.startswith("perceptual.")}


def read_unit(path: Path) -> dict[str, Any]:
    """The content of one of our checkpoints of UNIT. Raises ValueError for any other file."""
    return unit_content(load_file(path), path)


def unit_content(content: Any, path: Path) -> dict[str, Any]:
    """The content of the file ``path`` as one of our checkpoints, whose entries are compared. Raises ValueError."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(
            f"{path} is not a checkpoint of a dgnet_fast run of UNIT (expected format {FORMAT!r})"
        )
    config = options_in(content, path)
    check_step(content.get("step"), path)
    model = check_tensors(content.get("model"), path, "model")
    for name in ("optimisers", "precision"):
        if not isinstance(content.get(name), dict):
            raise ValueError(f"{path}: {name} is {shown(content.get(name))}; expected a mapping")
    check_unit_size(config, sum(tensor.numel() for tensor in model.values()), f"{path} holds")
    return content


def options_in(content: dict[str, Any], source: Path) -> UnitConfig:
    """The options inside a checkpoint. Raises ConfigError that names the file."""
    value = content.get("config")
    if not isinstance(value, dict):
        raise ConfigError(f"{source}: config is {shown(value)}; expected a mapping of options")
    try:
        return unit_from_dict(value)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error


@torch.no_grad()
def restore_unit(model: Unit, content: dict[str, Any], source: Path) -> None:
    """Load the networks of a checkpoint strictly."""
    own, state = unit_state(model), content["model"]
    check_fit(own, state, source)
    for name, value in own.items():
        value.copy_(state[name])


def load_unit(path: str | Path, *, config_file: str | Path | None = None) -> tuple[Unit, dict[str, Any]]:
    """A model ready to translate, from a run folder, one of our checkpoints, or public files.

    Public files need their options: ``config_file``, or ``config.yaml`` in their folder or the one above. VGG-16 is not
    loaded. Returns the model in evaluation mode, and {'step', 'source'}.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"no such checkpoint: {path}")
    own = path if path.is_file() and not PUBLIC.search(path.name) else None
    if path.is_dir():
        own = latest_checkpoint(path)
    if own is not None:
        own, content = load_latest(path) if path.is_dir() else (own, load_file(own))
        content = unit_content(content, own)
        model = Unit(_without_vgg(options_in(content, own)))
        restore_unit(model, content, own)
        return _usable(model, content["step"], own)
    files = public_files(path)
    if "gen" not in files:
        raise ValueError(f"{path} has no gen_*.pt: encoders and decoders are needed to translate")
    folder = files["gen"].parent
    beside = (folder / "config.yaml", folder.parent / "config.yaml")
    options = Path(config_file) if config_file else next((p for p in beside if p.is_file()), None)
    if options is None:
        raise ValueError(
            f"{path} needs the options it was trained with: give --config FILE (no config.yaml beside it)"
        )
    config = _without_vgg(load_unit_config(options))
    check_unit_size(
        config, sum(file.stat().st_size for file in files.values()), f"the files in {folder} hold"
    )
    model = Unit(config)
    import_public_unit(model, files)
    named = PUBLIC.search(files["gen"].name)
    assert named is not None  # `public_files` found it by this pattern
    return _usable(model, int(named[2]), files["gen"])


def _usable(model: Unit, step: int, source: Path) -> tuple[Unit, dict[str, Any]]:
    """The model in evaluation mode, whose weights are finite; the discriminators may have any, because nothing uses them."""
    used = {k: v for k, v in unit_state(model).items() if not k.startswith("discriminators.")}
    check_finite(used, source)
    return model.eval(), {"step": step, "source": str(source)}


def _without_vgg(config: UnitConfig) -> UnitConfig:
    return config.replace(vgg_w=0.0)
