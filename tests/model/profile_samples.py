"""Made-up reports and traces of ``livetalk profile``, for tests of what reads them.

The numbers are invented, though of a likely size: nothing here was measured.
"""

import random
from statistics import mean
from typing import Any

SAMPLES = ("mid", "14b", "least")
"""``mid`` on a CPU; ``14b`` on eight GPUs; one chunk from CUDA graphs, and little else."""

# Stage -> part -> seconds of a chunk.
_STAGES: dict[str, dict[str, dict[str, float]]] = {
    "mid": {
        "audio encoder": {"all": 0.31},
        "audio K/V": {"all": 0.004},
        "denoise": {
            "linears": 0.78,
            "attention": 0.29,
            "cross": 0.11,
            "norms": 0.071,
            "activations": 0.052,
            "gaps": 0.034,
        },
        "warm decoder": {"convolutions": 0.64, "norms": 0.05, "attention": 0.01, "gaps": 0.02},
        "decode": {"convolutions": 8.1, "norms": 0.61, "attention": 0.12, "gaps": 0.22},
        "colour": {"all": 0.031},
        "to host": {"all": 0.002},
        "encode": {"convolutions": 2.9, "norms": 0.18, "attention": 0.05, "gaps": 0.05},
        "write": {"all": 0.006},
    },
    "14b": {
        "audio K/V": {"all": 0.0021},
        "denoise": {
            "linears": 0.154,
            "attention": 0.081,
            "cross": 0.012,
            "norms": 0.014,
            "activations": 0.004,
            "communication": 0.031,
            "gaps": 0.011,
        },
        "warm decoder": {"convolutions": 0.009, "norms": 0.001, "communication": 0.001},
        "decode": {
            "convolutions": 0.071,
            "norms": 0.008,
            "attention": 0.002,
            "communication": 0.013,
            "gaps": 0.004,
        },
        "colour": {"all": 0.0021},
        "to host": {"all": 0.0007},
        "encode": {"convolutions": 0.013, "norms": 0.001, "communication": 0.003, "gaps": 0.001},
        "write": {"all": 0.0004},
    },
    "least": {"denoise": {"all": 0.61}, "decode": {"all": 0.14}, "colour": {"all": 0.002}},
}
_BESIDE = {
    "mid": {"waiting: wait for the video": 0.4, "video: write frames": 0.35},
    "14b": {
        "beside: audio encoder": 0.019,
        "beside: to host": 0.006,
        "video: write frames": 0.11,
        "waiting: wait for the video": 0.002,
    },
    "least": {},
}
_DENOISE = "denoise"
_CAST = {"mid": "float32", "14b": "bfloat16", "least": "bfloat16"}
_LIMITS = {
    "mid": {"float32": {"bandwidth": 2.1e10, "rate": 1.4e11}},
    "14b": {
        "bfloat16": {"bandwidth": 2.9e12, "rate": 7.1e14},
        "float8_e4m3fn": {"bandwidth": 2.9e12, "rate": 1.35e15},
    },
    "least": {},
}
# op, backend, stage, part, dims, dtype, calls of a chunk, FLOPs, bytes, share of the floor
_OPS: dict[str, list[tuple[str, str, str, str, dict[str, int], str, float, float, float, float]]]
_OPS = {
    "mid": [
        ("linear", "torch", "denoise", "linears", {"M": 576, "N": 1536, "K": 512}, "float32", 32,
         9.1e8, 8.0e6, 0.81),
        ("linear", "torch", "denoise", "linears", {"M": 576, "N": 1408, "K": 512}, "float32", 32,
         8.3e8, 7.6e6, 0.83),
        ("linear", "torch", "denoise", "linears", {"M": 576, "N": 512, "K": 1408}, "float32", 32,
         8.3e8, 7.6e6, 0.79),
        ("linear", "torch", "denoise", "linears", {"M": 576, "N": 512, "K": 512}, "float32", 96,
         3.0e8, 3.4e6, 0.71),
        ("chunk_attention", "cpu", "denoise", "attention", {"B": 1, "L": 576, "H": 4, "d": 128},
         "float32", 32, 6.8e8, 4.7e6, 0.61),
        ("context_attention", "cpu", "denoise", "cross", {"L": 576, "T": 512, "I": 257, "H": 4},
         "float32", 32, 9.1e8, 4.0e6, 0.55),
        ("audio_attention", "cpu", "denoise", "cross", {"F": 9, "L": 64, "A": 32}, "float32", 32,
         3.8e7, 2.6e6, 0.31),
        ("add_norm", "cpu", "denoise", "norms", {"L": 576, "D": 512}, "float32", 132, 3.5e6, 4.7e6,
         0.88),
        ("rms_norm_rope", "cpu", "denoise", "norms", {"L": 576, "D": 512}, "float32", 32, 5.3e6,
         4.7e6, 1.04),
        ("gelu", "torch", "denoise", "activations", {"M": 576, "K": 1408}, "float32", 32, 0, 6.5e6,
         0.52),
        ("causal_conv3d", "cpu", "decode", "convolutions",
         {"C": 96, "O": 96, "T": 4, "H": 128, "W": 128}, "float32", 35, 3.3e10, 5.1e7, 0.92),
        ("causal_conv3d", "cpu", "decode", "convolutions",
         {"C": 192, "O": 192, "T": 4, "H": 64, "W": 64}, "float32", 35, 3.2e10, 2.6e7, 0.95),
        ("causal_conv3d", "cpu", "encode", "convolutions",
         {"C": 96, "O": 96, "T": 4, "H": 128, "W": 128}, "float32", 8, 3.3e10, 5.1e7, 0.89),
        ("rms_norm_silu", "cpu", "decode", "norms", {"C": 96, "T": 4, "H": 128, "W": 128},
         "float32", 70, 3.8e7, 5.0e7, 0.77),
    ],
    "14b": [
        ("fp8_gemm", "cutlass", "denoise", "linears", {"M": 1512, "N": 15360, "K": 5120},
         "bfloat16", 160, 2.38e11, 1.3e8, 0.72),
        ("fp8_gemm_gelu_quant", "cutlass", "denoise", "linears",
         {"M": 1512, "N": 13824, "K": 5120}, "bfloat16", 160, 2.14e11, 1.0e8, 0.69),
        ("fp8_gemm", "cutlass", "denoise", "linears", {"M": 1512, "N": 5120, "K": 13824},
         "bfloat16", 160, 2.14e11, 1.1e8, 0.75),
        ("fp8_gemm", "cutlass", "denoise", "linears", {"M": 1512, "N": 5120, "K": 5120},
         "bfloat16", 480, 7.9e10, 5.0e7, 0.61),
        ("chunk_attention", "flash_attn", "denoise", "attention",
         {"B": 1, "L": 12096, "H": 5, "d": 128}, "bfloat16", 160, 3.74e11, 6.2e7, 0.83),
        ("context_attention", "triton", "denoise", "cross", {"L": 1512, "T": 512, "I": 257},
         "bfloat16", 160, 2.4e10, 4.7e7, 0.58),
        ("audio_attention", "triton", "denoise", "cross", {"F": 9, "L": 168, "A": 32}, "bfloat16",
         160, 9.9e8, 3.3e7, 0.7),
        ("add_norm_quant", "triton", "denoise", "norms", {"L": 1512, "D": 5120}, "bfloat16", 480,
         9.3e7, 5.4e7, 0.86),
        ("rms_norm_rope", "triton", "denoise", "norms", {"L": 1512, "D": 5120}, "bfloat16", 160,
         1.4e8, 6.2e7, 0.91),
        ("causal_conv3d", "cudnn", "decode", "convolutions",
         {"C": 96, "O": 96, "T": 4, "H": 384, "W": 112}, "bfloat16", 35, 8.6e10, 6.6e7, 0.38),
        ("rms_norm_silu", "triton", "decode", "norms", {"C": 96, "T": 4, "H": 384, "W": 112},
         "bfloat16", 70, 9.9e7, 6.6e7, 0.81),
        ("causal_conv3d", "cudnn", "encode", "convolutions",
         {"C": 96, "O": 96, "T": 4, "H": 384, "W": 112}, "bfloat16", 8, 8.6e10, 6.6e7, 0.35),
    ],
    "least": [],
}  # fmt: skip


