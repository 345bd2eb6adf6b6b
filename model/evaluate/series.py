"""Statistics of a series of values: whether it follows another, and where it is heading."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]

SHIFT = 250
"""Frames, ten seconds: a shift that makes the sound unrelated."""
_SHIFTS = 20
_MOST_LAG = 10  # frames either way
_MOST_PLACES = 1000  # number of values of which all pairs are used
_CLOSED = 0.5  # of a blink


def correlation(one_T: Floats, other_T: Floats) -> float | None:
    """Compute Pearson's correlation where both are numbers; None if either is constant."""
    seen = np.isfinite(one_T) & np.isfinite(other_T)
    one, other = one_T[seen], other_T[seen]
    if len(one) < 3 or np.ptp(one) < 1e-9 or np.ptp(other) < 1e-9:
        return None
    return float(np.corrcoef(one, other)[0, 1])


def partial_correlation(one_T: Floats, other_T: Floats, known_T: Floats) -> float | None:
    """Compute `correlation` of the residuals of both after linear regression on a third series."""
    seen = np.isfinite(one_T) & np.isfinite(other_T) & np.isfinite(known_T)
    if seen.sum() < 4:
        return None
    basis = np.column_stack([np.ones(int(seen.sum())), known_T[seen]])
    both = np.column_stack([one_T[seen], other_T[seen]])
    left = both - basis @ np.linalg.lstsq(basis, both, rcond=None)[0]
    return correlation(left[:, 0], left[:, 1])


def shifted_correlations(one_T: Floats, other_T: Floats) -> list[float]:
    """Compute `correlation` with the other series shifted circularly by ten seconds and more.

    Returns:
        Up to 20; none if the series are shorter than twice that.
    """
    far = len(one_T) - SHIFT
    if far < SHIFT:
        return []
    shifts = np.unique(np.linspace(SHIFT, far, _SHIFTS).astype(int))
    found = (correlation(one_T, np.roll(other_T, int(shift))) for shift in shifts)
    return [value for value in found if value is not None]


def best_lag(made_T: Floats, true_T: Floats) -> int | None:
    """Find the frames by which the made series lags, at most ten either way."""
    lags = range(-_MOST_LAG, _MOST_LAG + 1)
    count = len(made_T) - 2 * _MOST_LAG
    if count < 3:
        return None
    middle = true_T[_MOST_LAG : _MOST_LAG + count]
    found = [correlation(made_T[_MOST_LAG + n : _MOST_LAG + n + count], middle) for n in lags]
    known = [(value, lag) for value, lag in zip(found, lags, strict=True) if value is not None]
    return max(known)[1] if known else None


def windowed_correlations(made_T: Floats, true_T: Floats, window: int, most: int) -> Floats:
    """Compute `correlation` in consecutive windows, with the truth at several lags.

    Args:
        made_T: What follows.
        true_T: What it should follow.
        window: Frames per window.
        most: Largest lag either way, in frames.

    Returns:
        [T / window, 2 most + 1], from lag -most to most; NaN where either is constant.
    """
    ends = np.full(most, np.nan)
    padded = np.concatenate([ends, true_T, ends])
    found = [
        [
            correlation(made_T[start : start + window], padded[start + most - lag :][:window])
            for lag in range(-most, most + 1)
        ]
        for start in range(0, len(made_T) - window + 1, window)
    ]
    return np.array(found, np.float64).reshape(-1, 2 * most + 1)


def best_lags(correlations_KL: Floats) -> Floats:
    """Find the lag of the largest correlation in every row of `windowed_correlations`, [K]."""
    most = correlations_KL.shape[1] // 2
    known = np.isfinite(correlations_KL).any(axis=1)
    best = np.where(np.isfinite(correlations_KL), correlations_KL, -np.inf).argmax(axis=1) - most
    return np.where(known, best, np.nan)


def count_closings(blink_T: Floats) -> int:
    """Count how often the eyes close."""
    closed = np.nan_to_num(blink_T) > _CLOSED
    return int((closed[1:] & ~closed[:-1]).sum() + closed[0])


def slope(values_N: Floats) -> float | None:
    """Compute Theil-Sen's slope: the median over all pairs, per step; None below two values.

    Source: P. K. Sen, "Estimates of the regression coefficient based on Kendall's tau" (1968).
    """
    places = np.flatnonzero(np.isfinite(values_N)).astype(np.float64)
    if len(places) < 2:
        return None
    places = places[:: -(-len(places) // _MOST_PLACES)]
    values = values_N[places.astype(int)]
    first, second = np.triu_indices(len(places), 1)
    return float(np.median((values[second] - values[first]) / (places[second] - places[first])))


def change(values_N: Floats, count: int) -> float | None:
    """Subtract the mean of the first ``count`` values from that of the last, at most halves."""
    count = min(count, len(values_N) // 2)
    ends = values_N[:count], values_N[len(values_N) - count :]
    if not all(np.isfinite(end).any() for end in ends):
        return None
    return float(np.nanmean(ends[1]) - np.nanmean(ends[0]))


def contraction(distances_K: Sequence[float], floor: float) -> float | None:
    """Fit the factor per step of a distance, by linear regression of its logarithms.

    Args:
        distances_K: Consecutive distances, from the first on.
        floor: Fraction of the first below which values are rounding errors, and skipped.

    Returns:
        The factor; None if fewer than two distances are above the floor.
    """
    values = np.array(distances_K, np.float64)
    low = np.flatnonzero(~(values > floor * values[0]))
    values = values[: low[0]] if len(low) else values
    if len(values) < 2:
        return None
    return float(np.exp(np.polyfit(np.arange(len(values)), np.log(values), 1)[0]))
