"""Muon for matrices and Adam for the rest, as one optimiser."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from dgnet_fast.checkpoints.schema import check_optimiser
from dgnet_fast.config import Config
from dgnet_fast.training.muon import MuonAdam, as_matrices, orthogonalised
from dgnet_fast.training.optim import generator_optimiser

SHAPES = ((16, 8, 3, 3), (16, 8, 3, 3), (4, 32, 1, 1), (3, 6, 5), (16,), (2, 3))


def parameters(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def gradients(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 + seed)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def moved(
    optimiser: torch.optim.Optimizer, those: list[nn.Parameter], places: list[int], steps: int = 3
) -> None:
    for step in range(steps):
        for place, parameter in zip(places, those, strict=True):
            parameter.grad = gradients(step)[place].reshape(parameter.shape)
        optimiser.step()


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 8, 40), (2, 40, 8)])
def test_singular_values_come_close_to_one(shape):
    found = torch.linalg.svdvals(
        orthogonalised(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    )
    assert found.max() < 1.25
    if shape[1] != shape[2]:  # a square random matrix has singular values near 0, which rise more slowly
        assert found.min() > 0.6


def test_bfloat16_inside_changes_little_and_small_matrices_not_at_all():
    x = torch.randn(2, 64, 160, generator=torch.Generator().manual_seed(0))
    exact, low = orthogonalised(x), orthogonalised(x, torch.bfloat16)
    assert low.dtype == torch.float32
    assert not torch.equal(low, exact)
    torch.testing.assert_close(low, exact, atol=0.02, rtol=0.0)
    assert torch.equal(orthogonalised(x[:, :32], torch.bfloat16), orthogonalised(x[:, :32]))


@pytest.mark.parametrize(("amp", "low"), [("off", None), ("bf16", torch.bfloat16), ("fp16", None)])
def test_it_is_in_bfloat16_inside_where_the_step_is(amp, low):
    config = Config(muon=30.0, amp=amp)
    optimiser = generator_optimiser(parameters(), config, 0.01, fused=False)
    assert isinstance(optimiser, MuonAdam)
    assert optimiser.low == low


def test_matrices_move_as_with_pytorchs_muon():
    ours, places = parameters(), [0, 1, 2, 3]
    theirs = [nn.Parameter(one.detach().clone()) for p in ours[:4] for one in as_matrices(p)]
    of_place = [k for k, p in enumerate(ours[:4]) for _ in as_matrices(p)]
    plain = torch.optim.Muon(theirs, lr=0.3, weight_decay=0.0, momentum=0.9)
    for step in range(3):
        given = [one for g in gradients(step)[:4] for one in as_matrices(g)]
        for parameter, gradient in zip(theirs, given, strict=True):
            parameter.grad = gradient.clone()
        plain.step()
    moved(MuonAdam(ours, 0.01, (0.5, 0.999), factor=30.0), ours, [*places, 4, 5])
    reached = [one for p in ours[:4] for one in as_matrices(p.detach())]
    assert len(of_place) == len(reached)
    for one, other in zip(reached, theirs, strict=True):
        torch.testing.assert_close(one, other.detach(), atol=0.05, rtol=0.0)  # theirs is bfloat16 inside


def test_vectors_and_matrices_of_other_kinds_move_as_with_adam():
    ours, theirs, places = parameters(), parameters(), [4, 5]
    moved(MuonAdam(ours[4:], 0.01, (0.5, 0.999), weight_decay=0.1), ours[4:], places)
    moved(torch.optim.Adam(theirs[4:], 0.01, (0.5, 0.999), weight_decay=0.1), theirs[4:], places)
    for one, other in zip(ours[4:], theirs[4:], strict=True):
        assert torch.equal(one, other)


def test_matrices_of_one_shape_move_as_each_alone():
    ours, alone = parameters(), parameters()
    moved(MuonAdam(ours, 0.01, (0.5, 0.999)), ours, list(range(len(SHAPES))))
    for place, parameter in enumerate(alone):
        moved(MuonAdam([parameter], 0.01, (0.5, 0.999)), [parameter], [place])
        torch.testing.assert_close(ours[place], parameter)


def test_a_bad_gradient_changes_nothing():
    ours = parameters()
    optimiser = MuonAdam(ours, 0.01, (0.5, 0.999), fused=True)
    moved(optimiser, ours, list(range(len(SHAPES))))
    before = [p.detach().clone() for p in ours]
    state = [v.clone() for p in ours for v in optimiser.state[p].values()]
    for parameter in ours:
        parameter.grad = torch.full_like(parameter, float("nan"))
    optimiser.found_inf = torch.ones(())
    optimiser.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, before, strict=True))
    assert all(
        torch.equal(a, b)
        for a, b in zip([v for p in ours for v in optimiser.state[p].values()], state, strict=True)
    )


def test_a_loss_scale_is_divided_out():
    ours, theirs, places = parameters(), parameters(), list(range(len(SHAPES)))
    moved(MuonAdam(ours, 0.01, (0.5, 0.999)), ours, places)
    scaled = MuonAdam(theirs, 0.01, (0.5, 0.999), fused=True)
    scaled.grad_scale, scaled.found_inf = torch.tensor(8.0), torch.zeros(())
    for step in range(3):
        for parameter, gradient in zip(theirs, gradients(step), strict=True):
            parameter.grad = 8 * gradient
        scaled.step()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_its_state_is_saved_and_another_optimisers_is_refused():
    ours, places = parameters(), list(range(len(SHAPES)))
    optimiser = MuonAdam(ours, 0.01, (0.5, 0.999))
    moved(optimiser, ours, places)
    again = [nn.Parameter(p.detach().clone()) for p in ours]
    other = MuonAdam(again, 0.01, (0.5, 0.999))
    check_optimiser(other, optimiser.state_dict(), "state.pt")
    other.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    moved(optimiser, ours, places)
    moved(other, again, places)
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))

    adam = torch.optim.Adam(ours, 0.01)
    with pytest.raises(ValueError, match="state.pt was saved with Muon, and option muon asks for Adam"):
        check_optimiser(adam, optimiser.state_dict(), "state.pt")
    with pytest.raises(ValueError, match="state.pt was saved with Adam, and option muon asks for Muon"):
        check_optimiser(optimiser, adam.state_dict(), "state.pt")
