"""Measure livetalk on this machine's GPUs within a time budget, and write a report folder.

    python benchmarks/gpu_report --output out/gpu-report --budget 480
    python benchmarks/gpu_report --only step ops --fresh
    python benchmarks/gpu_report --device cpu --budget 120

``make gpu-report`` runs it. Nothing is installed or downloaded: it uses torch, Triton, NumPy and
whatever else is found, and says which parts cannot run and what they lack. Parts run one after the
other, each in a separate process; unused time goes to later parts. A part that fails, or takes too
long, costs only itself, and its measurements so far are kept. Run it again to resume: parts
completed with this code, these GPUs, this torch and these compilers are kept. Only the first part
must succeed: without knowing the machine nothing else is run, and earlier results are left alone.
Backends that hang, crash or are wrong when each is tried once are named, and excluded from
everything after. At the end the folder is also written as an archive; unpacked on another machine,
a run resumes from it. Ctrl-C ends the current part and writes the report. Untested on a GPU.
"""

import argparse
import hashlib
import io
import json
import os
import shlex
import signal
import sys
import tarfile
import tempfile
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

# Nothing needs to be installed.
sys.path += [str(Path(__file__).resolve().parents[parent]) for parent in (1, 2)]

from gpu_report import pages, plots
from gpu_report.parts import FIRST, ROOT, SETUP, Part, Settings, make_parts, soft_end
from gpu_report.run import DONE, FAILED, INTERRUPTED, TIMEOUT, run_command, tail
from livetalk_kernels.bench.telemetry import Telemetry, find_nvml, gpu_readers
from livetalk_kernels.environment import EXCLUDE_VARIABLE as EXCLUDE
from livetalk_kernels.outputs import new_file, write_text
from livetalk_kernels.runtime.ranks.signals import catch

SCHEMA = "livetalk/gpu-report/1"
SKIPPED = "skipped"
NO_TIME = "--budget was used up; run it again to resume"
UNKNOWN = "the machine is not known; run it again"
BUDGET = 540.0
FIRST_SECONDS = 90.0  # for the first part, even of a small budget: drivers and torch are slow
PACK_BYTES = 16 << 20
LEAST = 5.0  # seconds; with less a part is not started
TAIL = 25  # lines of a failed part's log in the report
CODE = ("livetalk_kernels", "model", "csrc", "benchmarks")
SUFFIXES = {".py", ".cpp", ".cu", ".cuh", ".h"}
DATA = {".json", ".safetensors", ".toml"}  # also count among a part's own dependencies
EXIT_INTERRUPTED = 130
PERIOD = 0.5  # seconds between samples of the GPUs

Entry = dict[str, Any]


def digest(root: Path, names: Iterable[str], suffixes: Collection[str]) -> str:
    """Hash files by content: a dirty tree has the commit of a clean one.

    Args:
        root: Folder of all.
        names: Files and folders in it.
        suffixes: Suffixes of the files that count.
    """
    found = hashlib.sha256()
    for name in names:
        top = root / name
        for file in sorted(top.rglob("*")) if top.is_dir() else [top]:
            counts = file.suffix in suffixes and "gpu_report" not in file.parts
            if counts and file.is_file():
                found.update(f"{name}/{file.relative_to(top)}".encode() + file.read_bytes())
    return found.hexdigest()[:16]


def read(path: Path) -> Any:
    """Read a JSON file; None if it is missing or truncated."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def result_of(part: Part) -> Any:
    """Read a part's result; None without one."""
    if part.result.suffix == ".xml":
        return pages.read_junit(part.result)
    return read(part.result)


