"""Runs several ranks on one machine for tests: processes that communicate through gloo."""

import multiprocessing
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ..runtime.comm import GroupCommunicator

# Imported once, in the server that ranks are forked from: ranks then start in milliseconds.
_PRELOAD = ["torch", "torch.distributed", "torch.distributed.fsdp", "livetalk_kernels.ops"]


def run_ranks(
    function: Callable[..., Any], world: int, *args: Any, timeout: float = 240, threads: int = 1
) -> list[Any]:
    """Call ``function(communicator, *args)`` on every rank of a world.

    Args:
        function: A function of an importable module.
        world: Number of ranks.
        *args: Its arguments; small, and the same for all ranks.
        timeout: Seconds within which all must finish.
        threads: Torch threads per rank.

    Returns:
        What each rank returned: tensors, numbers, texts, or lists and dictionaries of them.

    Raises:
        RuntimeError: A rank raised, died or timed out; with that rank's traceback.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    with tempfile.TemporaryDirectory() as folder:
        ranks = []
        for rank in range(world):
            process = context.Process(
                target=_rank,
                args=(function, rank, world, folder, timeout, threads, args),
                daemon=True,
            )
            process.start()
            ranks.append(process)
        try:
            _join(ranks, Path(folder), time.monotonic() + timeout)
            return [
                torch.load(Path(folder, f"{rank}.pt"), weights_only=True) for rank in range(world)
            ]
        finally:
            for process in ranks:
                process.kill()
                process.join()


def _join(ranks: list[ForkServerProcess], folder: Path, deadline: float) -> None:
    """Wait for all ranks; stop waiting at the first failure."""
    while any(process.exitcode is None for process in ranks) and time.monotonic() < deadline:
        if any(process.exitcode for process in ranks):
            time.sleep(0.2)  # the files show whose error is the cause
            break
        time.sleep(0.01)
    states = [process.exitcode for process in ranks]
    if any(state != 0 for state in states):
        traces = "\n".join(file.read_text() for file in sorted(folder.glob("*.error")))
        raise RuntimeError(f"exit codes of the ranks: {states} (None: too slow)\n{traces}")


def _rank(
    function: Callable[..., Any],
    rank: int,
    world: int,
    folder: str,
    timeout: float,
    threads: int,
    args: tuple[Any, ...],
) -> None:
    torch.set_num_threads(threads)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store",
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=timeout),
        )
        assert dist.group.WORLD is not None
        result = function(GroupCommunicator(dist.group.WORLD), *args)
        torch.save(result, Path(folder, f"{rank}.pt"))
        dist.barrier()  # a rank that exits takes its connections with it
        dist.destroy_process_group()
    except BaseException:
        Path(folder, f"{rank}.error").write_text(f"rank {rank}:\n{traceback.format_exc()}")
        raise SystemExit(1) from None
