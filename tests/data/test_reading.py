"""One reader of pictures: files, bytes and pictures in memory give the same, whatever their depth and orientation."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from dgnet_fast.data.files import unlabelled
from dgnet_fast.data.reading import as_rgb, read_picture, resized


def grey16(height=6, width=4):
    """A 16-bit ramp and what it is in 8 bits."""
    values = np.linspace(0, 65535, height * width).round().astype(np.uint16).reshape(height, width)
    return Image.fromarray(values), np.repeat((values / 257).round().astype(np.uint8)[..., None], 3, axis=2)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled(tmp_path, suffix):
    picture, expected = grey16()
    path = tmp_path / f"a.{suffix}"
    picture.save(path)
    assert np.array_equal(unlabelled([path]).load(0), expected)
    assert np.array_equal(np.asarray(read_picture(path.read_bytes())), expected)
    assert np.array_equal(np.asarray(as_rgb(picture)), expected)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_thirty_two_bits_are_refused_by_name(tmp_path, dtype):
    path = tmp_path / "deep.tif"
    Image.fromarray(np.ones((4, 4), dtype=dtype)).save(path)
    with pytest.raises(
        ValueError, match=r"cannot read image .*deep.tif: it has 32 bits a pixel .*allowed: 8 or 16"
    ):
        unlabelled([path]).load(0)


def test_orientation_is_the_same_from_a_file_and_in_memory():
    array = np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)
    picture = Image.fromarray(array)
    picture.getexif()[0x0112] = 6  # turned by a quarter
    data = io.BytesIO()
    picture.save(data, "PNG", exif=picture.getexif())
    from_bytes, in_memory = read_picture(data.getvalue()), as_rgb(Image.open(io.BytesIO(data.getvalue())))
    assert from_bytes.size == (6, 4)
    assert np.array_equal(np.asarray(from_bytes), np.asarray(in_memory))
    assert np.array_equal(np.asarray(from_bytes), np.rot90(array, -1))


def test_what_is_no_picture_is_named():
    with pytest.raises(ValueError, match="^cannot read image B: it is no image, or a damaged one$"):
        read_picture(b"hello", "B")


def test_resized_leaves_the_right_size_alone():
    array = np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)
    assert np.array_equal(resized(Image.fromarray(array), 6, 4), array)
    assert resized(Image.fromarray(array), 3, 2).shape == (3, 2, 3)
