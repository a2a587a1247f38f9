"""Triton bodies of loss_identity: all terms in one launch, all gradients in another.

Forward, a program serves one stream of one term, ROWS rows at a time: DG-Net's batches have 8 rows a stream, so
nothing is left to merge. Backward, a program serves ROWS rows. A kernel takes MOST terms as arguments of their
own, since each may have its own dtypes; more terms take more launches. What a term's target is, labels or
probabilities, is known by its type.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from dgnet_fast.kernels.lists import numbered
from torch import Tensor

ROWS = 4
COLUMNS = 1024  # at most: longer rows are read in pieces
MOST = 6


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
    x0, x1, x2, x3, x4, x5, target0, target1, target2, target3, target4, target5, batch0, batch1, batch2, batch3,
    batch4, batch5, row0, row1, row2, row3, row4, row5, terms_ptr, kept_ptr, rows, ids, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Terms (T, streams); in `kept` (2, rows of all terms) those of term k begin at row k."""
    term = tl.program_id(1)
    to = terms_ptr + term * tl.num_programs(0) + tl.program_id(0)
    sums_ptr = kept_ptr + rows
    if term == 0:
        _forward_term(x0, target0, to, kept_ptr + row0, sums_ptr + row0, batch0, ids, ROWS, COLUMNS)
    if x1 is not None:
        if term == 1:
            _forward_term(x1, target1, to, kept_ptr + row1, sums_ptr + row1, batch1, ids, ROWS, COLUMNS)
    if x2 is not None:
        if term == 2:
            _forward_term(x2, target2, to, kept_ptr + row2, sums_ptr + row2, batch2, ids, ROWS, COLUMNS)
    if x3 is not None:
        if term == 3:
            _forward_term(x3, target3, to, kept_ptr + row3, sums_ptr + row3, batch3, ids, ROWS, COLUMNS)
    if x4 is not None:
        if term == 4:
            _forward_term(x4, target4, to, kept_ptr + row4, sums_ptr + row4, batch4, ids, ROWS, COLUMNS)
    if x5 is not None:
        if term == 5:
            _forward_term(x5, target5, to, kept_ptr + row5, sums_ptr + row5, batch5, ids, ROWS, COLUMNS)


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
    grad_x0, grad_x1, grad_x2, grad_x3, grad_x4, grad_x5, x0, x1, x2, x3, x4, x5, target0, target1, target2,
    target3, target4, target5, batch0, batch1, batch2, batch3, batch4, batch5, row0, row1, row2, row3, row4,
    row5, grad_ptr, kept_ptr, streams, rows, ids, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Gradients of the terms that have somewhere to put them; programs beyond a term's rows have nothing to do."""
    term = tl.program_id(1)
    grad = grad_ptr + term * streams
    sums_ptr = kept_ptr + rows
    if grad_x0 is not None:
        if term == 0:
            _backward_term(
                grad_x0, x0, target0, grad, kept_ptr + row0, sums_ptr + row0, batch0, streams * batch0, ids,
                ROWS, COLUMNS,
            )  # fmt: skip
    if grad_x1 is not None:
        if term == 1:
            _backward_term(
                grad_x1, x1, target1, grad, kept_ptr + row1, sums_ptr + row1, batch1, streams * batch1, ids,
                ROWS, COLUMNS,
            )  # fmt: skip
    if grad_x2 is not None:
        if term == 2:
            _backward_term(
                grad_x2, x2, target2, grad, kept_ptr + row2, sums_ptr + row2, batch2, streams * batch2, ids,
                ROWS, COLUMNS,
            )  # fmt: skip
    if grad_x3 is not None:
        if term == 3:
            _backward_term(
                grad_x3, x3, target3, grad, kept_ptr + row3, sums_ptr + row3, batch3, streams * batch3, ids,
                ROWS, COLUMNS,
            )  # fmt: skip
    if grad_x4 is not None:
        if term == 4:
            _backward_term(
                grad_x4, x4, target4, grad, kept_ptr + row4, sums_ptr + row4, batch4, streams * batch4, ids,
                ROWS, COLUMNS,
            )  # fmt: skip
    if grad_x5 is not None:
        if term == 5:
            _backward_term(
                grad_x5, x5, target5, grad, kept_ptr + row5, sums_ptr + row5, batch5, streams * batch5, ids,
                ROWS, COLUMNS,
            )  # fmt: skip


def _constants(ids: int) -> dict[str, int]:
    return {"ROWS": ROWS, "COLUMNS": min(COLUMNS, triton.next_power_of_2(ids)), "num_warps": 8}


def _first_rows(logits: list[Tensor]) -> list[int]:
    """Where each term's rows begin among those of all."""
    firsts = [0]
    for x in logits:
        firsts.append(firsts[-1] + len(x))
    return firsts[:-1]


def forward(logits: list[Tensor], targets: list[Tensor]) -> tuple[Tensor, Tensor]:
    """(terms (T, S), kept (2, rows of all terms)), float32, of contiguous tensors."""
    streams, ids = targets[0].shape[0], logits[0].shape[1]
    terms = torch.empty((len(logits), streams), dtype=torch.float32, device=logits[0].device)
    kept = torch.empty((2, sum(map(len, logits))), dtype=torch.float32, device=logits[0].device)
    firsts = _first_rows(logits)
    for start in range(0, len(logits), MOST):
        some = slice(start, start + MOST)
        forward_terms[(streams, len(logits[some]))](
            **numbered(
                MOST, x=logits[some], target=targets[some], batch=[t.shape[1] for t in targets[some]],
                row=firsts[some],
            ),
            terms_ptr=terms[start:], kept_ptr=kept, rows=kept.shape[1], ids=ids, **_constants(ids),
        )  # fmt: skip
    return terms, kept


def backward(
    grad: Tensor, kept: Tensor, logits: list[Tensor], targets: list[Tensor], gradients: list[Tensor]
) -> None:
    """Fills `gradients` from the gradient (T, S) of the terms; empty ones are not wanted."""
    streams, ids, firsts = targets[0].shape[0], logits[0].shape[1], _first_rows(logits)
    for start in range(0, len(logits), MOST):
        some = slice(start, start + MOST)
        wanted = [x if x.numel() else None for x in gradients[some]]
        if not any(x is not None for x in wanted):
            continue
        programs = triton.cdiv(max(map(len, logits[some])), ROWS)
        backward_terms[(programs, len(wanted))](
            **numbered(
                MOST, grad_x=wanted, x=logits[some], target=targets[some],
                batch=[t.shape[1] for t in targets[some]], row=firsts[some],
            ),
            grad_ptr=grad[start:], kept_ptr=kept, streams=streams, rows=kept.shape[1], ids=ids,
            **_constants(ids),
        )  # fmt: skip
