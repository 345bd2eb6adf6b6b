"""The formulas of training where the answer is known in closed form."""

from dataclasses import replace

import pytest
import self_correction as known
import torch
from torch import Tensor

from livetalk_kernels.errors import UserError
from livetalk_model.sampler import timesteps
from livetalk_model.train.chunks.flow import (
    add_noise,
    clean_of,
    free_positions,
    score_times,
    shifted,
    velocity,
    with_motion,
)
from livetalk_model.train.chunks.losses import (
    flow_loss,
    matching_gradient,
    matching_loss,
    mean_over,
    regression_loss,
)
from livetalk_model.train.chunks.network import Conditions
from livetalk_model.train.chunks.scores import guided_velocity, noised_for_scores, real_score
from livetalk_model.train.config import Distillation, Guidance
from livetalk_model.train.draws import Draws


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# Flow --------------------------------------------------------------------------------------


def test_times_are_the_samplers() -> None:
    uniform = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0])
    assert torch.allclose(1000 * shifted(uniform), timesteps(4, 5.0))
    assert score_times(torch.tensor([0.0, 1.0])).tolist() == pytest.approx([0.02, 0.98])


def test_the_velocity_leads_back() -> None:
    clean, noise, time = draw(3, 2, 4, 2, 2), draw(3, 2, 4, 2, 2, seed=1), torch.rand(3)
    x = add_noise(clean, noise, time)
    assert torch.allclose(clean_of(x, velocity(clean, noise), time), clean, atol=1e-6)
    motion = draw(3, 2, 2, 2, 2, seed=2)
    held = with_motion(x, motion)
    assert torch.equal(held[:, :, :2], motion) and torch.equal(held[:, :, 2:], x[:, :, 2:])


def test_positions_that_count() -> None:
    free = free_positions(torch.tensor([0, 1, 2]), 3)
    assert free.shape == (3, 1, 3, 1, 1)
    assert free.view(3, 3).tolist() == [[True] * 3, [False, True, True], [False, False, True]]
    values = draw(3, 2, 3, 4, 5)
    expected = [values[0].mean(), values[1, :, 1:].mean(), values[2, :, 2:].mean()]
    assert torch.allclose(mean_over(values, free), torch.stack(expected), rtol=1e-6, atol=1e-7)


def test_optimum_of_stage_one_on_gaussian_data() -> None:
    """A velocity that is linear in x is fitted by the loss; the optimum is E[noise - clean | x]."""
    mean, std, count = 0.7, 0.4, 60_000
    clean, noise = mean + std * draw(1, 1, 1, 1, count), draw(1, 1, 1, 1, count, seed=1)
    everywhere = free_positions(torch.tensor([0]), 1)
    for t in (0.1, 0.5, 0.9):
        time = torch.tensor([t])
        x = add_noise(clean, noise, time)
        slope, offset = (torch.zeros((), requires_grad=True) for _ in range(2))
        fit = torch.optim.LBFGS([slope, offset], lr=1, max_iter=30, line_search_fn="strong_wolfe")

        def loss(fit=fit, slope=slope, offset=offset, x=x) -> Tensor:
            fit.zero_grad()
            value = flow_loss(slope * x + offset, clean, noise, everywhere)
            value.backward()
            return value

        fit.step(loss)
        variance = (1 - t) ** 2 * std**2 + t**2
        exact = (t - (1 - t) * std**2) / variance
        assert float(slope.detach()) == pytest.approx(exact, abs=0.01)
        assert float(offset.detach()) == pytest.approx(-mean - exact * (1 - t) * mean, abs=0.01)


# Scores ------------------------------------------------------------------------------------


@pytest.mark.parametrize("time", [0.2, 0.5, 0.8])
def test_the_matching_gradient_is_that_of_the_divergence(time: float) -> None:
    for found, exact in known.gaussian_gradients(time).values():
        assert found == pytest.approx(exact, rel=0.01, abs=0.001)


