"""Steps of both stages: they learn, they repeat bit for bit, and their numbers mean something."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from train_samples import SIZE, descend, random_conditions, small_network

from livetalk_kernels.errors import NumericsError, UserError
from livetalk_model.sampler import denoise, timesteps
from livetalk_model.train.chunks.distill import Batch, Setup, critic_turn, stand, student_turn
from livetalk_model.train.chunks.flow import velocity
from livetalk_model.train.chunks.health import agreement, cosine, lag, look
from livetalk_model.train.chunks.network import Network
from livetalk_model.train.chunks.rollout import take_step
from livetalk_model.train.chunks.teacher import MOTION_TIME, Lesson, draw_lesson, teacher_loss
from livetalk_model.train.config import Distillation, Guidance, Teaching
from livetalk_model.train.draws import Draws
from livetalk_model.train.loop.update import Average

SHAPE = (16, *SIZE)
SCHEDULE = timesteps(4, 5.0)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# Stage 1 -----------------------------------------------------------------------------------


def lesson(samples: list[int], **shares: float) -> Lesson:
    return draw_lesson(
        Draws(seed=1), (1, 2, 1, 1), step=0, samples=samples, teaching=Teaching(**shares),
        schedule=SCHEDULE,
    )  # fmt: skip


def test_shares_of_a_lesson() -> None:
    count = 2000
    drawn = lesson(list(range(count)), anchored=0.6, drop_both=0.1, drop_text=0.2)
    anchored = torch.isin(drawn.time, SCHEDULE[:-1] / 1000)
    for share, expected in (
        (anchored, 0.6), (drawn.known == 2, 0.9), (drawn.no_audio, 0.1), (drawn.no_text, 0.3),
    ):  # fmt: skip
        assert float(share.float().mean()) == pytest.approx(expected, abs=0.04)
    assert set(drawn.known.tolist()) == {1, 2} and not (drawn.no_audio & ~drawn.no_text).any()
    part = lesson([5, 7], anchored=0.6, drop_both=0.1, drop_text=0.2)
    for name, value in vars(part).items():
        assert torch.equal(value, getattr(drawn, name)[[5, 7]]), name


def test_times_that_are_not_the_sampler_s_follow_its_shift() -> None:
    """t = 5 u / (1 + 4 u): half of them are above 5/6."""
    times = lesson(list(range(2000)), anchored=0.0).time
    for share in (0.1, 0.25, 0.5, 0.75):
        expected = 5 * share / (1 + 4 * share)
        assert float(times.quantile(share)) == pytest.approx(expected, abs=0.03)


def test_the_teacher_sees_clean_motion_and_dropped_conditions() -> None:
    clean, given, seen = draw(2, *SHAPE), random_conditions(2), []
    drawn = Lesson(
        noise=draw(2, *SHAPE, seed=1), time=torch.tensor([0.5, 0.9]), known=torch.tensor([1, 2]),
        motion_time=torch.zeros(2), no_text=torch.tensor([True, False]),
        no_audio=torch.tensor([False, False]),
    )  # fmt: skip

    def exact(x: Tensor, timestep: Tensor, given) -> Tensor:
        seen.append((x, timestep, given))
        wrong = torch.zeros_like(x)
        wrong[0, :, :1], wrong[1, :, :2] = 5, 5  # where nothing is counted
        return velocity(clean, drawn.noise) + wrong

    assert float(teacher_loss(exact, clean, given, drawn)) == 0
    ((x, timestep, conditions),) = seen
    assert timestep.tolist() == [500, 900]
    assert torch.equal(x[0, :, :1], clean[0, :, :1]) and torch.equal(x[1, :, :2], clean[1, :, :2])
    assert not torch.equal(x[0, :, 1], clean[0, :, 1])
    assert not conditions.text[0].any() and torch.equal(conditions.text[1], given.text[1])


def test_noised_motion_stands_at_its_own_time_and_the_mouth_may_count_more() -> None:
    clean, given, seen = draw(2, *SHAPE), random_conditions(2), []
    lessons = draw_lesson(
        Draws(seed=3), SHAPE, step=1, samples=range(200),
        teaching=Teaching(noised_motion=0.5, long_motion=1.0), schedule=SCHEDULE,
    )  # fmt: skip
    noised = lessons.motion_time > 0
    assert 70 < int(noised.sum()) < 130 and 0.3 < lessons.motion_time.max() < MOTION_TIME
    drawn = Lesson(**{name: value[noised][:2] for name, value in vars(lessons).items()})

    def off(x: Tensor, timestep: Tensor, given) -> Tensor:
        seen.append(x)
        wrong = torch.zeros_like(x)
        wrong[..., 0, 0] = 1
        return velocity(clean, drawn.noise) + wrong

    weight = torch.ones(2, 1, *SHAPE[1:])
    weight[..., 0, 0] = 3
    places = SHAPE[2] * SHAPE[3]
    plain, more = (float(teacher_loss(off, clean, given, drawn, w)) for w in (None, weight))
    assert plain == pytest.approx(1 / places) and more == pytest.approx(3 / (places + 2))
    time = drawn.motion_time.view(-1, 1, 1, 1, 1)
    wanted = (1 - time) * clean + time * drawn.noise
    assert torch.allclose(seen[0][:, :, :2], wanted[:, :, :2])


def test_two_clips_are_learnt() -> None:
    """From noise the sampler then makes the clip that goes with the sound."""
    network, sounds = small_network(), random_conditions(2)
    given = replace(
        sounds,
        **{name: getattr(sounds, name)[:1].expand_as(getattr(sounds, name))
           for name in ("portrait", "text", "image")},
    )  # fmt: skip
    clean = draw(2, 16, SIZE[0], 1, 1, seed=5)
    clean[1, :, 0] = clean[0, :, 0]  # the first frame, all that is given, does not show which
    clean = clean.expand(2, *SHAPE)
    average = Average(network, 0.97)
    optimizer = torch.optim.Adam(network.parameters(), lr=4e-3)
    for step in range(300):
        drawn = draw_lesson(
            Draws(seed=0), SHAPE, step=step, samples=[0, 1], schedule=SCHEDULE,
            teaching=Teaching(anchored=0.6, long_motion=0.0),
        )  # fmt: skip
        descend(teacher_loss(network, clean, given, drawn), optimizer)
        average.update(network)
    average.copy_to(network)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        made = denoise(
            lambda x, index: network(x, SCHEDULE[index].expand(2), given), SCHEDULE,
            clean[:, :, :1], lambda first: torch.randn(2, *SHAPE, generator=random),
        )[:, :, 2:]  # fmt: skip
    target = clean[:, :, 2:]
    assert (made - target).square().mean() < 0.15 * (made - target.flip(0)).square().mean()


@pytest.mark.parametrize(
    "wrong", [{"long_motion": 1.5}, {"anchored": -0.1}, {"drop_both": 0.6, "drop_text": 0.6}]
)
def test_impossible_shares(wrong: dict) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        Teaching(**wrong)


# Updates -----------------------------------------------------------------------------------


def test_a_step_is_cut_and_refused() -> None:
    weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    assert descend(2 * weight.square().sum(), optimizer) == pytest.approx(20)
    assert torch.allclose(weight.detach(), torch.tensor([2.4, 3.2]))
    before = weight.detach().clone()
    with pytest.raises(NumericsError, match="learning rate"):
        descend((weight * torch.inf).sum(), optimizer)
    assert torch.equal(weight.detach(), before)


def test_the_average() -> None:
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(layer.weight, 1.0)
    average = Average(layer, 0.75)
    with torch.no_grad():
        layer.weight.fill_(5.0)
    average.update(layer)
    average.copy_to(layer)
    assert layer.weight.item() == 2.0


# Stage 2 -----------------------------------------------------------------------------------


def setup(**switches) -> Setup:
    real = small_network(seed=6).requires_grad_(False)
    method = Distillation(chunks=3, guidance=Guidance(audio=2.0, text=None), **switches)
    return Setup(real=real, schedule=SCHEDULE, method=method, draws=Draws(seed=2))


def batch(samples: list[int]) -> Batch:
    """Streams whose motion is handed over as latents: pixels are another test's."""
    every = random_conditions(4)
    first = type(every)(**{name: value[samples] for name, value in vars(every).items()})
    return Batch(
        samples=samples, chunks=[first] * 3, start=first.portrait[:, :, :1], shape=SHAPE,
        hand_over=lambda latents: latents[:, :, -2:],
    )  # fmt: skip


