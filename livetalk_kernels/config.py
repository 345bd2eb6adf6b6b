"""The user's choice of backends, from flags, variables and a tuning file."""

import functools
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from .environment import BACKEND_VARIABLE, TUNING_VARIABLE, variable
from .errors import UserError
from .inputs import check_input
from .registry import all_backend_names, backend_names, op_names
from .tuning import Tuning


@dataclass(frozen=True, kw_only=True)
class KernelConfig:
    """The requested backend of every op; validates itself against the existing ops and backends.

    Attributes:
        default: Backend for every op that has it; other ops use ``auto``.
        backends: Op -> backend, for single ops; takes precedence over ``default``.
        tuning: File that ``auto`` consults first; None for none.

    Raises:
        UserError: An op does not exist, an op lacks the backend named for it, or no op has it.
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
        """Parse choices such as ``["triton", "add_norm=reference"]``; later ones take precedence.

        Args:
            choices: Each is ``NAME`` (all ops), ``OP=NAME``, or several of them separated by
                commas.

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

        A flag for all ops overrides the variable entirely; flags for single ops override it for
        those ops only.

        Args:
            flags: Values of the ``--backend`` flags.
            environ: Environment to read; by default the process's own.
            tuning: File of the ``--config`` flag.

        Raises:
            UserError: Bad syntax or an unknown name, in either source, or a tuning file that is
                missing or damaged.
        """
        default, backends = _split(flags)
        value = variable(BACKEND_VARIABLE, environ)
        if default is None and value:
            try:
                from_variable = cls.parse([value])
            except UserError as error:
                raise UserError(f"{BACKEND_VARIABLE}={value}: {error}") from None
            default, backends = from_variable.default, {**from_variable.backends, **backends}
        found = find_tuning(tuning, environ)
        return cls(default=default or "auto", backends=backends, tuning=found)

    def wanted(self, op: str) -> tuple[str, bool]:
        """Return the backend requested for an op, and whether it was named for this op alone."""
        if op in self.backends:
            return self.backends[op], True
        return self.default, False


def find_tuning(
    path: str | Path | None = None, environ: Mapping[str, str] | None = None
) -> Tuning | None:
    """Load the tuning file for ``auto``: the given one, else ``LIVETALK_CONFIG``'s, else None.

    Args:
        path: File of the ``--config`` flag.
        environ: Environment to read; by default the process's own.

    Raises:
        UserError: The file is missing or damaged.
    """
    if path is not None:
        return Tuning.load(path)
    value = variable(TUNING_VARIABLE, environ)
    if not value:
        return None
    try:
        check_input(value, "tuning")
        state = os.stat(value)
        return _load_once(value, state.st_mtime_ns, state.st_size, state.st_ino)
    except UserError as error:
        raise UserError(f"{TUNING_VARIABLE}: {error}; fix or unset the variable") from None


@functools.lru_cache(maxsize=8)
def _load_once(path: str, *state: int) -> Tuning:
    """Reread a file only when it has changed: calls outside a model check it every time."""
    return Tuning.load(path)


def _split(choices: Iterable[str]) -> tuple[str | None, dict[str, str]]:
    """Parse ``NAME`` and ``OP=NAME``; later choices take precedence."""
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