def linear(x: Tensor, timestep: Tensor, given: Conditions) -> Tensor:
    """A velocity that shows which conditions there are."""
    text = given.text.mean((1, 2)).view(-1, 1, 1, 1, 1)
    audio = given.windows.mean((1, 2, 3, 4)).view(-1, 1, 1, 1, 1)
    return x + audio + 10 * text + 100 * text * audio


def given_both() -> Conditions:
    return Conditions(
        portrait=torch.zeros(2, 1, 2, 1, 1),
        text=torch.full((2, 1, 1), 3.0),
        image=torch.zeros(2, 1, 1),
        windows=torch.tensor([2.0, 5.0]).view(2, 1, 1, 1, 1),
    )


def test_guidance() -> None:
    x, timestep, given = draw(2, 1, 2, 1, 1), torch.tensor([500.0, 500.0]), given_both()
    both, none = torch.ones(2, dtype=torch.bool), torch.zeros(2, dtype=torch.bool)

    def guided(audio: float, text: float | None) -> Tensor:
        return guided_velocity(linear, x, timestep, given, Guidance(audio=audio, text=text))

    v_at = linear(x, timestep, given)
    v_a = linear(x, timestep, given.drop(text=both, audio=none))
    v_0 = linear(x, timestep, given.drop(text=both, audio=both))
    v_t = linear(x, timestep, given.drop(text=none, audio=both))
    close = {"rtol": 1e-5, "atol": 1e-4}
    assert torch.allclose(guided(1, 1), v_at, **close)
    assert torch.allclose(guided(1, 0), v_a, **close)
    assert torch.allclose(guided(0, 0), v_0, **close)
    assert torch.allclose(guided(2.5, 2.5), v_0 + 2.5 * (v_at - v_0), **close)
    assert torch.allclose(guided(4, 3), v_0 + 4 * (v_a - v_0) + 3 * (v_at - v_a), **close)
    assert torch.allclose(guided(4, None), v_t + 4 * (v_at - v_t), **close)
    time = timestep / 1000
    expected = clean_of(x, guided(4, 3), time)
    assert torch.equal(real_score(linear, x, time, given, Guidance()), expected)


def test_motion_in_the_scores() -> None:
    student, motion, noise = draw(2, 1, 3, 2, 2), draw(2, 1, 2, 2, 2, seed=1), draw(2, 1, 3, 2, 2)
    time = torch.tensor([0.25, 0.5])
    clean = noised_for_scores(student, motion, noise, time, "clean")
    noised = noised_for_scores(student, motion, noise, time, "noised")
    assert torch.equal(clean[:, :, :2], motion)
    assert torch.equal(noised[:, :, :2], add_noise(motion, noise[:, :, :2], time))
    assert torch.equal(clean[:, :, 2:], noised[:, :, 2:])
    assert torch.equal(clean[:, :, 2:], add_noise(student, noise, time)[:, :, 2:])


# Losses ------------------------------------------------------------------------------------


def test_the_gradient_of_the_matching_loss() -> None:
    student = (100 * draw(2, 3, 4, 2, 2)).requires_grad_()  # large compared to g
    fake, real = student.detach() + draw(2, 3, 4, 2, 2, seed=1), draw(2, 3, 4, 2, 2, seed=2)
    free = free_positions(torch.tensor([2, 1]), 4)
    g = matching_gradient(student, fake, real, free)
    sizes = (student - real).abs().detach()
    for index, known_frames in enumerate((2, 1)):
        size = sizes[index, :, known_frames:].mean() + 1e-6
        assert torch.allclose(g[index], (fake - real)[index] / size, rtol=1e-5)
    loss = matching_loss(student, g, free)
    (found,) = torch.autograd.grad(loss, student)
    count = torch.tensor([3 * 2 * 4, 3 * 3 * 4]).view(2, 1, 1, 1, 1)
    assert torch.allclose(found, torch.where(free, g / count / 2, 0), rtol=3e-7, atol=0)
    assert loss.item() == pytest.approx(float(0.5 * mean_over(g.square(), free).mean()))


