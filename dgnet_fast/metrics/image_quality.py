"""Likeness of a generated picture to a true one: PSNR, SSIM and colour difference, all by scikit-image.

Each takes a mask ``where``, bool (N, H, W), that says which pixels count.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

_MIN_SIDE = 11  # of the Gaussian window: 2 x round(3.5 x 1.5) + 1


def psnr(
    a: Tensor | np.ndarray, b: Tensor | np.ndarray, where: Tensor | np.ndarray | None = None
) -> np.ndarray:
    """Peak signal-to-noise ratio in dB (peak 255) of each pair of pictures.

    Args:
        a, b: uint8 (N, 3, H, W), torch or numpy.
        where: bool (N, H, W), the pixels that count; all of them without it.

    Returns:
        float64 (N,); infinity where the two pictures are equal, NaN where no pixel counts.

    Raises:
        ValueError: not uint8 batches of one shape, or a mask that does not fit them.
    """
    from skimage.metrics import peak_signal_noise_ratio  # a second to import, for whoever scores pictures

    with np.errstate(divide="ignore"):  # equal pictures
        return np.array(
            [
                peak_signal_noise_ratio(x[:, m], y[:, m], data_range=255) if m.any() else np.nan
                for x, y, m in _masked(a, b, where)
            ],
            dtype=np.float64,
        )


def ssim(
    a: Tensor | np.ndarray, b: Tensor | np.ndarray, where: Tensor | np.ndarray | None = None
) -> np.ndarray:
    """Structural similarity of each pair of pictures, mean over pixels and the three channels.

    The settings are those of Wang et al. (IEEE TIP 2004): Gaussian window of sigma 1.5, K1 0.01, K2 0.03,
    range 255, population covariance.

    Args:
        a, b: uint8 (N, 3, H, W), torch or numpy; H and W at least 11.
        where: bool (N, H, W), the pixels whose windows count. A window reaches 5 pixels beyond them. Without it all
            windows count that lie within the picture.

    Returns:
        float64 (N,), at most 1; NaN where no pixel counts.

    Raises:
        ValueError: not uint8 batches of one shape, a mask that does not fit them, or pictures smaller than the window.
    """
    from skimage.metrics import structural_similarity

    triples = _masked(a, b, where)
    if min(a.shape[-2:]) < _MIN_SIDE:
        raise ValueError(
            f"pictures are {a.shape[-2]}x{a.shape[-1]}; SSIM's window needs at least {_MIN_SIDE} pixels"
        )
    values = []
    for x, y, m in triples:
        # scikit-image has no annotations: `full` makes it two
        mean, every = structural_similarity(  # pyright: ignore[reportAssignmentType]
            x,
            y,
            channel_axis=0,
            data_range=255,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            full=True,
        )
        values.append(mean if where is None else every[:, m].mean() if m.any() else np.nan)
    return np.array(values, dtype=np.float64)


def colour_error(
    a: Tensor | np.ndarray, b: Tensor | np.ndarray, where: Tensor | np.ndarray | None = None
) -> np.ndarray:
    """Mean colour difference CIEDE2000 of each pair of pictures, taken as sRGB (D65).

    About 1 is what an eye can just tell; (119, 119, 119) differs from black by 36.6.

    Args:
        a, b: uint8 (N, 3, H, W), torch or numpy.
        where: bool (N, H, W), the pixels that count; all of them without it.

    Returns:
        float64 (N,); NaN where no pixel counts.

    Raises:
        ValueError: as `psnr`.
    """
    from skimage.color import deltaE_ciede2000, rgb2lab

    return np.array(
        [
            deltaE_ciede2000(rgb2lab(x[:, m].T), rgb2lab(y[:, m].T)).mean() if m.any() else np.nan
            for x, y, m in _masked(a, b, where)
        ],
        dtype=np.float64,
    )


def _masked(
    a: Tensor | np.ndarray, b: Tensor | np.ndarray, where: Tensor | np.ndarray | None
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Each pair of pictures (3, H, W) with its mask (H, W)."""
    arrays = [x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x) for x in (a, b)]
    for x in arrays:
        if x.dtype != np.uint8 or x.ndim != 4 or x.shape[1] != 3:
            raise ValueError(f"pictures are {x.dtype} of shape {x.shape}; expected uint8 (N, 3, H, W)")
    if arrays[0].shape != arrays[1].shape:
        raise ValueError(f"batches have shapes {arrays[0].shape} and {arrays[1].shape}; they must agree")
    count, _, *size = arrays[0].shape
    if where is None:
        masks = np.ones((count, *size), dtype=bool)
    else:
        masks = where.detach().cpu().numpy() if isinstance(where, Tensor) else np.asarray(where)
        if masks.dtype != bool or masks.shape != (count, *size):
            raise ValueError(
                f"where is {masks.dtype} of shape {masks.shape}; expected bool {(count, *size)}, a mask a picture"
            )
    return list(zip(*arrays, masks, strict=True))
