"""A DiT step, a decode step and the encoder: launched one by one, and as CUDA graphs.

    python benchmarks/graphs.py --output profiles/data/graphs.json
    python benchmarks/graphs.py --layers 4 --height 256 --width 256

A preset with random weights, on one GPU. Graphs are compared with eager calls first, bit for bit,
with inputs that change; what differs is not timed. Times are those of a call on an idle GPU, by
events, eager and replayed in turn. Gaps are the time within a call in which no kernel and no copy
runs, by torch.profiler, whose own work makes those between eager launches larger; ``idle`` compares
the profiled kernels with the time without the profiler instead. Exit code 2 without a GPU. Untested
on a GPU.
"""

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from livetalk_kernels import bind_ops
from livetalk_kernels.bench.timer import Summary, interleave, ratio
from livetalk_kernels.machine import machine
from livetalk_kernels.outputs import write_json
from livetalk_model.config import CHUNK_FRAMES, LATENT_FRAMES, MOTION_FRAMES, Preset, get_preset
from livetalk_model.dit import DiT
from livetalk_model.sampler import timesteps
from livetalk_model.stream.graphs import StreamCalls
from livetalk_model.vae import SPATIAL, VAE, DecoderCache
from livetalk_model.weights import random_module

GPU_WORK = ("kernel", "gpu_memcpy", "gpu_memset")
TURNS = 4  # different inputs
WARM_LATENTS = 3  # until the decoder's state repeats
DTYPE = torch.bfloat16

Interval = tuple[float, float]
Run = Callable[[int], Tensor]
"""One call, with the inputs of a turn."""


@dataclass(frozen=True, kw_only=True)
class Gaps:
    """How much of a call's time the GPU works.

    Attributes:
        kernels: Kernels and copies.
        span: Seconds from the start of the first to the end of the last.
        busy: Seconds in which at least one runs.
        share: Part of the span in which none runs.
    """

    kernels: int
    span: float
    busy: float
    share: float

    @classmethod
    def of(cls, intervals: Iterable[Interval]) -> "Gaps":
        """Of at least one (start, end) in seconds, in any order, which may overlap."""
        ordered = sorted(intervals)
        busy, reached = 0.0, -math.inf
        for start, end in ordered:
            busy += max(0.0, end - max(start, reached))
            reached = max(reached, end)
        span = reached - ordered[0][0]
        share = 1 - busy / span if span else 0.0
        return cls(kernels=len(ordered), span=span, busy=busy, share=share)


def gpu_intervals(trace: Mapping[str, Any]) -> list[Interval]:
    """(start, end) in seconds of the GPU's work in a trace in Chrome's format."""
    return [
        (event["ts"] / 1e6, (event["ts"] + event["dur"]) / 1e6)
        for event in trace["traceEvents"]
        if event.get("cat") in GPU_WORK
    ]


def profile(run: Run) -> Gaps:
    """The gaps of one call."""
    run(0)
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        run(0)
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(file))
        return Gaps.of(gpu_intervals(json.loads(file.read_text())))


def seconds(run: Run) -> float:
    """One call on an idle GPU, launches included."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    run(0)
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3


def fill(dit: DiT, device: torch.device) -> None:
    """Random weights made on the device: those of `random_module` take minutes for 14 B."""
    dit.to_empty(device=device)
    random = torch.Generator(device).manual_seed(0)
    for name, parameter in dit.named_parameters():
        parameter.requires_grad_(False)
        if parameter.ndim > 1:
            bound = math.sqrt(3 / math.prod(parameter.shape[1:]))
            parameter.uniform_(-bound, bound, generator=random)
        else:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)


@torch.no_grad()
def models(preset: Preset, device: torch.device) -> tuple[DiT, VAE]:
    """A preset's models with random weights."""
    config = preset.dit
    shape = {"H": config.num_heads, "d": config.head_dim, "D": config.dim}
    with torch.device("meta"):
        dit = DiT(config, bind_ops(device=device, dtype=DTYPE, **shape)).to(DTYPE)
        vae = VAE(preset.vae, bind_ops(device=device, dtype=DTYPE))
    fill(dit, device)
    random_module(vae, seed=0, dtype=DTYPE, device=device)
    vae.prepare()
    return dit, vae


