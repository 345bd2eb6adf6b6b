"""The latency report of a run: one dictionary, printed as tables or as JSON."""

import resource
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from livetalk_kernels.neighbours import CpuShares
from livetalk_kernels.precision import dtype_name
from livetalk_kernels.units import data_size, seconds

from ..pipeline import Pipeline
from ..stream.session import Session
from ..stream.stats import BESIDE, STAGES, StreamStats
from .common import console, escape, plural
from .tables import plain_table

# In this order.
_LOAD_LABELS = {
    "vae": "VAE",
    "avatar": "avatar",
    "audio_encoder": "audio encoder",
    "dit": "DiT",
}


def latency_report(
    pipeline: Pipeline,
    session: Session,
    *,
    size: tuple[int, int],
    avatar_seconds: float,
    cpu: CpuShares | None,
) -> dict[str, Any]:
    """Collect all measurements and the settings they were taken under; times in seconds.

    Args:
        pipeline: The model.
        session: The stream, at its end.
        size: Height and width of its frames.
        avatar_seconds: How long making the avatar took, text and image encoder included.
        cpu: Which programs kept the CPUs busy during the stream; None if unknown.
    """
    stats = session.stats
    load = {**vars(pipeline.load_times), "avatar": avatar_seconds}
    peak_gpu = None
    if pipeline.device.type == "cuda":
        peak_gpu = torch.cuda.max_memory_allocated(pipeline.device)
    return {
        "settings": {
            "device": str(pipeline.device),
            "dtype": dtype_name(pipeline.dtype),
            "precision": "fp8" if pipeline.dit.fp8 else "exact",
            "approximate": pipeline.approximate,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "random_weights": pipeline.random,
            "reuse": pipeline.reuse,
            "fuse_bias": pipeline.vae.fuse_bias,
            "m_major_scales": pipeline.dit.m_major_scales,
            "cuda_graphs": pipeline.graphed,
            "ranks": {
                "world": pipeline.team.size,
                **vars(pipeline.dit.parallel.mesh),
                "vae_grid": str(pipeline.team.grid(size)),
            },
            "backends": {
                part: {op: {"name": c.name, "reason": c.reason} for op, c in ops.choices.items()}
                for part, ops in pipeline.ops.items()
            },
            **session.options.to_json(),
        },
        "load": {**load, "total": sum(load.values())},
        "startup": {"stages": stats.startup, "first_frame": stats.first_frame},
        "chunks": {
            "count": stats.count,
            "p50": stats.percentile(50),
            "p95": stats.percentile(95),
            "stages": stats.stage_means(),
        },
        "frames": stats.frames,
        "wall": stats.elapsed,
        "computing": stats.computing,
        "fps": stats.frames / stats.elapsed,
        "realtime_factor": stats.frames / stats.fps / stats.elapsed,
        "underrun": stats.underrun,
        "cpu": cpu and {**asdict(cpu), "crowded": cpu.crowded(torch.get_num_threads())},
        "peak_memory": {"host": _peak_host_bytes(), "gpu": peak_gpu},
    }


