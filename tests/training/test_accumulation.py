"""Gradients that are added up with one call for all, against `Tensor.backward`, which adds them weight by weight."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from dgnet_fast.training.accumulation import add_gradients


class Names(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func._schema.name.removeprefix("aten::"))
        return func(*args, **(kwargs or {}))


def network():
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 5, 1), nn.Flatten(), nn.Linear(20, 2))
    layers.register_parameter("unused", nn.Parameter(torch.ones(2)))
    return layers.to(torch.float64, memory_format=torch.channels_last)


def test_several_passes_give_what_backward_gives():
    torch.manual_seed(0)
    ours = network()
    plain = network()
    plain.load_state_dict(ours.state_dict())
    learned = list(ours.parameters())
    with Names() as names:
        for number in range(3):
            x = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(number))
            add_gradients([ours(x).square().sum()], None, learned)
    for number in range(3):
        x = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(number))
        plain(x).square().sum().backward()
    for one, other in zip(learned, plain.parameters(), strict=True):
        if other.grad is None:
            assert one.grad is None
            continue
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-13, atol=0)
        assert one.grad.stride() == other.grad.stride()
    assert names.seen.count("_foreach_add_") == 2 and "add_" not in names.seen


def test_gradients_of_one_memory_do_not_add_up_into_each_other():
    """A sum gives both of its arguments the same gradient, and the sum of a tensor one that is expanded."""
    a, b = (torch.zeros(3, requires_grad=True) for _ in range(2))
    for _ in range(2):
        add_gradients([a + b], [torch.tensor([1.0, 2.0, 3.0])], [a, b])
    assert a.grad.tolist() == b.grad.tolist() == [2.0, 4.0, 6.0]
    for _ in range(2):
        add_gradients([a.sum() * 2], None, [a])
    assert a.grad.tolist() == [6.0, 8.0, 10.0]


def test_a_leaf_named_twice_and_one_that_asks_for_none():
    a, fixed = torch.ones(2, requires_grad=True), torch.ones(2)
    add_gradients([(a * fixed).sum()], None, [a, fixed, a])
    assert a.grad.tolist() == [1.0, 1.0] and fixed.grad is None
