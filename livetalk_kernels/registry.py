"""Finds the ops and their backends: folders and files; nothing is registered.

A backend is a file ``ops/<op>/<backend>.py`` with

* ``run``: the op, with the signature of the contract's function except ``backend``;
* ``supports(case) -> str | None``: None, or why it cannot run this case, with the command that
  fixes it if there is one. Sizes that are not known yet are absent from ``case.dims``;
* optionally ``APPROXIMATE = True``: ``auto`` never picks it unless a tuning file says so;
* optionally ``DIFFERENTIABLE = True``: ``run`` supports autograd, so it may be used in training.
  At least the first output has derivatives: an LSE may have none;
* optionally ``caution(case) -> str | None``: what a user should know although it runs, such as
  slowness with an old library; logged as a warning on the backend's first call;
* optionally ``pack(weight) -> Tensor | None``, for ops with an argument ``packed``: packs a
  constant weight in advance, so that calls need not. A call that receives it reads none of the
  weight's values. On the meta device the result has only its size;
* optionally ``workspace(case) -> int``: bytes that a call allocates in addition to its results, at
  its peak, while it holds those;
* for Triton kernels ``launches``, see ``backends.triton_launch``.

The file is importable everywhere: ``supports`` gives a missing library as its reason. Files whose
name starts with an underscore are not backends.
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
LEFT_OUT = f"is left out by {EXCLUDE_VARIABLE}"  # why an excluded backend cannot run


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One implementation of an op.

    Attributes:
        name: Name of its file.
        run: The implementation.
        supports: Returns None, or why it cannot run a case.
        caution: Returns what a user should know although it runs; usually None.
        approximate: Whether its results are approximate; then it must be named to be used.
        differentiable: Whether it supports autograd.
        pack: Packs a constant weight in advance; None if it does not pack.
        workspace: Returns the bytes that a call allocates in addition to its results.
        launches: The Triton kernels that it launches; None if there are none.
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
    """List all ops: the folders in ``livetalk_kernels/ops``."""
    return [name for name, is_folder in _modules(importlib.import_module(OPS_PACKAGE)) if is_folder]


def backend_names(op: str) -> list[str]:
    """List all backends of an op, runnable here or not: the files in its folder."""
    return [name for name, _ in _modules(_op_package(op)) if not name.startswith("_")]


def all_backend_names() -> list[str]:
    """List all backends that at least one op has."""
    return sorted({name for op in op_names() for name in backend_names(op)})


def load_op(op: str) -> OpSpec:
    """Import the contract of an op."""
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
    """Read the backends that ``LIVETALK_EXCLUDE`` rules out: (op, backend).

    The variable is a list such as ``add_norm=triton,quantize=cuda``. Its entries behave as if
    their library were missing: `auto` skips them, naming one is an error, and nothing tests or
    times them.

    Args:
        environ: Environment to read; by default the process's own.

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
                f"{EXCLUDE_VARIABLE}={value}: {part!r} is not an OP=BACKEND pair that can be "
                "left out; see 'livetalk backends'"
            )
        pairs.add((op, name))
    return frozenset(pairs)


def _modules(package: ModuleType) -> tuple[tuple[str, bool], ...]:
    """List the names in a package, sorted, and whether each is a folder; notices new files."""
    return _sorted_modules(tuple((path, tuple(os.listdir(path))) for path in package.__path__))


@functools.lru_cache(maxsize=256)  # every call of an op's public function looks it up
def _sorted_modules(
    folders: tuple[tuple[str, tuple[str, ...]], ...],
) -> tuple[tuple[str, bool], ...]:
    modules = pkgutil.iter_modules([path for path, _ in folders])
    return tuple(sorted((module.name, module.ispkg) for module in modules))


def _op_package(op: str) -> ModuleType:
    return importlib.import_module(f"{OPS_PACKAGE}.{op}")
