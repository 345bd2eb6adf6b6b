"""``livetalk bench``: check and time an op's backends side by side, against its floor."""

import argparse
import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
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
    from livetalk_kernels.spec import Case

EXAMPLE = """\
livetalk bench rms_norm_rope add_norm rms_norm_silu merge_lse --threads 2
livetalk bench add_norm --shape L=512:4096:512,D=5120 --csv sweep.csv
livetalk bench all --case model --json results.json
livetalk bench chunk_attention --device cuda --backend triton --ncu
livetalk bench comm --nproc 8 --ulysses 4 --ring 2"""
ALL = "all"
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


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Lists what will be timed, and what will not.

    Attributes:
        cases: The cases.
        skipped: (op, case, reason); the case is empty where it is the whole op.
    """

    cases: "tuple[Case, ...]"
    skipped: list[tuple[str, str, str]] = field(default_factory=list)


def run(args: argparse.Namespace) -> int:
    """Check the options, then time each case, or the messages of several ranks.

    Returns:
        0; 1 if a backend is red or no case could be timed; 130 after Ctrl-C.

    Raises:
        UserError: An op, case, backend, size or file is invalid.
    """
    from ..loading import resolve_dtype, use_device

    if bench_comm.NAME in args.ops:
        return bench_comm.run(args)
    bench_comm.refuse_with_ops(args)
    device = use_device(args.device)
    settings = _settings(args, device)
    _check_files(args)
    plan = _plan(args, device, resolve_dtype(args.dtype, device))
    with common.torch_threads(args.threads):
        if args.tool:
            return _capture(args, device, plan, settings)
        return _bench(args, device, plan, settings)


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


def _plan(args: argparse.Namespace, device: "torch.device", dtype: "torch.dtype") -> Plan:
    from livetalk_kernels.bench.cases import check_names, select_cases, too_large
    from livetalk_kernels.precision import dtype_name
    from livetalk_kernels.registry import load_op, op_names

    known = op_names()
    for op in args.ops:
        if op not in (*known, ALL):
            raise UserError(f"{op}: unknown op; choose from {', '.join(known)}, or {ALL}")
    ops = known if ALL in args.ops else list(dict.fromkeys(args.ops))
    check_names(ops, args.case, device)
    _check_backends(ops, args.backend)
    cases, skipped = [], []
    for op in ops:
        if dtype not in load_op(op).dtypes:
            name = dtype_name(dtype)
            skipped.append((op, "", f"has no {name}; see --dtype"))
            continue
        selected = select_cases(op, device, dtype, names=args.case, shapes=args.shape)
        if not selected:
            skipped.append((op, "", f"has no case {' or '.join(args.case)}"))
        for case in selected:
            reason = too_large(case, hot=args.hot)
            if reason is None:
                cases.append(case)
            else:
                skipped.append((op, case.name, reason))
    _check_named(cases, args.backend)
    return Plan(cases=tuple(cases), skipped=skipped)


def _check_backends(ops: list[str], names: list[str]) -> None:
    from livetalk_kernels.registry import backend_names

    known = list(dict.fromkeys(name for op in ops for name in backend_names(op)))
    for name in names:
        if name not in known:
            raise UserError(
                f"--backend {name}: none of these ops has it; choose from {', '.join(known)}"
            )


def _check_named(cases: "list[Case]", names: list[str]) -> None:
    """Reject a named backend that can run none of the cases."""
    from livetalk_kernels.registry import backend_names, load_backend

    for name in names:
        having = [case for case in cases if name in backend_names(case.op)]
        reasons = [load_backend(case.op, name).supports(case) for case in having]
        if reasons and all(reasons):
            raise UserError(f"--backend {name}: cannot run: {reasons[0]}")


def _bench(
    args: argparse.Namespace, device: "torch.device", plan: Plan, settings: "Settings"
) -> int:
    import torch

    from livetalk_kernels.bench.cases import ALL_LARGE, too_long
    from livetalk_kernels.bench.report import RED, SCHEMA
    from livetalk_kernels.bench.roofline import Limits
    from livetalk_kernels.bench.runner import bench_case
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
            for index, case in enumerate(plan.cases, 1):
                show = functools.partial(say, f"[{index}/{len(plan.cases)}] {case.op} {case.name}")
                show("measuring the machine")
                probes, rough = limits.of(case)
                reason = None if named else too_long(case, rough)
                if reason is None:
                    try:
                        results.append(bench_case(case, settings, probes, rough, show))
                    except torch.OutOfMemoryError:  # the other cases may fit
                        reason = "out of memory"
                if reason is not None:
                    plan.skipped.append((case.op, case.name, reason))
                elif args.json != STDOUT:
                    print_result(results[-1], shown)
            complete = True
        interrupts.hold()
        if results or kept.error is None:
            _finish(args, report, results, plan, complete=complete)
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
    plan: Plan,
    *,
    complete: bool,
) -> None:
    """Print the summary of all cases, and write the files."""
    from livetalk_kernels.bench.report import as_csv, geometric_means
    from livetalk_kernels.bench.score import Score
    from livetalk_kernels.outputs import write_json, write_text

    from .bench_tables import print_end

    means = geometric_means(results)
    score = Score.of({result.name: result.standing for result in results if result.case.large})
    report["complete"] = complete
    report["score"] = score and score.as_json()
    report["cases"] = [result.as_json() for result in results]
    report["means"] = [dataclasses.asdict(mean) for mean in means]
    report["skipped"] = [
        {"op": op, "case": case, "reason": reason} for op, case, reason in plan.skipped
    ]
    if args.json == STDOUT:
        common.print_json(report)
    else:
        print_end(report, results, score)

    with contextlib.ExitStack() as files:  # a failure of one must not lose the other
        if args.csv is not None:
            files.callback(_write, write_text, args.csv, as_csv(results))
        if args.json not in (None, STDOUT):
            files.callback(_write, write_json, Path(args.json), report)


def _write(write: Callable[[Path, Any], None], path: Path, value: object) -> None:
    write(path, value)
    common.note(f"wrote {path}")


def _capture(
    args: argparse.Namespace, device: "torch.device", plan: Plan, settings: "Settings"
) -> int:
    """Call the backends in marked ranges, for the profiler around this process."""
    from livetalk_kernels.bench.capture import capture_case, command_line
    from livetalk_kernels.bench.report import RED, TIMED
    from livetalk_kernels.bench.roofline import Limits

    print(one_line(f"to profile, run: {command_line(args.tool, args.argv)}"))
    red, limits = False, Limits(device)
    with progress_line() as say:
        for case in plan.cases:
            show = functools.partial(say, f"{case.op} {case.name}")
            _, rough = limits.of(case)
            rows = capture_case(case, settings, rough, args.tool, show)
            red |= any(row.state == RED for row in rows)
            for row in rows:
                state = "marked" if row.state == TIMED else f"{row.state}: {row.note}"
                print(one_line(f"{case.op}/{case.name}/{row.backend}: {state}"))
    return 1 if red else 0