class Report:
    """One run: which parts are done, their results, and the report's files."""

    def __init__(self, args: argparse.Namespace, settings: Settings, links: Path) -> None:
        """Start with nothing run."""
        self.args, self.settings, self.folder = args, settings, settings.folder
        self.end = time.monotonic() + args.budget
        self.environment = environment(links)
        self.before: dict[str, Entry] = {}
        state = read(self.folder / "state.json")
        if isinstance(state, dict) and not args.fresh:
            self.before = state.get("parts", {})
        self.entries: dict[str, Entry] = {}
        self.parts: list[Part] = []
        self.facts: dict[str, Any] = {}
        self.machine_key: dict[str, Any] = {}
        self.sources: dict[str, str] = {}  # of parts
        self.excluded: set[str] = set()  # backends that later parts exclude, OP=NAME
        self.problem: str | None = None
        self.plots: list[str] = []
        self.plots_missing = plots.missing()

    def key(self, part: Part) -> str:
        """Return what must be equal for a result to be kept."""
        # The folder may have moved.
        command = [word.replace(str(self.folder), "") for word in part.command(0.0)]
        sources = self.sources.get(part.name)
        words = {"machine": self.machine_key, "command": command, "sources": sources}
        words["excluded"] = sorted(self.excluded)
        return hashlib.sha256(json.dumps(words, sort_keys=True).encode()).hexdigest()[:16]

    def learn(self) -> None:
        """Adopt the first part's findings."""
        self.facts = read(self.folder / "facts.json") or {}
        versions = self.facts.get("versions") or {}
        self.machine_key = {
            "code": digest(ROOT, CODE, SUFFIXES),
            "devices": [device["name"] for device in self.facts.get("devices") or []],
            "driver": [line.split(", ")[2:3] for line in self.facts.get("nvidia_smi") or []],
            "cpu": (self.facts.get("machine") or {}).get("cpu"),
            "torch": versions.get("torch"),
            "packages": self.facts.get("packages"),
            "compilers": [self.facts.get(name) for name in ("compiler", "nvcc")],
        }
        self.sources = {
            part.name: digest(ROOT, part.sources, SUFFIXES | DATA) for part in self.parts
        }

    def wanted(self, part: Part) -> str | None:
        """Return None, or why a part should not run."""
        if self.args.only and part.name not in self.args.only:
            return "--only names others"
        return "--skip" if part.name in self.args.skip else None

    def kept(self, part: Part) -> Entry | None:
        """Return the entry of an earlier run if it is still valid."""
        entry = self.before.get(part.name)
        if entry is None or entry["key"] != self.key(part):
            return None
        if part.always and self.wanted(part) is None:
            return None
        return entry if entry["status"] == DONE or self.wanted(part) else None

    def run(self) -> None:
        """Run everything.

        Raises:
            KeyboardInterrupt: Ctrl-C; results so far have been recorded.
        """
        self.parts = make_parts(self.settings, {})
        readers = gpu_readers(find_nvml())
        with Telemetry([], period=PERIOD, readers=readers) as telemetry:
            first = self.parts[0]
            assert first.name == FIRST
            self.run_part(first, max(FIRST_SECONDS, self.limit(first)), telemetry)
            self.learn()
            if self.entries[FIRST]["status"] != DONE or not self.facts:
                self.leave()
                return
            self.parts = make_parts(self.settings, self.facts)
            self.write()
            for part in self.parts[1:]:
                self.next(part, telemetry)
                self.write()

    def leave(self) -> None:
        """Run nothing more: on an unknown machine all earlier results would seem another's."""
        status = self.entries[FIRST]["status"]
        self.problem = (
            f"The part {FIRST} did not end well ({status}), so nothing else was run. What earlier "
            "runs found is left as it is; whether it is of this machine was not checked."
        )
        say(self.problem)
        for part in self.parts[1:]:
            if part.name in self.before:
                self.entries[part.name] = {**self.before[part.name], "kept": True}
            else:
                self.skip(part, UNKNOWN)

    def next(self, part: Part, telemetry: Telemetry) -> None:
        """Run a part, or record why not."""
        kept, unwanted = self.kept(part), self.wanted(part)
        reason = unwanted or part.reason
        if kept is not None:
            self.entries[part.name] = {**kept, "kept": True}
            say(f"{part.name}: {kept['status']} before")
        elif reason is not None:
            self.skip(part, reason)
        elif self.end - time.monotonic() < LEAST:
            self.skip(part, NO_TIME)
        else:
            self.run_part(part, self.limit(part), telemetry)
        if self.entries[part.name]["status"] == SKIPPED:
            return
        result = result_of(part)
        if isinstance(result, dict) and result.get("excluded"):
            self.exclude(result["excluded"])
        if self.plots_missing is None:
            self.plots += plots.draw(part.name, result, self.folder, self.subtitle())

    def skip(self, part: Part, reason: str) -> None:
        """Record why a part did not run."""
        say(f"{part.name}: skipped: {reason}")
        entry = {"status": SKIPPED, "reason": reason, "seconds": 0.0, "key": self.key(part)}
        self.entries[part.name] = entry

    def exclude(self, names: Iterable[str]) -> None:
        """Exclude backends from all later parts."""
        self.excluded |= set(names)
        known = filter(None, [os.environ.get(EXCLUDE, "")])
        value = ",".join(dict.fromkeys([*known, *sorted(self.excluded)]))
        self.environment = {**self.environment, EXCLUDE: value}
        say(f"left out from now on: {', '.join(sorted(self.excluded))}")

    def limit(self, part: Part) -> float:
        """Compute a part's seconds: its fixed ones, else its share of the rest, by weight."""
        left = max(LEAST, self.end - time.monotonic())
        if part.fixed:
            return min(part.fixed, left)
        after = self.parts[self.parts.index(part) :]
        pending = [p for p in after if p is part or self.pending(p)]
        left = max(LEAST, left - sum(p.fixed for p in pending))
        return left * part.weight / sum(p.weight for p in pending)

    def pending(self, part: Part) -> bool:
        """Return whether a part has yet to run."""
        return part.reason is None and self.wanted(part) is None and self.kept(part) is None

    def run_part(self, part: Part, limit: float, telemetry: Telemetry) -> None:
        """Run a part and record how it ended.

        Raises:
            KeyboardInterrupt: Ctrl-C.
        """
        begin, began = time.monotonic(), time.perf_counter_ns()
        command = part.command(soft_end(begin, limit))
        log = self.folder / "logs" / f"{part.name}.log"
        say(f"{part.name}: {part.title}, up to {limit:.0f} s")
        old = self.before.get(part.name)
        if not part.resumes or old is None or old["key"] != self.key(part):
            part.result.unlink(missing_ok=True)
        outcome = run_command(
            command, log=log, limit=limit, cwd=part.cwd, environment=self.environment
        )
        entry: Entry = {
            "status": outcome.status,
            "reason": "",
            "seconds": outcome.seconds,
            "limit": limit,
            "code": outcome.code,
            "command": shlex.join(command),
            "log": str(log.relative_to(self.folder)),
            "key": self.key(part),
            "telemetry": pages.clocks(telemetry.as_json(began)["samples"], self.uuids()),
        }
        result = result_of(part)
        if outcome.status == DONE and isinstance(result, dict) and not result.get("complete", True):
            entry |= {"status": TIMEOUT, "reason": "its time was short; what it skipped is listed"}
        elif outcome.status == TIMEOUT:
            entry["reason"] = f"ended after {limit:.0f} s; what it had measured is kept"
        elif outcome.status == FAILED:
            entry |= {"reason": why(log, outcome.code), "tail": tail(log, TAIL)}
        elif outcome.status == INTERRUPTED:
            entry["reason"] = "Ctrl-C"
        self.entries[part.name] = entry
        say(f"{part.name}: {entry['status']} after {outcome.seconds:.0f} s {entry['reason']}")
        self.save()
        if outcome.status == INTERRUPTED:
            raise KeyboardInterrupt

    def uuids(self) -> list[str]:
        """List torch's GPUs, in its order; empty if unknown."""
        return [device.get("uuid", "") for device in self.facts.get("devices") or []]

    def save(self) -> None:
        """Write the state, from which another run resumes."""
        entries = self.before | {n: e for n, e in self.entries.items() if e["status"] != SKIPPED}
        state = {"schema": SCHEMA, "parts": entries}
        write_text(self.folder / "state.json", json.dumps(state, indent=1) + "\n")

    def subtitle(self) -> str:
        """Summarise hardware and commit, for plots."""
        return pages.hardware(self.facts)

    def write(self) -> None:
        """Write ``report.json`` and ``report.md``."""
        self.save()
        parts = []
        for part in self.parts:
            entry = self.entries.get(part.name)
            if entry is None:
                entry = {"status": SKIPPED, "reason": "not begun", "seconds": 0.0}
            result = result_of(part) if entry["status"] != SKIPPED else None
            parts.append({"name": part.name, "title": part.title, **entry, "result": result})
        report = {
            "schema": SCHEMA,
            "command": shlex.join(["python", *sys.argv]),
            "budget": self.args.budget,
            "settings": {
                "device": self.settings.device,
                "preset": self.settings.preset,
                "layers": self.settings.layers,
            },
            "facts": self.facts,
            "code": self.machine_key.get("code"),
            "problem": self.problem,
            "excluded": sorted(self.excluded),
            "parts": parts,
            "plots": list(dict.fromkeys(self.plots)),
            "plots_missing": self.plots_missing,
        }
        write_text(self.folder / "report.json", json.dumps(report, indent=1) + "\n")
        write_text(self.folder / "report.md", pages.markdown(report))


