"""The networks that score generated pictures, from files that the user names: Inception for FID, AlexNet or VGG for LPIPS.

A file is one of weights, or a TorchScript program. Weights are read without running anything. A program runs only if it
is one of the published files, or if the user trusts it.
"""

from __future__ import annotations

import hashlib
import importlib
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dgnet_fast.checkpoints.files import load_file
from dgnet_fast.checkpoints.schema import check_fit, check_tensors
from dgnet_fast.config import ConfigError
from dgnet_fast.config.choices import FID_RESIZES
from dgnet_fast.config.extras import need
from dgnet_fast.metrics.generation import Features
from dgnet_fast.models.inception import Inception, resized_clean, resized_legacy

INCEPTION_HINT = (
    "FID needs the 2015 Inception network: the weights that torch-fidelity or pytorch-fid download "
    "(weights-inception-2015-12-05-6726825d.pth), or StyleGAN2-ADA's TorchScript file (inception-2015-12-05.pt)"
)
LPIPS_HINT = (
    "LPIPS needs torchvision's weights of AlexNet (alexnet-owt-7be5be79.pth) or VGG-16 (vgg16-397923af.pth) and the package "
    "lpips, or StyleGAN2-ADA's TorchScript file (vgg16.pt)"
)
PUBLISHED = {
    "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4": "inception-2015-12-05.pt",
    "b437eb095feaeb0b83eb3fa11200ebca4548ee39a07fb944a417ddc516cc07c3": "vgg16.pt",
}
"""SHA-256 of the two published TorchScript files."""
PUBLISHED_WEIGHTS = ("6726825d", "7be5be79", "4df8aa71", "397923af")
"""Beginnings of the SHA-256 of published weights, which stand in the names of these files: Inception, AlexNet (two), VGG-16."""


class Lpips(NamedTuple):
    """LPIPS: the name of its network, and the distance of pairs of uint8 pictures (N, 3, H, W) as float64 (N,). Pictures
    are not resized.
    """

    network: str
    distance: Callable[[Tensor, Tensor], np.ndarray]


