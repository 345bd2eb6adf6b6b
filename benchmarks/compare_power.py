"""Measure how often ``livetalk profile --compare`` is right: equal commands, and one 10 % slower.

    python benchmarks/compare_power.py --preset tiny --output profiles/data/compare_power.json

Half of the trials compare a stream with itself, half with one whose every chunk is followed by a
busy wait of 10 % of its own time. The two kinds of trial alternate. Each trial starts two new
processes, like a user's command: two processes of one program differ slightly throughout, which
pairs of the same two would not show. They alternate by the command's own protocol and code; the
work of a process is this script's, since the product has no switch that makes it slow.

Trials are written as they finish. An existing file is continued if it has the same settings, commit
and machine.
"""

import argparse
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from livetalk_kernels.bench.compare import ALARM, MIN_PAIRS, TOLERANCE
from livetalk_kernels.inputs import REPORT_BYTES, find, read_json
from livetalk_kernels.machine import machine
from livetalk_kernels.outputs import write_json
from livetalk_model import load_pipeline
from livetalk_model.media.synthetic import picture, speech
from livetalk_model.profile.compare import compare_workers
from livetalk_model.profile.paced import Pacer, Worker

WARMUP = 3
KINDS = ("equal", "slower")
SAME = ("settings", "machine")  # must be equal to continue a file
PASSING = ("date",)


def work(args: argparse.Namespace) -> None:
    """Be one of the two processes: chunk after chunk, each followed by a busy wait."""
    torch.set_num_threads(args.threads)
    with Pacer(args.paced) as pacer:
        pipeline = load_pipeline(preset=args.preset, device=args.device, dtype=args.dtype)
        size = pipeline.preparer.size
        with pipeline.session(pipeline.prepare(picture(size), size=size)) as session:
            index = 0

            def chunk() -> dict[str, Any]:
                nonlocal index
                begin = time.perf_counter()
                for _ in session.push(speech(index)):
                    pass
                end = time.perf_counter()
                while time.perf_counter() < end + args.slowdown * (end - begin):
                    pass
                index += 1
                seconds = time.perf_counter() - begin
                own = session.stats.chunks[-1]
                stages = {name: {"all": s} for name, s in own.items() if "beside" not in name}
                rest = seconds - sum(parts["all"] for parts in stages.values())
                return {"seconds": seconds, "stages": stages, "unattributed": rest}

            for _ in range(WARMUP):
                chunk()
            pacer.ready({"preset": args.preset, "threads": args.threads})
            while pacer.wait():
                pacer.report(chunk())


def trial(args: argparse.Namespace, slowdown: float) -> dict[str, Any]:
    """Compare two new processes, the second of which is slower by ``slowdown``."""
    options = ["--preset", args.preset, "--device", args.device, "--dtype", args.dtype]
    options += ["--threads", str(args.threads)]
    with tempfile.TemporaryDirectory() as folder:
        workers = []
        for name, extra in (("A", 0.0), ("B", slowdown)):
            own = Path(folder, name)
            own.mkdir()
            command = [sys.executable, __file__, *options, "--slowdown", str(extra), "--paced"]
            workers.append(Worker(name, command, own))
        found = compare_workers(
            ("A", "B"), (workers[0], workers[1]), args.pairs, lambda head, text: None
        )
    rows = [row.as_json() for row in found.rows]
    seconds = {side: [c["seconds"] for c in found.chunks[i]] for i, side in enumerate("ab")}
    return {"slowdown": slowdown, "rows": rows, "seconds": seconds}


def begun(path: Path, facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Read the trials of an existing file."""
    if find(path).kind == "missing":
        return []
    old = read_json(path, "report", cure="use another --output", limit=REPORT_BYTES)
    for name in SAME:
        mine, its = (
            {key: value for key, value in x[name].items() if key not in PASSING}
            for x in (json.loads(json.dumps(facts)), old)
        )
        if mine != its:
            raise SystemExit(f"{path}: holds trials of other {name}; use another --output")
    return list(old["trials"])


def count(trials: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Count each verdict on the chunk, and how often any stage changed."""
    counts: dict[str, dict[str, int]] = {}
    for entry in trials:
        own = counts.setdefault(entry["kind"], {"trials": 0, "any row changed": 0})
        own["trials"] += 1
        verdicts = [row["verdict"] for row in entry["rows"]]
        own[verdicts[0]] = own.get(verdicts[0], 0) + 1
        own["any row changed"] += any(verdict in ("slower", "faster") for verdict in verdicts)
    return counts


def describe(entry: Mapping[str, Any]) -> str:
    """Format a trial in one line."""
    change, verdict = entry["rows"][0]["change"], entry["rows"][0]["verdict"]
    others = [
        f"{row['row']} {row['verdict']}"
        for row in entry["rows"][1:]
        if row["verdict"] in ("slower", "faster")
    ]
    ends = f"{100 * change['low'] - 100:+.1f} to {100 * change['high'] - 100:+.1f}"
    line = f"{entry['kind']:8s}{100 * change['ratio'] - 100:+6.1f} % ({ends}): {verdict}"
    return line + (f"; {', '.join(others)}" if others else "")


def main() -> None:
    """Run the missing trials; write and print each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trials", type=int, default=20, help="of each kind")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--slowdown", type=float, default=0.1, help="fraction of a chunk's time")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, help="JSON file")
    parser.add_argument("--paced", metavar="SOCKET", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.paced:
        work(args)
        return
    if args.pairs < MIN_PAIRS or args.trials < 1 or args.slowdown < 0:
        parser.error(f"needs --pairs {MIN_PAIRS} or more, a trial, and no speed-up")
    torch.set_num_threads(args.threads)
    settings = {
        name: getattr(args, name)
        for name in ("pairs", "slowdown", "preset", "device", "dtype", "threads")
    }
    settings |= {"warmup": WARMUP, "alarm": ALARM, "tolerance": TOLERANCE}
    facts: dict[str, Any] = {"settings": settings, "machine": machine()}
    facts["command"] = shlex.join(["python", *sys.argv])
    trials = begun(args.output, facts) if args.output else []
    for index in range(args.trials):
        for kind, slowdown in zip(KINDS, (0.0, args.slowdown), strict=True):
            if any((entry["index"], entry["kind"]) == (index, kind) for entry in trials):
                continue
            entry = {"index": index, "kind": kind, **trial(args, slowdown)}
            trials.append(entry)
            print(describe(entry), flush=True)
            if args.output:
                write_json(args.output, facts | {"counts": count(trials), "trials": trials})
    for kind, counts in count(trials).items():
        print(f"{kind}: " + ", ".join(f"{name} {number}" for name, number in counts.items()))


if __name__ == "__main__":
    main()
