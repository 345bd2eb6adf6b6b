"""Is the second slower than the first, or is that noise? Ratios of times with an interval.

Times are compared by their logarithms, so that a change is a ratio. On a shared machine they have
three kinds of noise, and each has its answer here:

- *Drift*, 5 to 20 % within minutes. Two that alternate are compared pair by pair, and every second
  pair begins with the other one (A B, B A, A B, ...). A steady drift then lengthens B in one half
  of the pairs as much as it shortens it in the other; so does whatever the second of a pair suffers
  from. The change is the mean of the two halves' locations.
- *Outliers*. A location is Huber's M-estimate: a mean in which whatever lies further out than
  ``TUNING`` standard deviations pulls no more than that (Huber 1964). Where the noise is normal it
  needs hardly more samples than a mean, and far fewer where one chunk in ten is disturbed.
- *Few samples*. The interval is that of a studentised wild bootstrap (Liu 1988): residuals keep
  their size and get random signs, the estimate and its error are computed anew, and the quantile of
  their ratio replaces that of Student's t. Its draws have a fixed seed, so the same times give the
  same answer.

What alternates is still not quite equal: two processes of one program may differ all their lives,
for example by where their memory lies (Mytkowicz et al. 2009), and no number of pairs shows that it
is chance. So a change is called one only where its whole interval lies beyond a tolerance.
``tests/kernels/test_bench_compare.py`` holds how often noise of several kinds is called a change,
and how often a change of 10 % is found.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

ALARM = 0.01
"""Probability that noise leaves an interval on zero, for one question."""
TOLERANCE = 0.01
"""Change that is never called one, of two that alternate."""
DRIFT = 0.05
"""The same of two that were measured one after the other: the machine has changed meanwhile."""
MIN_PAIRS = 10
MIN_SAMPLES = 8  # of each, where they are no pairs

TUNING = 2.0  # standard deviations from which on a sample pulls no more
MAD_TO_SIGMA = 1.4826  # median absolute deviation -> standard deviation of a normal distribution
DRAWS = 20_000
STEPS = 8  # of Newton's method, from the median; more change nothing
CLOCK = 1e-9  # relative resolution: the least spread
FOUND = 1.645  # standard errors: 19 of 20 estimates lie above the truth less this

Groups = Sequence[NDArray[np.float64]]
"""Arrays [..., samples], each with a location of its own."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """How much slower the second is than the first.

    Attributes:
        ratio: Time of the second over that of the first.
        low: Lower end of the ratio's interval.
        high: Its upper end.
        level: Confidence of the interval, 0 to 1.
        tolerance: A change up to this is not called one.
        detectable: The least slowdown, as a share of the first's time, that would have been called
            one in 19 of 20 comparisons as noisy as this one.
        count: Number of pairs, or of the smaller number of samples.
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
    """Compare two that alternated: A B, B A, A B, and so on.

    Args:
        a: Seconds of the first, one a pair; at least 10.
        b: Seconds of the second.
        alarm: Probability of a false alarm.
        tolerance: Change that is not called one.
        draws: Of the bootstrap.
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
    """Compare two that were measured one after the other; drift is not told from a change.

    Args:
        a: Seconds of the first; at least 8.
        b: Seconds of the second; as many or not.
        alarm: Probability of a false alarm, where samples do not depend on each other.
        tolerance: Change that is not called one.
        draws: Of the bootstrap.
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
    """The weighted sum of the groups' locations, with its interval."""
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
    """Every group's location [...], and the standard error of their weighted sum.

    The bound beyond which a sample pulls no more is that of all groups' residuals together.
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
