"""Both stages as the loop takes them."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from train_ranks import CHUNKS, METHOD, RUN, SCHEDULE, Clips, Streams, teacher_state
from train_samples import SIZE, small_network, small_vae

from livetalk_kernels.runtime.comm import LocalCommunicator
from livetalk_model.color import reference_stats
from livetalk_model.train.chunks.distill import Setup
from livetalk_model.train.chunks.rollout import through_pixels
from livetalk_model.train.chunks.tasks import (
    CRITIC,
    STUDENT,
    TEACHER,
    DistillTask,
    TeacherTask,
    through_frames,
)
from livetalk_model.train.chunks.teacher import draw_lesson, teacher_loss
from livetalk_model.train.config import Teaching
from livetalk_model.train.draws import Draws
from livetalk_model.train.loop.loop import At
from livetalk_model.train.loop.saving import State


def part(batch: dict[str, Tensor], rows: slice) -> dict[str, Tensor]:
    return {key: value[rows] for key, value in batch.items()}


def teacher() -> TeacherTask:
    return TeacherTask(teaching=Teaching(), schedule=SCHEDULE, draws=Draws(seed=RUN.seed))


def distillation(**switches) -> tuple[DistillTask, State]:
    networks = {STUDENT: small_network(seed=6), CRITIC: small_network(seed=7)}
    state = State(
        networks=networks,
        optimizers={
            name: torch.optim.SGD(network.parameters(), lr=0.1)
            for name, network in networks.items()
        },
    )
    setup = Setup(
        real=small_network(seed=6).requires_grad_(False), schedule=SCHEDULE,
        method=replace(METHOD, **switches), draws=Draws(seed=RUN.seed),
    )  # fmt: skip
    return DistillTask(setup=setup, hand_over=lambda latents, _: latents[:, :, -2:]), state


def test_the_teachers_loss_is_that_of_its_lesson():
    state, batch = teacher_state(LocalCommunicator()), Clips().whole(1, 0)
    loss, _ = teacher().loss(state, TEACHER, batch, At(step=1, micro=0, samples=[0, 1]))
    from livetalk_model.train.chunks.network import Conditions

    given = Conditions(**{key: batch[key] for key in ("portrait", "text", "image", "windows")})
    lesson = draw_lesson(
        Draws(seed=RUN.seed), (16, *SIZE), step=1, samples=[0, 1], teaching=Teaching(),
        schedule=SCHEDULE,
    )  # fmt: skip
    assert torch.equal(loss, teacher_loss(state.networks[TEACHER], batch["latents"], given, lesson))


@pytest.mark.parametrize("stage", ["teacher", STUDENT, CRITIC])
def test_a_batch_is_the_mean_of_its_samples(stage):
    if stage == "teacher":
        task, state, batch = teacher(), teacher_state(LocalCommunicator()), Clips().whole(3, 1)
    else:
        (task, state), batch = distillation(), Streams().whole(3, 1)
    together, _ = task.loss(state, stage, batch, At(step=3, micro=1, samples=[2, 3]))
    alone = [
        task.loss(
            state, stage, part(batch, slice(row, row + 1)), At(step=3, micro=1, samples=[2 + row])
        )[0]
        for row in range(2)
    ]
    assert float(together.detach()) == pytest.approx(float(sum(alone).detach()) / 2, rel=1e-4)


def test_the_student_learns_now_and_then_after_the_critic():
    task, _ = distillation(generator_every=3)
    assert [task.turns(step) for step in range(6)] == [
        (CRITIC,), (CRITIC,), (CRITIC, STUDENT), (CRITIC,), (CRITIC,), (CRITIC, STUDENT),
    ]  # fmt: skip
    assert teacher().turns(0) == (TEACHER,)


def test_a_turn_reaches_its_own_network_alone():
    task, state = distillation()
    for turn, other in ((STUDENT, CRITIC), (CRITIC, STUDENT)):
        at = At(step=1, micro=0, samples=[0, 1])
        task.loss(state, turn, Streams().whole(1, 0), at)[0].backward()
        assert all(p.grad is not None for p in state.networks[turn].parameters())
        assert all(p.grad is None for p in state.networks[other].parameters())
        state.optimizers[turn].zero_grad()
    assert all(p.grad is None for p in task.setup.real.parameters())


def test_the_oracle_takes_the_truth_of_the_chunk_that_learns():
    task, state = distillation(history="oracle", regression=1.0)
    batch = dict(Streams().whole(1, 0))
    random = torch.Generator().manual_seed(1)
    batch["latents"] = torch.randn(2, CHUNKS, 16, *SIZE, generator=random)
    batch["motion"] = batch["latents"][:, :, :, :2]
    at = At(step=1, micro=0, samples=[0, 1])
    loss, numbers = task.loss(state, STUDENT, batch, at)
    chunk = int(numbers["chunk"]) - 1
    for changed in range(CHUNKS):
        other = dict(batch, latents=batch["latents"].clone())
        other["latents"][:, changed] += 1
        again, _ = task.loss(state, STUDENT, other, at)
        assert torch.equal(again, loss) == (changed != chunk)


def test_frames_are_handed_over_in_each_portraits_colours():
    vae, random = small_vae(), torch.Generator().manual_seed(1)
    latents = torch.randn(2, 16, 9, 4, 4, generator=random)
    pictures = torch.rand(2, 3, 1, 32, 32, generator=random) * 2 - 1
    pictures[1] *= 0.3
    motion = through_frames(vae)(latents, {"picture": pictures})
    colors = [reference_stats(picture[:, 0]) for picture in pictures]
    assert torch.equal(motion, through_pixels(vae, latents, colors))
    assert not torch.equal(motion, through_pixels(vae, latents, colors[::-1]))
