"""Scores of retrieval (CMC, mAP, mINP) and of pictures (PSNR, SSIM)."""

from dgnet_fast.metrics.image_quality import psnr, ssim
from dgnet_fast.metrics.retrieval import RetrievalScores, evaluate_retrieval, multi_query_features

__all__ = ["RetrievalScores", "evaluate_retrieval", "multi_query_features", "psnr", "ssim"]
