"""``livetalk bench``: check and time an op's backends side by side, against its floor."""

import argparse
import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from livetalk_kernels.errors import UserError
from livetalk_kernels.lines import one_line

from . import bench_comm, common, numbers
from .progress import progress_line

if TYPE_CHECKING:
    import torch

    from livetalk_kernels.bench.report import Result
    from livetalk_kernels.bench.runner import Settings
    from livetalk_kernels.bench.suite import Suite

EXAMPLE = """\
livetalk bench rms_norm_rope add_norm rms_norm_silu merge_lse --threads 2
livetalk bench add_norm --shape L=512:4096:512,D=5120 --csv sweep.csv
livetalk bench all --case model --json results.json
livetalk bench chunk_attention --device cuda --backend triton --ncu
livetalk bench comm --nproc 8 --ulysses 4 --ring 2"""
STDOUT = "-"
TOOLS = ("ncu", "nsys")


def add_parser(subparsers: common.Subparsers) -> None:
    """Declare the subcommand."""
    parser = common.add_command(
        subparsers,
        "bench",
        "Time every backend of an op that can run here, interleaved, next to PyTorch eager and "
        "torch.compile of the plain formula. Results are checked first; a backend with wrong "
        "results is marked red and not timed (exit code 1). The floor is the time that the op's "
        "minimum bytes and operations take at the bandwidth and matrix rate measured in the same "
        "rounds. The last line is a score: the geometric mean, over the models' sizes, of the best "
        "rival's time over ours. Ours is the fastest of our own exact kernels (cpu, cuda, cutlass, "
        "triton); a rival is any other exact backend: eager, torch.compile, libraries. 'bench "
        "comm' starts several ranks and times their messages against their links.",
        EXAMPLE,
    )
    parser.add_argument(
        "ops", nargs="+", metavar="OP", help="ops (see 'backends'), 'all', or 'comm'"
    )
    what = parser.add_argument_group("what to time")
    what.add_argument(
        "--backend",
        action="append",
        default=[],
        metavar="NAME",
        help="only this one and the baselines; may be repeated",
    )
    what.add_argument(
        "--case",
        action="append",
        default=[],
        metavar="NAME",
        help="a case of the op, or 'model' for all of the models' sizes; may be repeated (default: "
        "the models' sizes; on a CPU those of 'mid' and of one rank of eight)",
    )
    what.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="L=N,...",
        help="override the case's sizes; L=1,2,3 or L=from:to:by sweeps; may be repeated",
    )
    common.add_device_options(what)
    what.add_argument("--no-compile", action="store_true", help="skip torch.compile")
    how = parser.add_argument_group("how to time it")
    how.add_argument(
        "--threads", type=numbers.THREADS, metavar="N", help="CPU threads (default: torch's)"
    )
    length = how.add_mutually_exclusive_group()
    length.add_argument("--rounds", type=numbers.ROUNDS, metavar="N", help="rounds per case")
    length.add_argument(
        "--seconds",
        type=numbers.SECONDS,
        metavar="S",
        help="time for the rounds of a case, however few that makes (default: 3, with at least 5 "
        "rounds)",
    )
    how.add_argument(
        "--hot", action="store_true", help="keep the inputs in the cache (default: cold)"
    )
    tools = how.add_mutually_exclusive_group()
    for tool, name in zip(TOOLS, ("Nsight Compute", "Nsight Systems"), strict=True):
        tools.add_argument(
            f"--{tool}",
            dest="tool",
            action="store_const",
            const=tool,
            help=f"mark each backend's calls for {name} and print its command line; time nothing",
        )
    bench_comm.add_options(parser)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--csv",
        type=Path,
        metavar="FILE",
        help="write one line per backend; " + common.REPLACED,
    )
    output.add_argument(
        "--json",
        nargs="?",
        const=STDOUT,
        metavar="FILE",
        help="print JSON instead of tables; with FILE (.json), write it in addition to them",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check the options, then time each case, or the messages of several ranks.

    Returns:
        0; 1 if a backend is red or no case could be timed; 130 after Ctrl-C.

    Raises:
        UserError: An op, case, backend, size or file is invalid.
    """
    from livetalk_kernels.bench.suite import Suite

    from ..loading import resolve_dtype, use_device

    if bench_comm.NAME in args.ops:
        return bench_comm.run(args)
    bench_comm.refuse_with_ops(args)
    device = use_device(args.device)
    settings = _settings(args, device)
    _check_files(args)
    suite = Suite.select(
        args.ops,
        device,
        resolve_dtype(args.dtype, device),
        names=args.case,
        shapes=args.shape,
        backends=args.backend,
        hot=args.hot,
    )
    with common.torch_threads(args.threads):
        if args.tool:
            return _capture(args, device, suite, settings)
        return _bench(args, device, suite, settings)


def _settings(args: argparse.Namespace, device: "torch.device") -> "Settings":
    from livetalk_kernels.bench.runner import Settings

    if args.tool and device.type != "cuda":
        raise UserError(f"--{args.tool}: profiles GPUs, not {device.type}; use --device cuda")
    given: dict[str, Any] = {}
    if args.seconds is not None:  # the user's limit holds, however few rounds it allows
        given = {"seconds": args.seconds, "least": 1}
    return Settings(
        backends=tuple(args.backend),
        compile=not args.no_compile,
        hot=args.hot,
        rounds=args.rounds,
        **given,
    )


def _check_files(args: argparse.Namespace) -> None:
    if args.csv is not None:
        common.check_file(args.csv, (".csv",))
    if args.json not in (None, STDOUT):
        common.check_file(Path(args.json), (".json",))


def _bench(
    args: argparse.Namespace, device: "torch.device", suite: "Suite", settings: "Settings"
) -> int:
    from livetalk_kernels.bench.cases import ALL_LARGE
    from livetalk_kernels.bench.report import RED, SCHEMA
    from livetalk_kernels.bench.roofline import Limits
    from livetalk_kernels.bench.suite import attempt
    from livetalk_kernels.heap import keep_freed_memory
    from livetalk_kernels.machine import machine

    from .bench_tables import print_result
    from .interrupts import Interrupts

    report: dict[str, Any] = {
        "schema": SCHEMA,
        "machine": machine() | {"time": time.strftime("%H:%M:%S%z")},
        "command": ["livetalk", *args.argv],
        "settings": {
            "device": str(device),
            **dataclasses.asdict(settings),
            "keeps_freed_memory": keep_freed_memory(),
        },
    }
    results: list[Result] = []
    shown: set[str] = set()
    named = bool(args.case and ALL_LARGE not in args.case) or bool(args.shape)
    complete = False
    with Interrupts() as interrupts:
        with common.kept_until_failure() as kept, progress_line() as say:
            limits = Limits(device)
            for index, case in enumerate(suite.cases, 1):
                show = functools.partial(say, f"[{index}/{len(suite.cases)}] {case.op} {case.name}")
                found = attempt(case, settings, limits, show, named=named)
                if isinstance(found, str):
                    suite.skipped.append((case.op, case.name, found))
                    continue
                results.append(found)
                if args.json != STDOUT:
                    print_result(found, shown)
            complete = True
        interrupts.hold()
        if results or kept.error is None:
            _finish(args, report, results, suite, complete=complete)
    if kept.error is not None:
        raise kept.error
    if not complete:
        return common.INTERRUPTED
    red = any(row.state == RED for result in results for row in result.rows)
    return 1 if red or not results else 0


def _finish(
    args: argparse.Namespace,
    report: dict[str, Any],
    results: "list[Result]",
    suite: "Suite",
    *,
    complete: bool,
) -> None:
    """Print the summary of all cases, and write the files."""
    from livetalk_kernels.bench.report import as_csv
    from livetalk_kernels.outputs import write_json, write_text

    from .bench_tables import print_end

    report |= suite.results(results, complete=complete)
    if args.json == STDOUT:
        common.print_json(report)
    else:
        print_end(report, results)

    with contextlib.ExitStack() as files:  # a failure of one must not lose the other
        if args.csv is not None:
            files.callback(_write, write_text, args.csv, as_csv(results))
        if args.json not in (None, STDOUT):
            files.callback(_write, write_json, Path(args.json), report)


def _write(write: Callable[[Path, Any], None], path: Path, value: object) -> None:
    write(path, value)
    common.note(f"wrote {path}")


def _capture(
    args: argparse.Namespace, device: "torch.device", suite: "Suite", settings: "Settings"
) -> int:
    """Call the backends in marked ranges, for the profiler around this process."""
    from livetalk_kernels.bench.capture import capture_case, command_line
    from livetalk_kernels.bench.report import RED, TIMED
    from livetalk_kernels.bench.roofline import Limits

    print(one_line(f"to profile, run: {command_line(args.tool, args.argv)}"))
    red, limits = False, Limits(device)
    with progress_line() as say:
        for case in suite.cases:
            show = functools.partial(say, f"{case.op} {case.name}")
            _, rough = limits.of(case)
            rows = capture_case(case, settings, rough, args.tool, show)
            red |= any(row.state == RED for row in rows)
            for row in rows:
                state = "marked" if row.state == TIMED else f"{row.state}: {row.note}"
                print(one_line(f"{case.op}/{case.name}/{row.backend}: {state}"))
    return 1 if red else 0
