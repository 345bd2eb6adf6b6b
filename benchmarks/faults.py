r"""Kill and stop ranks of a run in each of its phases: do all end soon, is the cause named?

    python benchmarks/faults.py --world 3 --repeats 3 --output profiles/data/faults.json -- \
        python -m livetalk_model.cli.main generate --nproc 3 --preset tiny --portrait me.png \
        --audio speech.wav --output {folder}/talk.mp4

Starts the command for every phase, signal and rank, waits until the rank is in the phase, sends the
signal and times until no process is left: 5 s after KILL and 20 s after STOP are allowed.
``{folder}`` is a new folder each time; the videos left in it are decoded. With ``--clean N`` it
runs the command N times without a fault. Exit code 1 if anything is wrong.
"""

import argparse
import json
import shlex
import signal
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import av

from livetalk_kernels.machine import machine
from livetalk_kernels.outputs import write_text
from livetalk_kernels.testing.faults import Run, run_fault

PHASES = ["load", "prepare", "denoise", "decode", "write"]
SIGNALS = {"KILL": signal.SIGKILL, "STOP": signal.SIGSTOP}
TRIES = 3  # a short phase may be over before the signal comes


def frames(folder: Path) -> dict[str, Any]:
    """Count the decodable frames of each video in a folder, including unfinished ones."""
    found = {}
    for file in sorted(folder.iterdir()):
        if ".mp4" not in file.suffixes or not file.stat().st_size:
            continue
        with av.open(str(file), format="mp4") as container:
            found[file.name] = sum(1 for _ in container.decode(video=0))
    return found


def fault(
    command: list[str], phase: str, name: str, rank: int, world: int, settle: float
) -> dict[str, Any]:
    """Cause one fault; return its record."""
    for attempt in range(TRIES):
        with tempfile.TemporaryDirectory() as folder:
            words = [word.replace("{folder}", folder) for word in command]
            try:
                found = run_fault(
                    words,
                    phase,
                    SIGNALS[name],
                    rank,
                    world=world,
                    folder=Path(folder),
                    settle=settle,
                )
            except TimeoutError:
                if attempt == TRIES - 1:
                    raise
                continue
            # The rank may have continued between our look and the signal: that is not a failure.
            one = sum(line.startswith("error:") for line in found.stderr.splitlines()) == 1
            late = not found.named and one and f"rank {found.rank} on " in found.message
            if late and replace(found, named=True).passed and attempt < TRIES - 1:
                continue
            try:
                videos = frames(Path(folder))
            except av.FFmpegError as error:
                videos = {"error": str(error)}
            tries = {"tries": attempt + 1, "passed": found.passed}
            return {**asdict(found), **tries, "videos": videos}
    raise AssertionError


def clean(command: list[str], timeout: float) -> dict[str, Any]:
    """Run once without a fault; return its record."""
    with tempfile.TemporaryDirectory() as folder:
        begin = time.monotonic()
        with Run([word.replace("{folder}", folder) for word in command]) as run:
            seconds = run.seconds_to_end(timeout)
            code = run.process.poll()
            stderr = run.stderr()
        videos = frames(Path(folder))
    passed = code == 0 and seconds < timeout
    total = time.monotonic() - begin
    return {
        "seconds": total,
        "code": code,
        "passed": passed,
        "videos": videos,
        "stderr": "" if passed else stderr,
    }


def main() -> int:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--world", type=int, required=True, help="number of ranks that the command starts"
    )
    parser.add_argument("--phases", nargs="+", default=PHASES)
    parser.add_argument("--signals", nargs="+", default=list(SIGNALS), choices=list(SIGNALS))
    parser.add_argument("--ranks", nargs="+", type=int, default=[0, -1])
    parser.add_argument(
        "--settle", type=float, default=0.0, help="seconds from the first time in the phase"
    )
    parser.add_argument(
        "--video", action="store_true", help="require that a playable video is left"
    )
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--clean", type=int, default=0, help="runs without a fault, instead")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds of a clean run")
    parser.add_argument("--output", type=Path, help="JSON file")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="after --")
    args = parser.parse_args()
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        parser.error("name the command after --")
    where = machine()
    runs: list[dict[str, Any]] = []
    for number in range(args.clean):
        runs.append(clean(command, args.timeout))
        print(
            f"clean {number + 1}: {runs[-1]['seconds']:.1f} s, code {runs[-1]['code']}", flush=True
        )
        save(args, where, runs)
    places = [(p, s, r) for p in args.phases for s in args.signals for r in args.ranks]
    for phase, name, rank in places * (0 if args.clean else args.repeats):
        record = fault(command, phase, name, rank, args.world, args.settle)
        if args.video and not any(isinstance(n, int) and n > 0 for n in record["videos"].values()):
            record["passed"] = False
        runs.append(record)
        state = "ok" if record["passed"] else f"FAILED: {record}"
        print(
            f"{phase} {name} rank {record['rank']}: {record['seconds']:.2f} s {state}", flush=True
        )
        save(args, where, runs)
    failed = sum(not run["passed"] for run in runs)
    print(f"{len(runs)} runs, {failed} failed; slowest {slowest(args, runs)}")
    return 1 if failed else 0


def slowest(args: argparse.Namespace, runs: list[dict[str, Any]]) -> dict[str, float | None]:
    """Return signal -> the longest time until all were gone."""
    return {
        name: max(
            (run["seconds"] for run in runs if run.get("signal") == f"SIG{name}"), default=None
        )
        for name in args.signals
    }


def save(args: argparse.Namespace, where: dict[str, Any], runs: list[dict[str, Any]]) -> None:
    """Write the records so far."""
    if args.output:
        result = {
            "command": shlex.join(["python", *sys.argv]),
            "machine": where,
            "slowest": slowest(args, runs),
            "failed": sum(not run["passed"] for run in runs),
            "runs": runs,
        }
        write_text(args.output, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