def print_latency(report: dict[str, Any], stats: StreamStats, out: Console) -> None:
    """Print the report as two tables that fit 80 columns: stages, and totals."""
    out.print(_stage_table(report))
    settings, chunks = report["settings"], report["chunks"]
    table = plain_table(_title(settings), ("what", ">value", "~note"))
    load = {label: report["load"][key] for key, label in _LOAD_LABELS.items()}
    table.add_row("load", _seconds(report["load"]["total"]), _split(load))
    table.add_row("start-up", _seconds(report["startup"]["first_frame"]), "request to first frame")
    spread = f"p95 {_seconds(chunks['p95'])}, {plural(chunks['count'], 'chunk')}"
    table.add_row("chunk p50", _seconds(chunks["p50"]), spread)
    table.add_row("frames/s", f"{report['fps']:.2f}", plural(report["frames"], "frame"))
    table.add_row(
        "real-time factor",
        f"{report['realtime_factor']:.2f} x",
        f"{report['wall']:.1f} s for {report['frames'] / stats.fps:.1f} s of video",
    )
    table.add_row(
        "underrun", _seconds(report["underrun"]), f"stalls of a player at {stats.fps:g} FPS"
    )
    if (cpu := report["cpu"]) is not None:
        busy = f"{cpu['own']:.1f} of {cpu['usable']}"
        switches = plural(cpu["switches"], "involuntary switch", "involuntary switches")
        table.add_row("busy CPUs", busy, f"other programs {cpu['others']:.1f}, {switches}")
    memory = report["peak_memory"]
    gpu = "" if memory["gpu"] is None else f"GPU {data_size(memory['gpu'])}"
    table.add_row("peak memory", data_size(memory["host"]), gpu)
    out.print(table)
    if cpu is not None and cpu["crowded"]:
        out.print(f"[yellow]{cpu['crowded']}[/]")


def print_run(report: dict[str, Any], session: Session) -> None:
    """Print what was written, and the latency report."""
    out = console()
    output = report["output"]
    height, width = output["size"]
    frames = plural(output["frames"], "frame")
    seconds = output["frames"] / float(session.options.fps)
    state = "" if output["complete"] else " (stopped early)"
    out.print(
        f"wrote {escape(output['path'])}: {frames} of {height}x{width}, {seconds:.2f} s{state}",
        soft_wrap=True,
    )
    if report["settings"]["random_weights"]:
        out.print(
            "The weights are random: the picture is meaningless, but times are those of the "
            "preset's size."
        )
    print_latency(report, session.stats, out)


def _stage_table(report: dict[str, Any]) -> Table:
    """Make a row per stage: time before the first frame, and average time per chunk."""
    first, mean = report["startup"]["stages"], report["chunks"]["stages"]
    columns = ("stage", ">start-up", ">per chunk", ">share", "~what it does")
    table = plain_table("Stages", columns)
    total = sum(seconds for name, seconds in mean.items() if not name.endswith(BESIDE))
    for name in sorted({**first, **mean}, key=_place):
        share = ""
        if name in mean and not name.endswith(BESIDE):
            share = f"{mean[name] / total:.0%}"
        does = STAGES.get(name.removesuffix(BESIDE), "")
        table.add_row(name, _seconds(first.get(name)), _seconds(mean.get(name)), share, does)
    return table


def _place(name: str) -> int:
    """Give a stage's position in the table; unknown ones come last."""
    known = list(STAGES)
    plain = name.removesuffix(BESIDE)
    return known.index(plain) if plain in known else len(known)


def _title(settings: dict[str, Any]) -> str:
    parts = [settings["device"], settings["dtype"]]
    if settings["precision"] != "exact":
        parts.append("FP8 linears (approximate)")
    parts += [f"{choice} (approximate)" for choice in settings["approximate"]]
    if settings["device"] == "cpu":
        parts.append(plural(settings["threads"], "thread"))
    parts.append(plural(settings["steps"], "step"))
    ranks = settings["ranks"]
    if ranks["world"] > 1:
        split = f"ulysses {ranks['ulysses']} x ring {ranks['ring']}, VAE {ranks['vae_grid']}"
        parts.append(f"{ranks['world']} ranks ({split})")
    if settings["cuda_graphs"]:
        parts.append("CUDA graphs")
    if not settings["reuse"]:
        parts.append("published schedule")
    if settings["fuse_bias"]:
        parts.append("fused biases")
    if settings["m_major_scales"]:
        parts.append("M-major scales")
    if settings["random_weights"]:
        parts.append("random weights")
    return "Latency: " + ", ".join(parts)


def _split(parts: dict[str, float]) -> str:
    return ", ".join(f"{name} {_seconds(seconds)}" for name, seconds in parts.items())


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return seconds(value)


def _peak_host_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
