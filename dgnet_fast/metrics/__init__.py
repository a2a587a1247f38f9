"""Scores of retrieval (CMC, mAP, mINP; re-ranking, query expansion, single-shot) and of pictures (PSNR, SSIM,
colour difference)."""

from dgnet_fast.metrics.expansion import expand_queries
from dgnet_fast.metrics.image_quality import colour_error, psnr, ssim
from dgnet_fast.metrics.reranking import k_reciprocal_scores
from dgnet_fast.metrics.retrieval import (
    RetrievalScores,
    evaluate_retrieval,
    evaluate_scores,
    multi_query_features,
    symmetric_features,
)
from dgnet_fast.metrics.single_shot import SingleShotScores, evaluate_single_shot

__all__ = [
    "RetrievalScores",
    "SingleShotScores",
    "colour_error",
    "evaluate_retrieval",
    "evaluate_scores",
    "evaluate_single_shot",
    "expand_queries",
    "k_reciprocal_scores",
    "multi_query_features",
    "psnr",
    "ssim",
    "symmetric_features",
]
