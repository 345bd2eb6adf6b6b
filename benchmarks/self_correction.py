"""Test distillation and self-correction where the answer is known: Gaussians, and a scalar stream.

    python benchmarks/self_correction.py --output FILE.json --plot FILE.png

Runs the product's own rollout, scores and losses (`livetalk_model.train`) on two models with closed
forms. A Gaussian student has to learn a Gaussian teacher: its gradient is compared with that of the
Kullback-Leibler divergence. A scalar stream continues from its own last value: the teacher is
``c ~ N(rho m + (1 - rho) ref, s^2)``, the student ``c = a m + b ref + r z``, and an error in m is
multiplied by a in every chunk. A few seconds on one core.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from livetalk_kernels.machine import machine
from livetalk_kernels.outputs import write_json
from livetalk_model.sampler import timesteps
from livetalk_model.train.chunks.distill import critic_loss, match
from livetalk_model.train.chunks.flow import per_sample
from livetalk_model.train.chunks.network import Conditions
from livetalk_model.train.chunks.rollout import roll_out, take_step
from livetalk_model.train.chunks.scores import fake_score, noised_for_scores, real_score
from livetalk_model.train.config import Distillation, Guidance
from livetalk_model.train.draws import Draws

SCHEMA = "livetalk/self-correction/1"
PLAIN = Guidance(audio=1.0, text=None)
ONE_STEP = timesteps(1, 5.0)
SIDE = 4  # every sample is SIDE x SIDE independent numbers
RHO, STD, START = 0.6, 0.5, (1.05, 0.0, 0.5)  # the teacher's rho and s; a, b and r at the start

# The Gaussian ------------------------------------------------------------------------------

TEACHER = (0.5, 0.8)  # mean, standard deviation
STUDENT = (-0.3, 1.4)
TIMES = (0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9)


def conditions(reference_BCTHW: Tensor) -> Conditions:
    """A reference, and nothing else."""
    batch = len(reference_BCTHW)
    nothing = torch.zeros(batch, 1, 1)
    windows = torch.zeros(batch, 1, 1, 1, 1)
    return Conditions(portrait=reference_BCTHW, text=nothing, image=nothing, windows=windows)


@dataclass(frozen=True, kw_only=True)
class GaussianFlow:
    """The exact flow of normal data.

    Attributes:
        mean: (latents, conditions) -> mean of the data, of a shape that broadcasts to the latents'.
        std: Standard deviation.
    """

    mean: Callable[[Tensor, Conditions], Tensor]
    std: Tensor

    def __call__(self, x_BCTHW: Tensor, timestep_B: Tensor, given: Conditions) -> Tensor:
        """Compute ``(x - E[clean | x]) / t``."""
        time, mean = per_sample(timestep_B / 1000), self.mean(x_BCTHW, given)
        variance = (1 - time) ** 2 * self.std**2 + time**2
        clean = mean + (1 - time) * self.std**2 / variance * (x_BCTHW - (1 - time) * mean)
        return (x_BCTHW - clean) / time


class GaussianStudent(nn.Module):
    """One step from noise z to ``mean + std z``."""

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.mean, self.std = nn.Parameter(torch.tensor(mean)), nn.Parameter(torch.tensor(std))

    def forward(self, x_BCTHW: Tensor, timestep_B: Tensor, given: Conditions) -> Tensor:
        """Compute the flow that leads there from time 1."""
        return x_BCTHW - (self.mean + self.std * x_BCTHW)

    def flow(self) -> GaussianFlow:
        """Return the exact flow of its present output."""
        mean, std = self.mean.detach(), self.std.detach()
        return GaussianFlow(mean=lambda x, given: mean, std=std)


def gaussian_gradients(
    time: float, *, samples: int = 1 << 16, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Compute the gradient of KL(student, teacher) at a noise time, by samples and in closed form.

    ``E[((1 - t) / t)^2 (f - r) d student / d parameter]`` against ``(1-t)^2 (m - mu) / b^2`` and
    ``(1-t)^2 r (1/b^2 - 1/a^2)``, where a^2 and b^2 are the variances of both at that time.
    """
    draws, shape = Draws(seed=seed), (1, 1, SIDE, SIDE)
    batch = [0]
    student = GaussianStudent(*STUDENT)
    given = conditions(torch.zeros(samples // SIDE**2, *shape))

    def draw(purpose: str) -> Tensor:
        size = (len(given.portrait), *shape)
        return draws.noise(purpose, size, step=0, samples=batch)[0]

    none = torch.zeros(len(given.portrait), 1, 0, SIDE, SIDE)
    at = roll_out(
        student, [given], none, schedule=ONE_STEP, exit_step=0,
        hand_over=lambda latents: none, draw_noise=lambda *place: draw("start"),
    )  # fmt: skip
    latents = take_step(student, at)
    time_B = torch.full((len(latents),), time)
    x = noised_for_scores(latents.detach(), none, draw("score"), time_B, "clean")
    mean, std = (torch.tensor(value) for value in TEACHER)
    teacher = GaussianFlow(mean=lambda x, given: mean, std=std)
    r = real_score(teacher, x, time_B, given, PLAIN)
    f = fake_score(student.flow(), x, time_B, given)
    weight = ((1 - time) / time) ** 2
    found = torch.autograd.grad((weight * (f - r) * latents).mean(), (student.mean, student.std))
    (m, s), (mu, sigma) = STUDENT, TEACHER
    a2, b2 = ((1 - time) ** 2 * value**2 + time**2 for value in (s, sigma))
    exact = (1 - time) ** 2 * (m - mu) / b2, (1 - time) ** 2 * s * (1 / b2 - 1 / a2)
    return {
        name: (float(grad), value)
        for name, grad, value in zip(("mean", "std"), found, exact, strict=True)
    }


# The scalar stream --------------------------------------------------------------------------


class Scalar(nn.Module):
    """``c = a m + b ref + r z``; latents are [B, 1, 2, SIDE, SIDE], m first and then c."""

    def __init__(self, a: float, b: float, std: float) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(a)), nn.Parameter(torch.tensor(b))
        self.log_std = nn.Parameter(torch.tensor(std).log())

    def mean(self, x_BCTHW: Tensor, given: Conditions) -> Tensor:
        """Compute the mean of the chunk, for the motion in the latents."""
        return self.a * x_BCTHW[:, :, :1] + self.b * given.portrait[:, :, :1]

    def forward(self, x_BCTHW: Tensor, timestep_B: Tensor, given: Conditions) -> Tensor:
        """Act as a student: one step from noise."""
        return x_BCTHW - (self.mean(x_BCTHW, given) + self.log_std.exp() * x_BCTHW)

    def flow(self) -> GaussianFlow:
        """Act as a score: the exact flow of its output, with gradients."""
        return GaussianFlow(mean=self.mean, std=self.log_std.exp())


@dataclass(frozen=True, kw_only=True)
class Run:
    """A distillation of the scalar student.

    Attributes:
        a: a at the start and after every update.
        b: b, likewise.
        std: r, likewise.
    """

    a: list[float]
    b: list[float]
    std: list[float]


def distill_scalar(
    chunks: int, *, updates: int, trained_critic: bool = False, batch: int = 64, seed: int = 0
) -> Run:
    """Teach the scalar student.

    Args:
        chunks: K.
        updates: Updates of the student.
        trained_critic: Whether the fake score learns from samples, with five updates per one of
            the student; otherwise it is exact.
        batch: Number of samples.
        seed: Seed.
    """
    draws, method = Draws(seed=seed), Distillation(chunks=chunks, guidance=PLAIN)
    student, teacher = Scalar(*START), Scalar(RHO, 1 - RHO, STD).requires_grad_(False)
    critic = Scalar(*START)
    learns = torch.optim.Adam(student.parameters(), lr=0.01)
    follows = torch.optim.Adam(critic.parameters(), lr=0.01)
    run = Run(a=[START[0]], b=[START[1]], std=[START[2]])
    shape = (batch, 1, 2, SIDE, SIDE)
    every = method.generator_every if trained_critic else 1
    for step in range(updates * every):

        def draw(purpose: str, step: int = step) -> Tensor:
            return draws.noise(purpose, shape, step=step, samples=[0])[0]

        given = conditions(draw("reference"))
        count = 1 + draws.below(chunks, "chunk", step=step)
        at = roll_out(
            student, [given] * count, given.portrait[:, :, :1], schedule=ONE_STEP, exit_step=0,
            hand_over=lambda latents: latents[:, :, -1:],
            draw_noise=lambda chunk, number, first: draw(f"chunk {chunk} draw {number}"),
        )  # fmt: skip
        uniform = draws.shared_uniform("score time", step=step)
        matched = match(
            student, teacher.flow(), critic.flow() if trained_critic else student.flow(), at,
            noise=draw("score"), uniform=uniform, method=method,
        )  # fmt: skip
        if trained_critic:
            follows.zero_grad()
            critic_loss(
                critic.flow(), matched.latents, at, noise=draw("critic"), method=method,
                uniform=draws.uniform("critic time", step=step, samples=list(range(batch))),
            ).backward()  # fmt: skip
            follows.step()
        if step % every == every - 1:
            learns.zero_grad()
            matched.loss.backward()
            learns.step()
            run.a.append(round(student.a.item(), 5))
            run.b.append(round(student.b.item(), 5))
            run.std.append(round(student.log_std.exp().item(), 5))
    return run


def twins(a: float, b: float, std: float, *, chunks: int, batch: int = 256) -> list[float]:
    """Compute the distance of two streams with equal noise, one disturbed by 1 at the start."""
    student = Scalar(a, b, std).requires_grad_(False)
    draws = Draws(seed=1)
    given = conditions(torch.ones(batch, 1, 2, SIDE, SIDE))
    motions = [given.portrait[:, :, :1], given.portrait[:, :, :1] + 1]
    distances = [1.0]
    for chunk in range(chunks):
        noise = draws.noise("twins", tuple(given.portrait.shape), step=chunk, samples=[0])[0]
        for index, motion in enumerate(motions):
            at = roll_out(
                student, [given], motion, schedule=ONE_STEP, exit_step=0,
                hand_over=lambda latents: latents,
                draw_noise=lambda *place, noise=noise: noise.clone(),
            )  # fmt: skip
            motions[index] = take_step(student, at)[:, :, -1:]
        distances.append(float((motions[1] - motions[0]).abs().mean()))
    return distances


# The report ---------------------------------------------------------------------------------

VARIANTS = {"K = 1": (1, False), "K = 2": (2, False), "K = 5": (5, False),
            "K = 5, trained critic": (5, True)}  # fmt: skip


def measure(updates: int, chunks: int) -> dict[str, Any]:
    """Measure everything in the report."""
    facts = machine()
    gradients = {str(time): gaussian_gradients(time) for time in TIMES}
    streams = {}
    for name, (count, trained) in VARIANTS.items():
        run = distill_scalar(count, updates=updates, trained_critic=trained)
        last = run.a[-1], run.b[-1], run.std[-1]
        streams[name] = {**vars(run), "distance": twins(*last, chunks=chunks)}
    start = twins(*START, chunks=chunks)
    settings = {"rho": RHO, "std": STD, "start": START, "teacher": TEACHER, "student": STUDENT,
                "updates": updates}  # fmt: skip
    return {"schema": SCHEMA, "machine": facts, "settings": settings, "gradients": gradients,
            "streams": streams, "start": start}  # fmt: skip


def plot(result: dict[str, Any], target: Path) -> None:
    """Draw the gradient against the closed form, a over the updates, and the fate of an error."""
    from livetalk_model.plot_style import hardware_line, new_figure, save

    title = f"Distillation where the answer is known\n{hardware_line(result['machine'])}"
    figure = new_figure(title, 13, 4.2)
    left, middle, right = figure.subplots(1, 3)
    times = [float(time) for time in result["gradients"]]
    for name, color in (("mean", "tab:blue"), ("std", "tab:orange")):
        found, exact = zip(*(row[name] for row in result["gradients"].values()), strict=True)
        left.plot(times, exact, color=color, label=f"by the {name}: closed form")
        left.plot(times, found, "o", color=color, label=f"by the {name}: samples")
    left.set(xlabel="noise time", ylabel="gradient of KL(student, teacher)",
             title="DMD's gradient on Gaussians")  # fmt: skip
    left.legend(fontsize=8)
    for name, run in result["streams"].items():
        style: dict[str, Any] = {"linestyle": "--" if "critic" in name else "-", "label": name}
        style["linewidth"] = 4 if name == "K = 2" else 1.5  # others cover it
        middle.plot(run["a"], **style)
        right.plot(run["distance"], **style)
    middle.axhline(1, color="grey", linewidth=1)
    middle.axhline(RHO, color="grey", linewidth=1, linestyle=":")
    end = result["settings"]["updates"]
    for level, text in ((1, "above this, errors grow"), (RHO, "the teacher's rho")):
        middle.annotate(text, (end, level + 0.008), ha="right", fontsize=8, color="grey")
    middle.set(xlabel="updates", ylabel="a", title="What remains of an error after a chunk")
    middle.legend(fontsize=8)
    right.plot(result["start"], color="grey", linewidth=1, label="before")
    right.set(xlabel="chunks", ylabel="distance of twin streams", yscale="log", ylim=(1e-6, 1e2),
              title="An error of 1, chunk after chunk")  # fmt: skip
    right.legend(fontsize=8)
    save(figure, target)


def main() -> None:
    """Measure, write, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--plot", type=Path, help="PNG file to write")
    parser.add_argument("--updates", type=int, default=400, help="updates of the scalar student")
    parser.add_argument("--chunks", type=int, default=100, help="length of the twin streams")
    given = parser.parse_args()
    result = measure(given.updates, given.chunks)
    write_json(given.output, result)
    for time, row in result["gradients"].items():
        parts = (f"{name} {found:+.4f} ({exact:+.4f})" for name, (found, exact) in row.items())
        print(f"t = {time}: {', '.join(parts)}")
    for name, run in result["streams"].items():
        values = ", ".join(f"{key} = {run[key][-1]:.3f}" for key in ("a", "b", "std"))
        left = run["distance"][-1]
        print(f"{name}: {values}; an error of 1 is {left:.2g} after {given.chunks} chunks")
    if given.plot:
        plot(result, given.plot)


if __name__ == "__main__":
    main()
