"""Gradients through the VAE: the same by every schedule, and of the weights of the moment."""

import pytest
import torch
from torch import Tensor
from train_samples import small_vae, training_ops

from livetalk_model.vae import VAE

SCHEDULES = {"reuse": {}, "fused": {"fuse_bias": True}, "published": {"reuse": False}}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def loss(vae: VAE, frames: int = 9) -> Tensor:
    """A number that depends on every weight: of two videos coded and decoded."""
    video = draw(2, 3, frames, 16, 16).clamp(-1, 1)
    latents = vae.encode(video)
    again = vae.decode(latents, clamp=False)
    return (latents * draw(*latents.shape, seed=1)).mean() + (
        again * draw(*again.shape, seed=2)
    ).mean()


def gradients(vae: VAE) -> dict[str, Tensor]:
    parameters = dict(vae.requires_grad_().named_parameters())
    found = torch.autograd.grad(loss(vae), parameters.values(), allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for (name, parameter), gradient in zip(parameters.items(), found, strict=True)
    }


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    """Gradients by the plain formulas."""
    return gradients(small_vae(training_ops("reference"), reuse=False))


@pytest.mark.parametrize("schedule", ["reuse", "fused"])
def test_schedules_have_the_same_gradients(schedule, published) -> None:
    found = gradients(small_vae(**SCHEDULES[schedule]))
    for name, expected in published.items():
        assert expected.norm() > 0, name
        assert (found[name] - expected).norm() < 1e-3 * expected.norm() + 1e-7, name


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_gradients_are_slopes(schedule) -> None:
    vae = small_vae(**SCHEDULES[schedule])
    found = gradients(vae)
    norm = sum(float(gradient.square().sum()) for gradient in found.values()) ** 0.5
    step = 1e-3
    with torch.no_grad():
        sides = []
        for sign in (1, -2):
            for name, parameter in vae.named_parameters():
                parameter += sign * step * found[name] / norm
            sides.append(float(loss(vae)))
    assert (sides[0] - sides[1]) / (2 * step) == pytest.approx(norm, rel=0.02)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_nothing_stale_is_used_while_weights_change(schedule) -> None:
    vae, other = small_vae(**SCHEDULES[schedule]).requires_grad_(), small_vae(reuse=False)
    with torch.no_grad():
        for mine, theirs in zip(vae.parameters(), other.parameters(), strict=True):
            change = 0.1 * torch.randn(mine.shape, generator=torch.Generator().manual_seed(3))
            mine += change
            theirs += change
        other.prepare()
        assert torch.allclose(loss(vae), loss(other), rtol=1e-4, atol=1e-6)
        vae.requires_grad_(False).prepare()
        assert torch.allclose(loss(vae), loss(other), rtol=1e-4, atol=1e-6)


def test_frozen_weights_make_no_graph() -> None:
    vae = small_vae()
    assert not loss(vae).requires_grad
    latents = draw(1, 16, 2, 2, 2).requires_grad_()
    frames = vae.decode(latents)
    assert torch.autograd.grad(frames.square().sum(), latents)[0].norm() > 0
