"""Reads and sets environment variables; nothing else in the packages does."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from .errors import UserError

BACKEND_VARIABLE = "LIVETALK_BACKEND"
TUNING_VARIABLE = "LIVETALK_CONFIG"
EXCLUDE_VARIABLE = "LIVETALK_EXCLUDE"


def variable(name: str, environ: Mapping[str, str] | None = None) -> str:
    """Read a variable, without blanks around it; empty if it is not set.

    Args:
        name: Name of the variable.
        environ: Environment to read, the process's own by default.
    """
    return (os.environ if environ is None else environ).get(name, "").strip()


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process's place among the ranks that torchrun has started; validates itself.

    Attributes:
        rank: Number of this process, over all nodes.
        world: Ranks in all.
        local_rank: Number of this process on its node.
        local_world: Ranks on this node.
        node: Number of this node.
        address: Host of the store that all ranks share.
        port: The store's port.
        agent_store: The store lives in torchrun's process; if not, rank 0 has to host it.
        run: Name of the run, another one after each restart by torchrun.

    Raises:
        UserError: The numbers contradict each other.
    """

    rank: int
    world: int
    local_rank: int
    local_world: int
    node: int
    address: str
    port: int
    agent_store: bool
    run: str

    def __post_init__(self) -> None:
        """Check all numbers."""
        if not (0 <= self.rank < self.world and 0 <= self.local_rank < self.local_world):
            raise UserError(
                f"RANK={self.rank} WORLD_SIZE={self.world} LOCAL_RANK={self.local_rank} "
                f"LOCAL_WORLD_SIZE={self.local_world}: not possible; start with torchrun or --nproc"
            )
        if self.local_world > self.world or self.node < 0 or not 0 < self.port < 1 << 16:
            raise UserError(
                f"LOCAL_WORLD_SIZE={self.local_world} WORLD_SIZE={self.world} "
                f"GROUP_RANK={self.node} MASTER_PORT={self.port}: not possible; start with "
                "torchrun or --nproc"
            )

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] | None = None) -> "Ranks | None":
        """What torchrun has told this process; None if it was not started by torchrun.

        Args:
            environ: Environment to read, the process's own by default.

        Raises:
            UserError: A variable is missing or makes no sense.
        """
        environ = os.environ if environ is None else environ
        # Others set RANK and WORLD_SIZE too (job schedulers, for a node), but only torchrun this.
        run = environ.get("TORCHELASTIC_RUN_ID")
        if run is None:
            return None

        def number(name: str) -> int:
            try:
                return int(environ[name])
            except (KeyError, ValueError):
                value = environ.get(name)
                problem = "is missing" if value is None else f"is {value!r}, not a number"
                raise UserError(f"{name} {problem}; start with torchrun or --nproc") from None

        return cls(
            rank=number("RANK"),
            world=number("WORLD_SIZE"),
            local_rank=number("LOCAL_RANK"),
            local_world=number("LOCAL_WORLD_SIZE"),
            node=number("GROUP_RANK"),
            address=environ.get("MASTER_ADDR") or "127.0.0.1",
            port=number("MASTER_PORT"),
            agent_store=environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
            run=f"{run}/{environ.get('TORCHELASTIC_RESTART_COUNT', '0')}",
        )


def leave_nccl_errors_to_us() -> None:
    """Keep NCCL's own watchdog from aborting the process: over a lost rank, or a fault on the GPU.

    Ours names the rank and lets the video be finished first, and the main thread meets the fault
    itself and says where. What the user has set stays.
    """
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
    os.environ.setdefault("TORCH_NCCL_RETHROW_CUDA_ERRORS", "0")


def omp_threads(environ: Mapping[str, str] | None = None) -> str | None:
    """The user's own ``OMP_NUM_THREADS``; None if it is not set.

    Args:
        environ: Environment to read, the process's own by default.
    """
    return (os.environ if environ is None else environ).get("OMP_NUM_THREADS")
