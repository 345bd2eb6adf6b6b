"""Run a stream on 1, 2, 4, 8 ranks of this machine: are frames equal, and what is the speed-up?

    python benchmarks/scaling.py --preset 14b --ranks 1 2 4 8 --json scaling.json
    python benchmarks/scaling.py --preset tiny --device cpu --ranks 1 2

Runs ``benchmarks/stream.py`` once per number of ranks, one after the other, with the same random
weights, and compares the frames with those of one rank (PSNR, dB). The time of a chunk is the p50
of all but the first of a run. More ranks are not started when the time left is not enough for
another run like the last. Untested on several GPUs.
"""

import argparse
import json
import math
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from psnr import FLOOR, psnr
from race import FAILED, NO_TIME, Budget, Output, new_parser, run_main, say

SCHEMA = "livetalk/scaling/1"
RED, DONE, LEFT_OUT = "red", "done", "left out"


def run_stream(args: argparse.Namespace, ranks: int, folder: Path, limit: float) -> str:
    """Run one stream.

    Returns:
        Empty, or why it failed.
    """
    script = Path(__file__).with_name("stream.py")
    given = ["--preset", args.preset, "--device", args.device, "--dtype", args.dtype]
    given += [word for choice in args.backend for word in ("--backend", choice)]
    for name in ("layers", "threads"):
        if getattr(args, name) is not None:
            given += [f"--{name}", str(getattr(args, name))]
    if args.size is not None:
        given += ["--size", "x".join(map(str, args.size))]
    given += ["--chunks", str(args.chunks), "--precision", args.precision, "--ranks", str(ranks)]
    given += ["--json", str(folder / "stream.json"), "--frames", str(folder / "frames.npy")]
    process = subprocess.Popen([sys.executable, str(script), *given])
    try:
        code = process.wait(limit if math.isfinite(limit) else None)
    except (subprocess.TimeoutExpired, KeyboardInterrupt) as error:
        process.send_signal(signal.SIGINT)  # torchrun forwards it to the ranks
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"not done after {limit:.0f} s"
    return f"exit code {code}" if code else ""


def measure(args: argparse.Namespace, budget: Budget) -> Output:
    """Run all numbers of ranks, smallest first."""
    output = Output(args.json, schema=SCHEMA, settings={}, runs=[])
    output.write()
    first: dict[str, Any] | None = None
    frames: np.ndarray | None = None
    last = 0.0
    for ranks in sorted(set(args.ranks)):
        row: dict[str, Any] = {"ranks": ranks, "state": LEFT_OUT, "note": ""}
        output.value["runs"].append(row)
        if budget.left() <= last:
            row["note"] = NO_TIME
            continue
        say(f"{ranks} ranks")
        begin = time.monotonic()
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            row["note"] = run_stream(args, ranks, folder, budget.left())
            last = row["took"] = time.monotonic() - begin
            if row["note"]:
                row["state"] = FAILED
                output.write()
                continue
            result = json.loads((folder / "stream.json").read_text(encoding="utf-8"))
            own = np.load(folder / "frames.npy")
        if first is None or frames is None:
            first, frames = result, own
            output.value["settings"] = result["settings"]
        row |= compare(result, first, own, frames)
        output.write()
    output.value["complete"] = all(row["note"] != NO_TIME for row in output.value["runs"])
    output.write()
    return output


def compare(
    result: Mapping[str, Any], first: Mapping[str, Any], own: np.ndarray, frames: np.ndarray
) -> dict[str, Any]:
    """Compare a run with the one on the fewest ranks."""
    equal = own.shape == frames.shape
    quality = psnr(own, frames) if equal else -math.inf
    floor = FLOOR[result["settings"]["dtype"]]
    steady, base = result["steady"], first["steady"]
    world, alone = (value["settings"]["ranks"]["world"] for value in (result, first))
    speedup = base["p50"] / steady["p50"]
    return {
        "state": DONE if quality >= floor else RED,
        "note": "" if quality >= floor else f"frames differ: {quality:.1f} dB, {floor:.0f} wanted",
        "psnr": None if math.isinf(quality) else quality,  # JSON has no infinity
        "identical": bool(equal and (own == frames).all()),
        "against_ranks": alone,
        "mesh": result["settings"]["ranks"],
        "chunk": steady,
        "stages": _mean_stages(result["chunks"][1:]),
        "speedup": speedup,
        "efficiency": speedup * alone / world,
        "max_memory_bytes": result.get("max_memory_bytes"),
    }


def _mean_stages(chunks: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    names = dict.fromkeys(name for chunk in chunks for name in chunk["stages"])
    return {
        name: float(np.mean([chunk["stages"].get(name, 0.0) for chunk in chunks])) for name in names
    }


def table(output: Mapping[str, Any]) -> str:
    """The result for people."""
    lines = [
        f"{'ranks':>5s} {'chunks':>6s} {'s/chunk':>8s} {'frames/s':>9s} {'speed-up':>9s} "
        f"{'PSNR':>6s}"
    ]
    for row in output["runs"]:
        if row["state"] in (FAILED, LEFT_OUT):
            lines.append(f"{row['ranks']:5d} {row['state']}: {row['note']}")
            continue
        quality = "equal" if row["identical"] else f"{row['psnr'] or 0:.1f}"
        chunk = row["chunk"]
        lines.append(
            f"{row['ranks']:5d} {chunk['count']:6d} {chunk['p50']:8.3f} {chunk['fps']:9.1f} "
            f"{row['speedup']:8.2f}x {quality:>6s} {row['note']}"
        )
    return "\n".join(lines)


def make_parser() -> argparse.ArgumentParser:
    """Options."""
    parser = new_parser(__doc__)
    parser.add_argument("--precision", default="exact", choices=("exact", "fp8"))
    parser.add_argument("--layers", type=int, help="blocks of the transformer")
    parser.add_argument("--chunks", type=int, default=5, help="per run (default: 5)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], metavar="N")
    return parser


def main() -> int:
    """Measure, print, write."""
    args = make_parser().parse_args()
    output = measure(args, Budget.of(args)).value
    print(table(output))
    states = [row["state"] for row in output["runs"]]
    return 1 if RED in states or FAILED in states or DONE not in states else 0


if __name__ == "__main__":
    run_main(main)
