import numpy as np
import pytest
import torch

from dgnet_fast.data import TrainBatches, denormalize
from dgnet_fast.data.sampling import PositiveSampler

LABELS = np.array([2, 0, 1, 0, 2, 2, 3, 1, 0, 2])  # 3 has one picture


def make(**options):
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (10, 3, 12, 8), dtype=np.uint8))
    return TrainBatches(images, torch.from_numpy(LABELS), **({"batch_size": 3, "seed": 1} | options))


def equal(one, other):
    return all(a is b is None or torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_positives_are_the_others_uniformly():
    drawn = PositiveSampler(LABELS).draw(np.tile(np.arange(10), (4000, 1)), np.random.default_rng(0))
    for picture in range(10):
        others = np.flatnonzero((LABELS == LABELS[picture]) & (np.arange(10) != picture))
        if not len(others):
            assert (drawn[:, picture] == picture).all()
            continue
        found, counts = np.unique(drawn[:, picture], return_counts=True)
        np.testing.assert_array_equal(found, others)
        np.testing.assert_allclose(counts / 4000, 1 / len(others), atol=0.04)


def test_epochs_cover_each_picture_at_most_once_and_streams_differ():
    batches = make()
    assert batches.steps_per_epoch == 3
    epochs = [np.concatenate([batches.indices(3 * e + s)[:2] for s in range(3)], axis=1) for e in range(3)]
    for epoch in epochs:
        assert epoch.shape == (2, 9)
        assert all(len(set(stream)) == 9 for stream in epoch)
        assert not np.array_equal(epoch[0], epoch[1])
    assert not np.array_equal(epochs[0], epochs[1])
    whole = make(batch_size=5)
    for stream in np.concatenate([whole.indices(0)[:2], whole.indices(1)[:2]], axis=1):
        assert set(stream) == set(range(10))


def test_positives_share_the_identity():
    batches = make()
    for step in range(20):
        indices = batches.indices(step)
        np.testing.assert_array_equal(LABELS[indices[:2]], LABELS[indices[2:]])
        several = np.bincount(LABELS)[LABELS[indices[:2]]] > 1
        assert (indices[:2] != indices[2:])[several].all()


def test_batch_is_a_pure_function_of_seed_and_step():
    options = {"erasing_p": 0.5, "appearance_size": (24, 16)}
    forwards = make(**options)
    ordered = [forwards.batch(step) for step in range(8)]
    backwards = make(**options)
    for step in (7, 0, 5, 3, 1, 2, 6, 4):
        assert equal(backwards.batch(step), ordered[step])
    other = make(seed=2, **options).batch(0)
    assert not torch.equal(other.x, ordered[0].x)
    assert not torch.equal(other.erasing_boxes, ordered[0].erasing_boxes)


def test_erasing_leaves_the_pictures_alone():
    plain, erased = make().batch(4), make(erasing_p=1.0).batch(4)
    assert plain.erasing_boxes is None
    assert torch.equal(plain.x, erased.x) and torch.equal(plain.xp, erased.xp)


def test_batch_holds_the_chosen_pictures():
    batches = make(pad=0)
    batch = batches.batch(2)
    indices = torch.from_numpy(batches.indices(2))
    assert batch.x.shape == batch.xp.shape == (2, 3, 3, 12, 8) and batch.x.dtype == torch.float32
    assert torch.equal(batch.labels, torch.from_numpy(LABELS)[indices[:2]])
    for tensor, chosen in ((batch.x, indices[:2]), (batch.xp, indices[2:])):
        pictures = denormalize(tensor)
        for stream in range(2):
            for place in range(3):
                original = batches.images[chosen[stream, place]]
                shown = pictures[stream, place]
                assert torch.equal(shown, original) or torch.equal(shown, original.flip(-1))


def test_augmentation_draws_differ_between_picture_and_positive_and_flip_half():
    images = torch.arange(8, dtype=torch.uint8).view(1, 1, 1, 8).expand(64, 3, 12, 8).contiguous() * 30
    batches = TrainBatches(images, np.zeros(64), batch_size=64, seed=0, pad=0)
    batch = batches.batch(0)
    flipped = torch.stack([batch.x, batch.xp])[..., 0, 0, 0] > 0
    assert 0.35 < flipped.float().mean() < 0.65
    assert not torch.equal(flipped[0], flipped[1]) and not torch.equal(flipped[0, 0], flipped[0, 1])


def test_erasing_boxes_fit_the_appearance_size():
    boxes = make(erasing_p=1.0, appearance_size=(24, 16)).batch(0).erasing_boxes
    assert boxes.shape == (4, 3, 4) and boxes.dtype == torch.int64
    assert (boxes[..., 2] > 0).all()
    assert (boxes[..., 0] + boxes[..., 2] <= 24).all() and (boxes[..., 1] + boxes[..., 3] <= 16).all()
    assert len(torch.unique(boxes.view(-1, 4), dim=0)) == 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 11}, "batch_size must be 1 to 10, the number of images, got 11"),
        ({"erasing_p": 1.5}, "erasing_p must be 0 to 1, got 1.5"),
        ({"pad": -1}, "pad must be 0 or more, got -1"),
        ({"seed": -3}, "seed must be 0 or more, got -3"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_wrong_inputs():
    with pytest.raises(ValueError, match=r"must be uint8 \(N, 3, H, W\), got torch.float32"):
        TrainBatches(torch.zeros(2, 3, 4, 4), np.zeros(2), batch_size=1)
    with pytest.raises(ValueError, match=r"labels must be \(2,\), one per image, got \(3,\)"):
        TrainBatches(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), np.zeros(3), batch_size=1)
    with pytest.raises(ValueError, match="step must be 0 or more, got -1"):
        make().batch(-1)
