"""Measure a teacher's loss by timestep on sets of clips: a lower one on its own means memory.

    python benchmarks/teacher_loss.py --checkpoint teacher --data clips others --output loss.json

For clips drawn at random from each set: the mean square error of the velocity in a clip's first
chunks, whose motion latents are given. Noise is the same for all sets and teachers.
"""

import argparse
import sys
from pathlib import Path

import torch

from livetalk_kernels.errors import UserError
from livetalk_kernels.machine import machine
from livetalk_kernels.outputs import write_json
from livetalk_model.config import MOTION_LATENTS
from livetalk_model.sampler import timesteps
from livetalk_model.train.chunks.flow import SHIFT, add_noise, free_positions
from livetalk_model.train.chunks.losses import flow_loss
from livetalk_model.train.chunks.network import Conditions
from livetalk_model.train.chunks.tasks import DistillTask
from livetalk_model.train.chunks.trainings import distill_training
from livetalk_model.train.config import Distillation
from livetalk_model.train.cost import SAMPLER_STEPS
from livetalk_model.train.data.clips import Clips
from livetalk_model.train.loop.loop import At
from livetalk_model.train.loop.training import (
    AUDIO_SOURCE,
    TEACHER_SOURCE,
    VAE_SOURCE,
    About,
)
from livetalk_model.train.settings import Run
from livetalk_model.weights.checkpoint import AUDIO_FOLDER

BATCH = 8
TIMES = *timesteps(SAMPLER_STEPS, SHIFT)[:-1].tolist(), 300.0
"""The sampler's, and one that is nearly clean."""


@torch.no_grad()
def losses(checkpoint: Path, data: Path, clips: int, chunks: int) -> dict[str, float]:
    """Return the mean loss by timestep.

    Args:
        checkpoint: Folder of a finished teacher, with its VAE and audio encoder.
        data: The clips.
        clips: How many are drawn, in batches.
        chunks: How many of each clip's chunks count.

    Raises:
        UserError: The folder or the clips are unusable.
    """
    sources = {
        VAE_SOURCE: checkpoint, TEACHER_SOURCE: checkpoint, AUDIO_SOURCE: checkpoint / AUDIO_FOLDER,
    }  # fmt: skip
    # A distillation's data have the truth of consecutive chunks, and its teacher is frozen.
    run = Run(steps=1, batch=BATCH, distillation=Distillation(chunks=chunks, history="oracle"))
    about = About(
        kind="distill", data=str(data), sources={name: str(path) for name, path in sources.items()}
    )
    training = distill_training(run, Clips(data), about)
    assert isinstance(training.task, DistillTask)
    teacher = training.task.setup.real
    found: dict[str, list[float]] = {f"{time:g}": [] for time in TIMES}
    for step in range(clips // BATCH):
        batch = training.data.batch(At(step=step, micro=0, samples=range(BATCH)))
        shared = {name: batch[name] for name in ("portrait", "text", "image")}
        for chunk in range(chunks):
            clean = batch["latents"][:, chunk]
            given = Conditions(**shared, windows=batch["windows"][:, chunk])
            free = free_positions(torch.full((BATCH,), MOTION_LATENTS), clean.shape[2])
            noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(step))
            for time in TIMES:
                x = torch.where(
                    free, add_noise(clean, noise, torch.full((BATCH,), time / 1000)), clean
                )
                velocity = teacher(x, torch.full((BATCH,), time), given)
                found[f"{time:g}"].append(float(flow_loss(velocity, clean, noise, free)))
    return {time: sum(values) / len(values) for time, values in found.items()}


def main() -> int:
    """Measure, print and record; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, nargs="+", required=True, metavar="DIR")
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="DIR")
    parser.add_argument("--clips", type=int, default=48, metavar="N", help="of each set")
    parser.add_argument("--chunks", type=int, default=3, metavar="N", help="of each clip")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="a .json")
    args = parser.parse_args()
    rows = []
    try:
        for checkpoint in args.checkpoint:
            for data in args.data:
                found = losses(checkpoint, data, args.clips, args.chunks)
                rows.append({"teacher": checkpoint.name, "data": data.name, "loss": found})
                print(
                    checkpoint.name,
                    data.name,
                    {t: round(v, 4) for t, v in found.items()},
                    flush=True,
                )
        command = ["python", "benchmarks/teacher_loss.py", *sys.argv[1:]]
        write_json(args.output, {"rows": rows, "command": command, "machine": machine()})
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
