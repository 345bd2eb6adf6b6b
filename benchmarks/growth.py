"""How time and memory of a chunk grow with the picture: each part, and the law that it follows.

    python benchmarks/growth.py --preset mid --threads 2 --output growth.json

Each size is one ``livetalk profile`` in a process of its own. Of every part: seconds a chunk (p50),
its operations as the ops' contracts count them, and by which power of the pixels both grow, fitted
by least squares to the logarithms and, since what does not grow hides the law at small sizes,
between the two largest. Memory: the most that tensors took, and that was resident. The file is
written anew after every size. CPU only.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from race import parse_size

from livetalk_kernels.machine import machine
from livetalk_kernels.outputs import write_json

SIZES = ((64, 64), (128, 128), (192, 192), (256, 256))
PARTS: Mapping[str, tuple[str, ...]] = {  # name -> stage, part; the stage's whole without a part
    "chunk": (),
    "audio encoder": ("audio encoder", ""),
    "audio K/V": ("audio K/V", ""),
    "denoise": ("denoise", ""),
    "  linears": ("denoise", "linears"),
    "  self-attention": ("denoise", "attention"),
    "  cross-attention": ("denoise", "cross"),
    "  norms": ("denoise", "norms"),
    "decode": ("decode", ""),
    "  convolutions": ("decode", "convolutions"),
    "  norms, decoder": ("decode", "norms"),
    "  attention": ("decode", "attention"),
    "encode": ("encode", ""),
    "warm decoder": ("warm decoder", ""),
}


def profile(args: argparse.Namespace, size: tuple[int, int]) -> dict[str, Any]:
    """Measure a size; progress goes to stderr."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "-m", "livetalk_model", "profile", "--preset", args.preset),
            *("--device", "cpu", "--size", "x".join(map(str, size)), "--warmup", "1"),
            *("--chunks", str(args.chunks), "--output", folder),
        ]
        environ = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
        subprocess.run(command, env=environ, stdout=subprocess.DEVNULL, check=True)
        report: dict[str, Any] = json.loads((Path(folder) / "report.json").read_text("utf-8"))
    return report


def row(report: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds and operations of every part, and memory."""
    summary, settings = report["summary"], report["settings"]
    seconds: dict[tuple[str, ...], float] = {
        (each["stage"], each["part"]): each["p50"] for each in summary["stages"]
    }
    flops: dict[tuple[str, ...], float] = defaultdict(float)
    for op in report["ops"]:
        for key in ((), (op["stage"], ""), (op["stage"], op["part"])):
            flops[key] += op["calls"] * op["flops"]
    seconds[()] = summary["chunk"]["p50"]
    return {
        "size": settings["size"],
        "pixels": settings["size"][0] * settings["size"][1],
        "tokens": settings["tokens"],
        "threads": settings["threads"],
        "seconds": {name: seconds[key] for name, key in PARTS.items() if key in seconds},
        "flops": {name: flops[key] for name, key in PARTS.items() if key in seconds},
        "tensors_bytes": report["memory"]["peak"],
        "resident_bytes": report["memory"]["resident"],
        "machine": report["machine"],
    }


def power(pixels: Sequence[float], values: Sequence[float]) -> float | None:
    """By which power of the pixels values grow; None where there are none."""
    if len(values) < 2 or min(values) <= 0:
        return None
    slope, _ = np.polyfit(np.log(pixels), np.log(values), 1)
    return float(slope)


def laws(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Part -> powers of time and of operations, over all sizes and between the two largest."""
    found = {}
    for name in rows[0]["seconds"]:
        found[name] = {
            f"{what}{label}": power(
                [each["pixels"] for each in some], [each[what][name] for each in some]
            )
            for what in ("seconds", "flops")
            for label, some in (("", rows), (" at the end", rows[-2:]))
        }
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each part, in ms, and two for memory."""
    heads = ["x".join(map(str, each["size"])) for each in rows]
    lines = [
        f"{'ms':18s}" + "".join(f"{head:>10s}" for head in heads) + "  pixels to the power of: "
        "time, at the end; operations, at the end"
    ]
    for name, law in laws(rows).items():
        times = "".join(f"{each['seconds'][name] * 1e3:10.1f}" for each in rows)
        powers = [law[key] for key in law]
        lines.append(
            f"{name:18s}{times}  "
            + ", ".join("-" if value is None else f"{value:.2f}" for value in powers)
        )
    for key in ("tensors_bytes", "resident_bytes"):
        values = "".join(f"{each[key] / 2**30:10.2f}" for each in rows)
        lines.append(f"{key.partition('_')[0] + ', GiB':18s}{values}")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="mid")
    parser.add_argument("--size", type=parse_size, action="append", metavar="HxW")
    parser.add_argument("--chunks", type=int, default=2, help="measured of each size (default: 2)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the numbers")
    args = parser.parse_args()
    here, rows = machine(), list[dict[str, Any]]()
    for size in sorted(args.size or SIZES):
        print("x".join(map(str, size)), file=sys.stderr)
        rows.append(row(profile(args, size)))
        if args.output:
            result = {"machine": here, "preset": args.preset, "rows": rows, "laws": laws(rows)}
            write_json(args.output, result)
    print(table(rows))


if __name__ == "__main__":
    main()
