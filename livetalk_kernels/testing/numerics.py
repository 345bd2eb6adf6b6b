"""The numerics contract as code: how far a backend may deviate from the exact result.

Float results: relative L2 error and largest error against fp64 are at most twice those of the
plain torch formula (the ``reference`` backend) in the same dtype, plus one ulp of the output; four
times for convolutions, which may be computed by Winograd's algorithm.
Results that inherently include FP8 rounding: a bound on ``calc_diff``. The same for approximate
backends, where an op specifies how far they may deviate.

Verifiers return ``(ok, reason)``, so that a benchmark can refuse to report, and say why.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Generator, Tensor

from ..precision import FP8
from ..registry import load_backend, load_op
from ..spec import Arguments, Bound, Case, as_tuple

PLAIN_TOLERANCE = 1e-5  # relative; for the reference in fp32, which has no plainer baseline
GUARD = 64  # elements around a guarded tensor; keeps it aligned to 64 bytes in every dtype


def relative_l2(actual: Tensor, truth: Tensor) -> float:
    """Compute |actual - truth| / |truth| in fp64; 0 if both are zero or empty."""
    actual, truth = actual.double(), truth.double()
    error, size = (actual - truth).norm().item(), truth.norm().item()
    return error / size if size else (0.0 if error == 0 else math.inf)


def max_error(actual: Tensor, truth: Tensor) -> float:
    """Compute the largest |actual - truth| in fp64; 0 for empty tensors."""
    return (actual.double() - truth.double()).abs().max().item() if truth.numel() else 0.0


def calc_diff(actual: Tensor, truth: Tensor) -> float:
    """Compute 1 - 2 sum(a t) / sum(a^2 + t^2) in fp64: about half the squared relative L2 error.

    Source: DeepGEMM's tests, which use it for FP8.
    """
    actual, truth = actual.double(), truth.double()
    # The square of values beyond 1e150 overflows fp64; the measure is scale-invariant.
    peak = truth.abs().max().item() if truth.numel() else 0.0
    actual, truth = (actual / peak, truth / peak) if peak else (actual, truth)
    size = (actual.square() + truth.square()).sum().item()
    return 1 - 2 * (actual * truth).sum().item() / size if size else 0.0


def ulp(value: float, dtype: torch.dtype) -> float:
    """Compute the distance between neighbouring numbers of a dtype at ``value``."""
    info = torch.finfo(dtype)
    exponent = math.floor(math.log2(max(abs(value), info.tiny)))
    return float(info.eps * 2.0**exponent)


def check_tensor(
    actual: Tensor,
    truth: Tensor,
    *,
    baseline: Tensor | None = None,
    bound: Bound | None = None,
    half: bool = False,
) -> tuple[bool, str]:
    """Decide whether one result is right.

    Args:
        actual: The result.
        truth: The exact result in fp64, same shape.
        baseline: Result of the plain torch formula in the same dtype. None: ``actual`` is the
            plain formula itself and may deviate by one ulp (in fp32: 1e-5 of the result).
        bound: Bound in the op's contract; None for the float rule.
        half: Whether the op's inputs are 16-bit, so that ``bound.half_slack`` applies.

    Returns:
        Whether it is right, and the errors with their bounds.
    """
    if actual.shape != truth.shape:
        return False, f"shape {list(actual.shape)}, not {list(truth.shape)}"
    finite = truth.isfinite()
    wrong = actual.isfinite() != finite
    wrong |= ~finite & (actual.double() != truth) & ~(actual.isnan() & truth.isnan())
    if wrong.any():
        first = wrong.nonzero()[0].tolist()
        return (
            False,
            f"{int(wrong.sum())} NaN or Inf where there should be none, or the other way"
            f" round; the first at {first}",
        )
    actual, exact = actual[finite], truth[finite]
    bound = bound or Bound()
    if bound.calc_diff is not None:
        diff = calc_diff(actual, exact)
        return diff < bound.calc_diff, f"calc_diff {diff:.2e} (bound {bound.calc_diff:.0e})"
    peak = exact.abs().max().item() if exact.numel() else 0.0
    eps, step = torch.finfo(actual.dtype).eps, ulp(peak, actual.dtype)
    if baseline is None:
        l2_bound, max_bound = max(eps, PLAIN_TOLERANCE), max(step, PLAIN_TOLERANCE * peak)
    else:
        plain = baseline[finite]
        l2_bound = bound.factor * relative_l2(plain, exact) + eps
        max_bound = bound.factor * max_error(plain, exact) + step
    if half and exact.numel():
        max_bound += bound.half_slack
        l2_bound += bound.half_slack * exact.numel() ** 0.5 / (exact.norm().item() or 1.0)
    l2, largest = relative_l2(actual, exact), max_error(actual, exact)
    reason = f"relative L2 {l2:.2e} (bound {l2_bound:.2e}), max {largest:.2e} ({max_bound:.2e})"
    return l2 <= l2_bound and largest <= max_bound, reason


def check_backend(case: Case, backend: str, *, seed: int = 0) -> tuple[bool, str]:
    """Run a backend on a representative case and decide whether its results are right.

    Args:
        case: One of the op's ``cases``.
        backend: Name of a backend that supports it.
        seed: Seed of the inputs.

    Returns:
        Whether all outputs are right, and the errors of each.
    """
    spec = load_op(case.op)
    arguments, keywords = spec.make_inputs(case, Generator().manual_seed(seed))
    reference, tested = load_backend(case.op, "reference").run, load_backend(case.op, backend)
    double_arguments, double_keywords = to_double((arguments, keywords))
    truths = as_tuple((spec.truth or reference)(*double_arguments, **double_keywords))
    actuals = spec.values(tested.run(*arguments, **keywords))
    baselines: tuple[Tensor | None, ...] = (None,) * len(truths)
    if backend != "reference":
        baselines = spec.values(reference(*arguments, **keywords))
    bounds = spec.bounds_of(approximate=tested.approximate) or (Bound(),) * len(truths)
    half = case.dtype.itemsize == 2
    results = [
        check_tensor(actual, truth, baseline=baseline, bound=bound, half=half)
        for actual, truth, baseline, bound in zip(actuals, truths, baselines, bounds, strict=True)
    ]
    reasons = "; ".join(f"output {index}: {text}" for index, (_, text) in enumerate(results))
    return all(ok for ok, _ in results), f"{case} by {backend}: {reasons}"


def to_double(arguments: Arguments) -> Arguments:
    """Convert arguments to fp64: float tensors and dtypes; FP8 values stay, as they are exact."""

    def convert(value: Any) -> Any:
        if isinstance(value, torch.dtype):
            return torch.float64 if value.is_floating_point else value
        if isinstance(value, Tensor) and value.is_floating_point() and value.itemsize > 1:
            return value.double()
        return value

    positional, keywords = arguments
    return tuple(map(convert, positional)), {key: convert(v) for key, v in keywords.items()}


def guarded(tensor: Tensor) -> Tensor:
    """Copy a tensor, with its strides, into storage filled with NaN around it and in its gaps.

    A backend that reads anything but its input then gives NaN.
    """
    extent = 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    length = 2 * GUARD + (extent if tensor.numel() else 0)
    if tensor.dtype == FP8:  # torch cannot fill FP8; 0x7f is its NaN
        storage = torch.full((length,), 0x7F, dtype=torch.uint8, device=tensor.device).view(FP8)
    else:
        storage = torch.full((length,), torch.nan, dtype=tensor.dtype, device=tensor.device)
    return storage.as_strided(tensor.shape, tensor.stride(), GUARD).copy_(tensor)


def guard_is_whole(tensor: Tensor) -> bool:
    """Return whether the NaNs around a tensor of ``guarded`` are intact."""
    storage = tensor.new_empty(0).set_(tensor.untyped_storage())
    ends = (storage[:GUARD], storage[storage.numel() - GUARD :])
    return all(bool(end.float().isnan().all()) for end in ends)


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """Let torch fill fresh memory with NaN, which exposes output elements that are not written.

    This is torch's deterministic mode (``torch.utils.deterministic.fill_uninitialized_memory``).
    """
    before = torch.are_deterministic_algorithms_enabled()
    before_warn = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=before_warn)