def sample_report(kind: str, *, chunks: int | None = None) -> dict[str, Any]:
    """A report of schema ``livetalk/profile/1``.

    Args:
        kind: One of `SAMPLES`.
        chunks: How many are measured; by default 6, 14 or 1.
    """
    rng = random.Random(kind)
    count = chunks or {"mid": 6, "14b": 14, "least": 1}[kind]
    warm = {"mid": 1, "14b": 2, "least": 0}[kind]
    at, rows = 1.5, []
    for index in range(warm + count):
        slow = 1.5 if index < warm else 1.0
        rows.append(_chunk(kind, rng, index, at, slow))
        at += rows[-1]["seconds"] * 1.001
    warmup, measured = rows[:warm], rows[warm:]
    wall = sum(row["seconds"] for row in measured) * 1.001
    frames = 28 * count
    report = {
        "schema": "livetalk/profile/1",
        "command": ["livetalk", "profile", "--preset", kind if kind != "least" else "small"],
        "machine": _machine(kind),
        "complete": True,
        "settings": _settings(kind),
        "load": {"vae": 0.4, "avatar": 0.9, "audio_encoder": 6.1, "dit": 3.0, "total": 10.4},
        "startup": {
            "first_frame": measured[0]["seconds"] * 0.6,
            "stages": {name: sum(p.values()) for name, p in measured[0]["stages"].items()},
        },
        "warmup": warmup,
        "chunks": measured,
        "summary": {
            "wall": wall,
            "frames": frames,
            "fps": frames / wall,
            "realtime_factor": frames / 25 / wall,
            "underrun": max(0.0, wall - frames / 25),
            "chunk": _spread([row["seconds"] for row in measured]),
            "step": _spread(
                [sum(row["stages"]["denoise"].values()) / 4 for row in measured for _ in range(4)]
            ),
            "unattributed": mean(row["unattributed"] / row["seconds"] for row in measured),
            "stages": _stage_rows(measured),
            "beside": [
                {"name": name, **_percentiles([row["beside"][name] for row in measured])}
                for name in _BESIDE[kind]
            ],
        },
        "ops": [_op(kind, rng, entry) for entry in _OPS[kind]],
        "limits": _LIMITS[kind],
        "ranks": [_rank(kind, rank, measured) for rank in range(8 if kind == "14b" else 1)],
        "memory": _memory(kind),
        "telemetry": None if kind == "least" else _telemetry(kind, rng, at),
        "tracing": {"events": 900 * count, "seconds_per_event": 1.4e-6, "share": 0.004},
        "files": ["report.json", "report.md", "trace.rank0.json"],
    }
    return report


