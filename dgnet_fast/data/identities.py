"""Batches of P identities with K pictures each (PK sampling)."""

from __future__ import annotations

from typing import Any

import numpy as np

from dgnet_fast.data.sampling import TrainBatches

_IDENTITIES, _VIEWS = range(16, 18)  # keys of their random streams, beside those of `sampling`


class IdentityBatches(TrainBatches):
    """As `TrainBatches`, but the pictures of both streams together are P identities with ``views`` pictures each.

    Each identity comes once in an epoch, which is thus (number of identities / P) batches long; an incomplete last
    batch is left out. The pictures of an identity are drawn without repetition, or with it if it has fewer. Every batch
    is a pure function of (seed, step). Where ``part`` says that it is one of several, each has all pictures of its
    identities.

    Raises ValueError if the batch (2 · ``batch_size`` pictures; ``batch_size`` with several parts, whose halves of the
    two streams lie apart) is no multiple of ``views``, or if there are fewer identities than all parts need.
    """

    def __init__(self, *args: Any, views: int, **options: Any) -> None:
        self.views = views
        super().__init__(*args, **options)
        self._members = [np.flatnonzero(self.labels == one) for one in np.unique(self.labels)]
        alone = self._whole == self.batch_size
        pictures = 2 * self.batch_size if alone else self.batch_size
        if views < 2 or pictures % views:
            batch = (
                f"a batch of {pictures}" if alone else f"with several processes half of a batch, {pictures}"
            )
            raise ValueError(f"reid.views is {views}; {batch} pictures must be a multiple of it")
        self.people = 2 * self._whole // views
        if self.people > len(self._members):
            batch = "a batch" if alone else "a batch of all processes"
            raise ValueError(
                f"{batch} has {self.people} identities and the data set {len(self._members)}; a smaller teacher_batch or "
                "more reid.views fits"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in one pass over the identities."""
        return len(self._members) // self.people

    def _whole_indices(self, step: int) -> np.ndarray:
        """The pictures of `step` of all parts, int64 (4, n * B): both streams, then their positives."""
        if step < 0:
            raise ValueError(f"step must be 0 or more, got {step}")
        epoch, place = divmod(step, self.steps_per_epoch)
        people = self._rng(_IDENTITIES, epoch).permutation(len(self._members))
        rng = self._rng(_VIEWS, step)
        chosen = []
        for person in people[place * self.people : (place + 1) * self.people]:
            own = self._members[person]
            chosen.append(rng.choice(own, size=self.views, replace=len(own) < self.views))
        pictures = np.concatenate(chosen).reshape(2, self._whole)
        return np.concatenate([pictures, self.positives.draw(pictures, rng)])
