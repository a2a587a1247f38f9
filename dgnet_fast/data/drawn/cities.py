"""Two built-in "cities": synthetic pedestrians under other light, other cameras and before other grounds.

City a is bright, and its grounds are of sand; city b is dim and of low contrast, its cameras turn people warmer and its
grounds are blue. A picture and its translation thus differ in another way on people than around them, so that no single
change of colours makes one from the other. The people
of the two cities are different, so that nothing in one has a partner in the other; but any picture can be drawn again as
the other city shows it, and that is the truth of its translation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dgnet_fast.data.drawn.dataset import CAMERA_KEY, NOISE_KEY, NOISE_TILE, SyntheticPedestrians
from dgnet_fast.data.drawn.scene import Camera, random_camera, tone_curves

PEOPLE = 100_000
"""The people of city n begin with this number times n; views likewise."""


@dataclass(frozen=True)
class City:
    """``camera``: what all cameras have in common; ``ground``: colour that backgrounds are mixed with, by ``share``."""

    number: int
    camera: Camera
    ground: tuple[int, int, int]
    share: float


CITIES = {
    "a": City(0, Camera((0.94, 1.0, 1.06), 1.0, 10.0, 0.95, 0.0, 2.0, 0.05), (216, 164, 100), 0.6),
    "b": City(1, Camera((1.14, 1.0, 0.84), 0.74, -22.0, 1.1, 0.002, 3.0, 0.15), (64, 124, 148), 0.6),
}
OWN = 0.25
"""Share of a camera's own properties; the rest is the city's."""


class CityPedestrians(SyntheticPedestrians):
    """`SyntheticPedestrians` of one city."""

    def __init__(self, seed: int, city: str) -> None:
        super().__init__(seed)
        self.city = city

    def _camera(self, camera: int) -> tuple[Camera, np.ndarray, np.ndarray]:
        own, common = random_camera(self.rng(CAMERA_KEY, camera)), CITIES[self.city].camera
        gains = [c * (1 + OWN * (g - 1)) for c, g in zip(common.gains, own.gains, strict=True)]
        properties = replace(
            common,
            gains=(gains[0], gains[1], gains[2]),
            contrast=common.contrast * (1 + OWN * (own.contrast - 0.9)),
            brightness=common.brightness + OWN * own.brightness,
        )
        tile = self.rng(NOISE_KEY, camera).standard_normal((NOISE_TILE, NOISE_TILE, 3), dtype=np.float32)
        return properties, tone_curves(properties), tile

    def _background(self, canvas: np.ndarray, view: int) -> None:
        super()._background(canvas, view)
        city = CITIES[self.city]
        mixed = (1 - city.share) * canvas.astype(np.float32) + city.share * np.array(
            city.ground, dtype=np.float32
        )
        canvas[...] = np.rint(mixed).astype(np.uint8)


def pedestrians_of(seed: int, city: str) -> SyntheticPedestrians:
    """The people of a city of `CITIES`; '' for those without one. ValueError for another name."""
    if city and city not in CITIES:
        raise ValueError(f"city is {city!r}; allowed: {', '.join(CITIES)}")
    return CityPedestrians(seed, city) if city else SyntheticPedestrians(seed)
