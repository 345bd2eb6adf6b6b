"""Train the model of the preset ``demo`` from scratch: clips, four trainings, packed weights.

    python benchmarks/train_demo.py --output out/train-demo

Every stage is a `livetalk` command in a separate process. Finished stages are skipped, unfinished
ones resumed, and a stage that takes longer than ``--minutes`` is stopped and resumed in another
process, or, with ``--once``, in the next call. ``stages.jsonl`` records the estimate and how long
each took. ``--estimate`` stops after the estimate.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from training_runs import MADE, is_done, train_words

from livetalk_kernels.errors import UserError
from livetalk_kernels.inputs import is_file
from livetalk_kernels.machine import machine
from livetalk_kernels.units import duration
from livetalk_model.train.data.clips import INDEX, read_index
from livetalk_model.train.data.voices import INSTALL, PROGRAM, find_program
from livetalk_model.train.demo import DEMO, SETTINGS, Kind
from livetalk_model.train.estimate import DATASET, Recipe, estimate
from livetalk_model.train.product.packing import SUMS
from livetalk_model.train.settings import Run

LIVETALK = (sys.executable, "-m", "livetalk_model")
PACK = Path(__file__).with_name("pack_demo.py")
CLIPS, SECONDS = 1024, 6.0  # five chunks in a row; with a third of them the teacher overfits
MINUTES = 40.0
RECORD = "stages.jsonl"
PACKED = "demo"
LEFT = 130  # exit code of a stage that was stopped and can be resumed


class Stages:
    """The stages in order, in one folder."""

    def __init__(
        self, folder: Path, runs: dict[Kind, Run], *, clips: int = CLIPS, seconds: float = SECONDS
    ) -> None:
        """Set up all stages."""
        self.folder, self.runs, self.clips, self.seconds = folder, runs, clips, seconds

    @property
    def names(self) -> Sequence[str]:
        """Names of all stages."""
        return (DATASET, *MADE, PACKED)

    def done(self, name: str) -> bool:
        """Return whether a stage has reached its end.

        Raises:
            UserError: It was begun with other settings.
        """
        if name == DATASET:
            index = self.folder / name / INDEX
            return is_file(index) and read_index(index).complete
        if name == PACKED:
            return is_file(self.folder / PACKED / SUMS)
        kind = self._kind(name)
        return is_done(self.folder / name, kind, self.runs[kind])

    def command(self, name: str) -> Sequence[str]:
        """Build the command that begins or resumes a stage."""
        target = str(self.folder / name)
        if name == DATASET:
            size = "x".join(map(str, DEMO.size))
            options = ("--synthetic", str(self.clips), "--seconds", str(self.seconds))
            return (*LIVETALK, "dataset", *options, "--size", size, "--output", target)
        if name == PACKED:
            return (sys.executable, str(PACK), str(self.folder / "distill"), "--output", target)
        kind = self._kind(name)
        sources = {"data": DATASET}
        if kind in ("teacher", "distill"):
            sources |= {"vae": "vae", "audio-encoder": "audio"}
        if kind == "distill":
            sources |= {"teacher": "teacher"}
        folders = {option: self.folder / path for option, path in sources.items()}
        return (*LIVETALK, *train_words(self.folder / name, kind, self.runs[kind], folders))

    def carry_out(self, name: str, minutes: float) -> tuple[int, float]:
        """Run a stage; return exit code and seconds. One that takes too long saves and stops."""
        begin = time.monotonic()
        with subprocess.Popen(self.command(name)) as process:
            try:
                code = process.wait(60 * minutes)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT)
                code = process.wait()
            except KeyboardInterrupt:  # the stage receives it too
                process.wait()
                raise
        return code, time.monotonic() - begin

    def _kind(self, name: str) -> Kind:
        (kind,) = (kind for kind in MADE if kind == name)
        return kind


def run_all(stages: Stages, minutes: float, *, once: bool, estimated: dict[str, float]) -> int:
    """Run the remaining stages; return the exit code."""
    for name in stages.names:
        if stages.done(name):
            print(f"{name}: done before", flush=True)
            continue
        while True:
            print(f"{name}: {duration(estimated.get(name, 0.0))} estimated", flush=True)
            code, seconds = stages.carry_out(name, minutes)
            done = code == 0
            entry = {"stage": name, "seconds": seconds, "done": done, "machine": machine()}
            record(stages.folder / RECORD, entry | {"estimated": estimated.get(name)})
            print(f"{name}: {duration(seconds)}{'' if done else ', to be resumed'}", flush=True)
            if code not in (0, LEFT):
                return code
            if once:
                return 0
            if done:
                break
    print(f"{stages.folder / PACKED} has the weights; they come into the package as model/demo")
    return 0


def record(path: Path, entry: dict[str, Any]) -> None:
    """Append a line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def recorded(path: Path) -> Iterator[dict[str, Any]]:
    """Yield all lines."""
    if path.is_file():
        yield from map(json.loads, path.read_text("utf-8").splitlines())


def say(name: str, seconds: float) -> None:
    """Print a line of the estimate."""
    print(f"{name:10} {duration(seconds):>8}", flush=True)


def main() -> int:
    """Estimate, run, record; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("out/train-demo"), metavar="DIR")
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help="limit per stage and process"
    )
    parser.add_argument("--once", action="store_true", help="run one stage, or part of one")
    parser.add_argument("--estimate", action="store_true", help="estimate how long it will take")
    parser.add_argument("--clips", type=int, default=CLIPS, help="number of clips to draw")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="length of a clip")
    parser.add_argument("--steps", type=int, help="updates of every training, for a trial")
    args = parser.parse_args()
    program = find_program()
    if program is None:
        print(f"error: {PROGRAM}: not installed; {INSTALL}", file=sys.stderr)
        return 2
    given = {} if args.steps is None else {"steps": args.steps}
    runs = {kind: Run(**{**SETTINGS[kind], **given}) for kind in MADE}
    stages = Stages(args.output, runs, clips=args.clips, seconds=args.seconds)
    args.output.mkdir(parents=True, exist_ok=True)
    try:
        known = [entry for entry in recorded(args.output / RECORD) if "estimate" in entry]
        if known and not args.estimate:
            found = known[-1]["estimate"]
        else:
            recipe = Recipe(
                clips=args.clips, seconds=args.seconds, size=DEMO.size, program=program, runs=runs
            )
            with tempfile.TemporaryDirectory() as folder:
                print("timing some updates of each stage for an estimate", flush=True)
                found = dict(estimate(recipe, Path(folder), report=say))
            record(args.output / RECORD, {"estimate": found, "machine": machine()})
        print(
            f"{'together':10} {duration(sum(found.values())):>8}, estimated from updates timed here"
        )
        if args.estimate:
            return 0
        return run_all(stages, args.minutes, once=args.once, estimated=found)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command resumes", file=sys.stderr)
        return LEFT


if __name__ == "__main__":
    sys.exit(main())
