"""Fitting: a few shares to published figures, by least squares on the logarithm of time.

Each share has a prior, as a figure on its own: what is known of such systems elsewhere. It decides
where no figure says anything, as for links, and is outvoted where many do.
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
NOISE = 0.1  # of a figure, relative: what runs and machines differ by


@dataclass(frozen=True, kw_only=True)
class Prior:
    """What a constant is taken to be before any figure speaks.

    Attributes:
        value: Its most likely value.
        spread: Standard deviation of its logarithm.
        why: Where that comes from.
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
    """Levenberg and Marquardt's method with differences for derivatives.

    Args:
        residuals: Point -> what is to be small, scaled by its standard deviation.
        start: First point.
        rounds: The most steps.

    Returns:
        The point with the least sum of squares that was found.
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
    """The shares that explain the rows best, near their priors."""
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
    """Fitted to all published figures: what a forecast for any GPU starts from."""
    return fit_shares(figures())


@dataclass(frozen=True, kw_only=True)
class Check:
    """A figure that was left out of the fit, and what the fit says of it.

    Attributes:
        figure: Observed.
        predicted: Seconds.
        shares: Fitted without it.
    """

    figure: Figure
    predicted: float
    shares: Shares

    @property
    def error(self) -> float:
        """Relative."""
        return self.predicted / self.figure.seconds - 1

    @property
    def within(self) -> bool:
        """Whether the goal is met."""
        return abs(self.error) <= GOAL


def leave_one_out(rows: Sequence[Figure]) -> list[Check]:
    """Predict each row by a fit to the others, without those that hold it or are held by it."""
    checks = []
    for row in rows:
        shares = fit_shares([other for other in rows if not other.tells_of(row)])
        predicted = row.predict(GpuMachine(gpu=GPUS[row.gpu], shares=shares))
        checks.append(Check(figure=row, predicted=predicted, shares=shares))
    return checks