def why(log: Path, code: int) -> str:
    """Say why a part failed, in one line."""
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    last = tail(log, 1)
    line = last[0][:200] if last else "it printed nothing"
    if line.startswith("ModuleNotFoundError"):
        return f"needs a package that is not installed: {line.partition(': ')[2]}"
    return f"{how}: {line}"


def environment(links: Path) -> dict[str, str]:
    """Build all parts' environment: packages under their names, and no downloads."""
    for name, folder in (("livetalk_kernels", "livetalk_kernels"), ("livetalk_model", "model")):
        (links / name).symlink_to(ROOT / folder, target_is_directory=True)
    paths = [str(links), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
    }


def say(text: str) -> None:
    """Print progress for whoever waits."""
    print(text, flush=True)


def check_names(names: Iterable[str], parts: Iterable[Part]) -> str | None:
    """Return None, or what is wrong with names of parts."""
    known = [part.name for part in parts]
    wrong = [name for name in names if name not in known]
    return f"there is no part {', '.join(wrong)}; choose {', '.join(known)}" if wrong else None


def make_parser() -> argparse.ArgumentParser:
    """Options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("out/gpu-report"), metavar="DIR")
    parser.add_argument(
        "--pack", type=Path, metavar="FILE",
        help="the same as a .tar.gz of at most 16 MiB (default: next to DIR, with its name)",
    )  # fmt: skip
    parser.add_argument(
        "--budget", type=float, default=BUDGET, metavar="S",
        help=f"seconds for all parts (default: {BUDGET:.0f})",
    )  # fmt: skip
    parser.add_argument(
        "--device", default="cuda", choices=("cuda", "cpu"), help="cpu: to try it out"
    )
    parser.add_argument("--preset", help="default: 14b, on a CPU tiny")
    parser.add_argument("--layers", type=int, help="blocks (default: all that fit the memory)")
    parser.add_argument("--only", nargs="+", default=[], metavar="PART")
    parser.add_argument("--skip", nargs="+", default=[], metavar="PART")
    parser.add_argument("--list", action="store_true", help="list the parts and exit")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="keep what is done (default)")
    again.add_argument("--fresh", action="store_true", help="run all parts again")
    return parser


def summary(entries: Mapping[str, Entry]) -> int:
    """Return 0, or 1 if something failed or nothing was measured."""
    states = [entry["status"] for entry in entries.values()]
    ran = [name for name, entry in entries.items() if entry["status"] == DONE]
    return 1 if FAILED in states or TIMEOUT in states or not set(ran) - SETUP else 0


def pack(folder: Path, archive: Path) -> list[str]:
    """Write a folder as one ``.tar.gz`` of at most `PACK_BYTES`.

    Args:
        folder: Folder to pack, under its own name: unpacked elsewhere, `--output` resumes from it.
        archive: The file; it may be inside the folder.

    Returns:
        Files that were left out, largest first, until the rest fitted; the archive lists them
        in ``left-out.txt``.
    """
    files = sorted(
        (file for file in folder.rglob("*") if file.is_file() and file != archive),
        key=lambda file: (file.stat().st_size, file),
    )
    left_out: list[str] = []
    while True:
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w:gz") as tar:
            for file in files:
                tar.add(file, f"{folder.name}/{file.relative_to(folder)}", recursive=False)
            text = "".join(f"{name}\n" for name in left_out).encode()
            entry = tarfile.TarInfo(f"{folder.name}/left-out.txt")
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text))
        if len(data.getbuffer()) <= PACK_BYTES or not files:
            break
        left_out.append(str(files.pop().relative_to(folder)))
    with new_file(archive) as stream:
        stream.write(data.getbuffer())
    return left_out


def main() -> int:
    """Run the parts.

    Returns:
        0; 1 if a part failed or nothing could run; 2 for bad options; 130 after Ctrl-C.
    """
    args = make_parser().parse_args()
    folder = args.output.resolve()
    settings = Settings(
        device=args.device,
        preset=args.preset or ("tiny" if args.device == "cpu" else "14b"),
        layers=args.layers,
        folder=folder,
    )
    parts = make_parts(settings, {})
    if args.list:
        for part in parts:
            say(f"{part.name:10s} {part.title}")
        return 0
    wrong = check_names([*args.only, *args.skip], parts)
    if wrong or args.budget <= 0:
        print(f"error: {wrong or '--budget: use a number above 0'}", file=sys.stderr)
        return 2
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    catch(signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="livetalk_") as links:
        report = Report(args, settings, Path(links))
        interrupted = False
        try:
            report.run()
        except KeyboardInterrupt:
            interrupted = True
            catch(signal.SIG_IGN)  # the report is worth a second
        report.write()
    archive = (args.pack or folder.with_name(f"{folder.name}.tar.gz")).resolve()
    left_out = pack(folder, archive)
    without = f", without {', '.join(left_out)}" if left_out else ""
    say(f"wrote {folder / 'report.md'}, and all of it as {archive}{without}")
    if interrupted:
        return EXIT_INTERRUPTED
    return 1 if report.problem else summary(report.entries)


if __name__ == "__main__":
    sys.exit(main())
