"""Time whole chunks of a stream with random weights: stages, start-up, real-time factor.

    python benchmarks/stream.py --preset 14b --precision fp8 --chunks 4 --json stream.json
    python benchmarks/stream.py --preset tiny --device cpu --ranks 2 --frames frames.npy

A session as in ``livetalk generate``, except for files and video encoding: the avatar consists of
random numbers. The first chunk is reported separately, as it pays for compilation. All are whole,
including the last one: it is re-encoded as if the stream continued. If time is short, later chunks
are not started. On several ranks rank 0 reports.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from race import Budget, Output, new_parser, resolve, run_main
from random_models import (
    PROMPT_ROWS,
    STEPS,
    bind,
    fill,
    latent_size,
    make_dit,
    make_vae,
    sized,
)

from livetalk_kernels import KernelConfig, UserError
from livetalk_kernels.bench.timer import Summary
from livetalk_kernels.environment import Ranks
from livetalk_kernels.outputs import new_file
from livetalk_kernels.precision import dtype_name
from livetalk_kernels.units import data_size
from livetalk_model.avatar import Avatar
from livetalk_model.cli.ranks import joined_team
from livetalk_model.config import NEW_FRAMES, Preset
from livetalk_model.dit import DiT
from livetalk_model.encoders.audio import AudioEncoder
from livetalk_model.media.synthetic import speech
from livetalk_model.stream.chunk import StreamOptions
from livetalk_model.stream.follower import follow
from livetalk_model.stream.graphs import StreamCalls
from livetalk_model.stream.session import Session
from livetalk_model.stream.team import Team
from livetalk_model.vae import VAE
from livetalk_model.weights.random_weights import RANDOM_SEED

SCHEMA = "livetalk/stream/1"
FPS = 25.0


def random_avatar(preset: Preset) -> Avatar:
    """Create an avatar from random numbers, the same everywhere."""
    random = torch.Generator().manual_seed(4)
    draw = partial(torch.randn, generator=random)
    config = preset.dit
    return Avatar(
        context=draw(PROMPT_ROWS, config.text_dim),
        clip_fea=draw(1, config.image_len, config.image_dim),
        condition=draw(config.out_dim, *latent_size(preset)),
        portrait=torch.randint(0, 256, (3, *preset.size), generator=random, dtype=torch.uint8),
        model="",
        note="random numbers",
    )


def load(
    args: argparse.Namespace, preset: Preset, team: Team, device: torch.device, dtype: torch.dtype
) -> tuple[DiT, VAE]:
    """Load the models on this rank.

    Raises:
        UserError: A backend that was named cannot run.
    """
    config = KernelConfig.from_sources(args.backend)
    ops = bind(preset, config, device, dtype)
    parallel = team.sequence(preset.dit, ops, device, dtype)
    dit = make_dit(preset, ops, fp8=args.precision == "fp8", parallel=parallel)
    fill(dit, dtype=dtype, device=device)
    return dit, make_vae(preset, config, device, dtype)


def measure(
    args: argparse.Namespace, team: Team, device: torch.device, dtype: torch.dtype, budget: Budget
) -> dict[str, Any] | None:
    """Run the stream.

    Returns:
        The measurements; None on ranks other than 0.
    """
    preset = sized(args.preset, layers=args.layers, size=args.size)
    begin = time.perf_counter()
    with team.phase("load"), torch.inference_mode():
        dit, vae = load(args, preset, team, device, dtype)
    calls = StreamCalls.of(dit, vae, cuda_graphs=args.cuda_graphs)
    if not team.leads:
        follow(dit, vae, team, calls=calls)
        return None
    encoder = AudioEncoder.random(preset.audio, seed=RANDOM_SEED, device=device)
    loaded = time.perf_counter() - begin
    output = Output(
        args.json,
        schema=SCHEMA,
        settings={
            "preset": args.preset,
            "layers": preset.dit.num_layers,
            "size": list(preset.size),
            "device": str(device),
            "dtype": dtype_name(dtype),
            "precision": args.precision,
            "cuda_graphs": args.cuda_graphs and device.type == "cuda",
            "steps": STEPS,
            "fps": FPS,
            "random_weights": True,
            "ranks": {"world": team.size, **vars(dit.parallel.mesh)},
            "backends": dit.ops.chosen,
        },
        load=loaded,
        chunks=[],
    )
    options = StreamOptions(steps=STEPS, fps=FPS)
    frames: list[np.ndarray] = []
    late = False
    with Session(dit, vae, encoder, random_avatar(preset), options, team=team, calls=calls) as run:
        pushes = [partial(run.push, speech(chunk)) for chunk in range(args.chunks)]
        turns: list[Callable[[], Iterator[np.ndarray]]] = [*pushes, run.finish]
        for produce in turns:
            last = list(run.stats.chunk_seconds)[-1:]
            late = bool(last) and budget.left() < last[0]
            if late:
                break
            for piece in produce():
                frames.append(piece)
                _note(output, run)
    _note(output, run, complete=not late)
    team.send({"what": "end"})
    if device.type == "cuda":
        output.value["max_memory_bytes"] = torch.cuda.max_memory_allocated(device)
    output.write()
    if args.frames is not None:
        with new_file(args.frames) as file:
            np.save(file, np.concatenate(frames))
    return output.value


def _note(output: Output, session: Session, *, complete: bool | None = None) -> None:
    """Write the result so far, after a chunk or at the end (with ``complete``)."""
    stats = session.stats
    if len(stats.chunks) == len(output.value["chunks"]) and complete is None:
        return
    output.value["chunks"] = [
        {"seconds": seconds, "stages": stages}
        for seconds, stages in zip(stats.chunk_seconds, stats.chunks, strict=True)
    ]
    output.value |= {"first_frame": stats.first_frame, "startup": stats.startup}
    output.value |= {"frames": stats.frames, "underrun": stats.underrun}
    output.value["complete"] = bool(complete)
    steady = list(stats.chunk_seconds)[1:]
    if steady:
        chunk = Summary.of(steady)
        output.value["steady"] = {**vars(chunk), "fps": NEW_FRAMES / chunk.p50}
        output.value["steady"]["realtime_factor"] = NEW_FRAMES / chunk.p50 / FPS
    output.write()


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    lines = [
        f"loaded in {result['load']:.1f} s, first frame after {result['first_frame']:.2f} s; "
        f"{result['settings']['ranks']['world']} rank(s)"
    ]
    for index, chunk in enumerate(result["chunks"]):
        stages = ", ".join(f"{name} {s:.3f}" for name, s in chunk["stages"].items())
        lines.append(f"chunk {index}: {chunk['seconds']:.3f} s: {stages}")
    if "steady" in result:
        steady = result["steady"]
        lines.append(
            f"p50 of {steady['count']}, all but the first: {steady['p50']:.3f} s a chunk, "
            f"{steady['fps']:.1f} frames/s, {steady['realtime_factor']:.2f} x real time"
        )
    if "max_memory_bytes" in result:
        lines.append(f"most memory: {data_size(result['max_memory_bytes'])}")
    return "\n".join(lines)


def torchrun(nproc: int) -> list[str]:
    """Build the command that starts this script on ``nproc`` ranks, without network lookups."""
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "1"),
        *("--nproc-per-node", str(nproc), "--rdzv-backend", "c10d"),
        *("--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1"),
        *sys.argv,
    ]


def make_parser() -> argparse.ArgumentParser:
    """Options."""
    parser = new_parser(__doc__)
    parser.add_argument("--precision", default="exact", choices=("exact", "fp8"))
    parser.add_argument("--layers", type=int, help="blocks of the transformer")
    parser.add_argument("--chunks", type=int, default=5, help="of 28 frames (default: 5)")
    parser.add_argument("--cuda-graphs", action="store_true")
    parser.add_argument("--ranks", type=int, default=1, metavar="N", help="on this machine")
    parser.add_argument("--frames", metavar="FILE", help=".npy of uint8 [T, H, W, 3]")
    parser.set_defaults(ulysses=None, ring=None, vae_grid=None, deadline=[])
    parser.set_defaults(fp8_exchange=False, halo_overlap=False, xfuser=False)
    return parser


def main() -> int:
    """Measure, print, write."""
    args = make_parser().parse_args()
    if args.chunks < 2:
        raise UserError(f"--chunks {args.chunks}: use 2 or more; the first one warms up")
    if Ranks.from_environ() is None and args.ranks > 1:
        return subprocess.run(torchrun(args.ranks), check=False).returncode
    with joined_team(args) as (team, _):
        device, dtype = resolve(args)
        result = measure(args, team, device, dtype, Budget.of(args))
    if result is not None:
        print(table(result))
    return 0


if __name__ == "__main__":
    run_main(main)
