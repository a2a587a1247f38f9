"""Differences between rankings: exact by hand, clustered by person, and their words."""

from __future__ import annotations

import numpy as np
import pytest

from dgnet_fast.metrics.verdict import Difference, paired_difference


def test_the_error_is_that_of_a_mean_over_people():
    """With one query a person it is the usual standard error; repeated queries of a person add nothing."""
    rng = np.random.default_rng(0)
    ours, theirs, people = rng.normal(1, 1, 40), rng.normal(0, 1, 40), np.arange(40)
    one = paired_difference(ours, theirs, people)
    difference = ours - theirs
    assert one.mean == pytest.approx(difference.mean())
    assert one.error == pytest.approx(difference.std(ddof=1) / 40**0.5)
    many = paired_difference(np.repeat(ours, 5), np.repeat(theirs, 5), np.repeat(people, 5))
    assert many == pytest.approx(one) and many.groups == 40


def test_queries_without_a_value_do_not_count():
    ours, theirs = np.array([1.0, np.nan, 0.5]), np.array([0.5, 0.5, 0.5])
    assert paired_difference(ours, theirs, np.array([1, 1, 2]))[:1] == (0.25,)
    with pytest.raises(ValueError, match="no query has a value on both sides"):
        paired_difference(ours[1:2], theirs[1:2], np.array([1]))
    with pytest.raises(ValueError, match="values of shapes"):
        paired_difference(ours, theirs[:2], np.array([1, 1, 2]))


@pytest.mark.parametrize(
    "mean, error, word",
    [
        (3, 1, "better"),
        (-3, 1, "worse"),
        (1.9, 1, "within noise"),
        (-2, 1, "within noise"),
        (0, 0, "within noise"),
        (1, 0, "better"),
    ],
)
def test_words(mean, error, word):
    assert Difference(mean, error, 10).word == word
