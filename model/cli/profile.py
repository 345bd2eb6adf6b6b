"""``livetalk profile``: measure where the milliseconds of a stream go."""

import argparse
import json
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from livetalk_kernels.errors import UserError

from . import common, numbers, profile_compare, profile_tools, ranks
from .progress import progress_line

if TYPE_CHECKING:
    from ..profile.engine import Profiler
    from ..profile.run import Length
    from ..stream.team import Team

EXAMPLE = """\
livetalk profile --preset mid --chunks 10 --output mid-profile
livetalk profile --preset 14b --precision fp8 --nproc 8 --output 14b-fp8
livetalk profile --compare "profile --preset mid --backend cpu" \\
    "profile --preset mid --backend reference"
livetalk profile --compare before-folder after-folder"""
FOLDER = Path("livetalk-profile")


def add_parser(subparsers: common.Subparsers) -> None:
    """Declare the subcommand."""
    parser = common.add_command(
        subparsers,
        "profile",
        "Run a stream of synthetic speech and report where its time goes: stages and their parts "
        "on the critical path, concurrent work, the throughput of every op, memory, telemetry. "
        "Writes report.json, report.md, a trace for ui.perfetto.dev and plots. With --compare, "
        "report what changed between two commands or two such folders, and whether it is noise.",
        EXAMPLE,
    )
    parser.add_argument(
        "--chunks",
        type=numbers.CHUNKS,
        default=10,
        metavar="N",
        help="chunks to measure (default: 10)",
    )
    parser.add_argument(
        "--warmup",
        type=numbers.CHUNKS,
        default=2,
        metavar="N",
        help="chunks to run before measuring (default: 2)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help=f"folder to write (default: {FOLDER}); {common.REPLACED}",
    )
    parser.add_argument("--avatar", type=Path, metavar="FILE", help="made by 'livetalk prepare'")
    parser.add_argument(
        "--size", type=common.parse_size, metavar="HxW", help="picture size (default: the model's)"
    )
    parser.add_argument(
        "--no-video", action="store_true", help="discard the frames instead of encoding them"
    )
    parser.add_argument(
        "--no-ops", action="store_true", help="record stages only, not the ops within them"
    )
    parser.add_argument(
        "--compile", action="store_true", help="run the transformer with torch.compile"
    )
    profile_tools.add_options(parser)
    common.add_json_option(parser)
    profile_compare.add_options(parser)
    common.add_model_options(parser)
    common.add_stream_options(parser)
    ranks.add_rank_options(parser)
    # For the processes that --compare and the tools start.
    parser.add_argument("--paced", type=Path, metavar="SOCKET", help=argparse.SUPPRESS)
    parser.add_argument("--captured", action="store_true", help=argparse.SUPPRESS)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compare, or profile, possibly as one of several ranks."""
    if args.compare is not None:
        return profile_compare.run(args)
    length = _checked(args)
    tool = profile_tools.chosen(args)
    if tool is not None:
        return profile_tools.run_under(tool, args)
    code = ranks.run_ranks(args)
    if code is not None:
        return code
    with ranks.joined_team(args) as (team, watchdog):
        code = _profile(args, team, length)
        if watchdog is not None:
            watchdog.code = code
    return code


def _checked(args: argparse.Namespace) -> "Length":
    """Check all that can be checked before anything is loaded.

    Raises:
        UserError: Options are out of range or conflict.
    """
    from ..picture_size import check_size
    from ..profile.files import REPORT, TEXT
    from ..profile.run import Length

    length = Length(warmup=args.warmup, chunks=args.chunks)
    if args.size is not None:
        check_size(args.size)
    if args.avatar is not None and args.size is not None:
        raise UserError("--size: the avatar file fixes it already")
    if args.compile and args.cuda_graphs:
        raise UserError("--compile and --cuda-graphs: give one of them, not both")
    if args.compile and args.no_reuse and args.precision == "fp8":
        raise UserError("--precision fp8: the published schedule (--no-reuse) has no FP8")
    if args.nsys and args.ncu:
        raise UserError("--nsys and --ncu: give one of them, not both")
    if args.paced is None:
        args.output = args.output or FOLDER
        for name in (REPORT, TEXT):
            common.check_file(args.output / name, inputs=[args.avatar])
    return length


def _profile(args: argparse.Namespace, team: "Team", length: "Length") -> int:
    """Run as one of the ranks, or the only one; return the exit code."""
    from livetalk_kernels.machine import machine
    from livetalk_kernels.outputs import json_bytes

    from ..avatar import Avatar
    from ..profile.engine import Plan, Profiler
    from ..profile.files import write_files

    facts = {"command": ["livetalk", *args.argv], "machine": machine()}
    source = common.model_source(args)
    source.require_audio_encoder()
    plan = Plan(
        model=Path(args.checkpoint).name if args.checkpoint else source.preset,
        length=length,
        options=common.stream_options(args),
        ops=not args.no_ops,
        compiled=args.compile,
        video=not args.no_video,
        captured=args.captured,
    )
    with progress_line() if team.leads else nullcontext(_silent) as say:
        profiler = Profiler(source, team, plan, say)
        if not team.leads:
            return _follow(args, profiler, team, facts)
        avatar = None if args.avatar is None else Avatar.load(args.avatar)
        if args.paced is not None:
            from ..profile.paced import Pacer

            with Pacer(args.paced, phase=team.phase) as pacer:
                profiler.pace(avatar, args.size, pacer)
            return 0
        report, trace = profiler.lead(avatar, args.size, facts)
    report = json.loads(
        json_bytes(report)
    )  # so a name in another encoding looks the same everywhere
    write_files(args.output, report, trace)
    if args.json:
        common.print_json(report)
    else:
        from .profile_tables import print_profile

        print_profile(report, args.output)
    return 0 if report["complete"] else common.INTERRUPTED


def _silent(head: str, text: str) -> None:
    """Print nothing: rank 0 does."""


def _follow(
    args: argparse.Namespace, profiler: "Profiler", team: "Team", facts: dict[str, Any]
) -> int:
    from livetalk_kernels.outputs import write_json

    def keep(trace: dict[str, Any]) -> None:
        if args.paced is None:
            name = f"trace.rank{team.world.rank}.json"
            write_json(args.output / name, trace, indent=None)

    profiler.follow(facts, keep)
    return 0
