"""Which ops there are, and which backends each has: folders and files, nothing is registered.

A backend is a file ``ops/<op>/<backend>.py`` with

* ``run``: the op, with the signature of the contract's function but for ``backend``;
* ``supports(case) -> str | None``: None, or why it cannot run this case, with the command that
  mends it where there is one. Sizes that are not known yet are absent from ``case.dims``;
* optionally ``APPROXIMATE = True``: ``auto`` never picks it, unless a tuning file says so;
* optionally ``DIFFERENTIABLE = True``: autograd goes through ``run``, so it may be trained with.
  Derivatives are those of the first output at least: an LSE may have none;
* optionally ``caution(case) -> str | None``: what a user should know although it runs, such as
  that it is slow with an old library; it is warned of when the backend is first called;
* optionally ``pack(weight) -> Tensor | None``, for ops with an argument ``packed``: what the
  backend makes of a weight that stays as it is, so that not every call makes it. A call that is
  given it reads none of the weight's numbers. On the meta device it gives the size alone;
* optionally ``workspace(case) -> int``: bytes that a call allocates besides its results, at the
  most and at the time when it has those;
* for Triton kernels ``launches``, see ``backends.triton_launch``.

The file imports everywhere: a missing library is a reason that ``supports`` gives. Files whose
name starts with an underscore are no backends.
"""

import functools
import importlib
import os
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from torch import Tensor

from .environment import EXCLUDE_VARIABLE, variable
from .errors import UserError
from .spec import Case, OpSpec

OPS_PACKAGE = f"{__package__}.ops"
LEFT_OUT = f"is left out by {EXCLUDE_VARIABLE}"  # why such a backend cannot run


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One implementation of an op.

    Attributes:
        name: Its file's name.
        run: The implementation.
        supports: None, or the reason why it cannot run a case.
        caution: What a user should know although it runs; mostly None.
        approximate: Its results are not exact; it must be named to be used.
        differentiable: Autograd goes through it.
        pack: What it makes of a constant weight; None where it makes nothing.
        workspace: Bytes that a call allocates besides its results.
        launches: The Triton kernels that it launches; None where it has none.
    """

    name: str
    run: Callable[..., Any]
    supports: Callable[[Case], str | None]
    caution: Callable[[Case], str | None]
    approximate: bool
    differentiable: bool
    pack: Callable[[Tensor], Tensor | None]
    workspace: Callable[[Case], int]
    launches: Callable[..., Any] | None


def op_names() -> list[str]:
    """Names of all ops: the folders in ``livetalk_kernels/ops``."""
    return [name for name, is_folder in _modules(importlib.import_module(OPS_PACKAGE)) if is_folder]


def backend_names(op: str) -> list[str]:
    """Names of all backends of an op, runnable here or not: the files in its folder."""
    return [name for name, _ in _modules(_op_package(op)) if not name.startswith("_")]


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
    left_out = (op, name) in excluded()
    return Backend(
        name=name,
        run=module.run,
        supports=(lambda case: LEFT_OUT) if left_out else module.supports,
        caution=getattr(module, "caution", lambda case: None),
        approximate=getattr(module, "APPROXIMATE", False),
        differentiable=getattr(module, "DIFFERENTIABLE", False),
        pack=getattr(module, "pack", lambda weight: None),
        workspace=getattr(module, "workspace", lambda case: 0),
        launches=getattr(module, "launches", None),
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
    return _excluded(variable(EXCLUDE_VARIABLE, environ))


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


def _modules(package: ModuleType) -> tuple[tuple[str, bool], ...]:
    """Names in a package, sorted, and whether each is a folder. New files are seen."""
    return _sorted_modules(tuple((path, tuple(os.listdir(path))) for path in package.__path__))


@functools.lru_cache(maxsize=256)  # every call of an op's public function looks
def _sorted_modules(
    folders: tuple[tuple[str, tuple[str, ...]], ...],
) -> tuple[tuple[str, bool], ...]:
    modules = pkgutil.iter_modules([path for path, _ in folders])
    return tuple(sorted((module.name, module.ispkg) for module in modules))


def _op_package(op: str) -> ModuleType:
    return importlib.import_module(f"{OPS_PACKAGE}.{op}")
