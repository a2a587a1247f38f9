"""Triton bodies of loss_identity: all terms in one launch, all gradients in another.

Forward, a program serves one stream of one term, ROWS rows at a time: DG-Net's batches have 8 rows a stream, so
nothing is left to merge. Backward, a program serves ROWS rows. A kernel takes tuples with an entry for each term,
since each may have its own dtypes. What a term's target is, labels or probabilities, is known by its type.
"""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import triton
import triton.language as tl

ROWS = 4
COLUMNS = 1024  # at most: longer rows are read in pieces


@triton.jit
def _tile(x_ptr, row, rows, start, ids, COLUMNS: tl.constexpr):
    """Offsets and mask of a piece of some rows."""
    column = start + tl.arange(0, COLUMNS)[None, :]
    return row[:, None] * ids + column, (row[:, None] < rows) & (column < ids), column


@triton.jit
def _forward_term(
    x_ptr, target_ptr, term_ptr, exponent_ptr, sum_ptr, batch, ids, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """The term of a stream, and what the backward needs of its rows."""
    stream = tl.program_id(0)
    x_ptr += stream * batch * ids
    exponent_ptr += stream * batch
    sum_ptr += stream * batch
    labelled: tl.constexpr = target_ptr.dtype.element_ty == tl.int64
    target_ptr += stream * batch * (1 if labelled else ids)
    total = tl.zeros([ROWS], tl.float32)
    for first in range(0, batch, ROWS):
        row = first + tl.arange(0, ROWS)
        top = tl.full([ROWS], -float("inf"), tl.float32)
        power = tl.zeros([ROWS], tl.float32)
        for start in range(0, ids, COLUMNS):
            at, mask, _ = _tile(x_ptr, row, batch, start, ids, COLUMNS)
            x = tl.load(x_ptr + at, mask, other=-float("inf")).to(tl.float32)
            highest = tl.maximum(top, tl.max(x, 1))
            shift = tl.where(highest == -float("inf"), 0.0, highest)  # rows beyond the batch
            power = power * tl.exp(top - shift) + tl.sum(tl.exp(x - shift[:, None]), 1)
            top = highest
        exponent = top + tl.log(power)
        if labelled:
            label = tl.load(target_ptr + row, row < batch, other=0)
            known = (row < batch) & (label >= 0) & (label < ids)
            x = tl.load(x_ptr + row * ids + label, known, other=float("nan")).to(tl.float32)
            loss = exponent - x
            mass = tl.full([ROWS], 1.0, tl.float32)
        else:
            loss = tl.zeros([ROWS], tl.float32)
            mass = tl.zeros([ROWS], tl.float32)
            for start in range(0, ids, COLUMNS):
                at, mask, _ = _tile(x_ptr, row, batch, start, ids, COLUMNS)
                x = tl.load(x_ptr + at, mask, other=0.0).to(tl.float32)
                q = tl.load(target_ptr + at, mask, other=0.0).to(tl.float32)
                log_q = tl.log(tl.where(q > 0, q, 1.0))
                loss += tl.sum(tl.where(mask, q * (log_q - (x - exponent[:, None])), 0.0), 1)
                mass += tl.sum(q, 1)
        total += tl.where(row < batch, loss, 0.0)
        tl.store(exponent_ptr + row, exponent, row < batch)
        tl.store(sum_ptr + row, mass, row < batch)
    tl.store(term_ptr, tl.sum(total) / batch)


@triton.jit
def forward_terms(
    xs, targets, batches, firsts, terms_ptr, kept_ptr, rows, ids, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Terms (T, streams); in `kept` (2, rows of all terms) those of term k begin at row firsts[k]."""
    term = tl.program_id(1)
    to = terms_ptr + term * tl.num_programs(0) + tl.program_id(0)
    sums_ptr = kept_ptr + rows
    for k in tl.static_range(len(xs)):
        if term == k:
            _forward_term(
                xs[k], targets[k], to, kept_ptr + firsts[k], sums_ptr + firsts[k], batches[k], ids, ROWS, COLUMNS
            )  # fmt: skip


@triton.jit
def _backward_term(
    grad_x_ptr, x_ptr, target_ptr, grad_ptr, exponent_ptr, sum_ptr, batch, rows, ids, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """The gradient of ROWS rows of a term."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    exponent = tl.load(exponent_ptr + row, row < rows, other=0.0)[:, None]
    mass = tl.load(sum_ptr + row, row < rows, other=0.0)[:, None]
    scale = (tl.load(grad_ptr + row // batch, row < rows, other=0.0) / batch)[:, None]
    labelled: tl.constexpr = target_ptr.dtype.element_ty == tl.int64
    if labelled:
        label = tl.load(target_ptr + row, row < rows, other=0)[:, None]
    for start in range(0, ids, COLUMNS):
        at, mask, column = _tile(x_ptr, row, rows, start, ids, COLUMNS)
        x = tl.load(x_ptr + at, mask, other=0.0).to(tl.float32)
        if labelled:
            q = (column == label).to(tl.float32)
        else:
            q = tl.load(target_ptr + at, mask, other=0.0).to(tl.float32)
        grad_x = (tl.exp(x - exponent) * mass - q) * scale
        tl.store(grad_x_ptr + at, grad_x.to(grad_x_ptr.dtype.element_ty), mask)


@triton.jit
def backward_terms(
    grad_xs, xs, targets, batches, firsts, grad_ptr, kept_ptr, streams, rows, ids, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Gradients of the terms that have somewhere to put them; programs beyond a term's rows have nothing to do."""
    term = tl.program_id(1)
    grad = grad_ptr + term * streams
    sums_ptr = kept_ptr + rows
    for k in tl.static_range(len(xs)):
        if grad_xs[k] is not None:
            if term == k:
                _backward_term(
                    grad_xs[k], xs[k], targets[k], grad, kept_ptr + firsts[k], sums_ptr + firsts[k], batches[k],
                    streams * batches[k], ids, ROWS, COLUMNS,
                )  # fmt: skip


def _constants(ids: int) -> dict[str, int]:
    return {"ROWS": ROWS, "COLUMNS": min(COLUMNS, triton.next_power_of_2(ids)), "num_warps": 8}


def _terms(a: SimpleNamespace) -> tuple[tuple, ...]:
    """Logits and targets, rows of a stream, and where the rows of each term begin among those of all."""
    firsts = itertools.accumulate(map(len, a.logits[:-1]), initial=0)
    return tuple(a.logits), tuple(a.targets), tuple(t.shape[1] for t in a.targets), tuple(firsts)


def forward(a: SimpleNamespace) -> None:
    """Fills terms (T, S) and kept (2, rows of all terms) of contiguous tensors."""
    streams, ids = a.targets[0].shape[0], a.logits[0].shape[1]
    forward_terms[(streams, len(a.logits))](
        *_terms(a), a.terms, a.kept, a.kept.shape[1], ids, **_constants(ids)
    )


def backward(a: SimpleNamespace) -> None:
    """Fills `gradients` from the gradient (T, S) of the terms; empty ones are not wanted."""
    streams, ids = a.targets[0].shape[0], a.logits[0].shape[1]
    wanted = tuple(x if x.numel() else None for x in a.gradients)
    if any(x is not None for x in wanted):
        programs = triton.cdiv(max(map(len, a.logits)), ROWS)
        backward_terms[(programs, len(wanted))](
            wanted, *_terms(a), a.grad, a.kept, streams, a.kept.shape[1], ids, **_constants(ids)
        )
