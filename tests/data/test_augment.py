import numpy as np
import pytest
import torch

from dgnet_fast.data import denormalize, erase, normalize
from dgnet_fast.data.augment import flip_pad_crop, random_erasing_boxes


def test_normalize_values():
    pixel = torch.tensor([0, 128, 255], dtype=torch.uint8).view(3, 1, 1)
    expected = [(0 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    torch.testing.assert_close(normalize(pixel).flatten(), torch.tensor(expected))


def test_normalize_roundtrip():
    levels = torch.arange(256, dtype=torch.uint8).repeat(3, 1).view(1, 3, 16, 16)
    assert torch.equal(denormalize(normalize(levels)), levels)
    assert torch.equal(denormalize(normalize(levels).bfloat16().float() + 100), torch.full_like(levels, 255))


def test_normalize_refuses():
    with pytest.raises(ValueError, match="must be uint8, got torch.float32"):
        normalize(torch.zeros(1, 3, 2, 2))
    with pytest.raises(ValueError, match=r"must be \(..., 3, H, W\), got \(1, 4, 2, 2\)"):
        normalize(torch.zeros(1, 4, 2, 2, dtype=torch.uint8))
    with pytest.raises(ValueError, match="must be floating point, got torch.uint8"):
        denormalize(torch.zeros(1, 3, 2, 2, dtype=torch.uint8))


@pytest.mark.parametrize("pad", [0, 3, 10])
def test_crops_equal_slices_of_the_padded_picture(pad):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (5, 3, 12, 7), dtype=np.uint8)
    indices = rng.integers(0, 5, 9)
    flip, top, left = rng.random(9) < 0.5, rng.integers(0, 2 * pad + 1, 9), rng.integers(0, 2 * pad + 1, 9)
    top[0], left[0], top[1], left[1] = 0, 0, 2 * pad, 2 * pad
    arguments = (torch.from_numpy(a) for a in (pictures, indices, flip, top, left))
    result = flip_pad_crop(*arguments, pad).numpy()
    for n, index in enumerate(indices):
        picture = pictures[index, :, :, ::-1] if flip[n] else pictures[index]
        padded = np.pad(picture, ((0, 0), (pad, pad), (pad, pad)), mode="edge")
        np.testing.assert_array_equal(result[n], padded[:, top[n] : top[n] + 12, left[n] : left[n] + 7])


def test_erase_values():
    images = torch.rand(3, 2, 6, 5) + 1
    boxes = torch.tensor([[1, 2, 3, 2], [0, 0, 0, 0], [4, 3, 2, 2]])
    expected = images.clone()
    expected[0, :, 1:4, 2:4] = 0
    expected[2, :, 4:6, 3:5] = 0
    kept = images.clone()
    assert torch.equal(erase(images, boxes), expected)
    assert torch.equal(images, kept)
    with pytest.raises(ValueError, match="expected images"):
        erase(images, boxes[:2])


def test_erasing_statistics():
    count, height, width = 20000, 64, 32
    boxes = random_erasing_boxes(np.random.default_rng(0), count, height, width, 0.5)
    top, left, tall, wide = boxes.T
    erased = tall > 0
    assert abs(erased.mean() - 0.5) < 0.02
    assert not boxes[~erased].any()
    assert (tall[erased] < height).all() and (wide[erased] > 0).all() and (wide[erased] < width).all()
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + tall <= height).all() and (left + wide <= width).all()
    assert (top + tall == height).any() and (left + wide == width).any() and (top[erased] == 0).any()
    share = (tall * wide)[erased] / (height * width)
    assert share.min() > 0.015 and 0.39 < share.max() < 0.42
    large = tall * wide > 300
    aspect = tall[large] / wide[large]
    assert 0.25 < aspect.min() < 0.35 and 2.9 < aspect.max() < 3.9


def test_erasing_never_and_always():
    assert not random_erasing_boxes(np.random.default_rng(0), 50, 64, 32, 0.0).any()
    assert (random_erasing_boxes(np.random.default_rng(0), 50, 64, 32, 1.0)[:, 2] > 0).all()
