"""Muon: orthogonal steps, AdamW for the rest, and a state that resumes."""

import pytest
import torch
from train_runs import everything, go, same, small_run, small_state

from livetalk_model.train.loop.muon import Muon, orthogonal
from livetalk_model.train.loop.saving import last_checkpoint, load
from livetalk_model.train.loop.training import start_state

SETTINGS = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0}


@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (8, 8)])
def test_a_matrix_becomes_orthogonal(shape):
    """Its directions stay, their sizes become nearly one."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    turned = orthogonal(1e-3 * matrix)
    within = left.mT @ turned @ right.mT
    assert (within.diagonal() - 1).abs().max() < 0.35
    assert (within - within.diagonal().diag()).abs().max() < 1e-3
    assert orthogonal(torch.zeros(shape)).abs().max() == 0


def test_what_is_no_matrix_steps_as_with_adamw():
    """And a matrix as far as with AdamW, whose steps are about the rate."""
    bias, kernel = torch.zeros(5), torch.zeros(16, 8, 3, 3)
    ours, theirs = (torch.nn.Parameter(bias.clone()) for _ in range(2))
    weight, unused = torch.nn.Parameter(kernel), torch.nn.Parameter(torch.ones(4, 4))
    mine = Muon([ours, weight, unused], **SETTINGS)
    other = torch.optim.AdamW([theirs], **SETTINGS)
    for step in range(4):
        ours.grad = torch.randn(5, generator=torch.Generator().manual_seed(step))
        theirs.grad = ours.grad.clone()
        weight.grad = torch.randn(kernel.shape, generator=torch.Generator().manual_seed(step))
        before = weight.detach().clone()
        mine.step()
        other.step()
        moved = (weight.detach() - before).square().mean().sqrt()
        assert moved == pytest.approx(0.01 * 0.2, rel=0.25)
    assert torch.allclose(ours, theirs, atol=1e-7) and (unused == 1).all()


def test_it_resumes_bit_for_bit_with_rates_that_rise_and_fall(tmp_path):
    run = small_run(optimizer="muon", warm_up=0.4, cool_down=0.5)

    def begin():
        networks = small_state().networks
        return start_state(run, networks, dict.fromkeys(networks, run.learning_rate))

    whole, parts, resumed = begin(), begin(), begin()
    assert any("momentum" in entry for entry in [*_states(whole, run, tmp_path / "whole")])
    go(run, parts, tmp_path / "parts", asked=lambda: parts.step == 3)
    load(resumed, last_checkpoint(tmp_path / "parts"))
    go(run, resumed, tmp_path / "parts")
    assert same(everything(whole), everything(resumed))


def _states(state, run, folder):
    go(run, state, folder)
    return [entry for optimizer in state.optimizers.values() for entry in optimizer.state.values()]


def test_rates_rise_and_fall():
    run = small_run(steps=100, warm_up=0.1, cool_down=0.5)
    factors = [run.rate_factor(step) for step in range(100)]
    assert factors[0] == pytest.approx(0.1) and factors[9:51] == [1.0] * 42
    assert factors[75] == pytest.approx(0.5) and factors[99] < 1e-3
    assert factors[51:] == sorted(factors[51:], reverse=True)
    assert [small_run().rate_factor(step) for step in range(6)] == [1.0] * 6
