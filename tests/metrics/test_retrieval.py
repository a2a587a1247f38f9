import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from dgnet_fast.metrics import evaluate_retrieval, evaluate_scores, multi_query_features, ranking

_spec = importlib.util.spec_from_file_location(
    "evaluation_case", Path(__file__).parents[1] / "evaluation_case.py"
)
evaluation_case = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(evaluation_case)


def one_query(feature, identity, camera, gallery, gallery_ids, gallery_cameras):
    """The definitions, written out for one query with plain loops: ranks (1-based) of matches, or none."""
    order = sorted(range(len(gallery)), key=lambda g: (-float(np.dot(gallery[g], feature)), g))
    ranks, rank = [], 0
    for g in order:
        if gallery_ids[g] == -1:
            continue
        if gallery_ids[g] == identity and gallery_cameras[g] == camera and camera != -1:
            continue
        rank += 1
        if gallery_ids[g] == identity:
            ranks.append(rank)
    return ranks


def oracle(query, query_ids, query_cameras, gallery, gallery_ids, gallery_cameras, ranks=(1, 5, 10)):
    found = [
        one_query(q, i, c, gallery, gallery_ids, gallery_cameras)
        for q, i, c in zip(query, query_ids, query_cameras, strict=True)
    ]
    valid = [r for r in found if r]
    step, trapezoid = [], []
    for matches in valid:
        step.append(np.mean([(n + 1) / r for n, r in enumerate(matches)]))
        area = 0.0
        for n, r in enumerate(matches):
            above = 1.0 if r == 1 else n / (r - 1)
            area += (above + (n + 1) / r) / 2
        trapezoid.append(area / len(matches))
    hits = {k: sum(r[0] <= k for r in valid) for k in ranks}
    return {
        "rank": {k: n / len(valid) for k, n in hits.items()},
        "rank_all": {k: n / len(found) for k, n in hits.items()},
        "mAP": np.mean(step),
        "mAP_trapezoid": np.sum(trapezoid) / len(found),
        "mINP": np.mean([len(r) / r[-1] for r in valid]),
        "num_queries": len(found),
        "num_valid": len(valid),
    }


def random_sets(seed, queries=37, gallery=150, ids=9):
    """Few ids, junk, unknown cameras on both sides, exact ties, and two queries that match nothing."""
    random = np.random.RandomState(seed)

    def draw(count, lowest):
        # Small whole numbers: dot products are exact in float32, so ties are ties for everybody.
        features = random.randint(-2, 3, size=(count, 8)).astype(np.float32)
        return features, random.randint(lowest, ids, size=count), random.choice([-1, 1, 2, 3], size=count)

    query, gallery = draw(queries, 0), draw(gallery, -1)
    query[1][[3, 20]] = [ids + 4, ids + 5]
    return query, gallery


def assert_same(scores, expected):
    for name, value in expected.items():
        assert getattr(scores, name) == pytest.approx(value, abs=1e-12), name


@pytest.mark.parametrize("case", evaluation_case.CASES, ids=lambda case: case["name"])
def test_recorded_scores_of_the_public_implementation(case):
    for expected, ours in evaluation_case.check(case):
        assert ours == expected


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("chunk", "counted"), [(1, 64), (16, 64), (256, 64), (256, 0), (16, 12)])
def test_against_plain_loops(monkeypatch, seed, chunk, counted):
    """Ranks by counting, by sorting, and some by each."""
    monkeypatch.setattr(ranking, "COUNTED", counted)
    query, gallery = random_sets(seed)
    expected = oracle(*query, *gallery)
    assert expected["num_valid"] < expected["num_queries"]
    assert_same(evaluate_retrieval(*query, *gallery, second_half_weight=1, chunk=chunk), expected)


