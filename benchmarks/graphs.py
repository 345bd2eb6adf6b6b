"""Compare a DiT step, a decode step and the encoder as launches and as CUDA graphs.

    python benchmarks/graphs.py --json profiles/data/graphs.json
    python benchmarks/graphs.py --layers 4 --size 256x256

A preset with random weights, on one GPU. Graphs are compared with eager calls first, bit for bit,
with changing inputs; a call that differs is red and not timed, and the others continue. The file is
written after every call. Times are those of a call on an idle GPU, by events, eager and replayed
interleaved. Gaps are the time within a call in which no kernel or copy runs, by torch.profiler,
which enlarges those between eager launches; ``idle`` therefore compares the profiled kernels with
the time without the profiler. Exit code 1 if a call is red or failed, 2 without a GPU.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from race import (
    FAILED,
    LEFT_OUT,
    NO_TIME,
    RED,
    TIMED,
    Budget,
    Output,
    call_seconds,
    exit_code,
    new_parser,
    resolve,
    run_main,
    say,
)
from random_models import (
    SHIFT,
    Given,
    Prepared,
    bind,
    fill,
    latent_size,
    make_dit,
    make_vae,
    sized,
)
from torch import Tensor

from livetalk_kernels import KernelConfig, UserError
from livetalk_kernels.bench.timer import Summary, interleave, ratio
from livetalk_kernels.lines import brief
from livetalk_kernels.precision import dtype_name
from livetalk_model.config import MOTION_FRAMES, Preset
from livetalk_model.dit import DiT
from livetalk_model.sampler import timesteps
from livetalk_model.stream.graphs import StreamCalls
from livetalk_model.vae import VAE, DecoderCache

SCHEMA = "livetalk/graphs/1"
GPU_WORK = ("kernel", "gpu_memcpy", "gpu_memset")
TURNS = 4  # different inputs
WARM_LATENTS = 3  # until the decoder's state repeats

Interval = tuple[float, float]
Run = Callable[[int], Tensor]
"""One call, with the inputs of a turn."""


@dataclass(frozen=True, kw_only=True)
class Gaps:
    """How much of a call's time the GPU is busy.

    Attributes:
        kernels: Number of kernels and copies.
        span: Seconds from the start of the first to the end of the last.
        busy: Seconds in which at least one runs.
        share: Fraction of the span in which none runs.
    """

    kernels: int
    span: float
    busy: float
    share: float

    @classmethod
    def of(cls, intervals: Iterable[Interval]) -> "Gaps":
        """Compute from at least one (start, end) in seconds, in any order, possibly overlapping."""
        ordered = sorted(intervals)
        busy, reached = 0.0, -math.inf
        for start, end in ordered:
            busy += max(0.0, end - max(start, reached))
            reached = max(reached, end)
        span = reached - ordered[0][0]
        share = 1 - busy / span if span else 0.0
        return cls(kernels=len(ordered), span=span, busy=busy, share=share)


def gpu_intervals(trace: Mapping[str, Any]) -> list[Interval]:
    """List (start, end) in seconds of the GPU's work in a trace in Chrome's format."""
    return [
        (event["ts"] / 1e6, (event["ts"] + event["dur"]) / 1e6)
        for event in trace["traceEvents"]
        if event.get("cat") in GPU_WORK
    ]


def profile(run: Run) -> Gaps | None:
    """Measure the gaps of one call; None if the profiler sees nothing of the GPU."""
    run(0)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        run(0)
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(file))
        intervals = gpu_intervals(json.loads(file.read_text()))
    return Gaps.of(intervals) if intervals else None


def models(
    preset: Preset, backend: KernelConfig, device: torch.device, dtype: torch.dtype
) -> tuple[DiT, VAE]:
    """Create a preset's models with random weights.

    Raises:
        UserError: A backend that was named cannot run.
    """
    dit = make_dit(preset, bind(preset, backend, device, dtype))
    fill(dit, dtype=dtype, device=device)
    return dit, make_vae(preset, backend, device, dtype)


def runs(dit: DiT, vae: VAE, calls: StreamCalls, preset: Preset) -> dict[str, Run]:
    """Map names to calls; the decoder's stream continues from call to call."""
    device, dtype = dit.device, dit.dtype
    random = torch.Generator(device).manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, device=device, dtype=dtype)

    given = vars(Prepared.of(dit, Given.draw(preset, device, dtype)))
    steps = dit.prepare_steps(timesteps(TURNS, SHIFT)[:-1])
    latents = [draw(1, 16, *latent_size(preset)) for _ in range(TURNS)]
    videos = [draw(1, 3, MOTION_FRAMES, *preset.size).clamp(-1, 1) for _ in range(TURNS)]
    cache = DecoderCache()
    for piece in latents[0][:, :, :WARM_LATENTS].split(1, dim=2):
        vae.decode_step(piece, cache, clamp=False)
    return {
        "DiT step": lambda turn: calls.step(latents[turn], step=steps[turn], **given),
        "decode step": lambda turn: calls.decode_step(latents[turn][:, :, -1:], cache, clamp=False),
        "encode": lambda turn: calls.encode(videos[turn]),
    }


