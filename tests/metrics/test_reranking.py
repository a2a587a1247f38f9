"""Re-ranking against distances recorded from a public implementation of the published algorithm.

tests/cases/reranking.json holds what the NumPy implementation that fast-reid and torchreid share returned for
features that anyone can draw again (`draw`), given their Euclidean distances in float64; of all but the first
case two rows.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dgnet_fast.metrics import (
    evaluate_retrieval,
    evaluate_scores,
    k_reciprocal_scores,
    reranking,
    symmetric_features,
)

CASES = json.loads((Path(__file__).parents[1] / "cases" / "reranking.json").read_text())


def draw(case):
    random = np.random.RandomState(case["seed"])
    prototypes = random.standard_normal((case["people"], 16))
    count = case["queries"] + case["gallery"]
    ids = random.randint(0, case["people"], count)
    features = (prototypes[ids] + 0.7 * random.standard_normal((count, 16))).astype(np.float32)
    return *torch.from_numpy(features).split([case["queries"], case["gallery"]]), ids


@pytest.mark.parametrize(("chunk", "minima"), [(256, 1 << 20), (3, 1 << 20), (256, 100), (256, 1)])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"k1={case['k1']},k2={case['k2']}")
def test_recorded_distances(monkeypatch, case, chunk, minima):
    monkeypatch.setattr(reranking, "MINIMA", minima)
    query, gallery, _ = draw(case)
    options = {name: case[name] for name in ("k1", "k2", "original_weight")}
    parts = list(k_reciprocal_scores(query, gallery, **options, chunk=chunk))
    assert all(len(part) <= chunk for part in parts)
    ours = -torch.cat(parts).numpy()
    recorded = np.array(case["distances"])
    assert ours.shape == (case["queries"], case["gallery"])
    np.testing.assert_allclose(ours[: len(recorded)], recorded, atol=2e-6)


def test_features_of_low_precision():
    query, gallery, _ = draw(CASES[0])
    parts = [list(k_reciprocal_scores(q, g)) for q, g in ((query.bfloat16(), gallery.bfloat16()),
             (query.bfloat16().float(), gallery.bfloat16().float()))]  # fmt: skip
    torch.testing.assert_close(parts[0], parts[1])


def test_copies_of_a_picture_are_their_own_neighbours():
    query, gallery, _ = draw(CASES[0])
    gallery[7] = gallery[3] = query[2]
    scores = torch.cat(list(k_reciprocal_scores(query, gallery)))
    assert set(scores[2].topk(2).indices.tolist()) == {3, 7}


def test_re_ranking_finds_what_neighbours_know():
    """Two classes as long chains: the far end of a chain is nearer by its neighbours than the other chain."""
    angle = torch.linspace(0, 2.2, 40)
    chain = torch.stack([angle.cos(), angle.sin(), torch.zeros(40)], 1)
    other = torch.stack([angle.cos(), -angle.sin() - 0.3, torch.zeros(40)], 1)
    gallery, ids = torch.cat([chain[1:], other]), [1] * 39 + [2] * 40
    labels = ([1], [-1])
    plain = evaluate_scores(-torch.cdist(chain[:1], gallery).square(), *labels, ids, [-1] * 79)
    ranked = k_reciprocal_scores(chain[:1], gallery, k1=8, k2=4, original_weight=0.0)
    better = evaluate_scores(ranked, *labels, ids, [-1] * 79)
    assert better.mAP > plain.mAP + 0.05


def test_symmetric_features_rank_as_weighted_ones():
    random = np.random.RandomState(0)
    features = random.standard_normal((60, 2, 8)).astype(np.float32)
    features = (features / np.linalg.norm(features, axis=2, keepdims=True)).reshape(60, 16)
    ids, cameras = random.randint(0, 6, 60), random.randint(1, 4, 60)
    labels = (ids[:20], cameras[:20]), (ids[20:], cameras[20:])
    for weight in (0.5, 0.0, None, 1.0):
        expected = evaluate_retrieval(
            features[:20], *labels[0], features[20:], *labels[1], second_half_weight=weight
        )
        plain = symmetric_features(features, weight)
        torch.testing.assert_close(plain.norm(dim=1), torch.ones(60))
        assert plain.shape[1] == (8 if weight in (0.0, None) else 16)
        ours = evaluate_retrieval(plain[:20], *labels[0], plain[20:], *labels[1], second_half_weight=1)
        assert ours == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k1": 0}, "k1 is 0; it must be at least 1"),
        ({"k2": 0}, "k2 is 0"),
        ({"chunk": 0}, "chunk is 0"),
        ({"original_weight": 1.5}, "original_weight is 1.5; it must be 0 to 1"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        k_reciprocal_scores(torch.ones(2, 4), torch.ones(3, 4), **options)
    with pytest.raises(ValueError, match=r"shapes \(2, 4\) and \(3, 5\)"):
        k_reciprocal_scores(torch.ones(2, 4), torch.ones(3, 5))
