"""``livetalk profile --compare A B``: what changed between two profiles, and is it noise?"""

import argparse
import json
import shlex
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from livetalk_kernels.errors import UserError
from livetalk_kernels.units import ms, percent_change

from . import common, ranks
from .progress import progress_line

if TYPE_CHECKING:
    from livetalk_kernels.bench.compare import Change

    from ..profile.compare import Comparison, Row

JSON, TEXT = "compare.json", "compare.md"
MANY = 4  # changes of one kind, from which on they are counted, not listed
MAX_CHANGED = 20  # lines of what differs; the rest is in the JSON
OURS = ("--compare", "--pairs", "--paced", "--nsys", "--ncu", "--captured")
OUTSIDE = ("--compare", "--pairs", "--output", "--json")  # what may stand beside A and B


def run(args: argparse.Namespace) -> int:
    """Compare two folders, or two commands by turns; report.

    Returns:
        0; 1 if a command failed, or if the folders are of two machines: nothing is concluded then.

    Raises:
        UserError: A or B is no good.
    """
    from livetalk_kernels.machine import machine

    from ..profile.compare import Comparison, compare_folders
    from ..profile.paced import WorkerError

    for word in args.argv:
        option = word.split("=")[0]
        beside = any(own.startswith(option) for own in OUTSIDE)
        if option.startswith("--") and word not in args.compare and not beside:
            raise UserError(
                f"{option}: stands outside the two commands of --compare; put it into both"
            )
    if args.output is not None:
        for name in (JSON, TEXT):
            common.check_file(args.output / name)
    folders = [_folder(text, side) for side, text in zip("AB", args.compare, strict=True)]
    comparison: Comparison
    if folders[0] is not None and folders[1] is not None:
        comparison = compare_folders(folders[0], folders[1])
    elif folders != [None, None]:
        raise UserError(
            f"--compare {args.compare[0]} {args.compare[1]}: one is a folder and one a command; "
            "give two of a kind"
        )
    else:
        try:
            comparison = _commands(args)
        except WorkerError as error:
            for line in f"error: {error}".splitlines():  # with the last words of the command
                common.note(line)
            return 1
    report = {"command": ["livetalk", *args.argv], "machine": machine(), **comparison.as_json()}
    if args.output is not None:
        _write(args.output, report, comparison)
    if args.json:
        common.print_json(report)
    else:
        _print(comparison)
    return 1 if comparison.elsewhere else 0


def _folder(text: str, side: str) -> Path | None:
    """The folder that a side names; None: it is a command.

    Raises:
        UserError: It is neither.
    """
    from livetalk_kernels.inputs import find, is_folder

    from ..profile.compare import REPORT

    if text and is_folder(text):
        if find(Path(text) / REPORT).kind == "missing":
            raise UserError(
                f"--compare: {side} is {text}, a folder without {REPORT}; name one that "
                "'livetalk profile --output' has written"
            )
        return Path(text)
    words = _words(text, side)
    if words and not words[0].startswith("-"):
        raise UserError(
            f"--compare: {side} is {text!r}, neither a folder nor options of 'livetalk profile'; "
            'write for example "--preset tiny --backend cpu"'
        )
    return None


