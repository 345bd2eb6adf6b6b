"""Checks correctness before timing: the contract's small cases, then the timed case itself."""

import functools
from collections.abc import Callable
from typing import Any

import torch

from ..registry import load_backend, load_op
from ..spec import Arguments, Bound, Case, as_tuple
from ..testing.numerics import (
    PLAIN_TOLERANCE,
    calc_diff,
    check_backend,
    check_tensor,
    relative_l2,
    to_double,
)
from .roofline import Roofline

Verdict = tuple[bool, str]
"""Whether results are right, and the errors."""

TRUTH_SECONDS = 20.0
FP64_SLOWDOWN = {"cpu": 4, "cuda": 40}  # time of the plain formula in fp64, over the floor
SLACK = 4  # between two results that are each within 2 x the other's error or one ulp


def check_small_cases(op: str, backend: str, device: torch.device, dtype: torch.dtype) -> Verdict:
    """Check a backend on the op's small cases, once; stop at the first wrong result.

    Args:
        op: Name of the op.
        backend: Name of the backend; cases that it does not support are skipped.
        device: Device to run on.
        dtype: Dtype of the activations.
    """
    return _check_small_cases(op, backend, device, dtype, load_backend(op, backend).run)


@functools.cache  # a backend is timed at many sizes, but its small cases are always the same
def _check_small_cases(
    op: str, backend: str, device: torch.device, dtype: torch.dtype, run: Callable[..., Any]
) -> Verdict:
    del run  # the subject of the verdict: a reloaded file is another backend
    supports = load_backend(op, backend).supports
    checked = 0
    for case in load_op(op).cases(device, dtype):
        if not case.large and supports(case) is None:
            ok, reason = check_backend(case, backend)
            if not ok:
                return False, reason
            checked += 1
    return True, f"{checked} small cases are right"


class Judge:
    """Decides whether results for one case's inputs are right.

    They are judged by the numerics contract against fp64 if that is affordable, else against the
    reference in the same dtype: relative L2 at most 4 ulp (fp32: 1e-5), or 4 x the bound on
    ``calc_diff`` of FP8 and approximate backends.

    Attributes:
        measure: ``fp64`` or ``reference``: what results are compared with.
    """

    def __init__(
        self, case: Case, arguments: Arguments, roofline: Roofline, *, coarse: bool = False
    ) -> None:
        """Compute the expected results, once for all backends.

        Args:
            case: The case.
            arguments: Arguments of its call.
            roofline: The machine's limits.
            coarse: Compare with the reference even if fp64 is affordable.
        """
        self._spec = load_op(case.op)
        self._case = case
        self._arguments = arguments
        reference = load_backend(case.op, "reference").run
        positional, keywords = arguments
        self._plain = self._spec.values(reference(*positional, **keywords))
        seconds = roofline.floor(self._spec.cost(case)) * FP64_SLOWDOWN[case.device.type]
        self.measure = "reference" if coarse or seconds > TRUTH_SECONDS else "fp64"
        if self.measure == "fp64":
            positional, keywords = to_double(arguments)
            truth = self._spec.truth or reference
            self._truths = as_tuple(truth(*positional, **keywords))

    def check(
        self, run: Callable[..., Any], *, is_reference: bool = False, approximate: bool = False
    ) -> Verdict:
        """Check a function with the op's signature.

        Args:
            run: A backend's implementation.
            is_reference: Whether it is the plain formula, by which the others are judged.
            approximate: Whether it is an approximate backend.
        """
        bounds = self._spec.bounds_of(approximate=approximate) or (Bound(),) * len(self._plain)
        positional, keywords = self._arguments
        actuals = self._spec.values(run(*positional, **keywords))
        if self.measure == "reference":
            results = list(map(self._against_reference, actuals, self._plain, bounds))
        else:
            half = self._case.dtype.itemsize == 2
            results = [
                check_tensor(
                    actual,
                    truth,
                    baseline=None if is_reference else plain,
                    bound=bound,
                    half=half,
                )
                for actual, truth, plain, bound in zip(
                    actuals, self._truths, self._plain, bounds, strict=True
                )
            ]
        reasons = "; ".join(f"output {index}: {text}" for index, (_, text) in enumerate(results))
        return all(ok for ok, _ in results), f"against {self.measure}: {reasons}"

    def _against_reference(
        self, actual: torch.Tensor, plain: torch.Tensor, bound: Bound
    ) -> Verdict:
        if actual.shape != plain.shape or actual.dtype != plain.dtype:
            return False, f"{list(actual.shape)} {actual.dtype}, not {list(plain.shape)}"
        if bound.calc_diff is not None:
            diff = calc_diff(actual, plain)
            return diff < SLACK * bound.calc_diff, f"calc_diff {diff:.2e}"
        limit = max(SLACK * torch.finfo(actual.dtype).eps, PLAIN_TOLERANCE)
        if self._case.dtype.itemsize == 2 and plain.numel():
            size = plain.double().norm().item() or 1.0
            limit += SLACK * bound.half_slack * plain.numel() ** 0.5 / size
        error = relative_l2(actual, plain)
        return error <= limit, f"relative L2 {error:.2e} (bound {limit:.2e})"
