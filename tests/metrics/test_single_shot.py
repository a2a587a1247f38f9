import itertools

import numpy as np
import pytest
import torch

from dgnet_fast.metrics import evaluate_single_shot

GALLERY_IDS = np.array([1, 1, 2, 2, 2, 3, -1, 0])
GALLERY_CAMERAS = np.array([1, 2, 1, 2, 2, 1, 1, 2])
QUERY_IDS, QUERY_CAMERAS = np.array([1, 2, 3, 2]), np.array([1, 1, 1, -1])


def exact(scores, rank):
    """The expected CMC over all galleries of one image an identity, by listing them."""
    found = []
    for row, identity, camera in zip(scores, QUERY_IDS, QUERY_CAMERAS, strict=True):
        choices = []
        for person in np.unique(GALLERY_IDS[GALLERY_IDS != -1]):
            images = np.flatnonzero(GALLERY_IDS == person)
            if person == identity and camera != -1:
                images = images[GALLERY_CAMERAS[images] != camera]
            choices.append(images)
        if any(len(images) == 0 for images in choices):
            continue  # no match: an invalid query
        hits = []
        for drawn in itertools.product(*choices):
            ranking = sorted(drawn, key=lambda g: (-row[g], g))
            place = next(k for k, g in enumerate(ranking) if GALLERY_IDS[g] == identity)
            hits.append(place < rank)
        found.append(np.mean(hits))
    return np.mean(found), len(found)


def test_expectation():
    scores = torch.from_numpy(np.random.RandomState(3).randint(0, 4, (4, 8)).astype(np.float32))  # with ties
    labels = (QUERY_IDS, QUERY_CAMERAS, GALLERY_IDS, GALLERY_CAMERAS)
    ours = evaluate_single_shot(scores, *labels, repeats=4000, ranks=(1, 2, 3, 9))
    assert (ours.num_queries, ours.num_valid, ours.repeats) == (4, 3, 4000)
    for rank, value in ours.rank.items():
        expected, valid = exact(scores.numpy(), rank)
        assert valid == 3 and value == pytest.approx(expected, abs=0.02), rank  # 4 standard errors
    assert ours.rank[9] == 1


def test_seeded_whatever_the_chunks():
    scores = torch.from_numpy(np.random.RandomState(4).standard_normal((4, 8)).astype(np.float32))
    labels = (QUERY_IDS, QUERY_CAMERAS, GALLERY_IDS, GALLERY_CAMERAS)
    whole = evaluate_single_shot(scores, *labels, repeats=7)
    assert evaluate_single_shot(iter(scores.split(3)), *labels, repeats=7) == whole
    other = evaluate_single_shot(scores, *labels, repeats=7, seed=1, ranks=(1, 2, 3))
    assert other.rank != evaluate_single_shot(scores, *labels, repeats=7, ranks=(1, 2, 3)).rank


def test_refuses():
    labels = (QUERY_IDS, QUERY_CAMERAS, GALLERY_IDS, GALLERY_CAMERAS)
    for scores, options, message in (
        (torch.ones(4, 8), {"repeats": 0}, "repeats is 0; it must be at least 1"),
        (torch.ones(4, 8), {"ranks": ()}, "name at least one"),
        (torch.ones(4, 7), {}, r"from query 0 on have shape \(4, 7\); expected \(4, 8\)"),
        (torch.ones(5, 8), {}, r"shape \(5, 8\); expected \(4, 8\)"),
        (iter([torch.ones(3, 8)]), {}, "scores are of 3 queries, and 4 have labels"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate_single_shot(scores, *labels, **options)
    with pytest.raises(ValueError, match="query and gallery share no id"):
        evaluate_single_shot(torch.ones(1, 8), [9], [1], GALLERY_IDS, GALLERY_CAMERAS)
