import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from dgnet_fast.metrics import psnr, ssim


@pytest.fixture
def pictures():
    random = np.random.RandomState(0)
    a = random.randint(0, 256, size=(3, 3, 24, 18)).astype(np.uint8)
    b = np.clip(a + random.randint(-30, 31, size=a.shape), 0, 255).astype(np.uint8)
    b[2] = a[2]
    return a, b


def test_psnr_is_its_formula(pictures):
    a, b = pictures
    error = ((a.astype(float) - b) ** 2).mean(axis=(1, 2, 3))
    values = psnr(torch.from_numpy(a), b)
    assert values.dtype == np.float64
    np.testing.assert_allclose(values[:2], 10 * np.log10(255**2 / error[:2]), rtol=1e-12)
    assert values[2] == np.inf


def test_ssim_is_its_formula(pictures):
    a, b = pictures

    def channel(x, y):
        def blur(z):
            return gaussian_filter(z, 1.5, truncate=3.5)

        x, y = x.astype(float), y.astype(float)
        mx, my = blur(x), blur(y)
        vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        score = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
        return score[5:-5, 5:-5].mean()  # where the window lies inside the picture

    expected = [
        np.mean([channel(x, y) for x, y in zip(i, j, strict=True)]) for i, j in zip(a, b, strict=True)
    ]
    values = ssim(a, torch.from_numpy(b))
    np.testing.assert_allclose(values, expected, rtol=1e-10)
    assert values[2] == pytest.approx(1.0) and values[0] < 0.99


@pytest.mark.parametrize("score", [psnr, ssim])
def test_mistakes_are_named(score, pictures):
    a, b = pictures
    with pytest.raises(ValueError, match="float32 of shape"):
        score(a.astype(np.float32), b)
    with pytest.raises(ValueError, match=r"\(3, 3, 24, 18\) and \(2, 3, 24, 18\)"):
        score(a, b[:2])
    with pytest.raises(ValueError, match="8x18"):
        ssim(a[:, :, :8], b[:, :, :8])
