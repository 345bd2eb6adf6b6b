"""Compare the sliced VAE with cropped overlapping tiles: error, traffic, speed.

    python benchmarks/vae_sliced.py --preset mid --output profiles/data/vae_sliced.json

Errors are relative L2 against the VAE on one rank, with random weights in fp32. Times are those of
one rank against several with one thread each, interleaved in the same processes; nothing is timed
whose error is too large. All ranks run on this machine.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from race import parse_size
from random_models import make_vae
from torch import Tensor

from livetalk_kernels import KernelConfig
from livetalk_kernels.machine import machine
from livetalk_kernels.outputs import write_json
from livetalk_kernels.runtime.comm import Communicator
from livetalk_kernels.runtime.halo import WHOLE, HaloExchange
from livetalk_kernels.runtime.mesh import Grid
from livetalk_kernels.testing.numerics import relative_l2
from livetalk_kernels.testing.processes import run_ranks
from livetalk_model.config import VAEConfig, get_preset
from livetalk_model.vae import SPATIAL, VAE, DecoderCache

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests" / "model"))
from crop_overlap import decode_tiles, encode_tiles  # type: ignore[import-not-found]

BOUND = 1e-5
FRAMES, LATENTS = 5, 2  # in the comparison
TIMEOUT = 3600.0


def build(config: VAEConfig) -> VAE:
    """Create a VAE with random weights."""
    preset = replace(get_preset("tiny"), vae=config)
    return make_vae(preset, KernelConfig(), torch.device("cpu"), torch.float32)


def inputs(config: VAEConfig, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Draw frames and latents of noise."""
    draw = torch.Generator().manual_seed(0)
    video = torch.randn(1, 3, FRAMES, *size, generator=draw).clamp(-1, 1)
    rows, columns = size[0] // SPATIAL, size[1] // SPATIAL
    return video, torch.randn(1, config.z_dim, LATENTS, rows, columns, generator=draw)


def errors(
    comm: Communicator, config: VAEConfig, size: tuple[int, int], grid: str
) -> dict[str, Any]:
    """Compute our errors and the oracle's, on rank 0; and the bytes that rank 0 sends."""
    vae = build(config)
    video, z = inputs(config, size)
    halo = HaloExchange(comm, Grid.parse(grid), (z.shape[3], z.shape[4]))
    sent: dict[str, dict[str, int]] = {}
    comm.traffic.clear()
    latents = vae.encode(halo.take(video), halo=halo)
    sent["encode"] = dict(comm.traffic.bytes)
    comm.traffic.clear()
    frames = vae.decode(halo.take(z), halo=halo, clamp=False)
    sent["decode"] = dict(comm.traffic.bytes)
    all_latents, all_frames = halo.collect(latents), halo.collect(frames)
    if all_latents is None or all_frames is None:
        return {}
    right_latents, right_frames = vae.encode(video), vae.decode(z, clamp=False)
    slices = halo.slices
    return {
        "halo": {
            "encode": relative_l2(all_latents, right_latents),
            "decode": relative_l2(all_frames, right_frames),
        },
        "crop_overlap": {
            "encode": relative_l2(encode_tiles(vae, video, slices), right_latents),
            "decode": relative_l2(decode_tiles(vae, z, slices), right_frames),
        },
        "sent_by_rank_0": sent,
    }


def times(
    comm: Communicator, config: VAEConfig, size: tuple[int, int], grid: str, rounds: int
) -> dict[str, list[float]]:
    """Time a steady-state decode step and an encode, variant by variant in every round."""
    vae = build(config)
    video, z = inputs(config, size)
    latent = z.shape[3], z.shape[4]
    variants = {
        "one": None,
        "joined": HaloExchange(comm, Grid.parse(grid), latent),
        "overlap": HaloExchange(comm, Grid.parse(grid), latent, overlap=True),
    }
    found: dict[str, list[float]] = {}

    def timed(name: str, everybody: bool, work: Callable[[], object]) -> None:
        comm.barrier()
        begin = time.perf_counter()
        if everybody or comm.rank == 0:
            work()
        comm.barrier()
        found.setdefault(name, []).append(time.perf_counter() - begin)

    def stream(halo: HaloExchange | None) -> tuple[DecoderCache, Tensor, Tensor]:
        part = halo or WHOLE
        cache, own = DecoderCache(halo=part), part.take(z)
        vae.decode_step(own[:, :, :1], cache)
        return cache, own[:, :, 1:], part.take(video)

    def decode(cache: DecoderCache, latent: Tensor) -> None:
        vae.decode_step(latent, cache.fork())

    streams = {
        name: stream(halo) for name, halo in variants.items() if halo is not None or comm.rank == 0
    }
    for _ in range(rounds + 1):  # the first is a warm-up
        for name, halo in variants.items():
            cache, own, frames = streams.get(name, streams["joined"])
            everybody = halo is not None
            timed(f"{name} decode", everybody, partial(decode, cache, own))
            timed(f"{name} encode", everybody, partial(vae.encode, frames, halo=halo or WHOLE))
    return {name: values[1:] for name, values in found.items()}


def summarise(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Compute medians, and the speed-up over one rank per round."""
    summary = {}
    for name, values in seconds.items():
        alone = seconds[f"one {name.split()[1]}"]
        ratio = median(a / b for a, b in zip(alone, values, strict=True))
        summary[name] = {"seconds": median(values), "speedup": ratio}
    return summary


def main() -> None:
    """Compare, time, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="mid", help="preset whose VAE and size are timed")
    parser.add_argument("--sizes", nargs="*", default=["128x128", "96x160", "88x104"])
    parser.add_argument("--grids", nargs="*", default=["2x1", "2x2", "4x1", "4x2", "8x1"])
    parser.add_argument("--dim", type=int, default=16, help="width of the compared VAE")
    parser.add_argument("--timed-grid", default="2x1")
    parser.add_argument("--rounds", type=int, default=5, help="0 to time nothing")
    parser.add_argument("--output", type=Path, help="JSON file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    settings = {"preset": args.preset, "dim": args.dim}
    where = machine() | {"command": shlex.join(["python", *sys.argv]), **settings}
    result: dict[str, Any] = {"machine": where, "errors": {}}
    for size in args.sizes:
        for grid in args.grids:
            world = Grid.parse(grid).world
            config = VAEConfig(dim=args.dim)
            row = run_ranks(errors, world, config, parse_size(size), grid, timeout=TIMEOUT)[0]
            result["errors"][f"{size} {grid}"] = row
            ours, theirs = row["halo"], row["crop_overlap"]
            print(
                f"{size:8s} {grid}: encode {ours['encode']:.1e} (tiles {theirs['encode']:.1e}), "
                f"decode {ours['decode']:.1e} (tiles {theirs['decode']:.1e}), "
                f"halo of a decode {row['sent_by_rank_0']['decode'].get('halo', 0) / 1e6:.2f} MB",
                flush=True,
            )
            if max(ours.values()) > BOUND:
                raise SystemExit(f"slices differ from the whole: {ours}; nothing is timed")
    if args.rounds:
        preset = get_preset(args.preset)
        world = Grid.parse(args.timed_grid).world
        given = (preset.vae, preset.size, args.timed_grid)
        result["seconds"] = run_ranks(times, world, *given, args.rounds, timeout=TIMEOUT)[0]
        result["summary"] = summarise(result["seconds"])
        for name, entry in result["summary"].items():
            print(f"{name:16s} {entry['seconds']:8.3f} s  {entry['speedup']:5.2f} x")
    if args.output:
        write_json(args.output, result)


if __name__ == "__main__":
    main()
