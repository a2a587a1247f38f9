"""Data: datasets by name, synthetic pedestrians, decoding, sampling and augmentation."""

from dgnet_fast.data.augment import denormalize, erase, normalize
from dgnet_fast.data.base import ReidDataset, Split
from dgnet_fast.data.datasets import load_dataset
from dgnet_fast.data.decode import decode_split
from dgnet_fast.data.sampling import Batch, TrainBatches
from dgnet_fast.data.synthetic import SyntheticPedestrians

__all__ = [
    "Batch",
    "ReidDataset",
    "Split",
    "SyntheticPedestrians",
    "TrainBatches",
    "decode_split",
    "denormalize",
    "erase",
    "load_dataset",
    "normalize",
]
