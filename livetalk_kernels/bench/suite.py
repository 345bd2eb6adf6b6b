"""Several cases of several ops: which are timed, each in its turn, and what is reported."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..errors import UserError
from ..precision import dtype_name
from ..registry import backend_names, load_backend, load_op, op_names
from ..spec import Case
from .cases import check_names, select_cases, too_large, too_long
from .report import Result, geometric_means
from .roofline import Limits
from .runner import Settings, bench_case
from .score import Score

ALL = "all"


@dataclass(frozen=True, kw_only=True)
class Suite:
    """What will be timed, and what will not.

    Attributes:
        cases: The cases.
        skipped: (op, case, reason); the case is empty where it is the whole op.
    """

    cases: tuple[Case, ...]
    skipped: list[tuple[str, str, str]] = field(default_factory=list)

    @classmethod
    def select(
        cls,
        ops: Sequence[str],
        device: torch.device,
        dtype: torch.dtype,
        *,
        names: Sequence[str] = (),
        shapes: Sequence[str] = (),
        backends: Sequence[str] = (),
        hot: bool = False,
    ) -> "Suite":
        """Choose cases.

        Args:
            ops: Names, or ``all``.
            device: Where they run.
            dtype: Of the cases; ops without it are skipped.
            names: Of cases; see `select_cases`.
            shapes: Sizes in place of a case's; see `select_cases`.
            backends: Those that will be timed, besides the baselines.
            hot: Inputs stay in the cache.

        Raises:
            UserError: An op, case, size or backend is unknown, or a backend can run no case.
        """
        ops = known_ops(ops)
        check_names(ops, names, device)
        known = list(dict.fromkeys(name for op in ops for name in backend_names(op)))
        for name in backends:
            if name not in known:
                raise UserError(
                    f"--backend {name}: none of these ops has it; choose from {', '.join(known)}"
                )
        cases, skipped = [], []
        for op in ops:
            if dtype not in load_op(op).dtypes:
                skipped.append((op, "", f"has no {dtype_name(dtype)}; see --dtype"))
                continue
            selected = select_cases(op, device, dtype, names=names, shapes=shapes)
            if not selected:
                skipped.append((op, "", f"has no case {' or '.join(names)}"))
            for case in selected:
                reason = too_large(case, hot=hot)
                if reason is None:
                    cases.append(case)
                else:
                    skipped.append((op, case.name, reason))
        for name in backends:
            having = [case for case in cases if name in backend_names(case.op)]
            reasons = [load_backend(case.op, name).supports(case) for case in having]
            if reasons and all(reasons):
                raise UserError(f"--backend {name}: cannot run: {reasons[0]}")
        return cls(cases=tuple(cases), skipped=skipped)

    def results(self, results: Sequence[Result], *, complete: bool) -> dict[str, Any]:
        """Report the results for machines: score, cases, means, and what was skipped."""
        score = score_of(results)
        return {
            "complete": complete,
            "score": score and score.as_json(),
            "cases": [result.as_json() for result in results],
            "means": [dataclasses.asdict(mean) for mean in geometric_means(results)],
            "skipped": [
                {"op": op, "case": case, "reason": reason} for op, case, reason in self.skipped
            ],
        }


def score_of(results: Sequence[Result]) -> Score | None:
    """Score our kernels over the models' sizes; None without a rival, or a kernel of ours."""
    return Score.of({result.name: result.standing for result in results if result.case.large})


def known_ops(names: Sequence[str]) -> list[str]:
    """List every op named, once, or all of them.

    Raises:
        UserError: There is no such op.
    """
    known = op_names()
    for op in names:
        if op not in (*known, ALL):
            raise UserError(f"{op}: unknown op; choose from {', '.join(known)}, or {ALL}")
    return known if ALL in names else list(dict.fromkeys(names))


def attempt(
    case: Case,
    settings: Settings,
    limits: Limits,
    say: Callable[[str], None],
    *,
    named: bool = False,
) -> Result | str:
    """Time a case, or say why not.

    Args:
        case: The case.
        settings: How to time.
        limits: Of the machine.
        say: Called with progress messages.
        named: The user has asked for it, however long it takes.
    """
    say("measuring the machine")
    probes, rough = limits.of(case)
    reason = None if named else too_long(case, rough)
    if reason is not None:
        return reason
    try:
        return bench_case(case, settings, probes, rough, say)
    except torch.OutOfMemoryError:  # the other cases may fit
        return "out of memory"
