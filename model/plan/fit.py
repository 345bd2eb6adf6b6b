"""Fits a few shares to published figures, by least squares on the logarithm of time.

Each share has a prior, which acts as one more figure: what is known about such systems elsewhere.
It decides if no figure is informative, as for links, and is outweighed by many.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from livetalk_kernels.gpus import GPUS

from .figures import Figure, figures
from .machine import GpuMachine, Shares

Vector = NDArray[np.float64]
GOAL = 0.2  # relative error
NOISE = 0.1  # relative, of a figure: how much runs and machines differ


@dataclass(frozen=True, kw_only=True)
class Prior:
    """The assumed value of a constant in the absence of figures.

    Attributes:
        value: Its most likely value.
        spread: Standard deviation of its logarithm.
        why: Where it comes from.
    """

    value: float
    spread: float
    why: str


PRIORS: Mapping[str, Prior] = MappingProxyType(
    {
        "matmul": Prior(value=0.85, spread=0.2, why="large products keep most of their rate"),
        "attention": Prior(value=0.85, spread=0.2, why="so does attention to many keys"),
        "convolution": Prior(value=0.3, spread=1.0, why="next to nothing is known"),
        "memory": Prior(value=0.8, spread=0.2, why="61 to 90 % of bandwidth for norms (design)"),
        "link": Prior(value=0.75, spread=0.2, why="NCCL between two H100: 83 % of NVLink"),
    }
)


def least_squares(
    residuals: Callable[[Vector], Vector], start: Vector, *, rounds: int = 60
) -> Vector:
    """Minimise a sum of squares by Levenberg and Marquardt's method with finite differences.

    Args:
        residuals: Point -> values to minimise, scaled by their standard deviations.
        start: Initial point.
        rounds: Maximum number of steps.

    Returns:
        The best point found.
    """
    point, damping = start.astype(float), 1e-3
    value = residuals(point)
    for _ in range(rounds):
        columns = []
        for index in range(len(point)):
            moved = point.copy()
            moved[index] += 1e-5
            columns.append((residuals(moved) - value) / 1e-5)
        jacobian = np.stack(columns, axis=1)
        normal, gradient = jacobian.T @ jacobian, jacobian.T @ value
        step = np.linalg.solve(normal + damping * np.diag(np.diag(normal) + 1e-12), -gradient)
        tried = residuals(point + step)
        gain = 1 - float(tried @ tried) / max(float(value @ value), 1e-30)
        if gain > 0:
            point, value, damping = point + step, tried, damping / 4
            if gain < 1e-9:
                break
        else:
            damping *= 8
            if damping > 1e6:
                break
    return point


def fit_shares(rows: Sequence[Figure], priors: Mapping[str, Prior] = PRIORS) -> Shares:
    """Fit the shares that explain the rows best, near their priors."""
    names = list(priors)

    def residuals(point: Vector) -> Vector:
        shares = Shares(**dict(zip(names, np.exp(point).tolist(), strict=True)))
        found = [
            math.log(row.predict(GpuMachine(gpu=GPUS[row.gpu], shares=shares)) / row.seconds)
            / NOISE
            for row in rows
        ]
        found += [
            (value - math.log(priors[name].value)) / priors[name].spread
            for name, value in zip(names, point, strict=True)
        ]
        return np.array(found)

    start = np.log([priors[name].value for name in names])
    best = least_squares(residuals, start)
    return Shares(**dict(zip(names, np.exp(best).tolist(), strict=True)))


@cache
def public_shares() -> Shares:
    """Fit to all published figures: the starting point of a forecast for any GPU."""
    return fit_shares(figures())


@dataclass(frozen=True, kw_only=True)
class Check:
    """A figure that was left out of the fit, and its prediction.

    Attributes:
        figure: The observation.
        predicted: Predicted seconds.
        shares: Fitted without it.
    """

    figure: Figure
    predicted: float
    shares: Shares

    @property
    def error(self) -> float:
        """Relative error."""
        return self.predicted / self.figure.seconds - 1

    @property
    def within(self) -> bool:
        """Whether the goal is met."""
        return abs(self.error) <= GOAL


def leave_one_out(rows: Sequence[Figure]) -> list[Check]:
    """Predict each row from a fit to the others, excluding those that include it or vice versa."""
    checks = []
    for row in rows:
        shares = fit_shares([other for other in rows if not other.overlaps(row)])
        predicted = row.predict(GpuMachine(gpu=GPUS[row.gpu], shares=shares))
        checks.append(Check(figure=row, predicted=predicted, shares=shares))
    return checks
