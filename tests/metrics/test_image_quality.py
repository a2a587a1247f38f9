import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from dgnet_fast.metrics import colour_error, psnr, ssim


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


@pytest.mark.parametrize("score", [psnr, ssim, colour_error])
def test_mistakes_are_named(score, pictures):
    a, b = pictures
    with pytest.raises(ValueError, match="float32 of shape"):
        score(a.astype(np.float32), b)
    with pytest.raises(ValueError, match=r"\(3, 3, 24, 18\) and \(2, 3, 24, 18\)"):
        score(a, b[:2])
    with pytest.raises(ValueError, match="8x18"):
        ssim(a[:, :, :8], b[:, :, :8])


@pytest.mark.parametrize("score", [psnr, ssim, colour_error])
def test_a_mask_leaves_the_other_pixels_out(score, pictures):
    a, b = pictures
    where = np.zeros((3, 24, 18), dtype=bool)
    where[0, 3:20, 4:9] = where[1] = True  # no pixel of the third
    spoilt = b.copy()
    spoilt[0, :, :, 15:] = 255  # more than a window's reach away
    values = score(a, spoilt, torch.from_numpy(where))
    np.testing.assert_allclose(values, score(a, b, where))
    assert np.isnan(values[2]) and not np.isnan(values[:2]).any()
    if score is not ssim:  # where all count: as without a mask
        np.testing.assert_allclose(values[1], score(a, b)[1])


def test_psnr_on_two_pixels():
    a = np.full((1, 3, 4, 4), 100, dtype=np.uint8)
    b, where = a.copy(), np.zeros((1, 4, 4), dtype=bool)
    b[0, :, 0, 0], b[0, 0, 0, 1], b[0, :, 3, 3] = 110, 107, 0
    where[0, 0, :2] = True
    error = (3 * 10**2 + 7**2) / 6  # three channels of two pixels; the third changed pixel is masked
    assert psnr(a, b, where)[0] == pytest.approx(10 * np.log10(255**2 / error))


def test_colour_error_of_known_colours():
    """Grey against black: CIEDE2000 is the lightness difference over its weight S_L (Sharma et al. 2005)."""
    grey, black, red = (119, 119, 119), (0, 0, 0), (255, 0, 0)
    a = np.array([[grey, red], [black, grey]], dtype=np.uint8).transpose(2, 0, 1)[None]
    b = np.array([[black, red], [black, red]], dtype=np.uint8).transpose(2, 0, 1)[None]
    linear = ((119 / 255 + 0.055) / 1.055) ** 2.4
    lightness = 116 * linear ** (1 / 3) - 16
    middle = (lightness / 2 - 50) ** 2
    weight = 1 + 0.015 * middle / np.sqrt(20 + middle)
    where = np.array([[[True, True], [True, False]]])
    assert colour_error(a, b, where)[0] == pytest.approx(lightness / weight / 3, rel=1e-3)


def test_a_mask_that_does_not_fit_is_named(pictures):
    a, b = pictures
    with pytest.raises(ValueError, match=r"where is float64 of shape \(3, 24, 18\)"):
        colour_error(a, b, np.zeros((3, 24, 18)))
    with pytest.raises(ValueError, match=r"expected bool \(3, 24, 18\)"):
        psnr(a, b, np.zeros((3, 18, 24), dtype=bool))