def test_steps_repeat_bit_for_bit_and_move_their_own_network() -> None:
    given, states = setup(), []
    for _ in range(2):
        student, fake = small_network(seed=6), small_network(seed=6)
        before = copy.deepcopy(student.state_dict()), copy.deepcopy(fake.state_dict())
        own = torch.optim.AdamW(student.parameters(), lr=1e-3)
        other = torch.optim.AdamW(fake.parameters(), lr=1e-3)
        critic_loss = critic_turn(student, fake, given, batch([0, 1]), step=0)
        numbers = [{"loss": critic_loss.item(), "norm": descend(critic_loss, other)}]
        taught = student_turn(student, fake, given, batch([0, 1]), step=0)
        place = {"chunk": taught.chunk, "timestep": float(taught.at.timestep[0])}
        loss = taught.loss
        numbers.append({"loss": loss.item(), "norm": descend(loss, own), **place})
        for network, old in zip((student, fake), before, strict=True):
            assert any(
                not torch.equal(value, old[name]) for name, value in network.state_dict().items()
            )
        assert numbers[0]["loss"] > 0 and numbers[1]["norm"] > 0
        assert 1 <= numbers[1]["chunk"] <= 3 and numbers[1]["timestep"] in SCHEDULE.tolist()
        states.append((numbers, student.state_dict(), fake.state_dict()))
    assert states[0][0] == states[1][0]
    for mine, its in zip(states[0][1:], states[1][1:], strict=True):
        assert all(torch.equal(value, its[name]) for name, value in mine.items())


