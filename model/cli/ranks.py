"""Run a command on several ranks: start them, join them, watch them."""

import argparse
import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from livetalk_kernels.errors import UserError

from . import numbers

if TYPE_CHECKING:
    from livetalk_kernels.environment import Ranks
    from livetalk_kernels.runtime.comm import Communicator
    from livetalk_kernels.runtime.ranks.heartbeat import Deadlines
    from livetalk_kernels.runtime.ranks.watchdog import Watchdog

    from ..stream.team import Split, Team

PROGRAM = ("-m", f"{__package__}.main")
CPU_PATIENCE = 20.0  # deadlines on a CPU are this many times those on a GPU

_MESH = "U x R = ranks, with U as large as possible"

# Stage of a stream -> phase of the watchdog, whose deadline it has.
PHASES: Mapping[str, str] = MappingProxyType(
    {
        "load": "load",
        "prepare": "prepare",
        "wait": "wait",
        "audio encoder": "audio",
        "audio K/V": "audio",
        "denoise": "denoise",
        "decode": "decode",
        "warm decoder": "decode",
        "colour": "decode",
        "to host": "decode",
        "encode": "encode",
        "write": "write",
        "measure": "other",
        "finish": "finish",
    }
)


def add_rank_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for the number of ranks and how they share a stream."""
    group = add_launch_options(parser, "load, prepare, denoise, decode, write, ...")
    add_split_options(group)
    group.add_argument(
        "--fp8-exchange",
        action="store_true",
        help="send queries, keys and values between ranks in FP8, an approximation",
    )
    group.add_argument(
        "--halo-overlap",
        action="store_true",
        help="convolve slices of the picture while their halos are in transit",
    )
    group.add_argument(
        "--xfuser", action="store_true", help="use xfuser's self-attention, if installed"
    )


def add_launch_options(parser: argparse.ArgumentParser, phases: str) -> argparse._ArgumentGroup:
    """Add ``--nproc`` and ``--deadline``; `start_ranks` and `joined_ranks` read them.

    Args:
        parser: Where to add them.
        phases: The command's phases, as the help names them.

    Returns:
        Their group, for what else concerns ranks.
    """
    group = parser.add_argument_group("ranks")
    add_nproc_option(group)
    group.add_argument(
        "--deadline",
        action="append",
        default=[],
        metavar="PHASE=S",
        help=f"seconds after which a rank in a phase ({phases}) counts as hung; may be repeated",
    )
    return group


def add_nproc_option(group: argparse._ActionsContainer) -> None:
    """Add ``--nproc``."""
    group.add_argument(
        "--nproc",
        type=numbers.RANKS,
        metavar="N",
        help="ranks to start on this machine, one GPU each; for several machines use torchrun",
    )


def add_split_options(group: argparse._ActionsContainer, *, default: str = _MESH) -> None:
    """Add ``--ulysses``, ``--ring`` and ``--vae-grid``; ``default`` is for the ring's help."""
    add_mesh_options(group, default=default)
    group.add_argument(
        "--vae-grid",
        metavar="RxC",
        help="rows x columns into which the picture is sliced, one rank each",
    )


def add_mesh_options(group: argparse._ActionsContainer, *, default: str) -> None:
    """Add ``--ulysses`` and ``--ring``; ``default`` is for the ring's help."""
    group.add_argument(
        "--ulysses",
        type=numbers.RANKS,
        metavar="U",
        help="ranks that share the heads of a block of tokens",
    )
    group.add_argument(
        "--ring",
        type=numbers.RANKS,
        metavar="R",
        help=f"blocks of tokens (default: {default})",
    )


def run_ranks(args: argparse.Namespace, *, left: str = "") -> int | None:
    """Start the ranks of a stream, see `start_ranks`; bad options are rejected before, once.

    Args:
        args: With the options of `add_rank_options`, and ``argv``.
        left: Printed at a second Ctrl-C: what it leaves behind.

    Raises:
        UserError: ``--nproc`` or another option makes no sense here.
    """
    _split(args)
    return start_ranks(args, left=left)


def start_ranks(
    args: argparse.Namespace, *, left: str = "", grace: float | None = None
) -> int | None:
    """Start ranks that run the same command line, where ``--nproc`` asks for several.

    Args:
        args: With ``device``, the options of `add_launch_options`, and ``argv``.
        left: Printed at a second Ctrl-C: what it leaves behind.
        grace: Seconds that the ranks have to end after the first one; by default a stream's.

    Returns:
        Exit code of the run; None if this process is to do the work itself.

    Raises:
        UserError: ``--nproc`` makes no sense here.
    """
    from livetalk_kernels.environment import Ranks

    ranks = Ranks.from_environ()
    nproc = args.nproc
    if ranks is not None:
        if nproc not in (None, ranks.local_world):
            raise UserError(
                f"--nproc {nproc}: torchrun has started {ranks.local_world} ranks on this machine; "
                "drop --nproc"
            )
        return None
    if nproc in (None, 1):
        return None
    from livetalk_kernels.runtime.ranks.launch import GRACE, launch

    _deadlines(args, cpu=True)  # reject bad options once, not on every rank
    _place(args.device, nproc, 0)
    return launch([*PROGRAM, *args.argv], nproc=nproc, left=left, grace=grace or GRACE)


