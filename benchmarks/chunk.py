"""Time one chunk in several variants, interleaved on the same machine.

    python benchmarks/chunk.py --compare reuse --preset mid --output profiles/data/chunk.json

``reuse``: with and without work that is done only once; ``backends``: with our compiled kernels and
with plain PyTorch. Every round runs one chunk of each variant, so that a slow minute of a shared
machine affects all of them. Frames are compared first; a wrong variant is not timed. Peaks of
matrix product and convolution are also measured in every round.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from psnr import psnr
from random_models import TORCH

from livetalk_kernels import KernelConfig
from livetalk_kernels.machine import machine
from livetalk_kernels.outputs import write_text
from livetalk_model import load_pipeline
from livetalk_model.dry_run.work import dit_flops, vae_flops
from livetalk_model.loading import DTYPES
from livetalk_model.media.synthetic import picture, speech
from livetalk_model.pipeline import Pipeline
from livetalk_model.stream.session import Session


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to make a chunk; ``floor``: required PSNR against the first variant, dB."""

    dtype: str
    reuse: bool = True
    backend: tuple[str, ...] = ()
    floor: float = 60


COMPARISONS = {
    "reuse": {
        "published fp32": Variant(dtype="fp32", reuse=False, backend=TORCH),
        "reuse fp32": Variant(dtype="fp32"),
        "reuse bf16": Variant(dtype="bf16", floor=35),
    },
    "backends": {
        "reference fp32": Variant(dtype="fp32", backend=("reference",)),
        "cpu fp32": Variant(dtype="fp32", backend=("cpu",)),
        "reference bf16": Variant(dtype="bf16", backend=("reference",), floor=35),
        "cpu bf16": Variant(dtype="bf16", backend=("cpu",), floor=35),
    },
}
DIT_STAGES = ("audio K/V", "denoise")


def chunk(session: Session, index: int) -> np.ndarray:
    """Make the frames of one chunk."""
    return np.concatenate(list(session.push(speech(index))))


def seconds(run: Callable[[], object]) -> float:
    """Return the best of three times, after a warm-up."""
    run()
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return min(times)


def gemm_rate(dtype: torch.dtype, size: int = 2048) -> float:
    """Measure the FLOP/s of a square matrix product."""
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    return 2 * size**3 / seconds(lambda: a @ b)


def conv_rate(dtype: torch.dtype, channels: int = 192) -> float:
    """Measure the FLOP/s of a 3x3x3 convolution on 4 frames of 64x64."""
    x = torch.randn(1, channels, 6, 66, 66).to(dtype)
    weight = torch.randn(channels, channels, 3, 3, 3).to(dtype)
    x, weight = (t.contiguous(memory_format=torch.channels_last_3d) for t in (x, weight))
    flops = 2 * 27 * channels**2 * 4 * 64 * 64
    return flops / seconds(lambda: torch.nn.functional.conv3d(x, weight))


