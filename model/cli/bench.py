"""``livetalk bench``: check and time an op's backends side by side, against its floor."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from livetalk_kernels.errors import UserError

from . import bench_comm, common, numbers

if TYPE_CHECKING:
    import torch

    from livetalk_kernels.bench.runner import Settings

EXAMPLE = """\
livetalk bench rms_norm_rope add_norm rms_norm_silu merge_lse --threads 2
livetalk bench add_norm --shape L=512:4096:512,D=5120 --csv sweep.csv
livetalk bench all --case model --json results.json
livetalk bench chunk_attention --device cuda --backend triton --ncu
livetalk bench comm --nproc 8 --ulysses 4 --ring 2"""
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
        const=common.STDOUT,
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
    from livetalk_kernels.bench.cases import ALL_LARGE
    from livetalk_kernels.bench.suite import Suite

    from ..loading import resolve_dtype, use_device
    from .bench_run import Options, bench_all, capture_all

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
            return capture_all(suite, settings, device, args.tool, args.argv)
        named = bool(args.case and ALL_LARGE not in args.case) or bool(args.shape)
        options = Options(argv=args.argv, named=named, csv=args.csv, json=args.json)
        return bench_all(suite, settings, device, options)


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
    if args.json not in (None, common.STDOUT):
        common.check_file(Path(args.json), (".json",))
