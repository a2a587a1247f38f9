"""What is behind a synthetic pedestrian, and what the camera does to the picture.

All drawing is in picture heights, so a picture is the same at every size to within a pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

_SHIFT = 4  # fractional bits of OpenCV's sub-pixel drawing
_THIN = 1 / 128  # width of fine lines: one pixel of the smallest scene, so that every size shows the same


@dataclass(frozen=True)
class Camera:
    """Fixed properties of one camera."""

    gains: tuple[float, float, float]  # colour cast, per channel
    contrast: float
    brightness: float  # added, in grey levels
    gamma: float
    blur: float  # standard deviation, in picture heights
    noise: float  # standard deviation, in grey levels
    vignette: float


def random_camera(rng: np.random.Generator, spread: float = 1.0) -> Camera:
    """The properties of one camera; `rng` must be the camera's own. With a `spread` above 1 cameras differ more in colour
    cast, contrast and brightness.
    """
    cast = spread * rng.uniform(-0.09, 0.09, 3)

    def between(low: float, high: float) -> float:
        value, middle = rng.uniform(low, high), (low + high) / 2
        return float(value + (spread - 1) * (value - middle))

    return Camera(
        gains=tuple(float(1 + gain) for gain in cast - cast.mean()),  # type: ignore[arg-type]
        contrast=between(0.72, 1.08),
        brightness=between(-16, 20),
        gamma=float(rng.uniform(0.85, 1.2)),
        blur=float(rng.uniform(0.0, _THIN)),
        noise=float(rng.uniform(1.0, 4.0)),
        vignette=float(rng.uniform(0.0, 0.25)),
    )


def tone_curves(camera: Camera) -> np.ndarray:
    """Lookup table (256, 1, 3) uint8 of the camera's gamma, contrast, brightness and colour cast."""
    level = (np.arange(256) / 255.0) ** camera.gamma * 255.0
    level = (level - 128.0) * camera.contrast + 128.0 + camera.brightness
    table = level[:, None] * np.asarray(camera.gains)[None]
    return np.clip(np.rint(table), 0, 255).astype(np.uint8).reshape(256, 1, 3)


def _tint(rng: np.random.Generator, low: float, high: float, spread: float = 12.0) -> np.ndarray:
    """A greyish colour of the built world."""
    return np.clip(rng.uniform(low, high) + rng.uniform(-spread, spread, 3), 0, 255)


def _rectangle(
    canvas: np.ndarray, left: float, top: float, right: float, bottom: float, color: np.ndarray
) -> None:
    height = canvas.shape[0]
    first = (round(left * height), round(top * height))
    last = (round(right * height), round(bottom * height))
    cv2.rectangle(canvas, first, last, tuple(float(channel) for channel in color), -1)


def _line(
    canvas: np.ndarray, start: tuple[float, float], end: tuple[float, float], color: np.ndarray, width: float
) -> None:
    scale = canvas.shape[0] * (1 << _SHIFT)
    first, last = ((round(x * scale), round(y * scale)) for x, y in (start, end))
    thickness = max(1, round(width * canvas.shape[0]))
    cv2.line(canvas, first, last, tuple(float(channel) for channel in color), thickness, cv2.LINE_AA, _SHIFT)


def _mottle(
    rng: np.random.Generator, rows: int, columns: int, shape: tuple[int, int], amount: float
) -> np.ndarray:
    """Smooth noise (H, W) float32 of `rows` x `columns` blotches."""
    grain = rng.standard_normal((rows, columns), dtype=np.float32) * amount
    return cv2.resize(grain, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR)


def _wall(canvas: np.ndarray, rng: np.random.Generator, horizon: float, aspect: float) -> None:
    """Brick or panel courses."""
    base = _tint(rng, 90, 205, 25)
    _rectangle(canvas, 0, 0, aspect, horizon, base)
    course = float(rng.uniform(0.03, 0.09))
    brick = course * float(rng.uniform(1.5, 3.0))
    joint = base * 0.82
    for row in range(int(horizon / course) + 1):
        y = row * course
        _line(canvas, (0, y), (aspect, y), joint, _THIN)
        for column in range(int(aspect / brick) + 2):
            x = (column - 0.5 * (row % 2)) * brick
            _line(canvas, (x, y), (x, min(y + course, horizon)), joint, _THIN)


def _windows(canvas: np.ndarray, rng: np.random.Generator, horizon: float, aspect: float) -> None:
    """A facade."""
    base = _tint(rng, 100, 215, 20)
    _rectangle(canvas, 0, 0, aspect, horizon, base)
    glass = _tint(rng, 40, 110, 15) + np.array([0, 5, 15])
    pitch_x, pitch_y = float(rng.uniform(0.13, 0.25)), float(rng.uniform(0.16, 0.3))
    x = float(rng.uniform(-0.1, 0.05))
    while x < aspect:
        y = 0.03
        while y < horizon - 0.08:
            _rectangle(canvas, x, y, x + 0.6 * pitch_x, min(y + 0.65 * pitch_y, horizon), glass)
            _line(canvas, (x, y), (x + 0.6 * pitch_x, y), base * 1.12, _THIN)
            y += pitch_y
        x += pitch_x


