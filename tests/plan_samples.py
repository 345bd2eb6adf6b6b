"""Profiles as `livetalk profile` writes them, of machines whose constants are known.

Nothing here was measured: times are what `livetalk plan` forecasts, with noise.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from livetalk_kernels.runtime.mesh import Grid, Mesh
from livetalk_model.config import get_preset
from livetalk_model.plan.forecast import Job, forecast
from livetalk_model.plan.layout import Layout
from livetalk_model.plan.machine import CpuMachine, CpuRates, Machine

SIZES = [(96, 96), (128, 128), (96, 160), (160, 128)]
RATES = CpuRates(
    linears=9e10, attention=4e10, convolution=1.3e11, bandwidth=8e9, call=2e-5, audio=6e10
)


def report_of(
    job: Job,
    layout: Layout,
    machine: Machine,
    *,
    gpu: str | None = None,
    noise: float = 0.0,
    seed: int = 0,
) -> dict[str, Any]:
    """A report, of ``mid`` on a CPU or ``14b``; ``noise`` is relative, of every part apart."""
    random = np.random.default_rng(seed)
    found = forecast(job, layout, machine)
    rows = []
    for stage, parts in found.stages.items():
        scaled = {part: s * (1 + noise * random.standard_normal()) for part, s in parts.items()}
        rows.append({"stage": stage, "part": "", "p50": sum(scaled.values())})
        rows += [{"stage": stage, "part": part, "p50": s} for part, s in scaled.items() if s]
    rows.append({"stage": "write", "part": "", "p50": 0.05})
    chunk = sum(row["p50"] for row in rows if not row["part"]) + found.added
    return {
        "schema": "livetalk/profile/1",
        "command": ["livetalk", "profile"] + ["--fuse-bias"] * job.schedule.fuse_bias,
        "machine": {"cpu": "AMD EPYC", "cores": 2, "gpu": gpu and {"name": gpu}},
        "settings": {
            "model": "14b" if gpu else "mid",
            "size": list(job.size),
            "device": "cuda:0" if gpu else "cpu",
            "dtype": {2: "bfloat16", 4: "float32"}[job.itemsize],
            "precision": "fp8" if job.fp8 else "exact",
            "threads": 2,
            "reuse": job.schedule.once,
            "cuda_graphs": False,
            "compiled": False,
            "steps": job.steps,
            "backends": {"dit": {"add_norm": "cpu"}},
            "ranks": {
                "world": layout.world,
                "ulysses": layout.mesh.ulysses,
                "ring": layout.mesh.ring,
                "vae_grid": str(layout.grid),
            },
        },
        "summary": {"chunk": {"p50": chunk}, "stages": rows},
    }


def write_cpu_reports(folder: Path) -> Path:
    """A folder of reports of ``mid`` at several sizes, as ``mid_HxW/report.json``."""
    alone = Layout(mesh=Mesh(ulysses=1, ring=1), grid=Grid(rows=1, columns=1))
    for index, size in enumerate(SIZES):
        job = Job.of(get_preset("mid"), size, itemsize=4)
        report = report_of(job, alone, CpuMachine(rates=RATES), noise=0.03, seed=index)
        inner = folder / f"mid_{size[0]}x{size[1]}"
        inner.mkdir()
        (inner / "report.json").write_text(json.dumps(report))
    return folder