def rank_count(args: argparse.Namespace) -> int:
    """Count the ranks of this run: those that torchrun has started, or those of ``--nproc``.

    Raises:
        UserError: torchrun's variables are invalid.
    """
    from livetalk_kernels.environment import Ranks

    ranks = Ranks.from_environ()
    return args.nproc or 1 if ranks is None else ranks.world


@dataclass(frozen=True, kw_only=True)
class Joined:
    """This rank among the others.

    Attributes:
        ranks: Its place.
        world: All ranks, for tensors on the device.
        control: The same, for tensors on the CPU.
        watchdog: Ends all where one is lost.
    """

    ranks: "Ranks"
    world: "Communicator"
    control: "Communicator"
    watchdog: "Watchdog"


@contextmanager
def joined_ranks(
    args: argparse.Namespace, *, patience: float | None = None
) -> "Iterator[Joined | None]":
    """Join the ranks, where there are several.

    ``args.device`` becomes this rank's own.

    Args:
        args: With ``device`` and the options of `add_launch_options`.
        patience: Seconds that rank 0 has to stop after a signal; by default a stream's.

    Yields:
        What is known of them; None where this is the only one.

    Raises:
        UserError: The options do not fit.
    """
    from livetalk_kernels.environment import Ranks

    _deadlines(args, cpu=False)
    ranks = Ranks.from_environ()
    if ranks is None or ranks.world == 1:
        yield None
        return
    from livetalk_kernels.runtime.process_group import joined
    from livetalk_kernels.runtime.ranks.watchdog import STUCK, Watchdog

    from ..loading import use_device

    args.device = _place(args.device, ranks.local_world, ranks.local_rank)
    device = use_device(args.device)
    deadlines = _deadlines(args, cpu=device.type == "cpu")
    with (
        Watchdog(ranks, deadlines=deadlines, patience=patience or STUCK) as watchdog,
        joined(device) as (world, control),
    ):
        yield Joined(ranks=ranks, world=world, control=control, watchdog=watchdog)


@contextmanager
def joined_team(args: argparse.Namespace) -> "Iterator[tuple[Team, Watchdog | None]]":
    """Join the ranks that make a stream, or run as the only one; see `joined_ranks`.

    Yields:
        The team, and the watchdog where there are several ranks.

    Raises:
        UserError: The options do not fit.
    """
    from ..stream.team import Team

    split = _split(args)
    with joined_ranks(args) as joined:
        if joined is None:
            yield Team(split=split), None
            return
        watchdog = joined.watchdog

        def phase(stage: str) -> AbstractContextManager[None]:
            return watchdog.phase(PHASES.get(stage, "other"))

        per_node = _ranks_per_node(joined.ranks, joined.control)
        team = Team(joined.world, joined.control, split=split, ranks_per_node=per_node, phase=phase)
        yield team, watchdog


def _split(args: argparse.Namespace) -> "Split":
    from livetalk_kernels.runtime.mesh import Grid

    from ..stream.team import Split

    return Split(
        ulysses=args.ulysses,
        ring=args.ring,
        vae_grid=None if args.vae_grid is None else Grid.parse(args.vae_grid),
        fp8_exchange=args.fp8_exchange,
        halo_overlap=args.halo_overlap,
        xfuser=args.xfuser,
    )


def _deadlines(args: argparse.Namespace, *, cpu: bool) -> "Deadlines":
    from livetalk_kernels.runtime.ranks.heartbeat import Deadlines

    usual = Deadlines().scaled(CPU_PATIENCE) if cpu else Deadlines()
    return usual.with_choices(args.deadline)


def _ranks_per_node(ranks: "Ranks", control: "Communicator") -> int:
    """Compute the largest group size that never crosses nodes; equal on all ranks."""
    import torch

    own = torch.tensor([ranks.local_world])
    return math.gcd(*control.all_gather(own, [1] * ranks.world, kind="control").tolist())


def _place(device: str, ranks: int, rank: int) -> str:
    """Choose the device of one of this machine's ranks.

    Raises:
        UserError: There are too few GPUs, or one was named for all.
    """
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if not device.startswith("cuda"):
        return device
    if device != "cuda":
        raise UserError(f"--device {device}: every rank needs its own GPU; use --device cuda")
    count = torch.cuda.device_count()
    if ranks > count:
        raise UserError(
            f"--nproc {ranks}: every rank needs a GPU, and this machine has {count}; "
            "use fewer ranks, or --device cpu"
        )
    return f"cuda:{rank}"
