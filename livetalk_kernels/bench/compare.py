"""Decides whether the second is slower or that is noise: ratios of times with an interval.

Times are compared by their logarithms, so that a change is a ratio. On a shared machine they have
three kinds of noise, each handled differently:

- *Drift*, 5 to 20 % within minutes. Alternating runs are compared pair by pair, and every second
  pair starts with the other one (A B, B A, A B, ...). A steady drift then lengthens B in one half
  of the pairs as much as it shortens it in the other; the same holds for whatever slows the second
  of a pair. The change is the mean of the two halves' locations.
- *Outliers*. A location is Huber's M-estimate: a mean in which samples further out than
  ``TUNING`` standard deviations are pulled in to that (Huber 1964). For normal noise it needs
  hardly more samples than a mean, and far fewer where one chunk in ten is disturbed.
- *Few samples*. The interval comes from a studentised wild bootstrap (Liu 1988): residuals keep
  their size and get random signs, the estimate and its error are recomputed, and the quantile of
  their ratio replaces that of Student's t. Its seed is fixed, so equal times give equal answers.

Even alternating runs are not quite equal: two processes of one program may differ throughout, for
example by their memory layout (Mytkowicz et al. 2009), and no number of pairs reveals that as
chance. So a change is reported only if its whole interval exceeds a tolerance.
``tests/kernels/test_bench_compare.py`` records how often noise of several kinds is reported as a
change, and how often a change of 10 % is found.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

ALARM = 0.01
"""Probability per question that noise alone excludes zero from an interval."""
TOLERANCE = 0.01
"""Change between alternating runs that is never reported."""
DRIFT = 0.05
"""The same for separate runs: the machine has changed in between."""
MIN_PAIRS = 10
MIN_SAMPLES = 8  # of each, if unpaired

TUNING = 2.0  # standard deviations beyond which a sample is clipped
MAD_TO_SIGMA = 1.4826  # median absolute deviation -> standard deviation of a normal distribution
DRAWS = 20_000
STEPS = 8  # of Newton's method, from the median; further ones change nothing
CLOCK = 1e-9  # relative resolution: the smallest spread
FOUND = 1.645  # standard errors: 19 of 20 estimates exceed the truth minus this

Groups = Sequence[NDArray[np.float64]]
"""Arrays [..., samples]; each row has its own location."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """How much slower the second is than the first.

    Attributes:
        ratio: Time of the second over that of the first.
        low: Lower end of the ratio's interval.
        high: Upper end.
        level: Confidence of the interval, 0 to 1.
        tolerance: Change up to which nothing is reported.
        detectable: Smallest slowdown, relative to the first's time, that would be reported in 19
            of 20 comparisons as noisy as this one.
        count: Number of pairs, or the smaller number of samples.
    """

    ratio: float
    low: float
    high: float
    level: float
    tolerance: float
    detectable: float
    count: int

    @property
    def verdict(self) -> str:
        """``no change``, ``slower`` or ``faster``."""
        if self.low > 1 + self.tolerance:
            return "slower"
        if self.high < 1 / (1 + self.tolerance):
            return "faster"
        return "no change"


def paired(
    a: ArrayLike,
    b: ArrayLike,
    *,
    alarm: float = ALARM,
    tolerance: float = TOLERANCE,
    draws: int = DRAWS,
) -> Change:
    """Compare two alternating runs: A B, B A, A B, and so on.

    Args:
        a: Seconds of the first, one per pair; at least 10.
        b: Seconds of the second.
        alarm: Probability of a false alarm.
        tolerance: Change that is not reported.
        draws: Number of bootstrap draws.
    """
    difference = _logs(b) - _logs(a)
    assert len(difference) >= MIN_PAIRS
    halves = (difference[::2], difference[1::2])
    return _change(halves, (0.5, 0.5), alarm, tolerance, draws, count=len(difference))


def unpaired(
    a: ArrayLike,
    b: ArrayLike,
    *,
    alarm: float = ALARM,
    tolerance: float = DRIFT,
    draws: int = DRAWS,
) -> Change:
    """Compare two separate runs; cannot distinguish machine drift from a real change.

    Args:
        a: Seconds of the first; at least 8.
        b: Seconds of the second; their number may differ.
        alarm: Probability of a false alarm, if samples are independent.
        tolerance: Change that is not reported.
        draws: Number of bootstrap draws.
    """
    groups = (_logs(a), _logs(b))
    count = min(len(group) for group in groups)
    assert count >= MIN_SAMPLES
    return _change(groups, (-1.0, 1.0), alarm, tolerance, draws, count=count)


def _logs(seconds: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(seconds, np.float64)
    assert values.ndim == 1 and np.isfinite(values).all() and (values > 0).all()
    return np.log(values)


def _change(
    groups: Groups,
    weights: Sequence[float],
    alarm: float,
    tolerance: float,
    draws: int,
    *,
    count: int,
) -> Change:
    """Compute the weighted sum of the groups' locations, with its interval."""
    locations, error = _fit(groups, weights)
    effect = float(np.dot(weights, locations))
    random = np.random.default_rng(0)
    flipped = [
        (group - location) * random.choice((-1.0, 1.0), (draws, len(group)))
        for group, location in zip(groups, locations, strict=True)
    ]
    drawn, errors = _fit(flipped, weights)
    null = sum(weight * location for weight, location in zip(weights, drawn, strict=True))
    quantile = float(np.quantile(np.abs(null) / errors, 1 - alarm))
    half = quantile * float(error)
    return Change(
        ratio=math.exp(effect),
        low=math.exp(effect - half),
        high=math.exp(effect + half),
        level=1 - alarm,
        tolerance=tolerance,
        detectable=(1 + tolerance) * math.exp(half + FOUND * float(error)) - 1,
        count=count,
    )


def _fit(
    groups: Groups, weights: Sequence[float]
) -> tuple[list[NDArray[np.float64]], NDArray[np.float64]]:
    """Fit every group's location [...]; return them with the standard error of their weighted sum.

    Samples are clipped at a bound computed from all groups' residuals together.
    """
    locations = [np.median(group, axis=-1) for group in groups]
    residuals = np.concatenate(
        [g - m[..., None] for g, m in zip(groups, locations, strict=True)], axis=-1
    )
    size = residuals.shape[-1]
    spread = MAD_TO_SIGMA * np.median(np.abs(residuals), axis=-1) * size / (size - len(groups))
    bound = np.maximum(TUNING * spread, CLOCK)[..., None]
    variance = np.zeros(bound.shape[:-1])
    for index, (group, weight) in enumerate(zip(groups, weights, strict=True)):
        location, own = locations[index], group.shape[-1]
        for _ in range(STEPS):
            residual = group - location[..., None]
            inside = np.maximum(np.mean(np.abs(residual) < bound, axis=-1), 0.5)
            location = location + np.mean(np.clip(residual, -bound, bound), axis=-1) / inside
        pulls = np.clip(group - location[..., None], -bound, bound)
        locations[index] = location
        variance += weight**2 * np.sum(pulls**2, axis=-1) / (own * (own - 1) * inside**2)
    return locations, np.sqrt(np.maximum(variance, CLOCK**2))
