"""Reads and sets environment variables; the only module that does."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from .errors import UserError

BACKEND_VARIABLE = "LIVETALK_BACKEND"
TUNING_VARIABLE = "LIVETALK_CONFIG"
EXCLUDE_VARIABLE = "LIVETALK_EXCLUDE"


def variable(name: str, environ: Mapping[str, str] | None = None) -> str:
    """Read a variable, stripped of surrounding blanks; empty if unset.

    Args:
        name: Name of the variable.
        environ: Environment to read; by default the process's own.
    """
    return (os.environ if environ is None else environ).get(name, "").strip()


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process's place among the ranks that torchrun started; validates itself.

    Attributes:
        rank: Index of this process across all nodes.
        world: Total number of ranks.
        local_rank: Index of this process on its node.
        local_world: Number of ranks on this node.
        node: Index of this node.
        address: Host of the store that all ranks share.
        port: The store's port.
        agent_store: Whether torchrun's own process hosts the store; if not, rank 0 does.
        run: Identifier of the run; changes with each restart by torchrun.

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
        """Validate all numbers."""
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
        """Read torchrun's variables; None if the process was not started by torchrun.

        Args:
            environ: Environment to read; by default the process's own.

        Raises:
            UserError: A variable is missing or invalid.
        """
        environ = os.environ if environ is None else environ
        # Job schedulers set RANK and WORLD_SIZE too (for a node); this one is torchrun's alone.
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
    """Keep NCCL's own watchdog from aborting the process on a lost rank or a GPU fault.

    Our watchdog names the rank and lets the video be finished first, and the main thread
    encounters the fault itself and reports where. The user's own settings are kept.
    """
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
    os.environ.setdefault("TORCH_NCCL_RETHROW_CUDA_ERRORS", "0")


def omp_threads(environ: Mapping[str, str] | None = None) -> str | None:
    """Return the user's own ``OMP_NUM_THREADS``; None if unset.

    Args:
        environ: Environment to read; by default the process's own.
    """
    return (os.environ if environ is None else environ).get("OMP_NUM_THREADS")
