from dataclasses import replace

import cv2
import numpy as np
import pytest

from dgnet_fast.data import SyntheticPedestrians, decode_split, load_dataset
from dgnet_fast.data.drawn.dataset import CHANGE, OUTFITS, WARDROBE, load_synthetic


@pytest.fixture(scope="module")
def small():
    return load_synthetic(
        seed=3, train_identities=6, test_identities=5, views_per_identity=6, cameras=3, distractors=4, junk=3,
        height=64, width=32,
    )  # fmt: skip


def test_picture_depends_on_nothing_but_its_arguments():
    first = SyntheticPedestrians(5)
    forwards = [first.draw(i, 10 + i, i % 3, 64, 32) for i in range(6)]
    second = SyntheticPedestrians(5)
    backwards = [second.draw(i, 10 + i, i % 3, 64, 32) for i in reversed(range(6))]
    for a, b in zip(forwards, reversed(backwards), strict=True):
        assert a.dtype == np.uint8 and a.shape == (64, 32, 3)
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(SyntheticPedestrians(6).draw(0, 10, 0, 64, 32), forwards[0])


def test_identity_changes_the_person_and_leaves_the_background():
    pedestrians = SyntheticPedestrians(0)
    for view in range(8):
        one, other = (pedestrians.draw(i, view, 1, 128, 64).astype(int) for i in (1, 2))
        differs = np.abs(one - other).sum(-1) > 40
        assert 0.02 < differs.mean() < 0.6
        assert not differs[:16, :8].any() and not differs[:16, -8:].any()  # beside the head


def test_camera_keeps_the_drawing_and_changes_the_tone():
    pedestrians = SyntheticPedestrians(0)
    one, other = (pedestrians.draw(1, 2, camera, 128, 64).astype(float) for camera in (1, 2))
    assert np.abs(one - other).mean() > 4
    for channel in range(3):
        assert np.corrcoef(one[..., channel].ravel(), other[..., channel].ravel())[0, 1] > 0.85


def test_sizes_show_the_same_picture():
    pedestrians = SyntheticPedestrians(0)
    for view in range(4):
        large = pedestrians.draw(7, view, 1, 256, 128).astype(float)
        small = pedestrians.draw(7, view, 1, 128, 64).astype(float)
        large = large.reshape(32, 8, 16, 8, 3).mean((1, 3))  # blocks large enough to average out the noise
        small = small.reshape(32, 4, 16, 4, 3).mean((1, 3))
        assert np.abs(large - small).mean() < 5  # edges fall up to a pixel apart
        assert np.corrcoef(large.ravel(), small.ravel())[0, 1] > 0.97


def test_body_of_takes_only_the_body():
    pedestrians = SyntheticPedestrians(0)
    np.testing.assert_array_equal(
        pedestrians.draw(4, 9, 1, 64, 32, body_of=4), pedestrians.draw(4, 9, 1, 64, 32)
    )
    pairs = [
        (pedestrians.draw(4, v, 1, 64, 32, body_of=5), pedestrians.draw(4, v, 1, 64, 32)) for v in range(3)
    ]
    assert all(not np.array_equal(a, b) for a, b in pairs)


def test_identities_can_be_told_apart_by_colour_better_than_by_chance():
    """Nearest neighbour on mean colours of strips of the body finds the person more often than chance."""
    dataset = load_synthetic(
        train_identities=1, test_identities=20, views_per_identity=6, distractors=0, junk=0
    )

    def colours(split):
        pictures = decode_split(split, 64, 32).float()
        return (
            pictures[:, :, 12:56, 10:22]
            .reshape(-1, 3, 4, 11, 12)
            .mean((3, 4))
            .reshape(len(split), -1)
            .numpy()
        )

    query, gallery = colours(dataset.query), colours(dataset.gallery)
    distance = ((query[:, None] - gallery[None]) ** 2).sum(-1)
    same = dataset.query.ids[:, None] == dataset.gallery.ids[None]
    distance[same & (dataset.query.cameras[:, None] == dataset.gallery.cameras[None])] = np.inf
    rank1 = (dataset.gallery.ids[distance.argmin(1)] == dataset.query.ids).mean()
    assert 0.15 < rank1 < 0.95  # chance is about 0.05; a solved data set would teach nothing