def _words(text: str, side: str) -> list[str]:
    """The options in a command; ``livetalk profile`` in front may be left out.

    Raises:
        UserError: Quotes do not match, or an option cannot be compared.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(f"--compare: {side} is {text!r}: {error}; mend the quotes") from None
    for word in ("livetalk", "profile"):
        if words and words[0] == word:
            del words[0]
    for word in words:
        option = word.split("=")[0]
        if option.startswith("--") and any(own.startswith(option) for own in OURS):
            raise UserError(f"--compare: {side} has {word}, which is not for the two compared")
    return words


def _commands(args: argparse.Namespace) -> "Comparison":
    """Start both, let them take turns.

    Raises:
        UserError: Options are no good.
        WorkerError: One of them has failed.
    """
    from ..profile.compare import MOST, compare_workers
    from ..profile.paced import Worker
    from .interrupts import Interrupts

    a, b = args.compare
    with (
        tempfile.TemporaryDirectory(prefix="livetalk_") as folder,
        progress_line() as say,
        Interrupts(),
    ):
        workers = []
        for side, text in (("A", a), ("B", b)):
            own = Path(folder, side)
            own.mkdir()
            # A video is encoded beside the chunks: one's would be in the other's time. The first
            # chunk is not counted.
            chunks = str(MOST * args.pairs + 1)
            words = [*_words(text, side), "--no-video", "--chunks", chunks, "--paced"]
            command = [sys.executable, *ranks.PROGRAM, "profile", *words]
            workers.append(Worker(f"command {side}", command, own))
        return compare_workers((a, b), (workers[0], workers[1]), args.pairs, say)


def _write(folder: Path, report: dict[str, Any], comparison: "Comparison") -> None:
    """Write both files."""
    from livetalk_kernels.outputs import write_json, write_text

    write_text(folder / TEXT, _markdown(report, comparison))
    write_json(folder / JSON, report)


COLUMNS = ("", "A p50", "B p50", "change (interval)", "verdict")


def _cells(row: "Row") -> tuple[str, ...]:
    """A row of the table."""
    change = "" if row.change is None else f"{_percent(row.change.ratio)} ({_interval(row.change)})"
    return (row.name, _seconds(row.a), _seconds(row.b), change, row.verdict)


def _seconds(value: float | None) -> str:
    return "" if value is None else ms(value)


def _percent(ratio: float) -> str:
    """A ratio as a change in per cent, with its sign: ``+9.8 %``."""
    return f"{percent_change(ratio)} %"


def _interval(change: "Change") -> str:
    """The ends of an interval in per cent: ``+7.1 to +12.6``."""
    return f"{percent_change(change.low)} to {percent_change(change.high)}"


def _circumstances(comparison: "Comparison") -> list[str]:
    """What is to be known before any number is read: other hardware, versions or threads."""

    def listed(entries: list[dict[str, Any]]) -> str:
        return ", ".join(f"{e['what']} {_value(e['a'])} -> {_value(e['b'])}" for e in entries)

    lines = []
    if comparison.elsewhere:
        lines.append(
            f"ANOTHER MACHINE: B was measured on other hardware than A: "
            f"{listed(comparison.elsewhere)}. The times say nothing about the program alone."
        )
    if comparison.otherwise:
        lines.append(
            f"OTHER SURROUNDINGS: {listed(comparison.otherwise)}. That alone changes times."
        )
    return lines


def _sentences(comparison: "Comparison") -> list[str]:
    """The answer, and what it rests on."""
    change, rows = comparison.change, comparison.rows
    level = f"{100 * change.level:.4g} %"
    changes = f"{_percent(change.ratio)} ({level} interval: {_interval(change)})"
    if comparison.elsewhere:
        lines = [f"From A's machine to B's a chunk's time changes by {changes}."]
    elif change.verdict == "no change":
        lines = [f"No change of a chunk's time is seen: {changes} may be noise."]
    else:
        lines = [f"B is {change.verdict}: a chunk's time changes by {changes}."]
    count = f"{change.count} pairs" if comparison.interleaved else f"{change.count} chunks each"
    lines.append(
        f"With {count} and this noise, a slowdown of {_percent(1 + change.detectable)} or more "
        f"would be found 19 times in 20. Up to {100 * change.tolerance:.0f} % nothing is called a "
        "change."
    )
    if len(rows) > 1:
        levels = {f"{100 * row.change.level:.4g} %" for row in rows[1:] if row.change is not None}
        stages = ", ".join(sorted(levels))
        lines.append(
            f"Intervals hold with {level} for the chunk"
            + (f", {stages} for each stage." if stages else ".")
        )
    if not comparison.interleaved:
        lines.append(
            "NOT INTERLEAVED: the two ran at different times. A shared machine drifts by 5 to "
            "20 % within minutes, which cannot be told from a change here. To be sure, compare "
            "the commands: they take turns."
        )
    return lines


def _changed(comparison: "Comparison") -> list[str]:
    """What differs, a line each."""
    alike: dict[tuple[str, str], list[str]] = {}  # what changed alike, such as all ops' backends
    for entry in comparison.changed:
        group = entry["what"].rpartition(".")[0]
        change = f"{_value(entry['a'])} -> {_value(entry['b'])}"
        alike.setdefault((group, change), []).append(entry["what"])
    lines = []
    for (group, change), names in alike.items():
        if len(names) >= MANY:
            lines.append(f"{group}, {len(names)} entries: {change}")
        else:
            lines += [f"{name}: {change}" for name in names]
    rest = len(lines) - MAX_CHANGED
    if rest > 0:
        lines[MAX_CHANGED:] = [f"and {common.plural(rest, 'more difference')}, see --json"]
    return lines or ["no setting differs"]


def _value(value: object) -> str:
    return "nothing" if value is None else value if isinstance(value, str) else json.dumps(value)


def _print(comparison: "Comparison") -> None:
    from rich.table import Table

    console = common.console()
    for line in _circumstances(comparison):
        console.print(common.escape(line))
    for side, name in zip("AB", comparison.names, strict=True):
        console.print(f"{side}: {common.escape(name) or '(the defaults)'}", soft_wrap=True)
    console.print("changed:")
    for line in _changed(comparison):
        console.print(f"  {common.escape(line)}", soft_wrap=True)
    table = Table()
    for index, column in enumerate(COLUMNS):
        left = index in (0, len(COLUMNS) - 1)
        table.add_column(column, justify="left" if left else "right", no_wrap=True)
    for row in comparison.rows:
        table.add_row(*map(common.escape, _cells(row)))
    console.print(table)
    for line in _sentences(comparison):
        console.print(common.escape(line))


def _markdown(report: dict[str, Any], comparison: "Comparison") -> str:
    """The same as a file."""
    where = report["machine"]
    lines = ["# Two profiles compared", ""]
    lines += [f"{line}\n" for line in _circumstances(comparison)]
    for side, name in zip("AB", comparison.names, strict=True):
        lines.append(f"- {side}: `{name or '(the defaults)'}`")
    lines += ["", "Changed:", "", *(f"- {line}" for line in _changed(comparison)), ""]
    lines += ["| " + " | ".join(COLUMNS) + " |", "|---|---:|---:|---:|---|"]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in comparison.rows]
    lines += ["", *(f"{line}\n" for line in _sentences(comparison))]
    commit = where["commit"] or "unknown"
    hardware = where["gpu"]["name"] if where["gpu"] else f"{where['cpu']}, {where['cores']} cores"
    compared = "Measured" if comparison.interleaved else "Compared"
    lines.append(
        f"{compared} on {hardware}, torch {where['torch']}, commit {commit}, "
        f"{where['date']}, with `{shlex.join(report['command'])}`."
    )
    return "\n".join(lines) + "\n"
