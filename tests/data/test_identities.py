"""PK batches: P identities with K pictures each, every identity once an epoch, a pure function of the step."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dgnet_fast.data import IdentityBatches

LABELS = np.repeat(np.arange(7), [5, 4, 4, 2, 6, 4, 1])
PICTURES = torch.randint(256, (len(LABELS), 3, 8, 6), dtype=torch.uint8)


def batches(**changes):
    return IdentityBatches(PICTURES, LABELS, **{"batch_size": 6, "views": 4, "pad": 1, "seed": 3} | changes)


def test_a_batch_has_as_many_views_of_each_identity():
    one = batches()
    assert (one.people, one.steps_per_epoch) == (3, 2)
    seen = []
    for step in range(2):
        indices = one.indices(step)
        labels = LABELS[indices[:2].reshape(-1)].reshape(3, 4)
        assert (labels == labels[:, :1]).all() and len(set(labels[:, 0])) == 3
        seen += labels[:, 0].tolist()
        for person, row in zip(labels[:, 0], indices[:2].reshape(3, 4), strict=True):
            assert len(set(row.tolist())) == min(4, (LABELS == person).sum()) or (LABELS == person).sum() < 4
        assert (LABELS[indices[2:]] == LABELS[indices[:2]]).all()
        assert torch.equal(
            one.batch(step).labels.flatten(), torch.from_numpy(LABELS[indices[:2].reshape(-1)])
        )
    assert len(set(seen)) == 6  # an epoch repeats nobody
    np.testing.assert_array_equal(one.indices(5), batches().indices(5))
    assert not np.array_equal(one.indices(5), batches(seed=4).indices(5))


def test_parts_have_whole_identities_and_are_together_what_one_process_has():
    whole = batches(batch_size=8, views=4, erasing_p=0.5)
    parts = [batches(batch_size=4, views=4, erasing_p=0.5, part=(k, 2)) for k in range(2)]
    for step in range(3):
        np.testing.assert_array_equal(
            np.concatenate([one.indices(step) for one in parts], axis=1), whole.indices(step)
        )
        ours = whole.batch(step)
        for name, mine in zip(
            ours._fields, zip(*(one.batch(step) for one in parts), strict=True), strict=True
        ):
            if (there := getattr(ours, name)) is not None:
                assert torch.equal(torch.cat(mine, dim=1), there), name
        for one in parts:
            labels = LABELS[one.indices(step)[:2]]
            assert (labels == labels[:, :1]).all()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="reid.views is 5; a batch of 12 pictures must be a multiple"):
        batches(views=5)
    with pytest.raises(ValueError, match="a batch has 8 identities and the data set 7"):
        batches(batch_size=8, views=2)
    with pytest.raises(
        ValueError, match="with several processes half of a batch, 6 pictures must be a multiple"
    ):
        batches(part=(0, 2))
    with pytest.raises(ValueError, match="a batch of all processes has 8 identities and the data set 7"):
        batches(batch_size=4, views=2, part=(1, 2))