def is_script(path: str | Path) -> bool:
    """Whether a file is a TorchScript program: a zip file with code in it."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name or name.startswith("code/") for name in archive.namelist())


def sha256(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unpublished(path: str | Path) -> str | None:
    """A remark on a file of weights that is none of the published ones; None for those. TorchScript files that run at all
    are published, or the user trusts them.
    """
    if is_script(path) or (found := sha256(path)).startswith(PUBLISHED_WEIGHTS):
        return None
    return (
        f"{path} is none of the published files (its SHA-256 is {found}): these scores compare with no others"
    )


def _script(path: str | Path, hint: str, device: torch.device, trusted: bool) -> torch.jit.ScriptModule:
    if not trusted and (found := sha256(path)) not in PUBLISHED:
        raise ValueError(
            f"{path} is none of the published files ({', '.join(PUBLISHED.values())}; its SHA-256 is {found}). TorchScript is "
            f"a program; if you trust this one, add --trust-scripts. {hint}"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is deprecated; these files exist in no other form
            return torch.jit.load(str(path), map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        reason = (str(error).strip() or "unreadable").splitlines()[0].split(". ")[0]
        raise ValueError(f"{path} is not a TorchScript file ({reason}). {hint}") from error


def _weights(path: str | Path, hint: str) -> dict[str, Tensor]:
    if not Path(path).is_file():
        raise ValueError(f"no such file: {path}. {hint}")
    try:
        return check_tensors(load_file(path, "file of weights"), path, "it")
    except ValueError as error:
        raise ValueError(f"{error}. {hint}") from error


def inception(
    path: str | Path, device: torch.device | str = "cpu", *, trusted: bool = False, resize: str = "legacy"
) -> Features:
    """The features of FID: uint8 (N, 3, H, W) → (N, 2048).

    Args:
        path: weights of `models.inception.Inception`, or a TorchScript file that maps pictures to features.
        trusted: run a TorchScript file that is not the published one.
        resize: how pictures become 299×299: "legacy", bilinear as TensorFlow 1 did it, or "clean", antialiased as
            clean-fid does it. A TorchScript file does the first by itself and needs a part ``layers`` for the second.

    Raises:
        ValueError: a file that is missing, does not fit, or is a program that is not trusted; an unknown ``resize``.
    """
    if resize not in FID_RESIZES:
        raise ConfigError(f"--fid-resize is {resize!r}; allowed: {', '.join(FID_RESIZES)}")
    device = torch.device(device)
    if Path(path).is_file() and is_script(path):
        return _scripted_inception(path, device, trusted, resize)
    state, network = _weights(path, INCEPTION_HINT), Inception()
    state = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    own = network.state_dict()
    for name in own:  # which files of the first PyTorch versions lack
        if name.endswith("num_batches_tracked"):
            state.setdefault(name, own[name])
    try:
        check_fit(own, state, path)
    except ValueError as error:
        raise ValueError(
            f"{str(error).replace('the options', 'the network of FID')}. {INCEPTION_HINT}"
        ) from error
    network.load_state_dict(state)
    network.to(device)
    resized = resized_legacy if resize == "legacy" else resized_clean

    @torch.no_grad()
    def features(pictures: Tensor) -> Tensor:
        return network((resized(pictures.to(device).float()) - 128) / 128)

    return features


def _scripted_inception(path: str | Path, device: torch.device, trusted: bool, resize: str) -> Features:
    """`inception` of a TorchScript file. One whose network takes ``return_features`` is asked for features; another is
    called with the pictures alone.
    """
    network = _script(path, INCEPTION_HINT, device, trusted)
    asked = {"return_features": True} if "return_features" in str(network.forward.schema) else {}
    layers: Any = getattr(network, "layers", None)
    if resize == "clean" and layers is None:
        raise ValueError(
            f"{path} resizes by itself and has no part 'layers' that takes resized pictures; --fid-resize clean cannot use it. "
            f"{INCEPTION_HINT}"
        )

    @torch.no_grad()
    def features(pictures: Tensor) -> Tensor:
        pictures = pictures.to(device)
        if resize == "clean":
            return layers((resized_clean(pictures.float()) - 128) / 128).flatten(1)
        return network(pictures, **asked).flatten(1)

    return features


def lpips(path: str | Path, device: torch.device | str = "cpu", *, trusted: bool = False) -> Lpips:
    """LPIPS with the network of a file: torchvision's weights of AlexNet or VGG-16, whose distance the package ``lpips``
    computes, or a TorchScript file of VGG-16 with LPIPS's weights.

    Raises:
        ValueError: a file that is missing, does not fit, or is a program that is not trusted; no package ``lpips``.
    """
    device = torch.device(device)
    if Path(path).is_file() and is_script(path):
        return _scripted_lpips(path, device, trusted)
    state = _weights(path, LPIPS_HINT)
    first = state.get("features.0.weight")
    kinds: dict[tuple[int, ...], str] = {(64, 3, 11, 11): "alex", (64, 3, 3, 3): "vgg"}
    name = kinds.get(() if first is None else tuple(first.shape))
    if name is None:
        raise ValueError(
            f"{path} holds neither AlexNet nor VGG-16: entries such as {sorted(state)[:3]}. {LPIPS_HINT}"
        )
    package = _lpips_package()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the old names of torchvision's arguments that lpips uses
        network = package.LPIPS(net=name, pnet_rand=True, verbose=False).eval()  # pnet_rand: no download
    trunk: nn.Module = network.net
    own = trunk.state_dict()  # slice1.0.weight: the numbers of the layers are torchvision's
    found = {k: state.get("features." + k.split(".", 1)[1], torch.empty(0)) for k in own}
    try:
        check_fit(own, found, path)
    except ValueError as error:
        raise ValueError(f"{str(error).replace('the options', f'LPIPS ({name})')}. {LPIPS_HINT}") from error
    trunk.load_state_dict(found)
    network.to(device)
    least = {"alex": 31, "vgg": 16}[name]

    @torch.no_grad()
    def distance(one: Tensor, other: Tensor) -> np.ndarray:
        if min(one.shape[2:]) < least:
            raise ValueError(
                f"pictures are {one.shape[2]}x{one.shape[3]}; LPIPS ({name}) needs at least {least} pixels"
            )
        a, b = (x.to(device).float() / 127.5 - 1 for x in (one, other))
        return network(a, b).flatten().double().cpu().numpy()

    return Lpips({"alex": "AlexNet", "vgg": "VGG"}[name], distance)


def _lpips_package() -> Any:
    need("lpips", "lpips", "LPIPS with AlexNet or VGG weights")
    try:
        return importlib.import_module("lpips")
    except (ImportError, RuntimeError) as error:  # torchvision is missing, or built for another torch
        raise ValueError(
            f"the package lpips does not load ({error}); it needs the torchvision that belongs to torch {torch.__version__}"
        ) from error


def _scripted_lpips(path: str | Path, device: torch.device, trusted: bool) -> Lpips:
    network = _script(path, LPIPS_HINT, device, trusted)
    schema = str(network.forward.schema)
    asked = {k: v for k, v in {"resize_images": False, "return_lpips": True}.items() if k in schema}

    @torch.no_grad()
    def distance(one: Tensor, other: Tensor) -> np.ndarray:
        both = [network(x.to(device).float(), **asked).flatten(1).double() for x in (one, other)]
        return (both[0] - both[1]).square().sum(dim=1).cpu().numpy()

    return Lpips("VGG", distance)
