"""Find an op's backends and pick the one that runs.

A backend is a file ``ops/<op>/<backend>.py`` with

* ``run``: the op, with the signature of the contract's function but for ``backend``;
* ``supports(case) -> str | None``: None, or why it cannot run this case, with the command that
  mends it where there is one. Sizes that are not known yet are absent from ``case.dims``;
* optionally ``APPROXIMATE = True``: ``auto`` never picks it, unless a tuning file says so;
* optionally ``pack(weight) -> Tensor | None``, for ops with an argument ``packed``: what the
  backend makes of a weight that stays as it is, so that not every call makes it;
* for Triton kernels ``launches``, see ``triton_launch``.

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
from torch import Tensor

from .errors import UserError
from .spec import Case, OpSpec

if TYPE_CHECKING:
    from .config import KernelConfig
    from .tuning import Tuning

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
        pack: What it makes of a constant weight; None where it makes nothing.
        launches: The Triton kernels that it launches; None where it has none.
    """

    name: str
    run: Callable[..., Any]
    supports: Callable[[Case], str | None]
    approximate: bool
    pack: Callable[[Tensor], Tensor | None]
    launches: Callable[..., Any] | None


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The backend picked for an op, and why.

    Attributes:
        name: Name of the backend.
        run: Its implementation, to be called without further lookups.
        pack: What it makes of a constant weight; None where it makes nothing.
        approximate: Its results are not exact.
        reason: Why this one, for logs and tables.
    """

    name: str
    run: Callable[..., Any]
    pack: Callable[[Tensor], Tensor | None]
    approximate: bool
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
    from .config import LEFT_OUT, excluded  # which needs the names from here

    module = importlib.import_module(f"{OPS_PACKAGE}.{op}.{name}")
    left_out = (op, name) in excluded()
    return Backend(
        name=name,
        run=module.run,
        supports=(lambda case: LEFT_OUT) if left_out else module.supports,
        approximate=getattr(module, "APPROXIMATE", False),
        pack=getattr(module, "pack", lambda weight: None),
        launches=getattr(module, "launches", None),
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
    return pick(case, wanted, named=named, tuning=config.tuning)


def pick(case: Case, wanted: str, *, named: bool, tuning: "Tuning | None" = None) -> Choice:
    """Pick a backend by name.

    Args:
        case: What will be run.
        wanted: Name of a backend, or ``auto``.
        named: It was named for just this op, so it must exist; a name meant for all ops leaves
            an op without it to ``auto``.
        tuning: What ``auto`` asks before the op's own preference.

    Raises:
        UserError: The backend exists and cannot run the case.
    """
    if wanted == "auto":
        return _pick_auto(case, "auto", tuning)
    if not named and wanted not in backend_names(case.op):
        return _pick_auto(case, f"no {wanted} for this op, so auto", tuning)
    backend = load_backend(case.op, wanted)
    reason = backend.supports(case)
    if reason is not None:
        raise UserError(
            f"--backend {case.op}={wanted}: cannot run: {reason}; "
            f"or choose --backend {case.op}=auto"
        )
    return _choice(backend, "named")


def _choice(backend: Backend, reason: str) -> Choice:
    name, run, pack = backend.name, backend.run, backend.pack
    return Choice(name=name, run=run, pack=pack, approximate=backend.approximate, reason=reason)


def _pick_auto(case: Case, why: str, tuning: "Tuning | None") -> Choice:
    tuned, note = (None, "") if tuning is None else tuning.advise(case)
    notes = [why, note] if note else [why]
    skipped: list[str] = []
    for name in filter(None, (tuned, *load_op(case.op).preferred(case.device))):
        backend = load_backend(case.op, name)
        assert name == tuned or not backend.approximate, f"{case.op}: {name} is approximate"
        reason = backend.supports(case)
        if reason is None:
            text = "; ".join([*notes, *skipped])
            _log_once(f"{case.op} on {case.device.type} {case.dtype}: {name} ({text})")
            return _choice(backend, text)
        skipped.append(f"not {name}: {reason}")
    raise UserError(f"{case.op}: no backend can run: {'; '.join(skipped)}")


@functools.cache
def _log_once(message: str) -> None:
    logger.info(message)


def _op_package(op: str) -> ModuleType:
    return importlib.import_module(f"{OPS_PACKAGE}.{op}")