def difference(eager: Run, graph: Run) -> str | None:
    """Return None if calls with several inputs give equal bits both ways, else what differs."""
    for turn in range(TURNS):
        expected, actual = eager(turn), graph(turn)
        if not torch.isfinite(expected).all():
            return f"call {turn + 1}: the eager result is not finite"
        if not torch.equal(expected, actual):
            return f"call {turn + 1}: the graph differs in {int((expected != actual).sum())} values"
    return None


def compare(
    eager: Sequence[float], graph: Sequence[float], gaps: Sequence[Gaps | None]
) -> dict[str, Any]:
    """Measure times, gaps and idle fractions of one call, both ways."""
    result: dict[str, Any] = {"ratio": ratio(eager, graph)}
    for name, samples, own in zip(("eager", "graph"), (eager, graph), gaps, strict=True):
        times = Summary.of(samples)
        result[name] = {"seconds": asdict(times), "gaps": None, "idle": None}
        if own is not None:
            idle = max(0.0, 1 - own.busy / times.p50)
            result[name] |= {"gaps": asdict(own), "idle": idle}
    return result


def measure(args: argparse.Namespace, budget: Budget) -> Output:
    """Check each call, time it both ways, profile, write.

    Raises:
        UserError: There is no GPU, or an option is invalid.
    """
    device, dtype = resolve(args)
    if device.type != "cuda":
        raise UserError(f"--device {device}: CUDA graphs need an NVIDIA GPU, and this is none")
    preset = sized(args.preset, layers=args.layers, size=args.size)
    settings = {
        "preset": args.preset,
        "layers": preset.dit.num_layers,
        "size": list(preset.size),
        "dtype": dtype_name(dtype),
        "random_weights": True,
    }
    output = Output(args.json, schema=SCHEMA, settings=settings, calls={})
    output.write()
    say("making weights")
    with torch.inference_mode():
        dit, vae = models(preset, KernelConfig.from_sources(args.backend), device, dtype)
        eager, graph = (
            runs(dit, vae, StreamCalls.of(dit, vae, cuda_graphs=graphs), preset)
            for graphs in (False, True)
        )
        for name in eager:
            say(name)
            output.value["calls"][name] = take(eager[name], graph[name], device, args, budget)
            output.write()
    rows = output.value["calls"].values()
    output.value["complete"] = all(row["note"] != NO_TIME for row in rows)
    output.value["max_memory_reserved_bytes"] = torch.cuda.max_memory_reserved(device)
    output.write()
    return output


def take(
    eager: Run, graph: Run, device: torch.device, args: argparse.Namespace, budget: Budget
) -> dict[str, Any]:
    """Measure one call both ways; a failure becomes its row's note."""
    if budget.left() <= 0:
        return {"state": LEFT_OUT, "note": NO_TIME}
    try:
        differs = difference(eager, graph)
        if differs is not None:
            return {"state": RED, "note": differs}
        ways = {"eager": partial(eager, 0), "graph": partial(graph, 0)}
        samplers = {way: partial(call_seconds, device, run) for way, run in ways.items()}
        times = interleave(samplers, rounds=args.rounds)
        gaps = [profile(run) for run in (eager, graph)]
        row = compare(times["eager"], times["graph"], gaps)
        return {"state": TIMED, "note": "", **row}
    except Exception as error:  # the other calls continue, unless the GPU's context is lost
        return {"state": FAILED, "note": brief(error)}


def table(result: Mapping[str, Any]) -> str:
    """Format the result as a table."""
    lines = [f"{'':12s} {'':6s} {'ms':>10s} {'kernels':>8s} {'gaps %':>7s} {'idle %':>7s}"]
    for name, row in result["calls"].items():
        if row["state"] != TIMED:
            lines.append(f"{name:12s} {row['state']}: {row['note']}")
            continue
        for way in ("eager", "graph"):
            own = row[way]
            text = f"{name:12s} {way:6s} {own['seconds']['p50'] * 1e3:10.3f}"
            if own["gaps"] is not None:
                gaps, idle = own["gaps"], own["idle"] * 100
                text += f" {gaps['kernels']:8d} {gaps['share'] * 100:7.1f} {idle:7.1f}"
            lines.append(text)
        lines.append(f"{name:12s} {row['ratio']:.3f} x")
    return "\n".join(lines)


def make_parser() -> argparse.ArgumentParser:
    """Options."""
    parser = new_parser(__doc__)
    parser.add_argument("--layers", type=int, help="number of blocks, if fewer than the preset's")
    parser.add_argument("--rounds", type=int, default=20)
    return parser


def main() -> int:
    """Measure, print, write."""
    args = make_parser().parse_args()
    output = measure(args, Budget.of(args))
    print(table(output.value))
    return exit_code(output.value["calls"].values())


if __name__ == "__main__":
    run_main(main)