def test_the_regression() -> None:
    a, b = draw(1, 2, 3, 2, 2), draw(1, 2, 3, 2, 2, seed=1)
    free = free_positions(torch.tensor([1]), 3)
    assert torch.allclose(regression_loss(a, b, free), (a - b)[:, :, 1:].square().mean())


# Draws -------------------------------------------------------------------------------------


def test_draws_depend_on_their_place_alone() -> None:
    draws = Draws(seed=3)
    whole = draws.noise("x", (2, 3), step=4, samples=list(range(6)))
    for world in (2, 3):  # ranks that share the samples
        parts = [
            draws.noise("x", (2, 3), step=4, samples=list(range(rank, 6, world)))
            for rank in range(world)
        ]
        for rank, part in enumerate(parts):
            assert torch.equal(part, whole[rank::world])
    assert torch.equal(draws.uniform("u", step=1, samples=[5]), Draws(seed=3).uniform(
        "u", step=1, samples=[2, 5])[1:])  # fmt: skip
    for other in (
        Draws(seed=4).noise("x", (2, 3), step=4, samples=[0]),
        draws.noise("y", (2, 3), step=4, samples=[0]),
        draws.noise("x", (2, 3), step=5, samples=[0]),
    ):
        assert not torch.equal(other, whole[:1])


def test_draws_are_even() -> None:
    draws, count = Draws(seed=0), 3000
    chunks = torch.tensor([draws.below(5, "chunk", step=step) for step in range(count)])
    exits = torch.tensor([draws.below(4, "exit", step=7, micro=micro) for micro in range(count)])
    assert chunks.min() == 0 and chunks.max() == 4 and exits.min() == 0 and exits.max() == 3
    for values, choices in ((chunks, 5), (exits, 4)):
        shares = values.unique(return_counts=True)[1] / count
        assert ((shares - 1 / choices).abs() < 4 * (1 / choices / count) ** 0.5).all()
    uniform = torch.cat([draws.shared_uniform("t", step=step) for step in range(count)])
    assert abs(float(uniform.mean()) - 0.5) < 0.03 and uniform.min() >= 0 and uniform.max() < 1
    noise = draws.noise("n", (50,), step=0, samples=list(range(200)))
    assert abs(float(noise.mean())) < 0.05 and abs(float(noise.std()) - 1) < 0.05


# The whole: a stream that continues from its own last value ------------------------------


def test_self_correction_needs_a_second_chunk() -> None:
    one = known.distill_scalar(1, updates=150)
    assert one.a[-1] > 1 and one.a[-1] + one.b[-1] == pytest.approx(1, abs=0.01)
    assert known.twins(one.a[-1], one.b[-1], one.std[-1], chunks=30)[-1] > 1.5
    for chunks in (2, 5):
        many = known.distill_scalar(chunks, updates=250)
        assert many.a[-1] == pytest.approx(known.RHO, abs=0.01)
        assert many.b[-1] == pytest.approx(1 - known.RHO, abs=0.01)
        assert many.std[-1] == pytest.approx(known.STD, abs=0.01)
        assert known.twins(many.a[-1], many.b[-1], many.std[-1], chunks=10)[-1] < 0.01


def test_a_trained_critic_teaches_the_same() -> None:
    run = known.distill_scalar(3, updates=150, trained_critic=True, batch=32)
    assert run.a[-1] == pytest.approx(known.RHO, abs=0.05)


# Configuration -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [{"chunks": 0}, {"chunks": 2.5}, {"generator_every": 0}, {"history": "true"},
     {"score_motion": "dirty"}, {"regression": -1.0}, {"regression": float("nan")}],
)  # fmt: skip
def test_impossible_switches(wrong: dict) -> None:
    with pytest.raises(UserError) as error:
        Distillation(**wrong)
    assert next(iter(wrong)) in str(error.value) and "\n" not in str(error.value)
    assert replace(Distillation(), chunks=1).history == "generated"
