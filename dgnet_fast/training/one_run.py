"""Whether the processes of a run were started with the same options, data and version."""

from __future__ import annotations

import dgnet_fast
from dgnet_fast.config import Config, walk
from dgnet_fast.data import ReidDataset
from dgnet_fast.distributed import processes
from dgnet_fast.distributed.sharing import digest_of

OWN = ("device", "num_workers", "data_root", "data_cache")
"""Options that may differ from machine to machine."""


def check_one_run(config: Config, dataset: ReidDataset) -> None:
    """Raise ValueError, on all processes, if one has other options (but `OWN`), pictures, people or another version."""
    if processes.size() == 1:
        return
    options = {
        f"option {name}": getattr(owner, spec.name) for name, spec, owner in walk(config) if name not in OWN
    }
    pictures = [
        f"{name}\0{person}"
        for split in (dataset.train, dataset.query, dataset.gallery)
        for name, person in zip(split.names, split.ids, strict=True)
    ]
    processes.check_same(
        options
        | {
            "the number of training pictures": len(dataset.train),
            "the list of pictures and people": digest_of(pictures),
            "the version": dgnet_fast.__version__,
        }
    )