def count(pipeline: Pipeline, rows: int, size: tuple[int, int], steps: int) -> dict[str, int]:
    """Count the FLOPs of a steady-state chunk, per stage group."""
    latent = (9, size[0] // 8, size[1] // 8)
    config, reuse = pipeline.dit.config, pipeline.reuse
    flops = dit_flops(config, pipeline.dit.token_grid(latent), text_rows=rows if reuse else None)
    vae = vae_flops(pipeline.vae.config, size, reuse=reuse)
    return {
        "dit": flops.total(steps, reuse=reuse),
        "decode": vae["warm decoder"] + vae["decode"],
        "encode": vae["encode"],
    }


def chosen(compare: str, dtype: str) -> dict[str, Variant]:
    """Select the variants of a comparison, in one dtype or both."""
    variants = COMPARISONS[compare].items()
    return {name: variant for name, variant in variants if dtype in ("both", variant.dtype)}


def measure(args: argparse.Namespace) -> dict:
    """Check, then time all variants interleaved."""
    torch.set_num_threads(args.threads)
    where = machine() | {"preset": args.preset}
    variants = chosen(args.compare, args.dtype)
    base = next(iter(variants))
    sessions: dict[str, Session] = {}
    flops, frames = {}, {}
    for name, variant in variants.items():
        pipeline = load_pipeline(
            preset=args.preset,
            device="cpu",
            dtype=variant.dtype,
            backend=KernelConfig.parse(variant.backend),
            reuse=variant.reuse,
        )
        avatar = pipeline.prepare(picture(pipeline.preparer.size))
        sessions[name] = pipeline.session(avatar)
        flops[name] = count(pipeline, len(avatar.context), avatar.size, 4)
        frames[name] = [chunk(sessions[name], index) for index in range(2)]
        print(f"{name}: ready", flush=True)
    quality = {
        name: [psnr(a, b) for a, b in zip(frames[name], frames[base], strict=True)]
        for name in variants
        if name != base
    }
    for name, values in quality.items():
        if min(values) < variants[name].floor:
            raise SystemExit(f"{name} differs from {base}: {quality}; not timed")
    rounds: list[dict] = []
    for index in range(args.rounds):
        entry: dict = {"peaks": {}}
        for key in dict.fromkeys(variant.dtype for variant in variants.values()):
            dtype = DTYPES[key]
            entry["peaks"][key] = {"gemm": gemm_rate(dtype), "conv": conv_rate(dtype)}
        for name, session in sessions.items():
            chunk(session, 2 + index)
            stages = session.stats.chunks[-1]
            entry[name] = {"chunk": session.stats.chunk_seconds[-1], "stages": stages}
        rounds.append(entry)
        print(f"round {index + 1}/{args.rounds}", flush=True)
    return {
        "rounds": rounds,
        "flops": flops,
        "psnr": quality,
        "compare": args.compare,
        "dtype": args.dtype,
        "machine": where,
    }


def group(stages: dict[str, float], names: tuple[str, ...]) -> float:
    """Sum the seconds of several stages."""
    return sum(stages.get(name, 0.0) for name in names)


def summarise(result: dict) -> dict:
    """Compute medians over the rounds, ratios per round, rates and fractions of the peak."""
    rounds = result["rounds"]
    groups = {
        "dit": DIT_STAGES,
        "decode": ("decode", "warm decoder"),
        "encode": ("encode",),
    }
    summary: dict = {}
    variants = chosen(result["compare"], result["dtype"])
    base = next(iter(variants))
    for name, variant in variants.items():
        row: dict = {"chunk": median(r[name]["chunk"] for r in rounds)}
        row["chunk_ratio"] = median(r[base]["chunk"] / r[name]["chunk"] for r in rounds)
        for key, stages in groups.items():
            times = [group(r[name]["stages"], stages) for r in rounds]
            peak = "gemm" if key == "dit" else "conv"
            rate = [result["flops"][name][key] / t for t in times]
            row[key] = median(times)
            row[f"{key}_ratio"] = median(
                group(r[base]["stages"], stages) / t for r, t in zip(rounds, times, strict=True)
            )
            row[f"{key}_gflops"] = median(rate) / 1e9
            row[f"{key}_share_of_{peak}_peak"] = median(
                x / r["peaks"][variant.dtype][peak] for x, r in zip(rate, rounds, strict=True)
            )
        summary[name] = row
    return summary


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--compare", default="reuse", choices=sorted(COMPARISONS))
    parser.add_argument(
        "--dtype",
        default="both",
        choices=("both", "fp32"),
        help="fp32: skip bf16, whose plain formulas take minutes without bf16 instructions",
    )
    parser.add_argument("--preset", default="mid")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, help="JSON file")
    args = parser.parse_args()
    result = measure(args)
    result["summary"] = summarise(result)
    for name, row in result["summary"].items():
        print(name)
        for key, value in row.items():
            print(f"  {key:28s} {value:10.3f}")
    print("PSNR against the first, dB:", result["psnr"])
    if args.output:
        write_text(args.output, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