def sample_traces(report: dict[str, Any]) -> list[dict[str, Any]]:
    """A trace of every rank that agrees with the chunks of a report."""
    world = report["settings"]["ranks"]["world"]
    return [_trace(report, rank) for rank in range(world)]


def _chunk(kind: str, rng: random.Random, index: int, at: float, slow: float) -> dict[str, Any]:
    stages = {
        stage: {part: s * slow * rng.uniform(0.94, 1.08) for part, s in parts.items()}
        for stage, parts in _STAGES[kind].items()
    }
    busy = sum(sum(parts.values()) for parts in stages.values())
    rest = busy * rng.uniform(0.004, 0.011)
    return {
        "index": index,
        "begin": at,
        "seconds": busy + rest,
        "stages": stages,
        "unattributed": rest,
        "beside": {name: s * rng.uniform(0.9, 1.2) for name, s in _BESIDE[kind].items()},
    }


def _percentiles(values: list[float]) -> dict[str, float]:
    """By nearest rank."""
    ordered = sorted(values)
    ranks = {f"p{p}": ordered[max(0, -(-len(ordered) * p // 100) - 1)] for p in (50, 95, 99)}
    return ranks | {"mean": mean(values)}


def _spread(values: list[float]) -> dict[str, float]:
    ends = {"least": min(values), "most": max(values)}
    return {"count": len(values)} | _percentiles(values) | ends


def _stage_rows(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    every = sum(row["seconds"] for row in chunks)
    rows = []
    for stage, parts in chunks[0]["stages"].items():
        for part in ("", *(part for part in parts if part != "all")):
            values = [
                row["stages"][stage][part] if part else sum(row["stages"][stage].values())
                for row in chunks
            ]
            share = sum(values) / every
            rows.append({"stage": stage, "part": part, **_percentiles(values), "share": share})
    return rows


def _op(kind: str, rng: random.Random, entry: tuple[Any, ...]) -> dict[str, Any]:
    op, backend, stage, part, dims, dtype, calls, flops, size, of_floor = entry
    limit = _LIMITS[kind]["float8_e4m3fn" if op.startswith("fp8") else dtype]
    floor = max(flops / limit["rate"], size / limit["bandwidth"])
    seconds = floor / of_floor
    memory = size / limit["bandwidth"] >= flops / limit["rate"]
    return {
        "op": op,
        "backend": backend,
        "stage": stage,
        "part": part,
        "dims": dims,
        "options": {"layout": "head"} if op == "rms_norm_rope" else {},
        "dtype": dtype,
        "operands": "float8_e4m3fn" if op.startswith("fp8") else dtype,
        "calls": float(calls),
        "seconds": seconds,
        "p50": seconds * rng.uniform(0.97, 1.0),
        "flops": int(flops),
        "bytes": int(size),
        "rate": flops / seconds,
        "bandwidth": size / seconds,
        "floor": floor,
        "of_floor": of_floor,
        "bound": "memory" if memory else "compute",
    }


def _machine(kind: str) -> dict[str, Any]:
    gpu = {"name": "NVIDIA H200", "driver": "580.65.06", "cuda": "13.0", "count": 8}
    return {
        "cpu": "AMD EPYC" if kind == "mid" else "Intel(R) Xeon(R) Platinum 8558",
        "cores": 2 if kind == "mid" else 96,
        "memory_bytes": 25276514304,
        "cache_bytes": 33554432,
        "capability": "AVX512",
        "kernels": "avx512",
        "gpu": None if kind == "mid" else gpu | {"memory_bytes": 150754820096},
        "threads": 2 if kind == "mid" else 8,
        "torch": "2.13.0+cpu" if kind == "mid" else "2.13.0+cu130",
        "triton": "3.9.0",
        "python": "3.11.7",
        "livetalk": "0.1.0",
        "commit": "abc1234",
        "date": "2026-11-26",
    }


def _settings(kind: str) -> dict[str, Any]:
    fp8, large = kind == "14b", kind != "mid"
    dit = {entry[0]: entry[1] for entry in _OPS[kind] if entry[2] == _DENOISE}
    vae = {entry[0]: entry[1] for entry in _OPS[kind] if entry[2] != _DENOISE}
    return {
        "model": {"mid": "mid", "14b": "14b", "least": "small"}[kind],
        "size": [128, 128] if kind == "mid" else [768, 448],
        "tokens": 576 if kind == "mid" else 12096,
        "device": "cuda:0" if large else "cpu",
        "dtype": _CAST[kind],
        "precision": "fp8" if fp8 else "exact",
        "approximate": ["fp8_gemm=cutlass", "fp8_gemm_gelu_quant=cutlass"] if fp8 else [],
        "threads": 8 if large else 2,
        "reuse": True,
        "cuda_graphs": kind == "least",
        "compiled": False,
        "random_weights": True,
        "steps": 4,
        "shift": 5.0,
        "seed": 9999,
        "fps": 25.0,
        "color_correction": 1.0,
        "ranks": {
            "world": 8 if fp8 else 1,
            "ulysses": 8 if fp8 else 1,
            "ring": 1,
            "vae_grid": "4x2" if fp8 else "1x1",
        },
        "backends": {"dit": dit, "vae": vae},
    }


def _rank(kind: str, rank: int, chunks: list[dict[str, Any]]) -> dict[str, Any]:
    large = kind != "mid"
    each = 9.5e9 / 8 if kind == "14b" else 0
    return {
        "rank": rank,
        "host": "node0",
        "device": f"cuda:{rank}" if large else "cpu",
        "chunk": _spread([row["seconds"] for row in chunks]),
        "stages": _stage_rows(chunks),
        "traffic": {
            "all-to-all": {"bytes": int(each), "messages": 4480},
            "halo": {"bytes": 31457280, "messages": 312},
        }
        if each
        else {},
        "peak_memory": 31 << 30 if large else None,
    }


def _memory(kind: str) -> dict[str, Any]:
    large = kind == "14b"
    weights = {"DiT": 18 << 30 if large else 90 << 20, "VAE": 507 << 20, "audio encoder": 378 << 20}
    weights["total"] = sum(weights.values())
    predicted = {
        "weights": weights,
        "caches": {"avatar": 100 << 20, "total": 120 << 20},
        "phases": {"denoise": {"activations": 60 << 20, "workspace": 0}},
        "peak_phase": "denoise",
        "activations": 60 << 20,
        "workspace": 0,
        "assumed": None,
        "total": 1200 << 20,
    }
    return {
        "weights": weights,
        "caches": 3 << 30 if large else 120 << 20,
        "activations": {"mid": 65 << 20, "14b": 6 << 30, "least": None}[kind],
        "peak": {"mid": 2 << 30, "14b": 31 << 30, "least": None}[kind],
        "resident": 2 << 30,
        "predicted": predicted if kind == "mid" else None,
    }


def _telemetry(kind: str, rng: random.Random, until: float) -> dict[str, Any]:
    units = {"CPU": "%", "CPU of this process": "%", "resident memory": "B", "CPU clock": "MHz"}
    level = {"CPU": 97.0, "CPU of this process": 94.0, "resident memory": 2.1e9, "CPU clock": 2300}
    if kind == "14b":
        level |= {"CPU": 21.0, "CPU of this process": 9.0, "resident memory": 1.1e10}
        for gpu in range(8):
            for name, unit, value in (
                ("utilisation", "%", 97.0), ("SM clock", "MHz", 1890.0 - 12 * gpu),
                ("memory clock", "MHz", 3201.0), ("power", "W", 655.0 + 4 * gpu),
                ("temperature", "°C", 61.0 + gpu), ("memory", "B", 3.3e10),
                ("slowed by", "bits", 4.0), ("NVLink sent", "B/s", 1.9e10),
                ("NVLink received", "B/s", 1.9e10),
            ):  # fmt: skip
                units[f"GPU {gpu} {name}"] = unit
                level[f"GPU {gpu} {name}"] = value
    period = 0.1
    samples: dict[str, list[Any]] = {"t": [round(k * period, 6) for k in range(int(until / 0.1))]}
    for name, value in level.items():
        constant = units[name] in ("bits", "B") or "clock" in name
        spread = 0.002 if constant else 0.04
        top = 100.0 if units[name] == "%" else float("inf")
        samples[name] = [
            min(top, value * rng.uniform(1 - spread, 1 + spread)) for _ in samples["t"]
        ]
        if units[name] == "bits":
            samples[name] = [4 if k % 3 else 0 for k in range(len(samples["t"]))]
    samples["CPU"][:1] = [None]
    return {"period": period, "units": units, "samples": samples}


def _trace(report: dict[str, Any], rank: int) -> dict[str, Any]:
    lanes: dict[str, list[dict[str, Any]]] = {"main": []}
    for chunk in report["warmup"] + report["chunks"]:
        late = 0.0002 * rank
        _add_chunk(lanes["main"], report, chunk, chunk["begin"] + late)
        at = chunk["begin"] + 0.3 * chunk["seconds"] + late
        for entry, seconds in chunk["beside"].items():
            lane, _, name = entry.partition(": ")
            lanes.setdefault(lane, []).append(_span(name, at, at + seconds))
            at += seconds
    events: list[dict[str, Any]] = [_name("process_name", rank + 1, 1, f"rank {rank}")]
    for thread, (lane, spans) in enumerate(lanes.items(), 1):
        events.append(_name("thread_name", rank + 1, thread, lane))
        events += [span | {"pid": rank + 1, "tid": thread} for span in spans]
    if report["telemetry"]:
        samples = report["telemetry"]["samples"]
        events += [
            {
                "name": "CPU, %",
                "ph": "C",
                "pid": rank + 1,
                "tid": 1,
                "ts": t * 1e6,
                "args": {"value": v},
            }
            for t, v in zip(samples["t"], samples["CPU"], strict=True)
            if v is not None
        ]
    events += [
        {"name": "frames", "ph": kind, "pid": rank + 1, "tid": 1, "ts": ts, "id": 0, "cat": "flow"}
        for kind, ts in (("s", 2e6), ("f", 2.1e6))
    ]
    about = {"command": report["command"], "started": 1795600000.0 + 0.001 * rank}
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": about | {"ranges_left_out": 0},
    }


def _add_chunk(
    spans: list[dict[str, Any]], report: dict[str, Any], chunk: dict[str, Any], at: float
) -> None:
    """A chunk's range, its stages', and those of their parts in many small pieces."""
    spans.append(_span("chunk", at, at + chunk["seconds"] * 1.0001))
    at += chunk["unattributed"] / 2
    for stage, parts in chunk["stages"].items():
        repeats = report["settings"]["steps"] if stage == "denoise" else 1
        for _ in range(repeats):
            end = at + sum(parts.values()) / repeats
            spans.append(_span(stage, at, end))
            named = {part: s for part, s in parts.items() if part not in ("all", "gaps")}
            layers = 8
            begin = at
            for _ in range(layers):
                for part, seconds in named.items():
                    until = begin + 0.9999 * seconds / repeats / layers
                    spans.append(_span(part, begin, until) | {"args": {"part": part}})
                    begin = until
            at = end


def _span(name: str, begin: float, end: float) -> dict[str, Any]:
    first, last = round(begin * 1e9), round(end * 1e9)  # whole ns, as a timeline has them
    return {"name": name, "ph": "X", "ts": first / 1e3, "dur": (last - first) / 1e3}


def _name(kind: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": process, "tid": thread, "args": {"name": name}}
