"""Makes sure that a step with a non-finite loss changes nothing, and keeps the losses for those who ask.

On a CPU the host reads every loss where it is made and leaves the step at the first bad one. On a GPU the host
must not wait: there the step runs on, the optimisers are told by a ``found_inf`` tensor to change nothing, and
what had changed before is put back on the device. Both are `Guard`, with ``deferred`` as the only switch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dgnet_fast.distributed import processes
from dgnet_fast.training.optim import Optimisers


class Skips(NamedTuple):
    """Skipped steps since the last reading: how many, the longest row of them (it may have begun before), the row
    that the last step stands in (0: the last step counted), and the names of the non-finite terms.
    """

    skipped: int
    longest: int
    row: int
    names: list[str]


def _flat(x: Tensor) -> Tensor:
    """A dense tensor as one line of memory, whatever its layout."""
    return x.detach().as_strided((x.numel(),), (1,))


class Guard:
    """The non-finite losses of a `Runner`: `begin`, `failed` after each phase's losses, `finish`.

    ``terms`` are all that a step may have, of which ``totals`` are one number and the others one a stream. ``early``
    names the optimisers that move before the last phase's losses are known. ``deferred``: the host reads nothing during
    a step; needs fused optimisers. ``values``: (terms, streams), those of the last step in the order of ``terms``.
    """

    def __init__(
        self,
        model: nn.Module,
        optimisers: Optimisers,
        *,
        terms: Sequence[str],
        totals: Sequence[str],
        streams: int,
        early: Sequence[str],
        deferred: bool,
    ) -> None:
        if deferred and not optimisers.fused:
            raise ValueError("a step that defers its checks needs Optimisers(fused=True), got fused=False")
        first = next(model.parameters())
        self.model, self.optimisers, self.deferred = model, optimisers, deferred
        self.terms, self.totals, self.early = tuple(terms), tuple(totals), frozenset(early)
        self.values = first.new_zeros(len(self.terms), streams)
        self.found = torch.zeros((), device=first.device)  # float32, as the optimisers want it
        self._bad = torch.zeros(len(self.terms), dtype=torch.bool, device=first.device)
        self._names = torch.zeros_like(self._bad)
        self._counts = torch.zeros(3, dtype=torch.int64, device=first.device)  # as in Skips
        self.steps = 0  # begun, skipped ones included
        self._live: list[Tensor] = []
        self._before: dict[torch.dtype, Tensor] = {}
        if deferred:
            for _, optimiser in optimisers.named():
                # declared nowhere: PyTorch's fused optimisers look for it
                optimiser.found_inf = self.found  # pyright: ignore[reportAttributeAccessIssue]

    def begin(self) -> None:
        """Copy what a step changes before its last loss is known: running statistics (of the teachers too), and the
        weights and states of the early optimisers.
        """
        tensors = list(self.model.buffers())
        for name, optimiser in self.optimisers.named():
            if name in self.early:
                weights = [p for group in optimiser.param_groups for p in group["params"]]
                tensors += weights
                tensors += [v for p in weights for v in optimiser.state[p].values() if isinstance(v, Tensor)]
        self._live = [_flat(t) for t in tensors]
        self._before = {d: torch.cat(self._of(d)) for d in dict.fromkeys(t.dtype for t in tensors)}

    def forget(self) -> None:
        """Take back a `begin` whose step did not run."""
        self._live, self._before = [], {}

    def _of(self, dtype: torch.dtype) -> list[Tensor]:
        return [t for t in self._live if t.dtype == dtype]

    @torch.no_grad()
    def failed(self, terms: dict[str, Tensor]) -> bool:
        """Note the terms so far. True, never when deferred, if one is not finite: the step must end."""
        absent = self.values.new_zeros(self.values.shape[1])
        rows = [terms[name].expand_as(absent) if name in terms else absent for name in self.terms]
        self.values.copy_(torch.stack(rows))
        processes.mean_(self.values)  # so that all processes decide alike
        self._bad.copy_(self.values.isfinite().all(dim=1).logical_not())
        self.found.copy_(self._bad.any())
        return not self.deferred and bool(self.found)

    @torch.no_grad()
    def finish(self, *, failed: bool) -> None:
        """End a step: put back what a bad one changed, and count it. ``failed`` as `failed` answered."""
        found = self.found > 0
        if failed or self.deferred:
            for dtype, before in self._before.items():
                live = self._of(dtype)
                kept = torch.where(found, before, torch.cat(live))
                torch._foreach_copy_(live, list(kept.split([t.numel() for t in live])))
        self.forget()
        count, longest, row = self._counts
        row = (row + found) * found
        self._counts.copy_(torch.stack([count + found, torch.maximum(longest, row), row]))
        self._names.logical_or_(self._bad)

    def skips(self) -> Skips:
        """The steps that were skipped since the last call. This waits for the device."""
        count, longest, row, *bad = torch.cat([self._counts, self._names]).tolist()
        self._counts[:2] = 0
        self._names.zero_()
        return Skips(count, longest, row, [name for name, one in zip(self.terms, bad, strict=True) if one])


class StepResult:
    """What a step came to: read at once, or from a deferred guard when it is asked for.

    Then it must be asked before the next step, whose numbers take the place of these; AssertionError after.
    """

    def __init__(self, guard: Guard, names: list[str]) -> None:
        self._guard, self._names, self._number = guard, names, guard.steps
        self._read = None if guard.deferred else guard.values.tolist()

    @property
    def terms(self) -> dict[str, list[float] | float]:
        """The terms as numbers, one a stream where they are; of a step left at its first bad loss, those up to it."""
        if self._read is None:
            assert self._guard.steps == self._number, "a step's terms must be read before the next step"
            self._read = self._guard.values.tolist()
        rows = ((name, self._read[self._guard.terms.index(name)]) for name in self._names)
        return {name: row[0] if name in self._guard.totals else row for name, row in rows}

    @property
    def non_finite(self) -> list[str]:
        """Names of the terms that are not finite; where there are any, the step changed nothing."""
        values = self.terms.items()
        return [n for n, v in values if not all(map(math.isfinite, v if isinstance(v, list) else [v]))]
