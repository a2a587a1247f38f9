"""Likeness of a generated picture to a true one: PSNR and SSIM, both by scikit-image."""

from __future__ import annotations

import numpy as np
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

_MIN_SIDE = 11  # of the Gaussian window: 2 x round(3.5 x 1.5) + 1


def psnr(a: Tensor | np.ndarray, b: Tensor | np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB (peak 255) of each pair of pictures.

    Args:
        a, b: uint8 (N, 3, H, W), torch or numpy.

    Returns:
        float64 (N,); infinity where the two pictures are equal.

    Raises:
        ValueError: not uint8 batches of one shape.
    """
    with np.errstate(divide="ignore"):  # equal pictures
        return np.array(
            [peak_signal_noise_ratio(x, y, data_range=255) for x, y in _pairs(a, b)], dtype=np.float64
        )


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
    if min(a.shape[-2:]) < _MIN_SIDE:
        raise ValueError(
            f"pictures are {a.shape[-2]}x{a.shape[-1]}; SSIM's window needs at least {_MIN_SIDE} pixels"
        )
    return np.array(
        [
            structural_similarity(
                x,
                y,
                channel_axis=0,
                data_range=255,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
            )
            for x, y in pairs
        ],
        dtype=np.float64,
    )


def _pairs(a: Tensor | np.ndarray, b: Tensor | np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    arrays = [x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x) for x in (a, b)]
    for x in arrays:
        if x.dtype != np.uint8 or x.ndim != 4 or x.shape[1] != 3:
            raise ValueError(f"pictures are {x.dtype} of shape {x.shape}; expected uint8 (N, 3, H, W)")
    if arrays[0].shape != arrays[1].shape:
        raise ValueError(f"batches have shapes {arrays[0].shape} and {arrays[1].shape}; they must agree")
    return list(zip(*arrays, strict=True))
