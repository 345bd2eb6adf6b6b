"""``livetalk bench comm``: time the messages between ranks against their links' capacity."""

import argparse
import contextlib
import functools
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from livetalk_kernels.errors import UserError

from . import common
from .progress import progress_line
from .ranks import PROGRAM, add_nproc_option, add_split_options, joined_team

if TYPE_CHECKING:
    import torch

    from livetalk_kernels.bench.comm import Link, Row
    from livetalk_kernels.environment import Ranks
    from livetalk_kernels.runtime.comm import Communicator

    from .comm_setup import Setup

NAME = "comm"
OWN = ("nproc", "ulysses", "ring", "vae_grid", "preset", "size")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``comm`` alone."""
    group = parser.add_argument_group("comm: messages between ranks")
    add_nproc_option(group)
    add_split_options(group)
    parser.set_defaults(fp8_exchange=False, halo_overlap=False, xfuser=False, deadline=[])
    group.add_argument(
        "--preset",
        metavar="NAME",
        help="model whose messages are sent (default: 14b; on a CPU mid)",
    )
    group.add_argument(
        "--size",
        type=common.parse_size,
        metavar="HxW",
        help="picture size, height first (default: the preset's)",
    )


def refuse_with_ops(args: argparse.Namespace) -> None:
    """Reject options of ``comm`` that were given with ops.

    Raises:
        UserError: There is one.
    """
    for option in OWN:
        if getattr(args, option) is not None:
            raise UserError(f"--{option.replace('_', '-')}: belongs to 'bench {NAME}', not to ops")


def run(args: argparse.Namespace) -> int:
    """Start ranks, or be one of them.

    Returns:
        0; 1 if not every byte arrived, or a rank failed.

    Raises:
        UserError: An option or a file is invalid, or there is only one rank.
    """
    from livetalk_kernels.environment import Ranks
    from livetalk_kernels.runtime.ranks.launch import launch

    from ..loading import use_device
    from .comm_setup import setup_of

    ranks = Ranks.from_environ()
    try:
        device = use_device(args.device)
        setup = setup_of(args, device, ranks)
    except UserError:
        if ranks is not None and ranks.rank:
            return 2  # rank 0 says why
        raise
    if ranks is None:
        return launch([*PROGRAM, *args.argv], nproc=args.nproc)
    return _measure(args, setup, ranks, device)


def _measure(
    args: argparse.Namespace, setup: "Setup", ranks: "Ranks", device: "torch.device"
) -> int:
    import torch

    from livetalk_kernels.bench.report import RED

    if device.type == "cuda":
        device = torch.device("cuda", ranks.local_rank)
    with joined_team(args) as (team, _), team.phase("wait"):  # who is lost or stopped is found
        report, rows, link = _bench(args, setup, team.world, device)
    report["settings"]["ranks_per_node"] = ranks.local_world
    if ranks.rank == 0:
        if args.json == common.STDOUT:
            common.print_json(report)
        else:
            from .bench_tables import print_comm

            print_comm(report, rows, link)
        if args.json not in (None, common.STDOUT):
            _write(Path(args.json), report)
    return 1 if any(row.state == RED for row in rows) else 0


def _bench(
    args: argparse.Namespace, setup: "Setup", comm: "Communicator", device: "torch.device"
) -> "tuple[dict[str, Any], list[Row], Link]":
    from livetalk_kernels.bench.comm import LINK_SIZES, Link, bench_patterns, nvlink_bandwidth
    from livetalk_kernels.bench.comm_patterns import link_patterns
    from livetalk_kernels.machine import machine
    from livetalk_kernels.runtime.shared_memory import LARGEST

    from ..dry_run.patterns import Sizes, model_patterns

    report: dict[str, Any] = {
        "machine": machine() | {"time": time.strftime("%H:%M:%S%z")} if comm.rank == 0 else {},
        "command": ["livetalk", *args.argv],
    }
    links = link_patterns(comm.size, LINK_SIZES[device.type])
    sizes = Sizes.of(setup.preset, setup.size, setup.dtype)
    patterns = model_patterns(sizes, setup.mesh, setup.grid)
    given: dict[str, Any] = {} if args.seconds is None else {"seconds": args.seconds}
    head = f"{len(patterns)} patterns, {comm.size} ranks"
    with contextlib.ExitStack() as stack:
        if comm.rank == 0:  # it alone speaks
            say = stack.enter_context(progress_line())
            given["report"] = functools.partial(say, head)
        rows = bench_patterns(
            comm,
            links + patterns,
            device,
            rounds=args.rounds,
            **given,
        )
    link = Link.of(rows[: len(links)], nvlink_bandwidth(device))
    report["settings"] = {
        "device": device.type,
        "engine": "NCCL" if device.type == "cuda" else "gloo",
        "shared_memory_up_to": 0 if device.type == "cuda" else LARGEST,  # bytes, on one machine
        **setup.as_json(),
    }
    report["link"] = link.as_json()
    report["patterns"] = [link.row_as_json(row) for row in rows]
    return report, rows, link


def _write(path: Path, report: dict[str, Any]) -> None:
    from livetalk_kernels.outputs import write_json

    write_json(path, report)
    common.note(f"wrote {path}")
