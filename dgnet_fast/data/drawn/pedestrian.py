"""The look and the walk of a synthetic pedestrian: who it is (`Body`, `Clothes`), how it stands (`Pose`), how
it is drawn.

The figure is a small 3-D skeleton projected onto the picture. In the body's frame X points to the person's
left, Y down and Z forward; lengths are fractions of the person's height. `yaw` turns the person: 0 faces the
viewer, +pi/2 walks to the picture's right, pi shows the back. Everything painted on the torso (stripes, logo,
an open jacket, rucksack straps) lives at an angle around it, so it turns with the person.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np

Color = tuple[int, int, int]
Point = tuple[float, float]

PATTERNS = ("plain", "horizontal", "vertical", "check", "logo", "two-tone", "open-jacket")
LOWER_KINDS = ("trousers", "shorts", "skirt")
HAIR_STYLES = ("short", "long", "bun", "ponytail", "bald")
BAGS = ("none", "backpack", "shoulder", "hand")
HATS = ("none", "cap", "beanie")


def _hsv(hue: float, saturation: float, value: float) -> Color:
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


# Twelve hues at three strengths, and the greys that most real clothes have.
GREYS: tuple[Color, ...] = ((28, 28, 32), (78, 80, 84), (140, 140, 142), (192, 192, 190), (238, 238, 234))
CHROMATIC: tuple[Color, ...] = tuple(
    _hsv(hue / 12, saturation, value)
    for hue in range(12)
    for saturation, value in ((0.85, 0.84), (0.75, 0.46), (0.42, 0.88))
)
SKINS: tuple[Color, ...] = (
    (247, 214, 188),
    (230, 184, 148),
    (204, 150, 112),
    (158, 108, 76),
    (108, 72, 52),
    (74, 50, 38),
)
HAIRS: tuple[Color, ...] = (
    (24, 20, 20),
    (58, 38, 26),
    (104, 66, 36),
    (178, 132, 70),
    (150, 148, 144),
    (140, 58, 30),
)


@dataclass(frozen=True)
class Body:
    """Build, head and carrying of an identity: what DG-Net's paper (Table 1) counts as structure."""

    height: float
    girth: float
    shoulders: float
    hair: str
    bag: str
    bag_side: int
    hat: str


@dataclass(frozen=True)
class Clothes:
    """Colours and patterns of an identity: what DG-Net's paper (Table 1) counts as appearance."""

    upper: Color
    upper_second: Color
    pattern: str
    pattern_count: int
    sleeve: float  # share of the arm that is covered
    hem: float  # lower end of the upper clothes, in heights from the top
    lower: Color
    lower_kind: str
    lower_end: float  # share of the leg that shorts or a skirt cover
    shoes: Color
    skin: Color
    hair: Color
    bag: Color
    hat: Color


@dataclass(frozen=True)
class Pose:
    """One picture's pose and placement. Lengths in picture heights, angles in radians."""

    yaw: float
    phase: float  # of the walk
    stride: float  # 0 stands, 1 walks fast
    arm_swing: float
    elbow: float
    lean: float
    head_turn: float
    height: float  # of a person of average build
    center: float  # horizontal offset of the hips from the middle
    ground: float  # of the feet, from the top
    tilt: float  # how far the camera looks down: screen drop per depth
    light: float  # -1 from the left to 1 from the right


def _pick(rng: np.random.Generator, choices: tuple, weights: tuple[float, ...] | None = None):
    if weights is None:
        return choices[int(rng.integers(len(choices)))]
    return choices[int(np.searchsorted(np.cumsum(weights), rng.random() * sum(weights), side="right"))]


def _cloth_color(rng: np.random.Generator, grey_share: float) -> Color:
    return _pick(rng, GREYS) if rng.random() < grey_share else _pick(rng, CHROMATIC)


def _contrasting(rng: np.random.Generator, other: Color) -> Color:
    """A cloth colour that can be told from `other` at a glance."""
    while True:
        color = _cloth_color(rng, 0.4)
        if np.abs(np.subtract(color, other)).sum() > 150:
            return color


def random_identity(rng: np.random.Generator) -> tuple[Body, Clothes]:
    """The body and the clothes of one identity; `rng` must be the identity's own."""
    upper = _cloth_color(rng, 0.25)
    upper_second = _contrasting(rng, upper)
    pattern = _pick(rng, PATTERNS, (3, 1.5, 1, 1, 1.5, 1.5, 2))
    lower_kind = _pick(rng, LOWER_KINDS, (6, 2, 2))
    clothes = Clothes(
        upper=upper,
        upper_second=upper_second,
        pattern=pattern,
        pattern_count=int(rng.integers(3, 7)),
        sleeve=1.0 if pattern == "open-jacket" else _pick(rng, (0.0, 0.42, 1.0), (1, 3, 4)),
        hem=_pick(rng, (0.5, 0.53, 0.64), (3, 3, 1)),
        lower=_cloth_color(rng, 0.45),
        lower_kind=lower_kind,
        lower_end=float(rng.uniform(0.38, 0.55)) if lower_kind != "trousers" else 1.0,
        shoes=_cloth_color(rng, 0.6),
        skin=_pick(rng, SKINS),
        hair=_pick(rng, HAIRS, (5, 3, 3, 2, 1, 1)),
        bag=_cloth_color(rng, 0.35),
        hat=_cloth_color(rng, 0.3),
    )
    body = Body(
        height=float(rng.uniform(0.93, 1.04)),
        girth=float(rng.uniform(1.0, 1.4)),
        shoulders=float(rng.uniform(1.0, 1.2)),
        hair=_pick(rng, HAIR_STYLES, (5, 4, 1, 2, 1)),
        bag=_pick(rng, BAGS, (5, 3, 2, 2)),
        bag_side=_pick(rng, (-1, 1)),
        hat=_pick(rng, HATS, (8, 1.5, 1)),
    )
    return body, clothes


def random_pose(rng: np.random.Generator) -> Pose:
    """The pose and placement of one picture; `rng` must be the view's own."""
    facing = float(rng.integers(4)) * np.pi / 2  # front, right, back, left
    return Pose(
        yaw=facing + float(rng.uniform(-0.5, 0.5)),
        phase=float(rng.uniform(0, 2 * np.pi)),
        stride=0.1 if rng.random() < 0.15 else float(rng.uniform(0.55, 1.1)),
        arm_swing=float(rng.uniform(0.2, 0.65)),
        elbow=float(rng.uniform(0.1, 0.8)),
        lean=float(rng.uniform(-0.02, 0.08)),
        head_turn=float(rng.uniform(-0.4, 0.4)),
        height=float(rng.uniform(0.9, 1.0)),  # a re-identification box is tight
        center=float(rng.uniform(-0.045, 0.045)),
        ground=float(rng.uniform(0.965, 1.0)),
        tilt=float(rng.uniform(0.05, 0.3)),
        light=float(rng.uniform(-1, 1)),
    )


def shade(color: Color, factor: float) -> Color:
    """`color` made darker (factor < 1) or lighter (factor > 1)."""
    return tuple(min(255, max(0, round(channel * factor))) for channel in color)  # type: ignore[return-value]