def nothing(x: Tensor, timestep: Tensor, given: object) -> Tensor:
    """A flow that stands still."""
    return torch.zeros_like(x)


def test_every_step_of_every_chunk_gets_its_turn() -> None:
    seen = set()
    for step in range(100):
        at, chunk = stand(nothing, setup(), batch([0]), "student", step=step)
        seen.add((chunk, float(at.timestep[0])))
    assert seen == {(chunk, time) for chunk in range(3) for time in SCHEDULE[:-1].tolist()}


def test_the_critic_sees_other_rollouts_than_the_student() -> None:
    """In the same update: else it would know just the sample that the student is judged by."""
    starts: list[list[Tensor]] = []

    def recorded(x: Tensor, timestep: Tensor, given: object) -> Tensor:
        starts[-1].append(x)
        return nothing(x, timestep, given)

    given = replace(setup(), real=nothing)
    for turn in (critic_turn, student_turn):
        starts.append([])
        turn(recorded, nothing, given, batch([0]), step=0)
    free = [own[0][:, :, 2:] for own in starts]
    assert not torch.equal(*free)


def test_a_batch_in_parts_is_the_batch() -> None:
    """As two ranks would: the same chunk, step and noise for each sample."""
    student, given = small_network(seed=6), setup()
    whole, chunk = stand(student, given, batch([0, 1, 2, 3]), "student", step=4)
    for samples in ([0, 1], [2, 3]):
        part, its_chunk = stand(student, given, batch(samples), "student", step=4)
        assert its_chunk == chunk and part.timestep[0] == whole.timestep[0]
        assert torch.allclose(part.x, whole.x[samples], rtol=1e-3, atol=1e-4)


def standing(student: Network, given: Setup, step: int):
    at, _ = stand(student, given, batch([0, 1]), "critic", step=step)
    with torch.no_grad():
        return take_step(student, at), at


def test_health_sees_a_critic_that_lags() -> None:
    given = setup()
    before, after = small_network(seed=6), small_network(seed=6)
    with torch.no_grad():
        for parameter in after.parameters():
            parameter += 0.1 * torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(1)
            )
    fake = small_network(seed=6)
    optimizer = torch.optim.Adam(fake.parameters(), lr=3e-3)
    for step in range(40):
        descend(critic_turn(before, fake, given, batch([0, 1]), step=step), optimizer)
    settings = {"noise": draw(2, *SHAPE, seed=3), "uniform": torch.tensor([0.3]),
                "method": given.method}  # fmt: skip
    old, new = standing(before, given, 100), standing(after, given, 100)
    assert lag(fake, old, old, **settings) == 1
    assert lag(fake, new, old, **settings) > 1.1


def test_health_is_looked_at_now_and_then() -> None:
    """At every fifth turn of the student; from the second look on it knows what was before."""
    given = replace(setup(), method=Distillation(chunks=3, generator_every=2, guidance=Guidance(
        text=None)))  # fmt: skip
    student, fake, kept, found = small_network(seed=6), small_network(seed=7), {}, {}
    for step in (1, 3, 8, 9, 11, 19):
        with torch.no_grad():
            taught = student_turn(student, fake, given, batch([0, 1]), step=step)
        numbers = look(fake, given, batch([0, 1]), taught, kept, step=step)
        if numbers:
            found[step] = numbers
    assert {step: set(numbers) for step, numbers in found.items()} == {
        9: {"agreement"},
        19: {"agreement", "lag"},
    }
    assert -1 <= found[9]["agreement"] <= 1 and found[19]["lag"] > 0


def test_health_sees_whether_there_is_a_direction() -> None:
    given = replace(setup(), method=Distillation(chunks=3, guidance=Guidance(audio=1, text=None)))
    latents, at = standing(small_network(seed=7), given, 0)
    noises = draw(2, *SHAPE, seed=3), draw(2, *SHAPE, seed=4)
    settings = {"noises": noises, "uniform": torch.tensor([0.3]), "method": given.method}

    def shifted(by: Tensor):
        return lambda x, timestep, given: x - by * 1000 / timestep.view(-1, 1, 1, 1, 1)

    def noisy(x, timestep, given) -> Tensor:
        return 3 * x

    zero = torch.zeros(1)
    assert agreement(shifted(zero), shifted(torch.ones(1)), latents, at, **settings) > 0.99
    assert agreement(noisy, noisy, latents, at, **settings) == 0
    assert abs(agreement(shifted(zero), noisy, 0 * latents, at, **settings)) < 0.1
    free = torch.ones(1, 1, 1, 1, 1, dtype=torch.bool)
    a, b = torch.tensor([3.0, 0.0]), torch.tensor([1.0, 1.0])
    angle = cosine(a.view(1, 2, 1, 1, 1), b.view(1, 2, 1, 1, 1), free)
    assert float(angle) == pytest.approx(0.5**0.5)
