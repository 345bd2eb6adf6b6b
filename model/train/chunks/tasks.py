"""Both stages as tasks of the loop: what learns when, and from which tensors of a batch.

A batch has, B samples of it: ``portrait`` [B, 16, T, h, w], ``text`` [B, L, 4096], ``image``
[B, 257, 1280] as in `Conditions`, and ``windows``. Stage 1 uses ``windows`` [B, F, window, layers,
channels], ``latents`` [B, 16, T, h, w] and, if the mouth counts more, ``weight`` [B, 1, T, h, w];
stage 2 windows and, for the oracle, ``latents`` and ``motion`` of K chunks, [B, K, ...], ``start``
[B, 16, m, h, w] for the first one's motion, and whatever its hand-over needs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ...color import reference_stats
from ...vae import VAE
from ..config import Teaching
from ..draws import Draws
from ..loop.loop import At
from ..loop.saving import State
from .distill import Batch, Setup, Truth, critic_turn, student_turn
from .health import look
from .network import Conditions
from .rollout import through_pixels
from .teacher import Lesson, draw_lesson, teacher_loss

TEACHER, STUDENT, CRITIC = "teacher", "student", "critic"

HandOver = Callable[[Tensor, Mapping[str, Tensor]], Tensor]
"""A chunk's latents and the batch -> motion latents of the next chunk."""


@dataclass(frozen=True, kw_only=True)
class TeacherTask:
    """Stage 1.

    Attributes:
        teaching: Fractions of the samples.
        schedule: [steps + 1] timesteps of the sampler, on the CPU.
        draws: The run's randomness.
    """

    teaching: Teaching
    schedule: Tensor
    draws: Draws

    def turns(self, step: int) -> Sequence[str]:
        """Train the teacher in every update."""
        return (TEACHER,)

    def loss(
        self, state: State, turn: str, batch: Mapping[str, Tensor], at: At
    ) -> tuple[Tensor, Mapping[str, float]]:
        """Compute `teacher_loss` for what is drawn for the samples."""
        clean = batch["latents"]
        lesson = draw_lesson(
            self.draws,
            clean.shape[1:],
            step=at.step,
            samples=at.samples,
            teaching=self.teaching,
            schedule=self.schedule,
        )
        there = Lesson(**{name: value.to(clean.device) for name, value in vars(lesson).items()})
        given = _conditions(batch, batch["windows"])
        weight = batch["weight"] if self.teaching.mouth else None
        return teacher_loss(state.networks[turn], clean, given, there, weight), {}


@dataclass(frozen=True, kw_only=True)
class DistillTask:
    """Stage 2: the fake score in every update, the student in every n-th, after it.

    Attributes:
        setup: What the distillation starts from.
        hand_over: Computes the motion latents that follow a chunk.
    """

    setup: Setup
    hand_over: HandOver

    def turns(self, step: int) -> Sequence[str]:
        """Train the critic, and at intervals the student."""
        last = (step + 1) % self.setup.method.generator_every == 0
        return (CRITIC, STUDENT) if last else (CRITIC,)

    def loss(
        self, state: State, turn: str, batch: Mapping[str, Tensor], at: At
    ) -> tuple[Tensor, Mapping[str, float]]:
        """Compute `critic_turn`, or `student_turn`; with the latter, the critic's health."""
        streams = self._streams(batch, at)
        student, critic = state.networks[STUDENT], state.networks[CRITIC]
        given = student, critic, self.setup, streams
        if turn == STUDENT:
            taught = student_turn(*given, step=at.step, micro=at.micro)
            health = look(
                critic, self.setup, streams, taught, state.samples, step=at.step, micro=at.micro
            )
            where = {"chunk": taught.chunk, "timestep": float(taught.at.timestep[0])}
            return taught.loss, where | health
        return critic_turn(*given, step=at.step, micro=at.micro), {}

    def _streams(self, batch: Mapping[str, Tensor], at: At) -> Batch:
        count = self.setup.method.chunks
        truth = None
        if "latents" in batch:
            truth = [
                Truth(latents=batch["latents"][:, k], motion=batch["motion"][:, k])
                for k in range(count)
            ]
        return Batch(
            samples=at.samples,
            chunks=[_conditions(batch, batch["windows"][:, k]) for k in range(count)],
            start=batch["start"],
            shape=batch["portrait"].shape[1:],
            hand_over=lambda latents: self.hand_over(latents, batch),
            truth=truth,
        )


def through_frames(vae: VAE) -> HandOver:
    """Pass on motion like a stream: decoded, matched to the portrait's colours, re-encoded.

    The batch has ``picture`` [B, 3, 1, height, width], the portraits, -1 to 1.
    """

    def hand_over(latents: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        colors = [reference_stats(picture[None]) for picture in batch["picture"]]
        return through_pixels(vae, latents, colors)

    return hand_over


def _conditions(batch: Mapping[str, Tensor], windows: Tensor) -> Conditions:
    return Conditions(
        portrait=batch["portrait"], text=batch["text"], image=batch["image"], windows=windows
    )
