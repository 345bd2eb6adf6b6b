"""The environment, read and set: the choice of backends, and torchrun's word on the ranks."""

import functools
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from .dispatch import all_backend_names, backend_names, op_names
from .errors import UserError
from .inputs import check_input
from .tuning import Tuning

VARIABLE = "LIVETALK_BACKEND"
TUNING_VARIABLE = "LIVETALK_CONFIG"
EXCLUDE_VARIABLE = "LIVETALK_EXCLUDE"
LEFT_OUT = f"is left out by {EXCLUDE_VARIABLE}"  # why such a backend cannot run


@dataclass(frozen=True, kw_only=True)
class KernelConfig:
    """Backend of every op. Validates itself against the ops and backends that exist.

    Attributes:
        default: Backend for every op that has it; ops without it use ``auto``.
        backends: Op -> backend, for single ops; it wins over ``default``.
        tuning: What ``auto`` asks first; None: nothing.

    Raises:
        UserError: An op does not exist, an op has no such backend, or no op at all has it.
    """

    default: str = "auto"
    backends: Mapping[str, str] = field(default_factory=dict)
    tuning: Tuning | None = None

    def __post_init__(self) -> None:
        """Check all names; keep a read-only copy of the mapping."""
        if self.default != "auto" and self.default not in all_backend_names():
            names = ", ".join(["auto", *all_backend_names()])
            raise UserError(f"--backend {self.default}: no op has it; choose one of {names}")
        for op, name in self.backends.items():
            if op not in op_names():
                raise UserError(
                    f"--backend {op}={name}: there is no op {op}; ops are {', '.join(op_names())}"
                )
            if name != "auto" and name not in backend_names(op):
                names = ", ".join(["auto", *backend_names(op)])
                raise UserError(
                    f"--backend {op}={name}: {op} has no backend {name}; choose one of {names}"
                )
        object.__setattr__(self, "backends", MappingProxyType(dict(self.backends)))

    @classmethod
    def parse(cls, choices: Iterable[str]) -> "KernelConfig":
        """Read choices such as ``["triton", "add_norm=reference"]``; a later one wins.

        Args:
            choices: Each is ``NAME`` (all ops), ``OP=NAME``, or several of them with commas.

        Raises:
            UserError: Bad syntax or an unknown name.
        """
        default, backends = _split(choices)
        return cls(default=default or "auto", backends=backends)

    @classmethod
    def from_sources(
        cls,
        flags: Iterable[str] = (),
        environ: Mapping[str, str] | None = None,
        *,
        tuning: str | Path | None = None,
    ) -> "KernelConfig":
        """Combine command-line flags with ``LIVETALK_BACKEND`` and ``LIVETALK_CONFIG``; flags win.

        A flag for all ops overrides the variable wholly; flags for single ops override it for
        those.

        Args:
            flags: Values of the ``--backend`` flags.
            environ: Environment to read, the process's own by default.
            tuning: File of the ``--config`` flag.

        Raises:
            UserError: Bad syntax or an unknown name, in either source, or a tuning file that is
                missing or damaged.
        """
        environ = os.environ if environ is None else environ
        default, backends = _split(flags)
        value = environ.get(VARIABLE, "").strip()
        if default is None and value:
            try:
                from_variable = cls.parse([value])
            except UserError as error:
                raise UserError(f"{VARIABLE}={value}: {error}") from None
            default, backends = from_variable.default, {**from_variable.backends, **backends}
        found = find_tuning(tuning, environ)
        return cls(default=default or "auto", backends=backends, tuning=found)

    def wanted(self, op: str) -> tuple[str, bool]:
        """Backend for one op, and whether it was named for just this op."""
        if op in self.backends:
            return self.backends[op], True
        return self.default, False


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


def excluded(environ: Mapping[str, str] | None = None) -> frozenset[tuple[str, str]]:
    """Backends that ``LIVETALK_EXCLUDE`` says cannot run here: (op, backend).

    The variable is a list such as ``add_norm=triton,quantize=cuda``. What stands there has a
    reason not to be taken, as if its library were missing: `auto` passes it over, to name it is
    an error, and nothing tests or times it.

    Args:
        environ: Environment to read, the process's own by default.

    Raises:
        UserError: Bad syntax, an unknown name, or ``reference``, without which nothing runs.
    """
    return _excluded((os.environ if environ is None else environ).get(EXCLUDE_VARIABLE, ""))


@functools.lru_cache(maxsize=8)
def _excluded(value: str) -> frozenset[tuple[str, str]]:
    pairs = set()
    for part in filter(None, (part.strip() for part in value.split(","))):
        op, _, name = part.partition("=")
        if op not in op_names() or name not in backend_names(op) or name == "reference":
            raise UserError(
                f"{EXCLUDE_VARIABLE}={value}: {part!r} is no OP=BACKEND that can be left out; "
                "see 'livetalk backends'"
            )
        pairs.add((op, name))
    return frozenset(pairs)


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


def find_tuning(
    path: str | Path | None = None, environ: Mapping[str, str] | None = None
) -> Tuning | None:
    """The tuning file that ``auto`` asks: the given one, else ``LIVETALK_CONFIG``'s, else None.

    Args:
        path: File of the ``--config`` flag.
        environ: Environment to read, the process's own by default.

    Raises:
        UserError: The file is missing or damaged.
    """
    if path is not None:
        return Tuning.load(path)
    value = (os.environ if environ is None else environ).get(TUNING_VARIABLE, "").strip()
    if not value:
        return None
    try:
        check_input(value, "tuning")
        state = os.stat(value)
        return _load_once(value, state.st_mtime_ns, state.st_size, state.st_ino)
    except UserError as error:
        raise UserError(f"{TUNING_VARIABLE}: {error}; mend or unset the variable") from None


@functools.lru_cache(maxsize=8)
def _load_once(path: str, *state: int) -> Tuning:
    """Read a file again only when it has changed: calls outside a model ask every time."""
    return Tuning.load(path)


def _split(choices: Iterable[str]) -> tuple[str | None, dict[str, str]]:
    """Take apart ``NAME`` and ``OP=NAME``; a later choice wins over an earlier one."""
    default: str | None = None
    backends: dict[str, str] = {}
    for part in (part.strip() for choice in choices for part in choice.split(",")):
        op, equals, name = (piece.strip() for piece in part.partition("="))
        if not op or (equals and not name) or "=" in name:
            raise UserError(f"--backend {part!r}: not understood; write NAME or OP=NAME")
        if equals:
            backends[op] = name
        else:
            default = op
    return default, backends
