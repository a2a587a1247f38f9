"""Built-in synthetic pedestrians: a re-id dataset drawn from a seed, in which the truth of every swap is
known.

A picture is a function of three things. The *identity* fixes clothes, hair, build, bag and hat; the *view*
fixes pose, placement, light and background; the *camera* fixes colour cast, contrast, blur and noise.
DG-Net's `x_j^i`, the appearance of i in the structure of j, therefore has a true picture: `draw(identity_i,
view_j, camera_j)`.

The *hard* kind is for baselines that the plain one no longer tells apart: people wear outfits of a small pool that they all
share, each person several of them, and cameras differ more. Hair, skin, build, bag and hat must then decide.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import lru_cache

import cv2
import numpy as np

from dgnet_fast.data.base import DISTRACTOR, JUNK, ReidDataset, Split
from dgnet_fast.data.drawn.figure import Figure
from dgnet_fast.data.drawn.pedestrian import Body, Clothes, Pose, random_identity, random_pose
from dgnet_fast.data.drawn.scene import Camera, apply_camera, draw_background, random_camera, tone_curves

# Keys of the independent random streams under one seed.
_IDENTITY, _VIEW, _BACKGROUND, CAMERA_KEY, NOISE_KEY, _PLAN, _OUTFIT, _WARDROBE = range(8)

NOISE_TILE = 331  # side of the noise tile, in pixels: a prime, larger than the pictures in use

OUTFITS = 12
"""Outfits that all people of the hard kind share."""
WARDROBE = 3
"""How many of them each person wears."""
CHANGE = 1_000_000
"""Identity ``k`` in the ``n``-th outfit of its wardrobe is drawn as ``k + n * CHANGE``."""
OWN = ("skin", "hair", "bag", "hat")
"""Colours of `Clothes` that stay with a person in every outfit."""

CLOTH = ("upper", "upper_second", "lower")
"""Colours of `Clothes` that belong to the clothes themselves: top and trousers, shorts or skirt."""


class SyntheticPedestrians:
    """Draws pedestrians. The same (seed, identity, view, camera, height, width) always gives the same
    picture.
    """

    city = ""
    """Name of the city, see `dgnet_fast.data.drawn.cities`."""

    def __init__(self, seed: int = 0, *, hard: bool = False) -> None:
        if seed < 0:
            raise ValueError(f"seed must be 0 or more, got {seed}")
        self.seed, self.hard = seed, hard
        self.identity = lru_cache(maxsize=None)(self._identity)
        self.pose = lru_cache(maxsize=65536)(self._pose)
        self.camera = lru_cache(maxsize=None)(self._camera)

    def rng(self, kind: int, *index: int) -> np.random.Generator:
        """A generator for one thing, independent of every other and of the order of drawing."""
        return np.random.Generator(np.random.Philox(np.random.SeedSequence((self.seed, kind, *index))))

    def _identity(self, identity: int) -> tuple[Body, Clothes]:
        change, person = divmod(identity, CHANGE)
        body, clothes = random_identity(self.rng(_IDENTITY, person))
        if not self.hard:
            return body, clothes
        wardrobe = self.rng(_WARDROBE, person).permutation(OUTFITS)[:WARDROBE]
        outfit = random_identity(self.rng(_OUTFIT, int(wardrobe[change % WARDROBE])))[1]
        return body, replace(outfit, **{name: getattr(clothes, name) for name in OWN})

    def _pose(self, view: int) -> Pose:
        return random_pose(self.rng(_VIEW, view))

    def _camera(self, camera: int) -> tuple[Camera, np.ndarray, np.ndarray]:
        properties = random_camera(self.rng(CAMERA_KEY, camera), 2.0 if self.hard else 1.0)
        tile = self.rng(NOISE_KEY, camera).standard_normal((NOISE_TILE, NOISE_TILE, 3), dtype=np.float32)
        return properties, tone_curves(properties), tile

    def _background(self, canvas: np.ndarray, view: int) -> None:
        draw_background(canvas, self.rng(_BACKGROUND, view))

    def draw(
        self,
        identity: int,
        view: int,
        camera: int,
        height: int = 256,
        width: int = 128,
        *,
        body_of: int | None = None,
    ) -> np.ndarray:
        """The picture of `identity` in `view` as `camera` records it: uint8 (height, width, 3) RGB.

        `body_of` takes build, hair style, bag and hat from another identity and only colours, patterns and
        cut of the clothes from `identity`: the paper's own division (Table 1), in which body size, hair and
        carrying are structure.
        """
        body, clothes, pose = self._subject(identity, view, camera, height, width, body_of)
        properties, curves, tile = self.camera(int(camera))
        size = _canvas_size(height, width)
        scene = np.empty(
            (size[1] // 2, size[0] // 2, 3), dtype=np.uint8
        )  # half as sharp: cheaper, and out of focus
        self._background(scene, int(view))
        canvas = cv2.resize(scene, size, interpolation=cv2.INTER_LINEAR)
        Figure(canvas, body, clothes, pose).draw()
        picture = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
        row, column = (int(view) * 97) % NOISE_TILE, (int(view) * 61) % NOISE_TILE
        noise = tile.take(np.arange(row, row + height), 0, mode="wrap").take(
            np.arange(column, column + width), 1, mode="wrap"
        )
        return apply_camera(picture, properties, curves, noise)

    def clothes_mask(
        self, identity: int, view: int, height: int = 256, width: int = 128, *, body_of: int | None = None
    ) -> np.ndarray:
        """Where `draw` of the same arguments shows clothes (`CLOTH`; not shoes, bag, hat, hair or skin): bool (height,
        width), True where they cover at least half of the pixel.
        """
        body, clothes, pose = self._subject(identity, view, 0, height, width, body_of)
        # The same figure again, clothes white and all else black. Shading leaves white above half, and black as it is.
        colors = [one.name for one in fields(Clothes) if isinstance(getattr(clothes, one.name), tuple)]
        flat = {name: (255,) * 3 if name in CLOTH else (0,) * 3 for name in colors}
        size = _canvas_size(height, width)
        canvas = np.zeros((size[1], size[0], 3), dtype=np.uint8)
        Figure(canvas, body, replace(clothes, **flat), pose).draw()
        shown = (canvas.min(axis=2) >= 128).astype(np.float32)
        return cv2.resize(shown, (width, height), interpolation=cv2.INTER_AREA) >= 0.5

    def _subject(
        self, identity: int, view: int, camera: int, height: int, width: int, body_of: int | None
    ) -> tuple[Body, Clothes, Pose]:
        """Who stands there and how; ValueError for arguments that no picture has."""
        for name, value in (("identity", identity), ("view", view), ("camera", camera)):
            if value < 0:
                raise ValueError(f"{name} must be 0 or more, got {value}")
        if height < 16 or width < 8:
            raise ValueError(f"height and width must be at least 16 and 8, got {height} and {width}")
        body, clothes = self.identity(int(identity))
        if body_of is not None:
            body = self.identity(int(body_of))[0]
        return body, clothes, self.pose(int(view))


def _canvas_size(height: int, width: int) -> tuple[int, int]:
    """(columns, rows): shapes are drawn without anti-aliasing at a multiple of the size and averaged down."""
    factor = max(2, -(-256 // height))
    return width * factor, height * factor


@dataclass(frozen=True)
class SyntheticSplit(Split):
    """Synthetic pictures: `identities`, `views` (int64 (N,)) and `cameras` are the arguments of
    `SyntheticPedestrians.draw`.

    `identities` equals `ids` except for distractors and junk, whose ids say nothing of who was drawn, and for people of
    the hard kind who have changed their clothes (`CHANGE`).
    """

    identities: np.ndarray
    views: np.ndarray
    pedestrians: SyntheticPedestrians
    height: int
    width: int

    def load(self, index: int) -> np.ndarray:
        return self.load_resized(index, self.height, self.width)

    def load_resized(self, index: int, height: int, width: int) -> np.ndarray:
        """The picture drawn (not resized) at this size: uint8 (height, width, 3) RGB."""
        who = int(self.identities[index]), int(self.views[index]), int(self.cameras[index])
        if self.ids[index] != JUNK:
            return self.pedestrians.draw(*who, height, width)
        # A bad detection: a corner of a larger picture.
        picture = self.pedestrians.draw(*who, 2 * height, 2 * width)
        top, left = (who[1] % 3) * height // 2, (who[1] // 3 % 3) * width // 2
        return np.ascontiguousarray(picture[top : top + height, left : left + width])

    def truth(self, i: int, j: int, *, keep_body: bool = False) -> np.ndarray:
        """The true picture of the identity of picture i in the structure of picture j: uint8 (height, width,
        3).

        With `keep_body` build, hair style, bag and hat stay those of picture j (see
        `SyntheticPedestrians.draw`).
        """
        identity, view, body = self._swap(i, j, keep_body)
        camera = int(self.cameras[j])
        return self.pedestrians.draw(identity, view, camera, self.height, self.width, body_of=body)

    def clothes_mask(self, i: int, j: int, *, keep_body: bool = False) -> np.ndarray:
        """Where `truth` of the same arguments shows clothes: bool (height, width); see
        `SyntheticPedestrians.clothes_mask`.
        """
        identity, view, body = self._swap(i, j, keep_body)
        return self.pedestrians.clothes_mask(identity, view, self.height, self.width, body_of=body)

    def _swap(self, i: int, j: int, keep_body: bool) -> tuple[int, int, int | None]:
        """Identity, view and lender of the body of the true picture of a swap."""
        if JUNK in (self.ids[i], self.ids[j]):
            raise ValueError(
                f"junk pictures have no truth; pictures {i} and {j} have ids {self.ids[i]} and {self.ids[j]}"
            )
        body = int(self.identities[j]) if keep_body else None
        return int(self.identities[i]), int(self.views[j]), body


def load_synthetic(
    *,
    seed: int = 0,
    train_identities: int = 64,
    test_identities: int = 32,
    views_per_identity: int = 16,
    cameras: int = 4,
    distractors: int = 64,
    junk: int = 16,
    height: int = 256,
    width: int = 128,
    hard: bool = False,
    pedestrians: SyntheticPedestrians | None = None,
    first: int = 0,
) -> ReidDataset:
    """The synthetic dataset of `seed`, or with `hard` the one in which people share and change their clothes.

    Every identity is seen `views_per_identity` times by two or more of the `cameras`, each time in a view of
    its own. Of the test identities, who are not among the training ones, one picture per camera is a query
    and the others are gallery, where `distractors` (id 0) and `junk` (id -1, bad detections) join them. As in
    Market-1501's `gt_bbox`, `multi_query` holds every picture of a query's identity and camera.

    `pedestrians` draws the people, in place of `SyntheticPedestrians(seed, hard=hard)`; who is drawn, and in which view,
    is counted from `first`. The ids begin with 1 all the same.
    """
    limits = {
        "train_identities": (train_identities, 1),
        "test_identities": (test_identities, 1),
        "cameras": (cameras, 2),
        "views_per_identity": (views_per_identity, 4),
        "distractors": (distractors, 0),
        "junk": (junk, 0),
    }
    for name, (value, least) in limits.items():
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    pedestrians = pedestrians or SyntheticPedestrians(seed, hard=hard)
    plan = pedestrians.rng(_PLAN)
    last = train_identities + test_identities
    shots = []  # (id, identity, camera, is the first of its identity and camera)
    for identity in range(1, last + 1):
        most = min(cameras, views_per_identity // 2)  # two pictures a camera leave one for the gallery
        seen_by = plan.permutation(cameras)[: int(plan.integers(2, most + 1))] + 1
        for view in range(views_per_identity):
            # every camera sees a person in each outfit, one after the other
            drawn = identity + (view // len(seen_by) % WARDROBE) * CHANGE if hard else identity
            shots.append((identity, drawn, int(seen_by[view % len(seen_by)]), view < len(seen_by)))
    for extra in range(distractors + junk):
        label = DISTRACTOR if extra < distractors else JUNK
        shots.append((label, last + 1 + extra, int(plan.integers(cameras)) + 1, False))
    ids, identities, seen_by, leading = (np.array(column) for column in zip(*shots, strict=True))
    views = first + np.arange(len(shots), dtype=np.int64)
    identities = identities + first
    train = (ids >= 1) & (ids <= train_identities)

    def split(members: np.ndarray) -> SyntheticSplit:
        chosen = np.flatnonzero(members)
        names = [f"id{ids[i]:04d}_view{i:06d}_c{seen_by[i]}" for i in chosen]
        return SyntheticSplit(
            ids[chosen].astype(np.int64),
            seen_by[chosen].astype(np.int64),
            names,
            identities[chosen].astype(np.int64),
            views[chosen],
            pedestrians,
            height,
            width,
        )

    tested = ids > train_identities
    name = "-".join(filter(None, ("synthetic", pedestrians.city)))
    return ReidDataset(name, split(train), split(tested & leading), split(~train & ~leading), split(tested))
