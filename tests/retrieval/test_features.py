"""What scores are made from: features of a data set's splits."""

from __future__ import annotations

import torch

from dgnet_fast.data import load_dataset
from dgnet_fast.retrieval.extractor import Extractor
from dgnet_fast.retrieval.scoring import retrieval_sets
from tests.tiny import tiny_config, tiny_model


def test_fewer_queries_read_their_own_multi_query_pictures_alone():
    dataset = load_dataset(
        "synthetic", train_identities=2, test_identities=4, distractors=4, junk=2, height=40, width=24
    )
    config = tiny_config()
    extractor = Extractor.of(tiny_model(config).appearance_encoder, config)
    seen = []
    options = {"multi_query": True, "progress": lambda done, count: seen.append(count)}
    whole = retrieval_sets(extractor, dataset, **options)
    counts, fewer = seen[:], retrieval_sets(extractor, dataset, max_queries=2, **options)
    for name in ("single", "multi"):
        assert len(fewer[name].ids) == 2
        assert torch.allclose(fewer[name].features, whole[name].features[:2], atol=1e-5)
    assert torch.equal(fewer["gallery"].features, whole["gallery"].features)
    assert seen[len(counts) + 1] == 2 and seen[-1] < counts[-1]
