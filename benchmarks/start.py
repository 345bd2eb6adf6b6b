"""Time ``livetalk generate`` from process start to first frame, cold.

    python benchmarks/start.py --runs 10 --output start.json
    python benchmarks/start.py --tree . --tree ../before --runs 10 --output start.json

Several trees, which are checkouts of this repository, alternate. The first run of each does not
count: it reads the files into memory. For every run: the wall time until the first frame is in the
output, the CPU time used by then, and both for ``livetalk --help``. On a busy machine only CPU time
is meaningful. CPU only.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from livetalk_kernels.machine import machine
from livetalk_kernels.outputs import write_json
from livetalk_model.bundled import SPEECH
from livetalk_model.config import get_preset

REPOSITORY = Path(__file__).resolve().parent.parent
PORTRAIT = REPOSITORY / "examples/portrait.png"
POLL = 0.002  # seconds
PATIENCE = 300.0
MAIN = "import sys; sys.path.insert(0, {!r}); from livetalk_model.cli.main import main; main()"


def cpu_seconds(process: psutil.Process) -> float:
    """Return the CPU time that a process has used so far, in steps of 10 ms."""
    times = process.cpu_times()
    return times.user + times.system


def first_frame(packages: Path, preset: str) -> dict[str, float]:
    """Run ``generate`` until its first frame is written, then end it.

    Raises:
        RuntimeError: It ended, or took minutes, without a frame.
    """
    height, width = get_preset(preset).size
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "-c", MAIN.format(str(packages)), "generate", "--preset", preset),
            *("--device", "cpu", "--portrait", str(PORTRAIT), "--crop", "centre"),
            *("--audio", str(SPEECH), "--output", f"{folder}/x.npy"),
        ]
        begin = time.perf_counter()
        quiet = subprocess.DEVNULL
        with subprocess.Popen(command, cwd=folder, stdout=quiet, stderr=quiet) as child:
            process = psutil.Process(child.pid)
            try:
                while child.poll() is None and time.perf_counter() < begin + PATIENCE:
                    if any(part.stat().st_size >= 3 * height * width for part in _parts(folder)):
                        wall = time.perf_counter() - begin
                        return {"wall": wall, "cpu": cpu_seconds(process)}
                    time.sleep(POLL)
            finally:
                child.kill()
    raise RuntimeError(f"no frame: {' '.join(command)}")


def _parts(folder: str) -> list[Path]:
    return list(Path(folder).glob("*.part"))


def help_page(packages: Path) -> dict[str, float]:
    """Time ``livetalk --help``."""
    begin, before = time.perf_counter(), psutil.Process().cpu_times()
    command = [sys.executable, "-c", MAIN.format(str(packages)), "--help"]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    after = psutil.Process().cpu_times()
    used = after.children_user + after.children_system
    return {
        "wall": time.perf_counter() - begin,
        "cpu": used - before.children_user - before.children_system,
    }


def lay_out(tree: Path, folder: Path) -> Path:
    """Create a folder with a checkout's packages under their import names."""
    folder.mkdir()
    (folder / "livetalk_kernels").symlink_to(tree.resolve() / "livetalk_kernels")
    (folder / "livetalk_model").symlink_to(tree.resolve() / "model")
    return folder


def main() -> None:
    """Measure, print a table, write the numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="tiny", choices=("tiny", "demo", "mid"))
    parser.add_argument("--runs", type=int, default=10, help="of each tree (default: 10)")
    parser.add_argument("--tree", type=Path, action="append", help="default: this one")
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    args = parser.parse_args()
    facts = machine()
    trees: list[Path] = args.tree or [REPOSITORY]
    runs: dict[str, list[dict[str, Any]]] = {str(tree): [] for tree in trees}
    with tempfile.TemporaryDirectory() as folder:
        packages = [lay_out(tree, Path(folder) / str(i)) for i, tree in enumerate(trees)]
        for number in range(args.runs + 1):
            for name, places in zip(runs, packages, strict=True):
                run = {"first_frame": first_frame(places, args.preset), "help": help_page(places)}
                if number:
                    runs[name].append(run)
    for name, found in runs.items():
        for what in ("first_frame", "help"):
            for kind in ("wall", "cpu"):
                p50, p95 = np.percentile([run[what][kind] for run in found], (50, 95))
                print(f"{name:20} {what:12} {kind:5} p50 {p50:6.2f} s  p95 {p95:6.2f} s")
    if args.output is not None:
        write_json(args.output, {"machine": facts, "preset": args.preset, "runs": runs})


if __name__ == "__main__":
    main()
