"""Around the step: pictures of a split, training batches (pictures/s) and retrieval features (features/s), each
against a plain way.
"""

from __future__ import annotations

import io
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from benchmarks.flops import network_flops
from benchmarks.plain import Encoder, copy_weights
from dgnet_fast.config import from_dict
from dgnet_fast.config.presets import preset
from dgnet_fast.data import TrainBatches, cached_pictures, decode_split, normalize
from dgnet_fast.data.augment import IMAGENET_MEAN, IMAGENET_STD, assemble, flip_pad_crop
from dgnet_fast.data.files import unlabelled
from dgnet_fast.models.appearance_encoder import build_appearance_encoder
from dgnet_fast.retrieval.features import extract_features

HEIGHT, WIDTH, PAD = 256, 128, 10
BATCH, PICTURES = 8, 128
FILES = 256


def pictures() -> Tensor:
    """Smooth uint8 pictures, which compress as photographs do."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(PICTURES, 3, HEIGHT // 16, WIDTH // 16, generator=generator)
    return F.interpolate(255 * coarse, (HEIGHT, WIDTH), mode="bilinear").to(torch.uint8)


class PlainBatches:
    """Each picture on its own, as a data loader's worker does it: decode, flip, resize, pad, crop, normalise."""

    def __init__(self, images: Tensor) -> None:
        self.random = np.random.default_rng(0)
        self.files = []
        for image in images:
            file = io.BytesIO()
            small = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((WIDTH // 2, HEIGHT // 2))
            small.save(file, "JPEG")  # Market-1501's are 128×64
            self.files.append(file.getvalue())

    def decoded(self, index: int) -> Image.Image:
        image = Image.open(io.BytesIO(self.files[index])).convert("RGB")
        return image.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)

    def picture(self, index: int) -> Tensor:
        image = self.decoded(index)
        if self.random.random() < 0.5:
            image = ImageOps.mirror(image)
        values = np.pad(np.asarray(image), ((PAD, PAD), (PAD, PAD), (0, 0)), mode="edge")
        top, left = self.random.integers(0, 2 * PAD + 1, 2)
        values = values[top : top + HEIGHT, left : left + WIDTH].astype(np.float32) / 255
        values = (values - np.float32(IMAGENET_MEAN)) / np.float32(IMAGENET_STD)
        return torch.from_numpy(values).permute(2, 0, 1)

    def batch(self) -> Tensor:
        return torch.stack([self.picture(i) for i in self.random.integers(0, len(self.files), 4 * BATCH)])


@cache
def feature_flops() -> float:
    """Of a batch of pictures and their mirror images."""
    config = from_dict(preset("paper")).replace(ID_class=751)
    return 2 * BATCH * network_flops(config, ("E_a",))["E_a"]["forward"]


def row(section: str, group: str, name: str, items: int, layout: str = "NCHW") -> dict:
    work = {"flops": feature_flops(), "limit": ["matmul fp32"]} if section == "evaluation" else {}
    return work | {
        "section": section, "group": group, "name": name, "baseline": name.startswith("plain"), "dtype": "fp32",
        "layout": layout, "batch": items, "items": items,
    }  # fmt: skip


def test_plain_batches(measured, device):
    batches = PlainBatches(pictures())
    measured(
        lambda: batches.batch().to(device), **row("data", "training batch", "plain, one process", 4 * BATCH)
    )


def test_batches(measured, device):
    labels = np.arange(PICTURES) // 4
    where = pictures().to(device)
    batches = TrainBatches(where, labels, batch_size=BATCH, erasing_p=0.5, device=device, pad=PAD)
    steps = iter(range(10**9))
    measured(lambda: batches.batch(next(steps)), **row("data", "training batch", "ours, decoded", 4 * BATCH))


def test_mapped_batches(measured, device, split, tmp_path):
    """From the cache's file; to a GPU by the thread that is a step ahead."""
    mapped = cached_pictures(split, HEIGHT, WIDTH, tmp_path / "cache", say=lambda _: None)
    labels = np.arange(len(split)) // 4
    batches = TrainBatches(mapped, labels, batch_size=BATCH, erasing_p=0.5, device=device, pad=PAD)
    steps = iter(range(10**9))
    name = "ours, mapped" + (", streamed" if device == "cuda" else "")
    measured(lambda: batches.batch(next(steps)), **row("data", "training batch", name, 4 * BATCH))


@pytest.mark.parametrize("name", ["plain PyTorch", "ours"])
def test_assembly(measured, device, name):
    """Flip, pad, crop and normalise, everything on the device."""
    if device == "cpu" and name == "ours":
        pytest.skip("on a CPU the assembly is the PyTorch one")
    images = pictures().to(device)
    plan = [
        torch.randint(high, (4 * BATCH,), device=device) for high in (PICTURES, 2, 2 * PAD + 1, 2 * PAD + 1)
    ]

    def plain() -> Tensor:
        return normalize(flip_pad_crop(images, plan[0], plan[1].bool(), *plan[2:], PAD))

    call = plain if name != "ours" else lambda: assemble(images, *plan, PAD)
    assert torch.equal(call(), plain())
    measured(call, **row("data", "batch assembly", name, 4 * BATCH))


@pytest.fixture
def split(tmp_path):
    """JPEG files of Market-1501's size."""
    files = PlainBatches(pictures()).files
    paths = [tmp_path / f"{k:03d}.jpg" for k in range(FILES)]
    for k, path in enumerate(paths):
        path.write_bytes(files[k % len(files)])
    return unlabelled(paths)


def test_plain_decode(measured):
    batches = PlainBatches(pictures())
    call = lambda: [np.asarray(batches.decoded(k % PICTURES)) for k in range(FILES)]  # noqa: E731
    measured(call, **row("data", "pictures of a split", "plain, one process", FILES))


def test_decode(measured, split):
    measured(
        lambda: decode_split(split, HEIGHT, WIDTH),
        **row("data", "pictures of a split", "ours, decode into memory", FILES),
    )


def test_cache_build(measured, split, tmp_path):
    def build() -> None:
        found = cached_pictures(split, HEIGHT, WIDTH, tmp_path / "cache", say=lambda _: None)
        found.path.unlink()

    measured(build, **row("data", "pictures of a split", "ours, first start: build the cache", FILES))


def test_cached_read(measured, split, tmp_path):
    """Opened, checked against its checksums, and every byte read."""

    def read() -> Tensor:
        return cached_pictures(split, HEIGHT, WIDTH, tmp_path / "cache", say=lambda _: None).tensor.clone()

    assert torch.equal(read(), decode_split(split, HEIGHT, WIDTH))
    measured(read, **row("data", "pictures of a split", "ours, later starts: read the cache", FILES))


def encoder(device: str):
    torch.manual_seed(0)
    config = from_dict(preset("paper")).replace(ID_class=751)
    return config, build_appearance_encoder(config).to(device).eval()


def test_plain_features(measured, device):
    """One pass for a picture and one for its mirror image, NCHW."""
    config, fast = encoder(device)
    plain = copy_weights(Encoder(config, fast), fast).eval()
    x = torch.randn(BATCH, 3, HEIGHT, WIDTH, device=device)

    @torch.no_grad()
    def features() -> Tensor:
        halves = zip(plain(x)[2], plain(x.flip(-1))[2], strict=True)
        summed = [F.normalize(a, dim=1) + F.normalize(b, dim=1) for a, b in halves]
        return torch.cat([F.normalize(one, dim=1) for one in summed], dim=1)

    torch.testing.assert_close(extract_features(fast, x), features(), rtol=1e-3, atol=1e-4)
    measured(features, **row("evaluation", "retrieval features", "plain", BATCH))


def test_features(measured, device):
    _, fast = encoder(device)
    fast.to(memory_format=torch.channels_last)
    x = torch.randn(BATCH, 3, HEIGHT, WIDTH, device=device)
    measured(
        lambda: extract_features(fast, x),
        **row("evaluation", "retrieval features", "ours", BATCH, "channels_last"),
    )
