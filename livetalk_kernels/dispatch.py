"""Find an op's backends and pick the one that runs.

A backend is a file ``ops/<op>/<backend>.py`` with

* ``run``: the op, with the signature of the contract's function but for ``backend``;
* ``supports(case) -> str | None``: None, or why it cannot run this case, with the command that
  mends it where there is one. Sizes that are not known yet are absent from ``case.dims``;
* optionally ``APPROXIMATE = True``: ``auto`` never picks it.

The file imports everywhere: a missing library is a reason that ``supports`` gives. Files whose
name starts with an underscore are no backends.
"""

import functools
import importlib
import logging
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from .errors import UserError
from .spec import Case, OpSpec

if TYPE_CHECKING:
    from .config import KernelConfig

OPS_PACKAGE = f"{__package__}.ops"
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One implementation of an op.

    Attributes:
        name: Its file's name.
        run: The implementation.
        supports: None, or the reason why it cannot run a case.
        approximate: Its results are not exact; it must be named to be used.
    """

    name: str
    run: Callable[..., Any]
    supports: Callable[[Case], str | None]
    approximate: bool


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The backend picked for an op, and why.

    Attributes:
        name: Name of the backend.
        run: Its implementation, to be called without further lookups.
        reason: Why this one, for logs and tables.
    """

    name: str
    run: Callable[..., Any]
    reason: str


def op_names() -> list[str]:
    """Names of all ops: the folders in ``livetalk_kernels/ops``."""
    path = importlib.import_module(OPS_PACKAGE).__path__
    return sorted(module.name for module in pkgutil.iter_modules(path) if module.ispkg)


def backend_names(op: str) -> list[str]:
    """Names of all backends of an op, runnable here or not: the files in its folder."""
    names = (module.name for module in pkgutil.iter_modules(_op_package(op).__path__))
    return sorted(name for name in names if not name.startswith("_"))


def all_backend_names() -> list[str]:
    """Names of all backends that at least one op has."""
    return sorted({name for op in op_names() for name in backend_names(op)})


def load_op(op: str) -> OpSpec:
    """The contract of an op."""
    spec = _op_package(op).OP
    assert isinstance(spec, OpSpec) and spec.name == op, f"ops/{op} must define OP = OpSpec(...)"
    return spec


def load_backend(op: str, name: str) -> Backend:
    """Import one backend of an op."""
    module = importlib.import_module(f"{OPS_PACKAGE}.{op}.{name}")
    return Backend(
        name=name,
        run=module.run,
        supports=module.supports,
        approximate=getattr(module, "APPROXIMATE", False),
    )


def support_table(
    *, device: torch.device, dtype: torch.dtype, **dims: int
) -> dict[str, dict[str, str | None]]:
    """Op -> backend -> None if it can run here, else the reason why not."""
    table = {}
    for op in op_names():
        case = Case(op=op, device=device, dtype=dtype, dims=dims)
        table[op] = {name: load_backend(op, name).supports(case) for name in backend_names(op)}
    return table


def resolve(case: Case, config: "KernelConfig") -> Choice:
    """Pick the backend for a case.

    Args:
        case: What will be run; sizes that are not known yet may be absent.
        config: The user's choice.

    Raises:
        UserError: The backend named for this op cannot run the case.
    """
    wanted, named = config.wanted(case.op)
    return pick(case, wanted, named=named)


def pick(case: Case, wanted: str, *, named: bool) -> Choice:
    """Pick a backend by name.

    Args:
        case: What will be run.
        wanted: Name of a backend, or ``auto``.
        named: It was named for just this op, so it must exist; a name meant for all ops leaves
            an op without it to ``auto``.

    Raises:
        UserError: The backend exists and cannot run the case.
    """
    if wanted == "auto":
        return _pick_auto(case, "auto")
    if not named and wanted not in backend_names(case.op):
        return _pick_auto(case, f"no {wanted} for this op, so auto")
    backend = load_backend(case.op, wanted)
    reason = backend.supports(case)
    if reason is not None:
        raise UserError(
            f"--backend {case.op}={wanted}: cannot run: {reason}; "
            f"or choose --backend {case.op}=auto"
        )
    return Choice(name=wanted, run=backend.run, reason="named")


def _pick_auto(case: Case, why: str) -> Choice:
    skipped: list[str] = []
    for name in load_op(case.op).preferred(case.device):
        backend = load_backend(case.op, name)
        assert not backend.approximate, f"{case.op}: auto never picks approximate {name}"
        reason = backend.supports(case)
        if reason is None:
            text = "; ".join([why, *skipped])
            _log_once(f"{case.op} on {case.device.type} {case.dtype}: {name} ({text})")
            return Choice(name=name, run=backend.run, reason=text)
        skipped.append(f"not {name}: {reason}")
    raise UserError(f"{case.op}: no backend can run: {'; '.join(skipped)}")


@functools.cache
def _log_once(message: str) -> None:
    logger.info(message)


def _op_package(op: str) -> ModuleType:
    return importlib.import_module(f"{OPS_PACKAGE}.{op}")
