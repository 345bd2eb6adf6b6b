"""Pick the backend that an op runs on, and explain the choice; `registry` finds the backends."""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .backends.libraries import INSTALLED, Libraries
from .errors import UserError
from .gpus import Gpu
from .registry import (
    Backend,
    backend_names,
    load_backend,
    load_op,
    op_names,
)
from .spec import Case

if TYPE_CHECKING:
    from .config import KernelConfig
    from .tuning import Tuning

NO_GRADIENTS = "it has no gradients"  # why a backend cannot be used in training

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The backend picked for an op, and why.

    Attributes:
        name: Name of the backend.
        run: Its implementation, callable without further lookups.
        pack: Packs a constant weight in advance; None if the backend does not pack.
        approximate: Whether its results are approximate.
        reason: Why it was picked, for logs and tables.
        caution: What a user should know although it runs; usually empty.
    """

    name: str
    run: Callable[..., Any]
    pack: Callable[[Tensor], Tensor | None]
    approximate: bool
    reason: str
    caution: str = ""


def support_table(
    *,
    device: torch.device,
    dtype: torch.dtype,
    gpu: Gpu | None = None,
    libraries: Libraries = INSTALLED,
    **dims: int,
) -> dict[str, dict[str, str | None]]:
    """Map op -> backend -> None if it can run, else why it cannot; arguments as in `Case`."""
    table = {}
    for op in op_names():
        case = Case(op=op, device=device, dtype=dtype, dims=dims, gpu=gpu, libraries=libraries)
        table[op] = {name: load_backend(op, name).supports(case) for name in backend_names(op)}
    return table


def resolve(
    case: Case, config: "KernelConfig", *, differentiable: bool = False, main: Case | None = None
) -> Choice:
    """Pick the backend for a case; see also `pick`.

    Args:
        case: The problem; sizes that are not known yet may be absent.
        config: The user's choices.
        differentiable: Consider only backends that support autograd.
        main: The case that a named backend was chosen for, if another one.

    Raises:
        UserError: The backend named for this op cannot run the case.
    """
    wanted, named = config.wanted(case.op)
    return pick(
        case,
        wanted,
        named=named,
        tuning=config.tuning,
        differentiable=differentiable,
        main=main,
    )


def pick(
    case: Case,
    wanted: str,
    *,
    named: bool,
    tuning: "Tuning | None" = None,
    differentiable: bool = False,
    main: Case | None = None,
) -> Choice:
    """Pick a backend by name.

    Args:
        case: The problem.
        wanted: Name of a backend, or ``auto``.
        named: Whether it was named for this op alone and so must exist; an op that lacks a
            backend named for all ops falls back to ``auto``.
        tuning: File that ``auto`` consults before the op's own preference.
        differentiable: Consider only backends that support autograd.
        main: The case that a named backend was chosen for, if another one: a backend that can run
            that case but not this one falls back to ``auto`` here.

    Raises:
        UserError: The backend cannot run the case, or lacks the gradients that are needed.
    """
    if wanted == "auto":
        return _pick_auto(case, "auto", tuning, differentiable)
    if not named and wanted not in backend_names(case.op):
        return _pick_auto(case, f"no {wanted} for this op, so auto", tuning, differentiable)
    backend = load_backend(case.op, wanted)
    if differentiable and not backend.differentiable:
        names = " or ".join(with_gradients(case)) or "no backend of this op"
        raise UserError(f"--backend {case.op}={wanted}: cannot train: {NO_GRADIENTS}; take {names}")
    reason = backend.supports(case)
    if reason is not None and main is not None:
        if (main_reason := backend.supports(main)) is None:
            return _pick_auto(case, f"not {wanted} here: {reason}, so auto", tuning, differentiable)
        reason = main_reason
    if reason is not None:
        raise UserError(
            f"--backend {case.op}={wanted}: cannot run: {reason}; "
            f"or choose --backend {case.op}=auto"
        )
    return _choice(case, backend, "named", backend.caution(case))


def _choice(case: Case, backend: Backend, reason: str, caution: str | None) -> Choice:
    run = backend.run
    if caution is not None:
        reason = f"{reason}; {caution}"
        run = _warning_first(f"{case.op}={backend.name}: {caution}", run)
    return Choice(
        name=backend.name,
        run=run,
        pack=backend.pack,
        approximate=backend.approximate,
        reason=reason,
        caution=caution or "",
    )


def _warning_first(message: str, run: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap an implementation to warn on its first call only: many bound ops are never called."""

    @functools.wraps(run)
    def warned(*arguments: Any, **keywords: Any) -> Any:
        _warn_once(message)
        return run(*arguments, **keywords)

    return warned


def with_gradients(case: Case) -> list[str]:
    """List the backends that support autograd and can run a case, sorted."""
    found = ((name, load_backend(case.op, name)) for name in backend_names(case.op))
    return [name for name, one in found if one.differentiable and one.supports(case) is None]


def _pick_auto(case: Case, why: str, tuning: "Tuning | None", differentiable: bool) -> Choice:
    tuned, note = (None, "") if tuning is None else tuning.advise(case)
    notes = [why, note] if note else [why]
    skipped: list[str] = []
    for name in filter(None, (tuned, *load_op(case.op).preferred(case))):
        backend = load_backend(case.op, name)
        assert name == tuned or not backend.approximate, f"{case.op}: {name} is approximate"
        reason = backend.supports(case)
        if differentiable and not backend.differentiable:
            reason = NO_GRADIENTS
        if reason is None:
            text = "; ".join([*notes, *skipped])
            _log_once(f"{case.op} on {case.device.type} {case.dtype}: {name} ({text})")
            caution = backend.caution(case)
            if name == "reference" and case.capability is not None:
                caution = f"runs in plain PyTorch, slowly: {'; '.join(skipped)}"
            return _choice(case, backend, text, caution)
        skipped.append(f"not {name}: {reason}")
    raise UserError(f"{case.op}: no backend can run: {'; '.join(skipped)}")


@functools.cache
def _log_once(message: str) -> None:
    logger.info(message)


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning(message)
