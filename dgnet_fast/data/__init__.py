"""Data: data sets by name, synthetic pedestrians, decoding, sampling and augmentation."""

from dgnet_fast.data.augment import denormalize, erase, normalize
from dgnet_fast.data.base import ChosenPictures, ReidDataset, Split
from dgnet_fast.data.cache import MappedPictures, cache_folder, cached_pictures, load_pictures
from dgnet_fast.data.datasets import load_dataset
from dgnet_fast.data.decode import decode_split
from dgnet_fast.data.drawn.dataset import SyntheticPedestrians
from dgnet_fast.data.identities import IdentityBatches
from dgnet_fast.data.sampling import Batch, TrainBatches, WithMore
from dgnet_fast.data.stream import place

__all__ = [
    "Batch",
    "ChosenPictures",
    "IdentityBatches",
    "MappedPictures",
    "ReidDataset",
    "Split",
    "SyntheticPedestrians",
    "TrainBatches",
    "WithMore",
    "cache_folder",
    "cached_pictures",
    "decode_split",
    "denormalize",
    "erase",
    "load_dataset",
    "load_pictures",
    "normalize",
    "place",
]
