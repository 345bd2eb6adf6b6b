"""The student's own chunks in a row: those of a stream, with one step that learns."""

import pytest
import torch
from torch import Tensor
from train_samples import SIZE, random_conditions, small_network, small_vae, training_ops

from livetalk_kernels.ops import Ops
from livetalk_model.avatar import Avatar
from livetalk_model.color import ColorStats, reference_stats
from livetalk_model.sampler import timesteps
from livetalk_model.stream.chunk import ChunkGenerator, StreamOptions, from_uint8
from livetalk_model.train.chunks.distill import Truth, counted_positions, critic_loss, match
from livetalk_model.train.chunks.flow import with_motion
from livetalk_model.train.chunks.network import Conditions, Network
from livetalk_model.train.chunks.rollout import ExitPoint, roll_out, take_step, through_pixels
from livetalk_model.train.config import Distillation
from livetalk_model.vae import VAE

SCHEDULE = timesteps(4, 5.0)
OPTIONS = StreamOptions(seed=11)
CHUNKS = 3


@pytest.fixture(scope="module")
def ops() -> Ops:
    return training_ops()


@pytest.fixture(scope="module")
def student(ops) -> Network:
    return small_network(ops)


@pytest.fixture(scope="module")
def vae(ops) -> VAE:
    return small_vae(ops)


@pytest.fixture(scope="module")
def portrait() -> Tensor:
    """uint8 [3, 32, 32], a gradient of colours."""
    ramp = torch.linspace(0, 255, 32).round()
    return torch.stack((ramp.expand(32, 32), ramp.expand(32, 32).T, 255 - ramp.expand(32, 32))).to(
        torch.uint8
    )


def row(count: int, batch: int = 1) -> list[Conditions]:
    """Conditions of chunks in a row: one person, other sounds."""
    first = random_conditions(batch)
    others = [random_conditions(batch, seed=20 + index).windows for index in range(1, count)]
    return [first, *(Conditions(**vars(first) | {"windows": windows}) for windows in others)]


def colors_of(portrait: Tensor) -> ColorStats:
    return reference_stats(from_uint8(portrait, torch.float32)[None, :, None])


def sequential_noise(batch: int = 1):
    """Noise as a stream draws it."""
    generator = torch.Generator().manual_seed(OPTIONS.seed)
    return lambda chunk, number, first: torch.stack(
        [torch.randn((16, *SIZE), generator=generator) for _ in range(batch)]
    )


def stand(student, vae, portrait, chunks, exit_step, batch: int = 1) -> ExitPoint:
    """Roll out as a stream does."""
    given = row(chunks, batch)
    return roll_out(
        student,
        given,
        given[0].portrait[:, :, :1],
        schedule=SCHEDULE,
        exit_step=exit_step,
        hand_over=lambda latents: through_pixels(vae, latents, [colors_of(portrait)] * batch),
        draw_noise=sequential_noise(batch),
    )


@pytest.fixture(scope="module")
def streamed(student, vae, portrait) -> list[tuple[Tensor, Tensor]]:
    """Motion and final latents of a stream's chunks."""
    given = row(CHUNKS)
    avatar = Avatar(
        context=given[0].text[0],
        clip_fea=given[0].image,
        condition=given[0].portrait[0],
        portrait=portrait,
        model="small",
    )
    found = []
    for last in range(CHUNKS):  # a chunk that is made cannot be made again
        generator = ChunkGenerator(student.dit, vae, avatar, OPTIONS)
        for conditions in given[:last]:
            list(generator.chunk(conditions.windows))
        found.append((generator.motion, generator.latents(given[last].windows)))
    return found


@pytest.mark.parametrize("chunks", range(1, CHUNKS + 1))
def test_the_rollout_is_bit_equal_to_a_stream(chunks, student, vae, portrait, streamed) -> None:
    motion, latents = streamed[chunks - 1]
    assert latents.std() > 0.1
    for exit_step in range(4):
        at = stand(student, vae, portrait, chunks, exit_step)
        assert torch.equal(at.motion[0], motion)
        assert at.timestep.tolist() == [float(SCHEDULE[exit_step])]
        assert torch.equal(at.x[0, :, : motion.shape[1]], motion)
    assert torch.equal(with_motion(take_step(student, at), at.motion)[0], latents)


def test_a_batch_rolls_out_as_its_samples(student, vae, portrait) -> None:
    given = row(2, batch=2)
    noise = torch.randn(2, 5, 2, 16, *SIZE, generator=torch.Generator().manual_seed(1))

    def run(samples: slice) -> ExitPoint:
        chunks = [Conditions(**{k: v[samples] for k, v in vars(c).items()}) for c in given]
        return roll_out(
            student, chunks, chunks[0].portrait[:, :, :1], schedule=SCHEDULE, exit_step=2,
            hand_over=lambda latents: through_pixels(vae, latents,
                                                     [colors_of(portrait)] * len(latents)),
            draw_noise=lambda chunk, number, first: noise[chunk, number, samples].clone(),
        )  # fmt: skip

    both = run(slice(0, 2))
    for index in range(2):
        alone = run(slice(index, index + 1))
        for name in ("x", "motion"):
            mine, its = getattr(both, name)[index], getattr(alone, name)[0]
            assert torch.allclose(mine, its, rtol=1e-3, atol=1e-4), name