@pytest.mark.parametrize("seed", range(3))
def test_scores_given_as_rows_or_whole(seed):
    query, gallery = random_sets(seed)
    scores = torch.from_numpy(query[0] @ gallery[0].T)
    before = scores.clone()
    assert_same(evaluate_scores(scores, *query[1:], *gallery[1:]), oracle(*query, *gallery))
    assert torch.equal(scores, before)
    rows = (part.clone() for part in scores.split(10))
    assert_same(evaluate_scores(rows, *query[1:], *gallery[1:]), oracle(*query, *gallery))
    for wrong, message in (
        (
            scores[:, 1:],
            r"from query 0 on are torch.float32 of shape \(37, 149\); expected float32 of shape \(37, 150\)",
        ),
        (scores.double(), "torch.float64"),
        (scores[:5], "scores are of 5 queries, and 37 have labels"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate_scores(iter([wrong]), *query[1:], *gallery[1:])


def test_the_sort_that_other_devices_use_finds_the_same_ranks():
    query, gallery = (tuple(map(torch.from_numpy, part)) for part in random_sets(5))
    scores = query[0] @ gallery[0].T
    labels = (query[1], query[2], gallery[1], gallery[2])
    order = np.argsort(gallery[1].numpy(), kind="stable")
    counted = ranking.count_ranks(scores.clone(), *labels, order)
    ordered = ranking.sort_ranks(scores.clone(), *ranking.match_and_junk(*labels))
    for ours, expected in zip(counted, ordered, strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_negative_scores_and_negative_zero_rank_by_value():
    # Scores 0.0 and -0.0 tie, so the lower index ranks first; -1 ranks before -2.
    gallery = np.array([[-2.0], [-0.0], [0.0], [-1.0]], np.float32)
    for match, rank in ((1, 1), (2, 2), (3, 3), (0, 4)):
        ids = np.zeros(4, np.int64)
        ids[match] = 7
        one = evaluate_retrieval(
            np.ones((1, 1), np.float32), np.array([7]), np.array([1]), gallery, ids, np.full(4, 2),
            second_half_weight=1, ranks=(1, 2, 3, 4),
        )  # fmt: skip
        assert one.mAP == pytest.approx(1 / rank)
        assert one.rank == {k: float(rank <= k) for k in (1, 2, 3, 4)}


@pytest.mark.parametrize("weight, factors", [(0.0, (1, 0)), (0.25, (1, 0.25)), (1.0, (1, 1)), (None, (0, 1))])
def test_second_half_weight(weight, factors):
    (query, *rest), gallery = random_sets(11)
    weighted = query * np.repeat(factors, 4)
    scores = evaluate_retrieval(query, *rest, *gallery, second_half_weight=weight)
    assert_same(scores, oracle(weighted, *rest, *gallery))


def test_unknown_camera_means_no_filtering():
    feature = np.ones((1, 2), np.float32)
    same = (feature, np.array([1]))
    with pytest.raises(ValueError, match="own camera"):
        evaluate_retrieval(*same, np.array([2]), *same, np.array([2]))
    for query_camera, gallery_camera in ((-1, -1), (-1, 2), (2, -1)):
        scores = evaluate_retrieval(*same, np.array([query_camera]), *same, np.array([gallery_camera]))
        assert scores.rank[1] == 1.0


def test_torch_half_precision_inputs_and_the_users_matmul_setting():
    query, gallery = random_sets(2)
    expected = oracle(*query, *gallery)
    torch.set_float32_matmul_precision("medium")
    try:
        as_torch = [torch.from_numpy(x) for x in (*query, *gallery)]
        as_torch[0], as_torch[3] = as_torch[0].half(), as_torch[3].bfloat16()
        assert_same(evaluate_retrieval(*as_torch, second_half_weight=1), expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_inputs_are_not_changed():
    query, gallery = random_sets(3)
    before = [x.copy() for x in (*query, *gallery)]
    evaluate_retrieval(*query, *gallery)
    for x, y in zip((*query, *gallery), before, strict=True):
        np.testing.assert_array_equal(x, y)


def test_multi_query_mean():
    features = np.array([[1, 2], [3, 4], [5, 6], [100, 100]], np.float32)
    ids, cameras = np.array([1, 1, 2, 1]), np.array([1, 1, 1, 2])
    mean = multi_query_features(features, ids, cameras, np.array([2, 1, 1]), np.array([1, 2, 1]))
    assert mean.tolist() == [[5, 6], [100, 100], [2, 3]]
    with pytest.raises(ValueError, match="1 of 2 queries .* id 2 from camera 9"):
        multi_query_features(features, ids, cameras, np.array([1, 2]), np.array([1, 9]))


def broken(**changes):
    query, gallery = random_sets(4)
    names = ("qf", "qi", "qc", "gf", "gi", "gc")
    return list((dict(zip(names, (*query, *gallery), strict=True)) | changes).values())


NAN = np.full((150, 8), np.nan, np.float32)
BAD = [
    (broken(gf=np.zeros((150, 6), np.float32)), {}, "8 numbers and gallery features 6"),
    (broken(gf=NAN), {}, "150 of 150 gallery features hold NaN"),
    (broken(qi=np.zeros(5, np.int64)), {}, "37 features, 5 ids and 37 cameras"),
    (broken(qc=np.zeros(37)), {}, "query cameras are torch.float64"),
    (broken(qf=np.zeros((37, 8), np.int64)), {}, "query features are torch.int64"),
    (broken(), {"chunk": 0}, "chunk is 0"),
    (broken(), {"ranks": (0, 1)}, r"ranks are \(0, 1\)"),
    (broken(qi=np.full(37, 99)), {}, "none of the 37 queries has a match.*share no id"),
    (
        broken(qf=np.zeros((37, 7), np.float32), gf=np.zeros((150, 7), np.float32)),
        {},
        "7 numbers have no halves",
    ),
]


@pytest.mark.parametrize("arguments, options, message", BAD, ids=[b[2][:24] for b in BAD])
def test_mistakes_are_named(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate_retrieval(*arguments, **options)
