"""Time one chunk in several variants, interleaved on the same machine.

    python benchmarks/chunk.py --compare reuse --preset mid --output profiles/data/chunk.json
    python benchmarks/chunk.py --tier avx2 --dtype fp32 --output profiles/data/chunk_avx2.json

``reuse``: with and without the work that is done once, and without it by torch.compile with
channels-last memory; ``backends``: by our compiled kernels and by plain PyTorch. Every round runs
one chunk of each variant in turn, so that a slow minute of a shared machine hits all of them. The
frames are compared, before and in each round; a wrong variant ends the run. Peaks of matrix product
and convolution are measured in every round as well; ``cpu`` is the CPU time of all threads.
``--tier`` holds our kernels, oneDNN, MKL, PyTorch and what it compiles to an instruction set. The
file is written anew after every round.
"""

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from compiled_vae import compile_vae
from psnr import psnr
from random_models import TORCH
from tiers import LIBRARIES

from livetalk_kernels import KernelConfig
from livetalk_kernels.backends import cpu
from livetalk_kernels.machine import machine
from livetalk_kernels.outputs import write_json
from livetalk_kernels.precision import dtype_name
from livetalk_model.dry_run.work import dit_flops, vae_flops
from livetalk_model.linear import linear
from livetalk_model.loading import DTYPES, ModelSource
from livetalk_model.media.synthetic import picture, speech
from livetalk_model.pipeline import Pipeline
from livetalk_model.stream.session import Session


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to make a chunk.

    Attributes:
        dtype: fp32 or bf16.
        reuse: False: the published schedule.
        compiled: Transformer and VAE run by torch.compile, the VAE in channels-last memory.
        backend: Kernel backends.
        floor: PSNR against the first variant that it must reach, dB.
    """

    dtype: str
    reuse: bool = True
    compiled: bool = False
    backend: tuple[str, ...] = ()
    floor: float = 60


COMPILED = "published fp32, compiled"
COMPARISONS = {
    "reuse": {
        "published fp32": Variant(dtype="fp32", reuse=False, backend=TORCH),
        COMPILED: Variant(dtype="fp32", reuse=False, compiled=True, backend=TORCH),
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
    """Measure the FLOP/s of a square matrix product, by the faster library."""
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    return 2 * size**3 / min(seconds(lambda: a @ b), seconds(lambda: linear(a, b)))


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


def chosen(args: argparse.Namespace) -> dict[str, Variant]:
    """The variants of a comparison that the options ask for."""
    return {
        name: variant
        for name, variant in COMPARISONS[args.compare].items()
        if args.dtype in ("both", variant.dtype) and not (args.no_compile and variant.compiled)
    }


def load(preset: str, variant: Variant) -> Pipeline:
    """Load the model as a variant runs it."""
    source = ModelSource.find(
        preset=preset,
        checkpoint=None,
        audio_encoder=None,
        device="cpu",
        dtype=variant.dtype,
        backend=KernelConfig.parse(variant.backend),
        reuse=variant.reuse,
    )
    source = replace(source, compiled=variant.compiled)
    pipeline = source.load_pipeline(source.load_preparer())
    if variant.compiled:
        compile_vae(pipeline.vae)
    return pipeline


def peak_dtype(variant: Variant) -> torch.dtype:
    """The dtype in which a variant's products are calculated, whose peak they have."""
    return cpu.product_dtype(torch.device("cpu"), DTYPES[variant.dtype])


