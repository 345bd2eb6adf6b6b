"""Compare a DiT step on several ranks with one rank: difference, traffic, speed.

    python benchmarks/dit_sharded.py --preset mid --output profiles/data/dit_sharded.json

All ranks run on this machine, with one thread each and random weights. One rank and every mesh
alternate in the same processes; nothing is timed that differs from one rank by more than 1e-5.
"""

import argparse
import shlex
import sys
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from random_models import Given, bind, fill, make_dit, own_step
from torch import Tensor

from livetalk_kernels import KernelConfig
from livetalk_kernels.machine import machine
from livetalk_kernels.outputs import write_json
from livetalk_kernels.runtime.comm import Communicator
from livetalk_kernels.runtime.mesh import Mesh, factor_pairs
from livetalk_kernels.runtime.sequence_parallel import SequenceParallel
from livetalk_kernels.testing.processes import run_ranks
from livetalk_model.config import Preset, get_preset

CPU = torch.device("cpu")
BOUND = 1e-5
TIMEOUT = 3600.0


def prepared_step(preset: Preset, parallel: SequenceParallel) -> partial[Tensor]:
    """Prepare one step at the preset's size, with all its inputs; equal on all ranks."""
    dit = make_dit(preset, parallel.ops, parallel=parallel)
    fill(dit, dtype=torch.float32, device=CPU)
    given = Given.draw(preset, CPU, torch.float32)
    return partial(own_step(dit, given), given.latent)


@torch.inference_mode()
def measure(comm: Communicator, preset_name: str, rounds: int) -> dict[str, Any]:
    """Compare every mesh of this world with one rank: relative difference, bytes, seconds."""
    preset = get_preset(preset_name)
    ops = bind(preset, KernelConfig(), CPU, torch.float32)
    alone = prepared_step(preset, SequenceParallel.alone(ops))
    expected = alone()
    steps: dict[str, partial[Tensor]] = {}
    found: dict[str, dict[str, Any]] = {}
    for ulysses, ring in factor_pairs(comm.size):
        if ulysses > preset.dit.num_heads:
            continue
        name = f"{ulysses}x{ring}"
        step = prepared_step(preset, SequenceParallel(Mesh(ulysses=ulysses, ring=ring), comm, ops))
        comm.traffic.clear()
        difference = float((step() - expected).norm() / expected.norm())
        found[name] = {"difference": difference, "sent": dict(comm.traffic.bytes), "seconds": []}
        if difference > BOUND:
            raise SystemExit(f"{name} differs from one rank by {difference:.1e}; nothing is timed")
        steps[name] = step
    found["alone"] = {"seconds": []}
    for _ in range(rounds + 1):  # the first is a warm-up
        for name, step in {"alone": alone, **steps}.items():
            comm.barrier()
            begin = time.perf_counter()
            if name != "alone" or comm.rank == 0:
                step()
            comm.barrier()
            found[name]["seconds"].append(time.perf_counter() - begin)
    for entry in found.values():
        del entry["seconds"][0]
    return found


def main() -> None:
    """Compare, time, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="mid", help="preset whose DiT and size are timed")
    parser.add_argument("--world", type=int, default=2, help="ranks")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--output", type=Path, help="JSON file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    settings = {"preset": args.preset, "world": args.world, "threads_per_rank": 1}
    where = machine() | {"command": shlex.join(["python", *sys.argv]), **settings}
    results = run_ranks(measure, args.world, args.preset, args.rounds, timeout=TIMEOUT)
    found = results[0]
    for name, entry in found.items():
        pairs = zip(found["alone"]["seconds"], entry["seconds"], strict=True)
        entry["speedup"] = median(one / many for one, many in pairs)
        print(
            f"{name:8s} {median(entry['seconds']):7.3f} s  {entry['speedup']:5.2f} x"
            + (
                f"  differs by {entry['difference']:.1e}, rank 0 sends "
                f"{sum(entry['sent'].values()) / 1e6:.2f} MB"
                if "sent" in entry
                else ""
            )
        )
    if args.output:
        write_json(args.output, {"machine": where, "step": found})


if __name__ == "__main__":
    main()
