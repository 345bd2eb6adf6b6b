"""The transformer in training: the same numbers as in a stream, in batches, with gradients."""

import pytest
import torch
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from train_samples import (
    CONFIG,
    SIZE,
    random_conditions,
    sample,
    small_network,
    training_ops,
)

from livetalk_kernels import KernelConfig, bind_ops
from livetalk_kernels.runtime.comm import Communicator
from livetalk_kernels.testing.processes import run_ranks
from livetalk_model.dit import DiT
from livetalk_model.sampler import timesteps
from livetalk_model.train.chunks.network import MASK_CHANNELS, Network

TIMES = torch.tensor([1000.0, float(timesteps(4, 5.0)[3]), 100.0])


def latents(batch: int) -> Tensor:
    return torch.randn(batch, 16, *SIZE, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("choice", ["auto", "reference"])
def test_one_sample_is_bit_equal_to_a_stream(choice) -> None:
    network = small_network(training_ops(choice))
    dit, x, given = network.dit, latents(1), random_conditions(1)
    mask = torch.zeros(1, MASK_CHANNELS, *SIZE)
    mask[:, :, 0] = 1
    with torch.inference_mode():
        expected = dit(
            x,
            step=dit.prepare_steps(timesteps(4, 5.0)[:-1])[3],
            condition=dit.prepare_condition(torch.cat((mask, given.portrait), 1)),
            context=dit.prepare_context(given.text[0], given.image),
            audio=dit.prepare_audio(given.windows),
            norm_rope=dit.prepare_rope(dit.token_grid(x)),
        )
    assert expected.std() > 0.1
    assert torch.equal(network(x, TIMES[1:2], given), expected)


def test_a_batch_is_its_samples() -> None:
    network, x, given = small_network(), latents(3), random_conditions(3)
    together = network(x, TIMES, given)
    for index in range(3):
        one = slice(index, index + 1)
        alone = network(x[one], TIMES[one], sample(given, index))
        assert torch.allclose(together[one], alone, rtol=1e-4, atol=1e-5)


def test_every_weight_learns() -> None:
    """The derivative along the gradient, one parameter at a time, against a difference."""
    network, x, given = small_network(), latents(2), random_conditions(2)
    target = torch.randn(x.shape, generator=torch.Generator().manual_seed(8))

    def loss() -> Tensor:
        return (network(x, TIMES[:2], given) * target).mean(dtype=torch.float64)

    names, parameters = zip(*network.named_parameters(), strict=True)
    for name, parameter, gradient in zip(
        names, parameters, torch.autograd.grad(loss(), parameters), strict=True
    ):
        assert gradient.isfinite().all() and gradient.norm() > 0, name
        direction = gradient / gradient.norm()
        step = 2e-3 * max(float(parameter.detach().norm()), 1.0)
        with torch.no_grad():
            parameter += step * direction
            above = loss()
            parameter -= 2 * step * direction
            slope = float(above - loss()) / (2 * step)
            parameter += step * direction
        assert slope == pytest.approx(float(gradient.norm()), rel=0.02, abs=2e-6), name


def sharded_gradients(communicator: Communicator) -> float:
    """Largest relative distance of the gradients of a sharded network from those of a whole one."""
    whole, network = small_network(), small_network()
    for block in network.dit.blocks:
        fully_shard(block)
    fully_shard(network)
    x, given = latents(2), random_conditions(2)
    own = slice(communicator.rank, communicator.rank + 1)
    network(x[own], TIMES[:2][own], sample(given, communicator.rank)).square().mean().backward()
    whole(x, TIMES[:2], given).square().mean().backward()
    distances = []
    for mine, its in zip(network.parameters(), whole.parameters(), strict=True):
        gradient = mine.grad.full_tensor()
        distances.append(float((gradient - its.grad).norm() / its.grad.norm().clamp(min=1e-4)))
    return max(distances)


def test_blocks_can_be_sharded() -> None:
    assert max(run_ranks(sharded_gradients, 2)) < 1e-4


def test_dropped_conditions_do_not_matter() -> None:
    network, x, given = small_network(), latents(2), random_conditions(2)
    other = random_conditions(2, seed=9)
    none, both = torch.zeros(2, dtype=torch.bool), torch.ones(2, dtype=torch.bool)
    for changed, dropped in (("text", (both, none)), ("windows", (none, both))):
        mixed = type(given)(**vars(given) | {changed: getattr(other, changed)})
        text, audio = dropped
        outputs = [network(x, TIMES[:2], c.drop(text=text, audio=audio)) for c in (given, mixed)]
        assert torch.equal(*outputs)
        assert not torch.allclose(network(x, TIMES[:2], given), network(x, TIMES[:2], mixed))
    assert torch.equal(given.drop(text=none, audio=none).text, given.text)


def test_ops_without_gradients_are_no_network() -> None:
    with torch.device("meta"):
        dit = DiT(CONFIG, bind_ops(KernelConfig(), device="cpu", dtype=torch.float32))
    with pytest.raises(AssertionError, match="differentiable"):
        Network(dit)
