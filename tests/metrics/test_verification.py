"""Verification against a plain computation over all pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dgnet_fast.metrics.verification import evaluate_verification


def test_rates_are_those_of_all_pairs():
    rng = np.random.default_rng(5)
    query, gallery = rng.integers(1, 9, 60), np.concatenate([rng.integers(1, 9, 90), [-1, -1]])
    cameras = rng.integers(1, 4, 60), rng.integers(1, 4, 92)
    same = query[:, None] == gallery
    scores = np.clip(rng.normal(0.3 * same, 0.2), -0.99, 0.99).astype(np.float32)
    found = evaluate_verification(torch.from_numpy(scores).split(7), query, cameras[0], gallery, cameras[1])
    used = ~((same & (cameras[0][:, None] == cameras[1])) | (gallery == -1))
    right, wrong = scores[same & used], scores[~same & used]
    assert (found.genuine, found.impostor) == (len(right), len(wrong))
    auc = (right[:, None] > wrong).mean()
    assert found.auc == pytest.approx(auc, abs=2e-4)
    for rate in (1e-1, 1e-2):
        threshold = np.sort(wrong)[::-1][int(rate * len(wrong))]
        assert found.tar[rate] == pytest.approx((right > threshold).mean(), abs=0.01)
    assert math.isnan(found.tar[1e-4]) == (len(wrong) < 1e4)
    errors = [(np.mean(wrong >= t), np.mean(right < t)) for t in np.linspace(-0.5, 0.8, 3000)]
    assert found.eer == pytest.approx(np.mean(min(errors, key=lambda e: abs(e[0] - e[1]))), abs=0.005)
    assert found.far[0] == found.true_accept[0] == 0 and found.far[-1] == found.true_accept[-1] == 1


def test_both_kinds_of_pairs_are_needed():
    with pytest.raises(ValueError, match="0 pairs of the same person and 2 of different people"):
        evaluate_verification([torch.zeros(1, 2)], [1], [1], [2, 3], [1, 1])