def _foliage(canvas: np.ndarray, rng: np.random.Generator, horizon: float, aspect: float) -> None:
    """Bushes and leaves."""
    rows = max(2, round(horizon * canvas.shape[0]))
    shape = (rows, canvas.shape[1])
    light = 1 + _mottle(rng, 9, 7, shape, 0.16) + _mottle(rng, 28, 20, shape, 0.16)
    base = np.array([rng.uniform(60, 105), rng.uniform(95, 140), rng.uniform(45, 75)], dtype=np.float32)
    canvas[:rows] = np.clip(light[..., None] * base, 0, 255).astype(np.uint8)
    if rng.random() < 0.5:
        x = float(rng.uniform(0, aspect))
        _line(canvas, (x, 0), (x + float(rng.uniform(-0.03, 0.03)), horizon), np.array([84, 66, 50]), 0.03)


def _bars(canvas: np.ndarray, rng: np.random.Generator, horizon: float, aspect: float) -> None:
    """A fence or glass front: upright bars."""
    base = _tint(rng, 120, 220, 18)
    _rectangle(canvas, 0, 0, aspect, horizon, base)
    pitch = float(rng.uniform(0.05, 0.14))
    color = base * float(rng.uniform(0.45, 0.8))
    x = float(rng.uniform(0, pitch))
    while x < aspect:
        _line(canvas, (x, 0), (x, horizon), color, 0.25 * pitch)
        x += pitch
    _line(canvas, (0, 0.12), (aspect, 0.12), color, 2 * _THIN)


def _blocks(canvas: np.ndarray, rng: np.random.Generator, horizon: float, aspect: float) -> None:
    """Sky or haze with things standing about: stalls, parked cars, boxes."""
    top, bottom = _tint(rng, 170, 235, 12), _tint(rng, 130, 200, 12)
    ramp = np.linspace(0, 1, max(2, round(horizon * canvas.shape[0])), dtype=np.float32)[:, None, None]
    canvas[: len(ramp)] = (top + (bottom - top) * ramp).astype(np.uint8)
    for _ in range(int(rng.integers(2, 6))):
        left, width = float(rng.uniform(-0.1, aspect)), float(rng.uniform(0.08, 0.3))
        height = float(rng.uniform(0.06, 0.3))
        _rectangle(canvas, left, horizon - height, left + width, horizon, _tint(rng, 50, 190, 45))


_BACKDROPS = (_wall, _windows, _foliage, _bars, _blocks)


def draw_background(canvas: np.ndarray, rng: np.random.Generator) -> None:
    """Fills `canvas` (H, W, 3) uint8 RGB with a backdrop, the ground and their texture; `rng` must be the
    view's own.
    """
    rows, columns = canvas.shape[:2]
    aspect = columns / rows
    horizon = float(rng.uniform(0.3, 0.72))
    backdrop = _BACKDROPS[int(rng.integers(len(_BACKDROPS)))]
    ground_top, ground_bottom = _tint(rng, 95, 190), _tint(rng, 95, 190)
    first = round(horizon * rows)
    ramp = np.linspace(0, 1, rows - first, dtype=np.float32)[:, None, None]
    canvas[first:] = (ground_top + (ground_bottom - ground_top) * ramp).astype(np.uint8)
    backdrop(canvas, rng, horizon, aspect)
    vanishing = float(rng.uniform(-0.3, aspect + 0.3))
    paint = ground_bottom * float(rng.choice((0.8, 0.88, 1.15)))
    style = int(rng.integers(4))
    if style == 0:  # paving
        for step in range(-6, 13):
            _line(canvas, (vanishing + 0.06 * step, horizon), (vanishing + 0.24 * step, 1.0), paint, _THIN)
        for depth in (0.05, 0.14, 0.28, 0.5, 0.8):
            y = horizon + (1 - horizon) * depth
            _line(canvas, (0, y), (aspect, y), paint, _THIN)
    elif style == 1:  # kerb
        slope = float(rng.uniform(-0.2, 0.2))
        y = float(rng.uniform(horizon + 0.05, 0.95))
        _line(canvas, (0, y - slope / 2), (aspect, y + slope / 2), paint, 0.02)
    elif style == 2:  # road marking
        x = float(rng.uniform(0, aspect))
        _line(canvas, (x, 1.0), (vanishing, horizon), np.array([225, 225, 215]), 0.02)
    _line(canvas, (0, horizon), (aspect, horizon), ground_top * 0.6, _THIN)
    grain = _mottle(rng, 10, 6, (rows, columns), 5.0) + _mottle(rng, 48, 24, (rows, columns), 4.0)
    signed = canvas.astype(np.float32)
    signed += grain[..., None]
    np.clip(signed, 0, 255, out=signed)
    canvas[...] = signed


def apply_camera(picture: np.ndarray, camera: Camera, curves: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """What `camera` records of `picture` (H, W, 3) uint8: blur, tone, cast, vignette, noise. `noise` (H, W,
    3) is standard normal.
    """
    height, width = picture.shape[:2]
    sigma = camera.blur * height
    if sigma > 0.25:
        picture = cv2.GaussianBlur(picture, (0, 0), sigma)
    recorded = cv2.LUT(picture, curves).astype(np.float32)
    rows = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    columns = np.linspace(-0.5, 0.5, width, dtype=np.float32)[None]
    recorded *= (1 - camera.vignette * (rows**2 + columns**2) / 1.25)[..., None]
    recorded += camera.noise * noise
    return np.clip(np.rint(recorded), 0, 255).astype(np.uint8)