def test_only_one_step_of_the_last_chunk_learns(student, vae, portrait) -> None:
    calls = []

    def watched(x, timestep, given):
        calls.append((torch.is_grad_enabled(), float(timestep[0]), given))
        return student(x, timestep, given)

    given = row(CHUNKS)
    for conditions in given:
        conditions.windows.requires_grad_()
    start = given[0].portrait[:, :, :1].clone().requires_grad_()
    at = roll_out(
        watched, given, start, schedule=SCHEDULE, exit_step=2,
        hand_over=lambda latents: through_pixels(vae, latents, [colors_of(portrait)]),
        draw_noise=sequential_noise(),
    )  # fmt: skip
    assert not at.x.requires_grad and not at.motion.requires_grad
    assert len(calls) == 4 * (CHUNKS - 1) + 2 and not any(learns for learns, *_ in calls)
    loss = take_step(watched, at).square().sum()
    assert calls[-1] == (True, float(SCHEDULE[2]), given[-1])
    inputs = [conditions.windows for conditions in given]
    *earlier, last, first_motion = torch.autograd.grad(loss, [*inputs, start], allow_unused=True)
    assert earlier == [None] * (CHUNKS - 1) and first_motion is None and last.any()


@pytest.mark.parametrize(
    "method",
    [
        Distillation(),
        Distillation(score_motion="noised", motion_loss=True),
        Distillation(history="oracle", regression=0.1),
    ],
    ids=["paper", "noised", "oracle"],
)
def test_gradients_reach_the_student_alone(method, student, vae, portrait) -> None:
    real, fake = small_network(student.dit.ops, seed=6), small_network(student.dit.ops, seed=7)
    at = stand(student, vae, portrait, 2, 1)
    at.motion.requires_grad_()
    noise = torch.randn(1, 16, *SIZE, generator=torch.Generator().manual_seed(2))
    uniform = torch.tensor([0.3])
    truth = None
    if method.history == "oracle":
        latents = torch.randn(1, 16, *SIZE, generator=torch.Generator().manual_seed(3))
        truth = Truth(latents=latents, motion=latents[:, :, :2].clone().requires_grad_())
    matched = match(
        student, real, fake, at, noise=noise, uniform=uniform, method=method, truth=truth
    )
    parameters = [*student.parameters(), *real.parameters(), *fake.parameters(), at.motion]
    found = torch.autograd.grad(matched.loss, parameters, allow_unused=True)
    own = len(list(student.parameters()))
    assert all(gradient is not None for gradient in found[:own])
    assert found[own:] == (None,) * (len(found) - own)
    assert not matched.latents.requires_grad and not matched.gradient.requires_grad

    loss = critic_loss(fake, matched.latents, at, noise=noise, uniform=uniform, method=method)
    found = torch.autograd.grad(loss, [*fake.parameters(), *student.parameters()],
                                allow_unused=True)  # fmt: skip
    count = len(list(fake.parameters()))
    assert all(gradient is not None for gradient in found[:count])
    assert found[count:] == (None,) * own


def test_the_switches_change_what_they_say(student, vae, portrait) -> None:
    real, fake = small_network(student.dit.ops, seed=6), small_network(student.dit.ops, seed=7)
    at = stand(student, vae, portrait, 2, 1)
    noise = torch.randn(1, 16, *SIZE, generator=torch.Generator().manual_seed(2))
    uniform = torch.tensor([0.3])
    truth = Truth(latents=at.x, motion=at.motion + 1)

    def result(**switches) -> Tensor:
        method = Distillation(**switches)
        return match(
            student, real, fake, at, noise=noise, uniform=uniform, method=method, truth=truth
        ).loss.detach()

    plain = result()
    assert torch.equal(plain, result())
    for switches in ({"history": "oracle"}, {"score_motion": "noised"}, {"motion_loss": True}):
        assert not torch.equal(plain, result(**switches)), switches
    assert result(regression=0.5) > plain
    counted = counted_positions(at.x, at.motion, Distillation())
    assert counted.flatten().tolist() == [False] * 2 + [True] * 7
    assert counted_positions(at.x, at.motion, Distillation(motion_loss=True)).all()


def test_the_oracle_is_for_the_teacher_alone(student, vae, portrait) -> None:
    at, seen = stand(student, vae, portrait, 2, 1), {}

    def watch(name: str):
        def flow(x, timestep, given):
            seen[name] = x[:, :, :2]
            return student(x, timestep, given)

        return flow

    match(
        student, watch("real"), watch("fake"), at, noise=torch.zeros(1, 16, *SIZE),
        uniform=torch.tensor([0.3]), method=Distillation(history="oracle"),
        truth=Truth(latents=at.x, motion=at.motion + 1),
    )  # fmt: skip
    assert torch.equal(seen["fake"], at.motion) and torch.equal(seen["real"], at.motion + 1)


def test_the_oracle_needs_the_truth(student, vae, portrait) -> None:
    at = stand(student, vae, portrait, 1, 0)
    noise, uniform = torch.zeros(1, 16, *SIZE), torch.tensor([0.5])
    with pytest.raises(AssertionError):
        match(student, student, student, at, noise=noise, uniform=uniform,
              method=Distillation(history="oracle"))  # fmt: skip
