"""``livetalk profile --compare A B``: find what changed, and whether it is noise."""

import argparse
import shlex
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from livetalk_kernels.errors import UserError

from . import common, numbers, ranks
from .progress import progress_line

if TYPE_CHECKING:
    from ..profile.compare import Comparison

JSON, TEXT = "compare.json", "compare.md"
OURS = ("--compare", "--pairs", "--paced", "--nsys", "--ncu", "--captured")
OUTSIDE = ("--compare", "--pairs", "--output", "--json")  # may appear outside A and B


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--compare`` and its options."""
    compare = parser.add_argument_group("comparison")
    compare.add_argument(
        "--compare",
        nargs=2,
        metavar=("A", "B"),
        help="two folders, or two commands, run alternately: options of this command in quotes, "
        "preceded by a blank or 'profile'; exit code 1: the folders are from two machines",
    )
    compare.add_argument(
        "--pairs",
        type=numbers.PAIRS,
        default=20,
        metavar="N",
        help="pairs of chunks; up to four times as many if times are noisy (default: 20)",
    )


def run(args: argparse.Namespace) -> int:
    """Compare two folders, or two commands run alternately, and report.

    Returns:
        0; 1 if a command failed, or if the folders are from two machines, which proves nothing.

    Raises:
        UserError: A or B is invalid.
    """
    from livetalk_kernels.machine import machine

    from ..profile.compare import Comparison, compare_folders
    from ..profile.paced import WorkerError

    for word in args.argv:
        option = word.split("=")[0]
        outside = any(own.startswith(option) for own in OUTSIDE)
        if option.startswith("--") and word not in args.compare and not outside:
            raise UserError(
                f"{option}: is outside the two commands of --compare; put it inside both"
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
            "give two folders or two commands"
        )
    else:
        try:
            comparison = _commands(args)
        except WorkerError as error:
            for line in f"error: {error}".splitlines():  # with the end of the command's output
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
    """Find the folder that a side names; None if it is a command.

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
    """Split a command into options; a leading ``livetalk profile`` is optional.

    Raises:
        UserError: Quotes do not match, or an option cannot be compared.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(f"--compare: {side} is {text!r}: {error}; fix the quotes") from None
    for word in ("livetalk", "profile"):
        if words and words[0] == word:
            del words[0]
    for word in words:
        option = word.split("=")[0]
        if option.startswith("--") and any(own.startswith(option) for own in OURS):
            raise UserError(f"--compare: {side} has {word}, which cannot be used inside --compare")
    return words


def _commands(args: argparse.Namespace) -> "Comparison":
    """Start both and let them alternate.

    Raises:
        UserError: Options are invalid.
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
            # A video is encoded concurrently: one side's would count in the other's time. The first
            # chunk is not counted.
            chunks = str(MOST * args.pairs + 1)
            words = [*_words(text, side), "--no-video", "--chunks", chunks, "--paced"]
            command = [sys.executable, *ranks.PROGRAM, "profile", *words]
            workers.append(Worker(f"command {side}", command, own))
        return compare_workers((a, b), (workers[0], workers[1]), args.pairs, say)


def _write(folder: Path, report: dict[str, Any], comparison: "Comparison") -> None:
    """Write both files."""
    from livetalk_kernels.outputs import write_json, write_text

    from ..profile.compare_words import markdown

    write_text(folder / TEXT, markdown(report, comparison))
    write_json(folder / JSON, report)


def _print(comparison: "Comparison") -> None:
    from ..profile.compare_words import COLUMNS, cells, changed, circumstances, sentences
    from .tables import plain_table

    console = common.console()
    for line in circumstances(comparison):
        console.print(common.escape(line))
    for side, name in zip("AB", comparison.names, strict=True):
        console.print(f"{side}: {common.escape(name) or '(the defaults)'}", soft_wrap=True)
    console.print("changed:")
    for line in changed(comparison):
        console.print(f"  {common.escape(line)}", soft_wrap=True)
    first, *numbers, last = COLUMNS
    rows = (map(common.escape, cells(row)) for row in comparison.rows)
    columns = (first, *(f">{name}" for name in numbers), last)
    console.print(plain_table(None, columns, rows))
    for line in sentences(comparison):
        console.print(common.escape(line))
