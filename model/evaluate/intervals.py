"""Confidence intervals for means over streams or runs, of which there are few."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

_T = (12.706, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)
"""97.5th percentile of Student's distribution with 1, 2, ... degrees of freedom."""
_Z = 1.959964


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean, and an interval for that of all possible streams.

    Attributes:
        mean: Mean of those that have the value; None if none has.
        low: Lower end of the 95 % interval; None for a single value.
        high: Upper end.
        count: Number of values.
    """

    mean: float | None
    low: float | None
    high: float | None
    count: int

    def to_json(self) -> dict[str, Any]:
        """Convert to plain values."""
        return asdict(self)


def estimate(values: Sequence[float | None], *, logarithmic: bool = False) -> Estimate:
    """Compute the mean and Student's interval.

    A bootstrap's percentiles would contain the truth in only 75 % of the cases with three values,
    since they never leave the observed range.

    Args:
        values: One per stream, or run; None is skipped.
        logarithmic: Compute the geometric mean, for positive factors.
    """
    known = np.array([value for value in values if value is not None], np.float64)
    count = len(known)
    if not count:
        return Estimate(mean=None, low=None, high=None, count=0)
    numbers = np.log(known) if logarithmic else known
    found = [float(numbers.mean())]
    if count > 1:
        reach = _student(count - 1) * float(numbers.std(ddof=1)) / math.sqrt(count)
        found += [found[0] - reach, found[0] + reach]
    if logarithmic:
        found = [math.exp(value) for value in found]
    mean, low, high = found if count > 1 else (found[0], None, None)
    return Estimate(mean=mean, low=low, high=high, count=count)


def _student(freedom: int) -> float:
    """Return the 97.5th percentile; beyond the table by the series of Cornish and Fisher."""
    if freedom <= len(_T):
        return _T[freedom - 1]
    z, inverse = _Z, 1 / freedom
    return (
        z
        + (z**3 + z) / 4 * inverse
        + (5 * z**5 + 16 * z**3 + 3 * z) / 96 * inverse**2
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384 * inverse**3
    )
