"""What every op achieved: its time relative to the least that this machine's limits allow."""

import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from livetalk_kernels.bench.roofline import Roofline, from_samples, make_probes, start_probes
from livetalk_kernels.bench.timer import interleave
from livetalk_kernels.spec import Cost

from .breakdown import Call, ChunkTimes, Row

LIMIT_ROUNDS = 5
_IDENTITY = ("op", "backend", "part", "dims", "options", "dtype", "operands")


def measure_limits(device: torch.device, dtypes: Collection[str]) -> dict[str, Roofline]:
    """Measure bandwidth and matrix rate of a device, per operand dtype.

    Args:
        device: The device.
        dtypes: Names of dtypes, such as ``float32``.
    """
    found = {}
    for name in sorted(dtypes):
        probes = make_probes(device, getattr(torch, name))
        samples = interleave(start_probes(device, probes), rounds=LIMIT_ROUNDS)
        found[name] = from_samples(probes, samples)
    return found


def operand_dtypes(chunks: Sequence[ChunkTimes]) -> set[str]:
    """Collect the dtypes that the recorded ops multiply in."""
    return {call.about["operands"] for chunk in chunks for call in chunk.calls}


def op_rows(chunks: Sequence[ChunkTimes], limits: Mapping[str, Roofline]) -> list[Row]:
    """Build a row for every op and case in every stage, the most expensive first.

    Args:
        chunks: Measured chunks.
        limits: Limits per operand dtype.
    """
    groups: dict[str, list[Call]] = defaultdict(list)
    for chunk in chunks:
        for call in chunk.calls:
            groups[call.stage + json.dumps(call.about, sort_keys=True)].append(call)
    rows = [_row(calls, len(chunks), limits) for calls in groups.values()]
    return sorted(rows, key=lambda row: row["calls"] * row["seconds"], reverse=True)


def _row(calls: Sequence[Call], chunks: int, limits: Mapping[str, Roofline]) -> Row:
    stage, about = calls[0].stage, calls[0].about
    seconds = [call.seconds for call in calls]
    mean = float(np.mean(seconds))
    cost, limit = Cost(flops=about["flops"], bytes=about["bytes"]), limits[about["operands"]]
    floor = limit.floor(cost)
    known: dict[str, Any] = {name: about[name] for name in _IDENTITY}
    return {
        **known,
        "stage": stage,
        "calls": len(calls) / chunks,
        "seconds": mean,
        "p50": float(np.median(seconds)),
        "flops": cost.flops,
        "bytes": cost.bytes,
        "rate": cost.flops / mean,
        "bandwidth": cost.bytes / mean,
        "floor": floor,
        "of_floor": floor / mean,
        "bound": limit.bound(cost),
    }


def limits_json(limits: Mapping[str, Roofline]) -> dict[str, dict[str, float]]:
    """Convert for ``report.json``."""
    return {name: vars(limit) for name, limit in limits.items()}