def test_splits(small):
    assert len(small.train) == 36 and small.num_classes == 6
    assert set(small.train.ids) == set(range(1, 7))
    assert set(small.query.ids) == set(range(7, 12))
    assert set(small.gallery.ids) == set(range(7, 12)) | {0, -1}
    assert (small.gallery.ids == 0).sum() == 4 and (small.gallery.ids == -1).sum() == 3
    np.testing.assert_array_equal(np.bincount(small.train.ids)[1:], 6)
    for identity in range(1, 12):
        members = np.concatenate(
            [s.cameras[s.ids == identity] for s in (small.train, small.query, small.gallery)]
        )
        assert 2 <= len(set(members)) <= 3 and members.min() >= 1 and members.max() <= 3
    shown = list(zip(small.query.ids.tolist(), small.query.cameras.tolist(), strict=True))
    assert len(set(shown)) == len(shown)
    tested = small.gallery.ids > 0
    assert set(zip(small.gallery.ids[tested], small.gallery.cameras[tested], strict=True)) == set(shown)
    assert len(small.multi_query) == len(small.query) + tested.sum()
    views = np.concatenate([small.train.views, small.query.views, small.gallery.views])
    assert len(set(views)) == len(views)


def test_seed_decides_the_dataset(small):
    again = load_dataset(
        "synthetic", seed=3, train_identities=6, test_identities=5, views_per_identity=6, cameras=3,
        distractors=4, junk=3, height=64, width=32,
    )  # fmt: skip
    np.testing.assert_array_equal(again.gallery.cameras, small.gallery.cameras)
    for index in (0, len(small.gallery) - 1):  # the last is junk
        np.testing.assert_array_equal(again.gallery.load(index), small.gallery.load(index))
        assert again.gallery.load(index).shape == (64, 32, 3)


def test_truth(small):
    split = small.train
    np.testing.assert_array_equal(split.truth(4, 4), split.load(4))
    expected = split.pedestrians.draw(int(split.ids[0]), int(split.views[20]), int(split.cameras[20]), 64, 32)
    np.testing.assert_array_equal(split.truth(0, 20), expected)
    same_person = np.flatnonzero(split.ids == split.ids[0])[1]
    np.testing.assert_array_equal(split.truth(0, same_person), split.load(same_person))
    body = split.pedestrians.draw(
        int(split.ids[0]), int(split.views[20]), int(split.cameras[20]), 64, 32, body_of=int(split.ids[20])
    )
    np.testing.assert_array_equal(split.truth(0, 20, keep_body=True), body)
    junk = int(np.flatnonzero(small.gallery.ids == -1)[0])
    with pytest.raises(ValueError, match="junk pictures have no truth"):
        small.gallery.truth(0, junk)


def test_clothes_are_where_the_picture_changes_with_their_colours(small, monkeypatch):
    split = small.train
    drawer = SyntheticPedestrians(split.pedestrians.seed)
    body, clothes = drawer.identity(int(split.ids[0]))
    other = {
        name: tuple(255 - c for c in getattr(clothes, name)) for name in ("upper", "upper_second", "lower")
    }
    dyed = SyntheticPedestrians(split.pedestrians.seed)
    monkeypatch.setattr(dyed, "identity", lambda identity: (body, replace(clothes, **other)))
    for index in range(4):  # pictures of one person
        where = int(split.ids[index]), int(split.views[index]), int(split.cameras[index]), 64, 32
        changed = np.abs(drawer.draw(*where).astype(int) - dyed.draw(*where)).max(axis=2) > 8
        mask = split.clothes_mask(index, index)
        assert mask.dtype == bool and mask.shape == (64, 32) and 0.05 < mask.mean() < 0.6
        assert changed[mask].mean() > 0.9  # mid grey does not change
        assert (changed & ~mask).sum() < 0.5 * mask.sum()  # pixels that clothes cover in part, and blur
        inner = cv2.erode(mask.astype(np.uint8), np.ones((3, 3))).astype(bool)
        outer = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5))).astype(bool)
        assert changed[inner].mean() > 0.9 and not changed[~outer].any()


