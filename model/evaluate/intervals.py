"""How sure a mean over streams is: the bootstrap, which knows no more than the streams tell."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

_DRAWS = 4000
_LEVEL = 0.95
_SEED = 20200


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean, and where it would lie with other streams.

    Attributes:
        mean: Of the streams that have the number; None where none has.
        low: Lower end of the 95 % interval; None of a single stream.
        high: Upper end.
        count: Streams that have the number.
    """

    mean: float | None
    low: float | None
    high: float | None
    count: int

    def to_json(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def estimate(values: Sequence[float | None], *, logarithmic: bool = False) -> Estimate:
    """Mean and percentile bootstrap.

    Source: B. Efron, R. Tibshirani, "An Introduction to the Bootstrap" (1993). With three streams
    the interval is hardly more than from the least to the greatest.

    Args:
        values: One a stream; None is left out.
        logarithmic: Of positive factors, the geometric mean.
    """
    known = np.array([value for value in values if value is not None], np.float64)
    if not len(known):
        return Estimate(mean=None, low=None, high=None, count=0)
    numbers = np.log(known) if logarithmic else known
    ends: tuple[float, ...] = ()
    if len(known) > 1:
        rng = np.random.default_rng(_SEED)
        drawn = rng.choice(numbers, (_DRAWS, len(numbers))).mean(axis=1)
        ends = tuple(np.quantile(drawn, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2]).tolist())
    found = [float(numbers.mean()), *ends]
    if logarithmic:
        found = [float(np.exp(value)) for value in found]
    mean, low, high = found if ends else (found[0], None, None)
    return Estimate(mean=mean, low=low, high=high, count=len(known))
