"""Time the cases of ``livetalk bench``, or capture them; what is finished is kept."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from livetalk_kernels import heap
from livetalk_kernels.bench.capture import capture_case, command_line
from livetalk_kernels.bench.report import RED, SCHEMA, TIMED, Result, as_csv
from livetalk_kernels.bench.roofline import Limits
from livetalk_kernels.bench.runner import Settings
from livetalk_kernels.bench.suite import Suite, attempt
from livetalk_kernels.lines import one_line
from livetalk_kernels.machine import machine
from livetalk_kernels.outputs import write_json, write_text

from . import common
from .bench_tables import print_end, print_result
from .interrupts import Interrupts
from .progress import progress_line


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is done with the results.

    Attributes:
        argv: The command's words, for the report.
        named: The user has named cases or shapes, which are timed however long they take.
        csv: File for a line per backend; None: none.
        json: File for the report; ``-``: it is printed instead of tables; None: none.
    """

    argv: Sequence[str]
    named: bool
    csv: Path | None
    json: str | None


def bench_all(suite: Suite, settings: Settings, device: torch.device, options: Options) -> int:
    """Time all cases, print each, and write the files.

    Returns:
        0; 1 if a backend is red or no case could be timed; 130 after Ctrl-C.
    """
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "machine": machine() | {"time": time.strftime("%H:%M:%S%z")},
        "command": ["livetalk", *options.argv],
        "settings": {
            "device": str(device),
            **dataclasses.asdict(settings),
            "keeps_freed_memory": heap.keep_freed_memory(),
        },
    }
    results: list[Result] = []
    shown: set[str] = set()
    complete = False
    with Interrupts() as interrupts:
        with common.kept_until_failure() as kept, progress_line() as say:
            limits = Limits(device)
            for index, case in enumerate(suite.cases, 1):
                show = functools.partial(say, f"[{index}/{len(suite.cases)}] {case.op} {case.name}")
                found = attempt(case, settings, limits, show, named=options.named)
                if isinstance(found, str):
                    suite.skipped.append((case.op, case.name, found))
                    continue
                results.append(found)
                if options.json != common.STDOUT:
                    print_result(found, shown)
            complete = True
        interrupts.hold()
        if results or kept.error is None:
            _finish(options, report, results, suite, complete=complete)
    if kept.error is not None:
        raise kept.error
    if not complete:
        return common.INTERRUPTED
    red = any(row.state == RED for result in results for row in result.rows)
    return 1 if red or not results else 0


def _finish(
    options: Options,
    report: dict[str, Any],
    results: list[Result],
    suite: Suite,
    *,
    complete: bool,
) -> None:
    """Print the summary of all cases, and write the files."""
    report |= suite.results(results, complete=complete)
    if options.json == common.STDOUT:
        common.print_json(report)
    else:
        print_end(report, results)

    with contextlib.ExitStack() as files:  # a failure of one must not lose the other
        if options.csv is not None:
            files.callback(_write, write_text, options.csv, as_csv(results))
        if options.json not in (None, common.STDOUT):
            files.callback(_write, write_json, Path(options.json), report)


def _write(write: Callable[[Path, Any], None], path: Path, value: object) -> None:
    write(path, value)
    common.note(f"wrote {path}")


def capture_all(
    suite: Suite, settings: Settings, device: torch.device, tool: str, argv: Sequence[str]
) -> int:
    """Call the backends in marked ranges, for the profiler around this process.

    Returns:
        0; 1 if a backend is red.
    """
    print(one_line(f"to profile, run: {command_line(tool, argv)}"))
    red, limits = False, Limits(device)
    with progress_line() as say:
        for case in suite.cases:
            show = functools.partial(say, f"{case.op} {case.name}")
            _, rough = limits.of(case)
            rows = capture_case(case, settings, rough, tool, show)
            red |= any(row.state == RED for row in rows)
            for row in rows:
                state = "marked" if row.state == TIMED else f"{row.state}: {row.note}"
                print(one_line(f"{case.op}/{case.name}/{row.backend}: {state}"))
    return 1 if red else 0