def runs(dit: DiT, vae: VAE, calls: StreamCalls, size: tuple[int, int]) -> dict[str, Run]:
    """Name -> one call; the decoder's stream goes on from call to call."""
    device, config = dit.device, dit.config
    random = torch.Generator(device).manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, device=device, dtype=DTYPE)

    latent_size = (LATENT_FRAMES, size[0] // SPATIAL, size[1] // SPATIAL)
    windows = draw(1, CHUNK_FRAMES, config.audio_window, config.audio_layers, config.audio_dim)
    given: dict[str, Any] = {
        "condition": dit.prepare_condition(draw(1, 20, *latent_size)),
        "context": dit.prepare_context(
            draw(24, config.text_dim), draw(1, config.image_len, config.image_dim)
        ),
        "norm_rope": dit.prepare_rope(dit.token_grid(latent_size)),
        "audio": dit.prepare_audio(windows),
    }
    steps = dit.prepare_steps(timesteps(TURNS, 5.0)[:-1])
    latents = [draw(1, 16, *latent_size) for _ in range(TURNS)]
    videos = [draw(1, 3, MOTION_FRAMES, *size).clamp(-1, 1) for _ in range(TURNS)]
    cache = DecoderCache()
    for piece in latents[0][:, :, :WARM_LATENTS].split(1, dim=2):
        vae.decode_step(piece, cache, clamp=False)
    return {
        "DiT step": lambda turn: calls.step(latents[turn], step=steps[turn], **given),
        "decode step": lambda turn: calls.decode_step(latents[turn][:, :, -1:], cache, clamp=False),
        "encode": lambda turn: calls.encode(videos[turn]),
    }


def check(pairs: Mapping[str, tuple[Run, Run]]) -> None:
    """Calls with several inputs, eager and as a graph, give the same bits."""
    for name, (eager, graph) in pairs.items():
        for turn in range(TURNS):
            expected, actual = eager(turn), graph(turn)
            if not torch.isfinite(expected).all() or not torch.equal(expected, actual):
                raise SystemExit(f"{name}, call {turn + 1}: the graph differs; not timed")


def compare(eager: Sequence[float], graph: Sequence[float], gaps: Sequence[Gaps]) -> dict[str, Any]:
    """Times, gaps and idle shares of one call, both ways."""
    result: dict[str, Any] = {"ratio": ratio(eager, graph)}
    for name, samples, own in zip(("eager", "graph"), (eager, graph), gaps, strict=True):
        times = Summary.of(samples)
        idle = max(0.0, 1 - own.busy / times.p50)
        result[name] = {"seconds": asdict(times), "gaps": asdict(own), "idle": idle}
    return result


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Check, then time both ways in turn, then profile."""
    device, size = torch.device("cuda", torch.cuda.current_device()), (args.height, args.width)
    preset = get_preset(args.preset)
    layers = args.layers or preset.dit.num_layers
    where = machine() | {"preset": args.preset, "layers": layers, "size": size, "dtype": "bf16"}
    dit, vae = models(replace(preset, dit=replace(preset.dit, num_layers=layers)), device)
    rows = {}
    with torch.inference_mode():
        eager, graph = (
            runs(dit, vae, StreamCalls.of(dit, vae, cuda_graphs=graphs), size)
            for graphs in (False, True)
        )
        pairs = {name: (eager[name], graph[name]) for name in eager}
        check(pairs)
        for name, pair in pairs.items():
            ways = dict(zip(("eager", "graph"), pair, strict=True))
            times = interleave(
                {way: partial(seconds, run) for way, run in ways.items()}, rounds=args.rounds
            )
            gaps = [profile(run) for run in pair]
            rows[name] = compare(times["eager"], times["graph"], gaps)
    reserved = torch.cuda.max_memory_reserved(device)
    return {"calls": rows, "max_memory_reserved_bytes": reserved, "machine": where}


def report(result: Mapping[str, Any]) -> str:
    """The result as a table."""
    lines = [f"{'':12s} {'':6s} {'ms':>10s} {'kernels':>8s} {'gaps %':>7s} {'idle %':>7s}"]
    for name, row in result["calls"].items():
        for way in ("eager", "graph"):
            own = row[way]
            milliseconds, gaps = own["seconds"]["p50"] * 1e3, own["gaps"]
            lines.append(
                f"{name:12s} {way:6s} {milliseconds:10.3f} {gaps['kernels']:8d} "
                f"{gaps['share'] * 100:7.1f} {own['idle'] * 100:7.1f}"
            )
        lines.append(f"{name:12s} {row['ratio']:.3f} x")
    return "\n".join(lines)


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="14b")
    parser.add_argument("--layers", type=int, help="fewer than the preset's")
    parser.add_argument("--height", type=int, default=448)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--output", type=Path, help="JSON file")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("graphs.py: CUDA graphs need an NVIDIA GPU, and torch sees none", file=sys.stderr)
        return 2
    result = measure(args)
    print(report(result))
    if args.output:
        write_json(args.output, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