def measure(args: argparse.Namespace) -> dict:
    """Check, then time all variants interleaved."""
    torch.set_num_threads(args.threads)
    if args.tier is not None:
        if reason := cpu.missing():
            raise SystemExit(f"--tier {args.tier}: {reason}")
        torch.ops.livetalk.use_isa(args.tier)
    where = machine() | {"preset": args.preset}
    variants = chosen(args)
    base = next(iter(variants))
    sessions: dict[str, Session] = {}
    flops, frames = {}, {}
    for name, variant in variants.items():
        pipeline = load(args.preset, variant)
        avatar = pipeline.prepare(picture(pipeline.preparer.size))
        sessions[name] = pipeline.session(avatar)
        flops[name] = count(pipeline, len(avatar.context), avatar.size, 4)
        frames[name] = [chunk(sessions[name], index) for index in range(args.warmup)]
        print(f"{name}: ready", flush=True)
    quality: dict[str, list[float | None]] = {name: [] for name in variants if name != base}
    for made in zip(*frames.values(), strict=True):
        compare(dict(zip(frames, made, strict=True)), variants, quality)
    result: dict = {"rounds": [], "flops": flops, "psnr": quality, "machine": where}
    result |= {"compare": args.compare, "dtype": args.dtype}
    for index in range(args.rounds):
        entry: dict = {"peaks": {}}
        for dtype in dict.fromkeys(peak_dtype(variant) for variant in variants.values()):
            key = dtype_name(dtype)
            entry["peaks"][key] = {"gemm": gemm_rate(dtype), "conv": conv_rate(dtype)}
        shown = {}
        for name, session in sessions.items():
            begin = time.process_time()
            shown[name] = chunk(session, args.warmup + index)
            used = time.process_time() - begin
            stages, took = session.stats.chunks[-1], session.stats.chunk_seconds[-1]
            entry[name] = {"chunk": took, "cpu": used, "stages": stages}
        compare(shown, variants, quality)
        result["rounds"].append(entry)
        result["summary"] = summarise(result, variants)
        if args.output:
            write_json(args.output, result)
        print(f"round {index + 1}/{args.rounds}", flush=True)
    return result


def compare(
    frames: Mapping[str, np.ndarray],
    variants: Mapping[str, Variant],
    quality: dict[str, list[float | None]],
) -> None:
    """Add a chunk's PSNR against the first variant, in dB; None where frames are equal.

    Raises:
        SystemExit: A variant differs from the first by more than it may.
    """
    base = next(iter(variants))
    for name, values in quality.items():
        value = psnr(frames[name], frames[base])
        if value < variants[name].floor:
            raise SystemExit(f"{name} differs from {base}: {value:.1f} dB; not timed")
        values.append(value if math.isfinite(value) else None)  # JSON has no infinity


def group(stages: dict[str, float], names: tuple[str, ...]) -> float:
    """Sum the seconds of several stages."""
    return sum(stages.get(name, 0.0) for name in names)


def summarise(result: dict, variants: Mapping[str, Variant]) -> dict:
    """Medians over the rounds, ratios round by round, rates and shares of the peaks."""
    rounds = result["rounds"]
    groups = {
        "dit": DIT_STAGES,
        "decode": ("decode", "warm decoder"),
        "encode": ("encode",),
    }
    summary: dict = {}
    base = next(iter(variants))
    for name, variant in variants.items():
        row: dict = {key: median(r[name][key] for r in rounds) for key in ("chunk", "cpu")}
        for other in variants:
            row[f"chunk_against {other}"] = median(
                r[other]["chunk"] / r[name]["chunk"] for r in rounds
            )
        row["chunk_ratio"] = row[f"chunk_against {base}"]
        for key, stages in groups.items():
            times = [group(r[name]["stages"], stages) for r in rounds]
            rate = [result["flops"][name][key] / t for t in times]
            row[key] = median(times)
            row[f"{key}_ratio"] = median(
                group(r[base]["stages"], stages) / t for r, t in zip(rounds, times, strict=True)
            )
            row[f"{key}_gflops"] = median(rate) / 1e9
            for peak in ("gemm",) if key == "dit" else ("gemm", "conv"):
                row[f"{key}_share_of_{peak}_peak"] = median(
                    x / r["peaks"][dtype_name(peak_dtype(variant))][peak]
                    for x, r in zip(rate, rounds, strict=True)
                )
        summary[name] = row
    return summary


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--compare", default="reuse", choices=sorted(COMPARISONS))
    parser.add_argument(
        "--dtype",
        default="both",
        choices=("both", "fp32"),
        help="fp32: skip bf16, whose plain formulas take minutes without bf16 instructions",
    )
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--tier", choices=LIBRARIES, help="default: the best of this CPU")
    parser.add_argument("--held", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--preset", default="mid")
    parser.add_argument("--warmup", type=int, default=2, help="chunks that are compared only")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, help="JSON file")
    args = parser.parse_args()
    if args.tier is not None and not args.held:  # libraries ask for their limits when they load
        command = [sys.executable, *sys.argv, "--held"]
        os.execve(sys.executable, command, os.environ | LIBRARIES[args.tier])
    result = measure(args)
    for name, row in result["summary"].items():
        print(name)
        for key, value in row.items():
            print(f"  {key:28s} {value:10.3f}")
    print("PSNR against the first, dB:", result["psnr"])


if __name__ == "__main__":
    main()