def test_clothes_of_a_swap(small):
    split, drawer = small.train, small.train.pedestrians
    who, view, body = int(split.ids[0]), int(split.views[20]), int(split.ids[20])
    mask = split.clothes_mask(0, 20, keep_body=True)
    np.testing.assert_array_equal(mask, drawer.clothes_mask(who, view, 64, 32, body_of=body))
    np.testing.assert_array_equal(split.clothes_mask(0, 20), drawer.clothes_mask(who, view, 64, 32))
    junk = int(np.flatnonzero(small.gallery.ids == -1)[0])
    with pytest.raises(ValueError, match="junk pictures have no truth"):
        small.gallery.clothes_mask(0, junk)
    with pytest.raises(ValueError, match="view must be 0 or more, got -1"):
        drawer.clothes_mask(1, -1)


def test_decode_draws_at_the_wanted_size(small):
    pictures = decode_split(small.query, 48, 24, workers=2)
    assert pictures.shape == (len(small.query), 3, 48, 24)
    split = small.query
    drawn = split.pedestrians.draw(int(split.ids[1]), int(split.views[1]), int(split.cameras[1]), 48, 24)
    np.testing.assert_array_equal(pictures[1].permute(1, 2, 0).numpy(), drawn)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cameras": 1}, "cameras must be at least 2, got 1"),
        ({"train_identities": 0}, "train_identities must be at least 1, got 0"),
        ({"views_per_identity": 3}, "views_per_identity must be at least 4, got 3"),
        ({"distractors": -1}, "distractors must be at least 0, got -1"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        load_synthetic(**options)


def test_wrong_draw_arguments():
    pedestrians = SyntheticPedestrians(0)
    with pytest.raises(ValueError, match="view must be 0 or more, got -2"):
        pedestrians.draw(0, -2, 0)
    with pytest.raises(ValueError, match="at least 16 and 8, got 8 and 4"):
        pedestrians.draw(0, 0, 0, 8, 4)


def test_people_of_the_hard_kind_share_clothes_and_change_them():
    """Each person wears three of a dozen outfits, in every camera, and stays the same underneath."""
    hard = load_synthetic(train_identities=4, test_identities=6, views_per_identity=8, hard=True)
    plain = load_synthetic(train_identities=4, test_identities=6, views_per_identity=8)
    assert np.array_equal(hard.train.ids, plain.train.ids) and np.array_equal(
        hard.query.cameras, plain.query.cameras
    )
    people = hard.train.pedestrians
    looks = {i: sorted({int(x) for x in hard.train.identities[hard.train.ids == i]}) for i in (1, 2, 3, 4)}
    for person, drawn in looks.items():
        cameras = len(set(hard.train.cameras[hard.train.ids == person].tolist()))
        changes = min(WARDROBE, -(-8 // cameras))  # eight pictures
        assert drawn == [person + k * CHANGE for k in range(changes)]
        bodies, clothes = zip(*(people.identity(x) for x in drawn), strict=True)
        assert set(bodies) == {plain.train.pedestrians.identity(person)[0]}
        assert len({(c.upper, c.lower, c.pattern) for c in clothes}) == changes
        assert len({(c.skin, c.hair, c.bag, c.hat) for c in clothes}) == 1
    everybody = [people.identity(x)[1] for k in range(1, 60) for x in (k, k + CHANGE, k + 2 * CHANGE)]
    assert len({(c.upper, c.lower, c.pattern, c.sleeve) for c in everybody}) <= OUTFITS
    same = people.draw(1, 3, 1, 64, 32)
    assert np.array_equal(same, SyntheticPedestrians(0, hard=True).draw(1, 3, 1, 64, 32))
    assert not np.array_equal(same, people.draw(1 + CHANGE, 3, 1, 64, 32))


def test_cameras_of_the_hard_kind_differ_more():
    def spread(hard):
        cameras = [SyntheticPedestrians(0, hard=hard).camera(k)[0] for k in range(1, 30)]
        return np.std([c.brightness for c in cameras]), np.std([c.gains for c in cameras])

    assert spread(True) == pytest.approx([2 * x for x in spread(False)])
