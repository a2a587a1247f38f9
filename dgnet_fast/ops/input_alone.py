"""A gradient with respect to the input alone, of layers that are written in Python.

``torch.autograd.grad`` to an input tells PyTorch's own nodes that nobody wants the gradients of weight and bias; nodes
written in Python do not learn of it, and each of the two costs as much as the one wanted.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class InputAlone:
    """The convolutions of one forward pass, which a backward pass may ask for the gradient of their input alone.

    Call the network within `forward`, and ``torch.autograd.grad`` to its input within `backward`. The nodes keep this
    object, since backward passes on CUDA do not run in the thread that asks for them; passes of other threads are
    other objects.
    """

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Within it the convolutions that this thread calls belong to this object."""
        before = current()
        _THREAD.current = self
        try:
            yield
        finally:
            _THREAD.current = before

    @contextmanager
    def backward(self) -> Iterator[None]:
        """Within it they leave out the gradients of weight and bias, whichever thread runs the backward pass."""
        self.asked = True
        try:
            yield
        finally:
            self.asked = False


class _Thread(threading.local):
    current: InputAlone | None = None


_THREAD = _Thread()


def current() -> InputAlone | None:
    """The object whose `forward` this thread is in; None while torch.compile reads, whose pullbacks know what is wanted."""
    return None if torch.compiler.is_compiling() else _THREAD.current


def needed(pass_: InputAlone | None, needs: tuple[bool, ...]) -> list[bool]:
    """Which gradients of (input, weight, bias) to make, from those that autograd says are needed."""
    input_alone = pass_ is not None and pass_.asked
    return [needs[0], *(need and not input_alone for need in needs[1:3])]
