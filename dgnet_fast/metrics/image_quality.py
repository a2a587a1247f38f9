"""Likeness of a generated picture to a true one: PSNR and SSIM. A test holds them to scikit-image's."""

from __future__ import annotations

import numpy as np
from torch import Tensor

_SIGMA = 1.5
_SIDE = 11  # of the Gaussian window: 2 x round(3.5 x 1.5) + 1
_PEAK = 255.0


def psnr(a: Tensor | np.ndarray, b: Tensor | np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB (peak 255) of each pair of pictures.

    Args:
        a, b: uint8 (N, 3, H, W), torch or numpy.

    Returns:
        float64 (N,); infinity where the two pictures are equal.

    Raises:
        ValueError: not uint8 batches of one shape.
    """
    error = [np.square(x.astype(np.float64) - y).mean() for x, y in _pairs(a, b)]
    with np.errstate(divide="ignore"):  # equal pictures
        return 10 * np.log10(_PEAK**2 / np.array(error, dtype=np.float64))


def ssim(a: Tensor | np.ndarray, b: Tensor | np.ndarray) -> np.ndarray:
    """Structural similarity of each pair of pictures, mean over pixels and the three channels.

    The settings are those of Wang et al. (IEEE TIP 2004): Gaussian window of sigma 1.5, K1 0.01, K2 0.03,
    range 255, population covariance.

    Args:
        a, b: uint8 (N, 3, H, W), torch or numpy; H and W at least 11.

    Returns:
        float64 (N,), at most 1.

    Raises:
        ValueError: not uint8 batches of one shape, or pictures smaller than the window.
    """
    pairs = _pairs(a, b)
    if min(a.shape[-2:]) < _SIDE:
        raise ValueError(
            f"pictures are {a.shape[-2]}x{a.shape[-1]}; SSIM's window needs at least {_SIDE} pixels"
        )
    return np.array([_structural_similarity(x, y) for x, y in pairs], dtype=np.float64)


def _structural_similarity(x: np.ndarray, y: np.ndarray) -> float:
    """SSIM of two uint8 pictures (3, H, W), over the pixels where the window lies inside the picture."""
    import cv2

    x, y = (np.ascontiguousarray(one.transpose(1, 2, 0), dtype=np.float64) for one in (x, y))
    mean_x, mean_y, xx, yy, xy = (
        cv2.GaussianBlur(one, (_SIDE, _SIDE), _SIGMA)[_SIDE // 2 : -(_SIDE // 2), _SIDE // 2 : -(_SIDE // 2)]
        for one in (x, y, x * x, y * y, x * y)
    )
    c1, c2 = (0.01 * _PEAK) ** 2, (0.03 * _PEAK) ** 2
    of_means = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    of_variances = (2 * (xy - mean_x * mean_y) + c2) / (xx - mean_x**2 + yy - mean_y**2 + c2)
    return float((of_means * of_variances).mean())


def _pairs(a: Tensor | np.ndarray, b: Tensor | np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    arrays = [x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x) for x in (a, b)]
    for x in arrays:
        if x.dtype != np.uint8 or x.ndim != 4 or x.shape[1] != 3:
            raise ValueError(f"pictures are {x.dtype} of shape {x.shape}; expected uint8 (N, 3, H, W)")
    if arrays[0].shape != arrays[1].shape:
        raise ValueError(f"batches have shapes {arrays[0].shape} and {arrays[1].shape}; they must agree")
    return list(zip(*arrays, strict=True))
