"""Options of the strong re-identification baseline, for the teacher and the baseline."""

from __future__ import annotations

from dataclasses import dataclass

from dgnet_fast.config.fields import option


@dataclass
class ReidConfig:
    """What re-identification toolboxes add to the paper's baseline (Luo et al., *Bag of Tricks*, CVPRW 2019). All of it
    is off by default, which is the paper's teacher.
    """

    views: int = option(
        0,
        "pictures of each identity in a batch of the teacher (PK sampling); 0 means shuffled pictures",
        low=0,
    )
    triplet_w: float = option(
        0.0, "weight of the batch-hard triplet loss of the teacher; it needs reid.views of at least 2", low=0
    )
    margin: float = option(0.3, "margin of the triplet loss; 0 means the soft margin log(1 + exp(d))", low=0)
    smoothing: float = option(0.0, "label smoothing in the teacher's cross entropy", low=0, high=0.999)
    policy: str = option(
        "step",
        "rate schedule of the teacher: step falls to a tenth after two thirds of the steps; cosine ends at 0",
        choices=("step", "cosine"),
    )
    warm_up: int = option(
        0, "length of the linear rise of the teacher's learning rate at the start", low=0, unit="steps"
    )
    ema_decay: float = option(
        0.0,
        "decay of the averaged weights that become the teacher; 0 means the last weights",
        low=0,
        high=0.99999,
    )
