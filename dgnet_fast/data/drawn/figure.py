"""Draws a pedestrian: skeleton, projection, limbs, cloth, head and bag.

See `pedestrian` for the frame: X to the person's left, Y down, Z forward, in heights of the person.
"""

from __future__ import annotations

import math
from itertools import pairwise

import cv2
import numpy as np

from dgnet_fast.data.drawn.pedestrian import Body, Clothes, Color, Point, Pose, shade

_SHIFT = 4  # fractional bits of OpenCV's sub-pixel drawing
_ONE = 1 << _SHIFT

# An adult with a slightly big head, which reads better in 20 pixels; in heights from the crown.
_HEAD, _SHOULDER, _WAIST, _HIP = 0.075, 0.185, 0.41, 0.5
_THIGH, _SHIN, _UPPER_ARM, _FOREARM = 0.235, 0.225, 0.16, 0.15


def _between(start: Point, end: Point, share: float) -> Point:
    return start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])


class Figure:
    """One pedestrian on one canvas; `draw` paints it."""

    def __init__(self, canvas: np.ndarray, body: Body, clothes: Clothes, pose: Pose) -> None:
        self.canvas, self.body, self.clothes, self.pose = canvas, body, clothes, pose
        rows, columns = canvas.shape[:2]
        self.unit = pose.height * body.height * rows  # pixels of one person height
        self.left = columns / 2 + pose.center * rows
        self.top = pose.ground * rows - self.unit
        self.cos, self.sin = math.cos(pose.yaw), math.sin(pose.yaw)

    # Projection and primitives --------------------------------------------------------------------

    def project(self, x: float, y: float, z: float) -> Point:
        """Canvas pixel of a point in the body's frame. Leaning moves what is above the hips forward."""
        z += self.pose.lean * max(0.0, _HIP - y) / _HIP
        across = x * self.cos + z * self.sin
        depth = z * self.cos - x * self.sin
        return self.left + across * self.unit, self.top + (y + self.pose.tilt * depth * 0.5) * self.unit

    def depth(self, x: float, z: float) -> float:
        """Distance towards the viewer."""
        return z * self.cos - x * self.sin

    def half_width(self, lateral: float, sagittal: float) -> float:
        """Half the width in pixels of an upright ellipse with these half axes, seen at the pose's yaw."""
        return math.hypot(lateral * self.cos, sagittal * self.sin) * self.unit

    def polygon(self, points: list[Point], color: Color, target: np.ndarray | None = None) -> None:
        fixed = np.rint(np.asarray(points) * _ONE).astype(np.int32)
        cv2.fillPoly(self.canvas if target is None else target, [fixed], color, cv2.LINE_8, _SHIFT)

    def ellipse(
        self, center: Point, axes: Point, color: Color, angles: tuple[float, float] = (0, 360)
    ) -> None:
        fixed_center = (round(center[0] * _ONE), round(center[1] * _ONE))
        fixed_axes = (max(0, round(axes[0] * _ONE)), max(0, round(axes[1] * _ONE)))
        if fixed_axes[0] == fixed_axes[1] and angles == (0, 360):
            cv2.circle(self.canvas, fixed_center, fixed_axes[0], color, -1, cv2.LINE_8, _SHIFT)
        else:
            cv2.ellipse(self.canvas, fixed_center, fixed_axes, 0, *angles, color, -1, cv2.LINE_8, _SHIFT)

    def _trapezoid(self, x: float, upper: Point, lower: Point, color: Color, tone: float) -> None:
        """Fills between two levels, each (y, half width), around the upright through x."""
        (y0, half0), (y1, half1) = upper, lower
        self.polygon([(x - half0, y0), (x + half0, y0), (x + half1, y1), (x - half1, y1)], shade(color, tone))

    def limb(self, joints: list[tuple[Point, float]], color: Color) -> None:
        """A tapered limb through `joints` (canvas point, radius), shaded on the side away from the light."""
        for width, offset, tone in ((1.0, 0.0, shade(color, 0.72)), (0.74, 0.2, color)):
            for (start, start_radius), (end, end_radius) in pairwise(joints):
                dx, dy = end[0] - start[0], end[1] - start[1]
                length = math.hypot(dx, dy) or 1.0
                nx, ny = -dy / length, dx / length
                if nx * self.pose.light < 0:
                    nx, ny = -nx, -ny
                ends = []
                for (x, y), radius in ((start, start_radius), (end, end_radius)):
                    ends.append((x + nx * offset * radius, y + ny * offset * radius, width * radius))
                    self.ellipse(ends[-1][:2], (width * radius, width * radius), tone)
                (x0, y0, r0), (x1, y1, r1) = ends
                self.polygon(
                    [
                        (x0 + nx * r0, y0 + ny * r0),
                        (x1 + nx * r1, y1 + ny * r1),
                        (x1 - nx * r1, y1 - ny * r1),
                        (x0 - nx * r0, y0 - ny * r0),
                    ],
                    tone,
                )

    # Limbs ----------------------------------------------------------------------------------------

    def leg(self, side: int) -> None:
        """The leg of the person's left (+1) or right (-1) side."""
        clothes, pose, unit = self.clothes, self.pose, self.unit
        phase = pose.phase + (0.0 if side > 0 else math.pi)
        swing = 0.48 * pose.stride * math.sin(phase)
        bend = 0.06 + 0.75 * pose.stride * max(0.0, math.cos(phase))  # the leg that comes forward is lifted
        x = side * 0.05 * self.body.girth
        knee_y, knee_z = _HIP + _THIGH * math.cos(swing), _THIGH * math.sin(swing)
        ankle_y = knee_y + _SHIN * math.cos(swing - bend)
        ankle_z = knee_z + _SHIN * math.sin(swing - bend)
        hip, knee = self.project(x, _HIP, 0), self.project(x, knee_y, knee_z)
        ankle = self.project(x, ankle_y, ankle_z)
        toe_pitch = 0.7 * max(0.0, bend - swing - 0.1)
        toe = self.project(
            x * 1.25, ankle_y + 0.022 + 0.075 * math.sin(toe_pitch), ankle_z + 0.085 * math.cos(toe_pitch)
        )
        heel = self.project(x, ankle_y + 0.018, ankle_z - 0.005)
        self.limb([(heel, 0.024 * unit), (toe, 0.019 * unit)], clothes.shoes)
        girth = 0.6 + 0.4 * self.body.girth
        thigh, calf, foot = 0.06 * girth * unit, 0.043 * girth * unit, 0.028 * girth * unit
        if clothes.lower_kind == "trousers":
            self.limb([(ankle, 0.034 * girth * unit), (knee, calf), (hip, thigh)], clothes.lower)
            return
        self.limb([(ankle, foot), (knee, 0.9 * calf), (hip, 0.9 * thigh)], clothes.skin)
        if clothes.lower_kind == "shorts":
            share = min(1.0, 2 * clothes.lower_end)
            self.limb([(_between(hip, knee, share), 1.25 * calf), (hip, 1.05 * thigh)], clothes.lower)

    def arm(self, side: int) -> None:
        """The arm of the person's left (+1) or right (-1) side, and what its hand carries."""
        clothes, pose, unit = self.clothes, self.pose, self.unit
        phase = pose.phase + (math.pi if side > 0 else 0.0)  # against the leg of its side
        swing = pose.arm_swing * pose.stride * math.sin(phase)
        elbow_bend = pose.elbow * (0.4 + 0.6 * max(0.0, math.sin(phase)))
        x = side * 0.112 * self.body.shoulders * (0.75 + 0.25 * self.body.girth)
        spread = side * 0.025
        shoulder_y = _SHOULDER + 0.03
        elbow_y, elbow_z = shoulder_y + _UPPER_ARM * math.cos(swing), _UPPER_ARM * math.sin(swing)
        angle = swing + elbow_bend
        hand_y, hand_z = elbow_y + _FOREARM * math.cos(angle), elbow_z + _FOREARM * math.sin(angle)
        shoulder = self.project(x, shoulder_y, 0)
        elbow = self.project(x + spread, elbow_y, elbow_z)
        hand = self.project(x + 1.4 * spread, hand_y, hand_z)
        thick, middle, wrist = 0.037 * unit, 0.03 * unit, 0.022 * unit
        if self.body.bag == "hand" and side == self.body.bag_side:
            self._hand_bag(hand)
        self.ellipse(hand, (0.024 * unit, 0.027 * unit), shade(clothes.skin, 0.9))
        if clothes.sleeve < 1.0:
            self.limb([(hand, 0.8 * wrist), (elbow, 0.85 * middle), (shoulder, 0.85 * thick)], clothes.skin)
        if 0.0 < clothes.sleeve < 1.0:
            share = min(1.0, 2 * clothes.sleeve)
            cuff = _between(shoulder, elbow, share)
            self._sleeve([(cuff, 1.15 * middle), (shoulder, thick)])
        elif clothes.sleeve == 1.0:
            self._sleeve([(hand, wrist), (elbow, middle), (shoulder, thick)])

    def _sleeve(self, joints: list[tuple[Point, float]]) -> None:
        """The covered part of an arm; bands go on where the pattern has them."""
        self.limb(joints, self.clothes.upper)
        if self.clothes.pattern not in ("horizontal", "check"):
            return
        pitch = (_HIP - _SHOULDER) * self.unit / self.clothes.pattern_count
        tone = shade(self.clothes.upper_second, 0.9)
        for ((x0, y0), r0), ((x1, y1), r1) in pairwise(joints):
            dx, dy = x1 - x0, y1 - y0
            length = math.hypot(dx, dy) or 1.0
            count = max(1, round(length / pitch))
            for band in range(count):
                corners = []
                for along, side in ((0.0, 1), (0.5, 1), (0.5, -1), (0.0, -1)):
                    share = (band + along) / count
                    radius = side * (r0 + (r1 - r0) * share) / length
                    corners.append((x0 + dx * share - dy * radius, y0 + dy * share + dx * radius))
                self.polygon(corners, tone)

    # Torso ----------------------------------------------------------------------------------------

    def torso(self) -> None:
        """Lower clothes around the hips, then the upper clothes with their pattern."""
        clothes, unit = self.clothes, self.unit
        girth = self.body.girth
        waist = self.half_width(0.078 * girth, 0.066 * girth)
        hip = self.half_width(0.092 * (0.5 + 0.5 * girth), 0.074 * girth)
        shoulder = self.half_width(0.125 * self.body.shoulders * (0.75 + 0.25 * girth), 0.065)
        chest = self.half_width(0.108 * (0.5 + 0.5 * girth), 0.075 * girth)
        x_neck, y_neck = self.project(0, _SHOULDER - 0.02, 0)

        def at(y: float) -> Point:
            return self.project(0, y, 0)

        def outline(levels: list[tuple[float, float]]) -> list[Point]:
            right = [(at(y)[0] + half, at(y)[1]) for y, half in levels]
            return right + [(at(y)[0] - half, at(y)[1]) for y, half in reversed(levels)]

        if clothes.lower_kind == "skirt":
            flare = hip * (1.25 + 0.15 * self.pose.stride)
            end = _HIP + 2 * clothes.lower_end * _THIGH
            edge = shade(clothes.lower, 0.85)
            self.polygon(outline([(0.43, waist), (0.5, hip * 1.05), (end, flare)]), edge)
            self.polygon(outline([(0.43, waist * 0.8), (0.5, hip * 0.8), (end, flare * 0.75)]), clothes.lower)
        else:
            self.polygon(outline([(0.44, waist), (0.5, hip), (0.55, hip * 0.9)]), shade(clothes.lower, 0.92))
        neck = 0.03 * unit
        self._trapezoid(
            x_neck, (y_neck - 0.05 * unit, neck), (y_neck + 0.02 * unit, 1.3 * neck), clothes.skin, 0.85
        )
        hem_half = hip * (1.03 if clothes.hem < 0.6 else 1.15)
        levels = [
            (_SHOULDER - 0.022, 0.042 * unit),
            (_SHOULDER + 0.004, shoulder * 0.86),
            (_SHOULDER + 0.035, shoulder),
            (0.27, chest),
            (_WAIST, waist * 1.04),
            (clothes.hem, hem_half),
        ]
        self._cloth(outline(levels), at(_SHOULDER)[1], at(_HIP)[1])

    def _cloth(self, outline: list[Point], top: float, bottom: float) -> None:
        """Fills the torso's outline with cloth: pattern by angle around the body and by height."""
        rows, columns = self.canvas.shape[:2]
        points = np.asarray(outline)
        x0, y0 = np.maximum(np.floor(points.min(0)).astype(int), 0)
        x1, y1 = np.minimum(np.ceil(points.max(0)).astype(int) + 1, (columns, rows))
        if x1 <= x0 or y1 <= y0:
            return
        mask = np.zeros((y1 - y0, x1 - x0), dtype=np.uint8)
        self.polygon([(x - x0, y - y0) for x, y in outline], (255, 255, 255), mask)
        middle, half = (points[:, 0].min() + points[:, 0].max()) / 2, np.ptp(points[:, 0]) / 2
        across = np.clip((np.arange(x0, x1) + 0.5 - middle) / max(half, 1.0), -0.999, 0.999)
        around = np.arcsin(across) - self.pose.yaw  # 0 is the breastbone, +-pi the spine
        around = (around + np.pi) % (2 * np.pi) - np.pi
        down = (np.arange(y0, y1) + 0.5 - top) / (bottom - top)
        second = self._pattern(around[None], down[:, None])
        if self.body.bag == "backpack":
            straps = (np.abs(np.abs(around) - 0.62) < 0.14)[None] & (down < 0.55)[:, None]
            second = np.where(straps, 2, second)
        clothes = self.clothes
        colors = np.array([clothes.upper, clothes.upper_second, shade(clothes.bag, 0.85)], dtype=np.float32)
        light = 1.0 - 0.3 * across**2 + 0.12 * self.pose.light * across
        texture = colors[second] * light.astype(np.float32)[None, :, None]
        cv2.copyTo(np.clip(texture, 0, 255).astype(np.uint8), mask, self.canvas[y0:y1, x0:x1])

    def _pattern(self, around: np.ndarray, down: np.ndarray) -> np.ndarray:
        """0 where the first colour of the upper clothes shows, 1 where the second; (1, w) and (h, 1) give (h,
        w).
        """
        pattern, count = self.clothes.pattern, self.clothes.pattern_count
        horizontal = (down * count) % 1.0 > 0.5
        vertical = (around * (count + 1) / np.pi) % 1.0 > 0.5
        if pattern == "horizontal":
            second = horizontal & (around == around)
        elif pattern == "vertical":
            second = vertical & (down == down)
        elif pattern == "check":
            second = horizontal ^ vertical
        elif pattern == "logo":
            second = (np.abs(around) < 0.55) & (down > 0.2) & (down < 0.2 + 0.09 * count)
        elif pattern == "two-tone":
            second = (down < 0.18 + 0.06 * count) & (around == around)
        elif pattern == "open-jacket":
            second = np.abs(around) < 0.22 + 0.05 * count + 0.1 * down
        else:
            second = np.zeros((down.shape[0], around.shape[1]), dtype=bool)
        return second.astype(np.intp)

    # Head and things carried ----------------------------------------------------------------------

    def head(self) -> None:
        """Head, face, hair and hat."""
        clothes, unit, style = self.clothes, self.unit, self.body.hair
        turn = self.pose.yaw + self.pose.head_turn
        cos, sin = math.cos(turn), math.sin(turn)
        x, y = self.project(0, _HEAD, 0.012)
        wide, tall = math.hypot(0.052 * cos, 0.062 * sin) * unit, 0.073 * unit
        hair = clothes.hair if style != "bald" else clothes.skin
        if style == "long":
            drop = y + 0.15 * unit
            right, left = wide * (1.05 - 0.5 * sin), wide * (1.05 + 0.5 * sin)
            fall = [(x - wide * 1.12, y), (x + wide * 1.12, y), (x + right, drop), (x - left, drop)]
            self.polygon(fall, shade(hair, 0.85))
        elif style == "ponytail":
            root, tip = (x - 0.07 * sin * unit, y - 0.02 * unit), (x - 0.1 * sin * unit, y + 0.1 * unit)
            self.limb([(root, 0.026 * unit), (tip, 0.014 * unit)], hair)
        self.ellipse((x, y - 0.004 * unit), (wide * 1.1, tall * 1.04), hair)
        if style == "bun":
            knot = (x - 0.05 * sin * unit, y - 0.072 * unit)
            self.ellipse(knot, (0.028 * unit, 0.026 * unit), shade(hair, 0.85))
        visible = math.sqrt(max(0.0, (cos + 0.55) / 1.55))
        if visible > 0:
            face = (x + 0.022 * sin * unit, y + 0.017 * unit)
            self.ellipse(face, (wide * 0.9 * (0.25 + 0.75 * visible), tall * 0.82), clothes.skin)
            for eye in (-1, 1):
                if cos > 0.1 or eye * sin > 0.5:
                    spot = (face[0] + (eye * 0.02 * cos + 0.02 * sin) * unit, face[1] - 0.008 * unit)
                    self.ellipse(spot, (0.0075 * unit, 0.006 * unit), (40, 30, 30))
        if style in ("long", "ponytail") and cos < -0.2:  # seen from behind, it falls over the collar
            root, end = (0.9 * wide, 0.7 * wide) if style == "long" else (0.3 * wide, 0.02 * unit)
            low, high = (x - 0.04 * sin * unit, y + 0.12 * unit), (x - 0.03 * sin * unit, y)
            self.limb([(low, end), (high, root)], hair)
        if self.body.hat != "none":
            self._hat(x, y, wide, tall, sin, cos)

    def _hat(self, x: float, y: float, wide: float, tall: float, sin: float, cos: float) -> None:
        color, brow = self.clothes.hat, y - 0.012 * self.unit
        self.ellipse((x, brow), (wide * 1.16, tall * 0.98), color, (180, 360))
        if self.body.hat == "cap" and cos > -0.3:
            tip = (x + 0.075 * sin * self.unit, brow + 0.012 * max(0.0, cos) * self.unit)
            brim = (0.03 + 0.02 * abs(cos)) * self.unit
            self.ellipse(tip, (brim, 0.011 * self.unit), shade(color, 0.7))
        elif self.body.hat == "beanie":
            fold = (brow - 0.012 * self.unit, wide * 1.16), (brow + 0.016 * self.unit, wide * 1.16)
            self._trapezoid(x, *fold, color, 0.75)

    def _box(self, center: Point, half_width: float, half_height: float, color: Color) -> None:
        """An upright box with a lighter face."""
        for size, tone in ((1.0, shade(color, 0.68)), (0.8, color)):
            w, h = half_width * size, half_height * size
            x, y = center
            corner = 0.3 * min(w, h)
            quarter = [(w - corner, h), (w, h - corner)]
            right = [(a, -b) for a, b in quarter] + [(a, b) for a, b in reversed(quarter)]
            left = [(-a, b) for a, b in reversed(right)]
            self.polygon([(x + a, y + b) for a, b in right + left], tone)

    def _hand_bag(self, hand: Point) -> None:
        unit = self.unit
        half = self.half_width(0.025, 0.065)
        handle = [(hand, 0.006 * unit), ((hand[0], hand[1] + 0.04 * unit), 0.02 * unit)]
        self.limb(handle, shade(self.clothes.bag, 0.7))
        self._box((hand[0], hand[1] + 0.09 * unit), half, 0.06 * unit, self.clothes.bag)

    def backpack(self) -> None:
        """A rucksack; its straps are part of the cloth."""
        center, half = self.project(0, 0.3, -0.105), self.half_width(0.088, 0.055)
        self._box(center, half, 0.105 * self.unit, self.clothes.bag)

    def shoulder_bag(self) -> None:
        """A bag at the hip on a strap across the torso."""
        side, unit = self.body.bag_side, self.unit
        shoulder = self.project(-side * 0.07, _SHOULDER, 0)
        bag = self.project(side * 0.125, 0.48, 0)
        strap = 0.009 * unit
        self.limb([(shoulder, strap), ((bag[0], bag[1] - 0.04 * unit), strap)], shade(self.clothes.bag, 0.85))
        self._box(bag, self.half_width(0.03, 0.075), 0.055 * unit, self.clothes.bag)

    def shadow(self) -> None:
        """Darkens the ground below the feet."""
        x, y = self.left, self.top + 0.985 * self.unit
        wide, tall = 0.17 * self.unit, 0.022 * self.unit
        rows, columns = self.canvas.shape[:2]
        x0, x1 = max(0, int(x - wide)), min(columns, int(x + wide) + 1)
        y0, y1 = max(0, int(y - tall)), min(rows, int(y + tall) + 1)
        across = (np.arange(x0, x1, dtype=np.float32) - x) / wide
        down = (np.arange(y0, y1, dtype=np.float32) - y) / tall
        depth = 0.45 * np.clip(1 - across[None] ** 2 - down[:, None] ** 2, 0, 1)
        patch = self.canvas[y0:y1, x0:x1]
        patch[...] = patch * (1 - depth[..., None])

    # The whole ------------------------------------------------------------------------------------

    def draw(self) -> None:
        """Paints the figure from the farthest part to the nearest."""
        self.shadow()
        parts = [(0.0, self.torso), (0.005, self.head)]
        for side in (-1, 1):
            parts.append((self.depth(side * 0.12, 0) - 0.001, lambda side=side: self.arm(side)))
            parts.append((min(-0.001, self.depth(side * 0.05, 0) - 0.06), lambda side=side: self.leg(side)))
        if self.body.bag == "backpack":
            parts.append((self.depth(0, -0.12), self.backpack))
        elif self.body.bag == "shoulder":
            parts.append((max(0.004, self.depth(self.body.bag_side * 0.13, 0)), self.shoulder_bag))
        for _, paint in sorted(parts, key=lambda part: part[0]):
            paint()
