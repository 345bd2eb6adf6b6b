"""Scores a benchmark in one number: how our kernels compare with the best alternative.

*Ours* are the exact kernels whose sources are in this repository: backends named after the language
they are written in. *Rivals* are all other exact backends: PyTorch eager, torch.compile of the
plain formula, and libraries. A case's standing is the fastest of ours against the fastest rival;
the score is the geometric mean over cases. So a library that one of our backends merely calls never
counts as ours, and approximate backends count on neither side.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .timer import ratio

if TYPE_CHECKING:
    from .report import Row

OURS = ("cpu", "cuda", "cutlass", "triton")


def is_ours(backend: str) -> bool:
    """Return whether a backend's kernels are written here; ``triton_fp8`` counts as ``triton``."""
    return backend.partition("_")[0] in OURS


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Our fastest exact kernel on one case.

    Attributes:
        ours: Its backend.
        rival: The fastest of the rivals.
        vs_rival: The rival's time over ours; the median of the rounds' ratios.
        of_floor: The floor's time over ours.
    """

    ours: str
    rival: str
    vs_rival: float
    of_floor: float


def standing(
    rows: Iterable["Row"], samples: Mapping[str, Sequence[float]], floor: float
) -> Standing | None:
    """Compute our standing on a case; None unless one of ours and a rival were timed.

    Args:
        rows: The backends.
        samples: Backend -> seconds, one per round, of those that were timed.
        floor: Least seconds of the case.
    """
    p50 = {
        row.backend: float(np.median(samples[row.backend]))
        for row in rows
        if row.backend in samples and not row.approximate
    }
    ours = [name for name in p50 if is_ours(name)]
    rivals = [name for name in p50 if not is_ours(name)]
    if not ours or not rivals:
        return None
    own, rival = (min(names, key=p50.__getitem__) for names in (ours, rivals))
    return Standing(
        ours=own,
        rival=rival,
        vs_rival=ratio(samples[rival], samples[own]),
        of_floor=floor / p50[own],
    )


@dataclass(frozen=True, kw_only=True)
class Score:
    """Our standing over several cases.

    Attributes:
        cases: Number of cases that count.
        vs_rival: Geometric mean of the best rival's time over ours; above 1, ours are faster.
        of_floor: Geometric mean of the floor's time over ours, at most about 1.
        least: The case with our worst ratio to a rival: the ratio, and its name.
        without: Cases that do not count because no kernel of ours ran.
    """

    cases: int
    vs_rival: float
    of_floor: float
    least: tuple[float, str]
    without: tuple[str, ...]

    @classmethod
    def of(cls, standings: Mapping[str, Standing | None]) -> "Score | None":
        """Score cases by name; None if none counts."""
        counted = {name: found for name, found in standings.items() if found is not None}
        if not counted:
            return None
        return cls(
            cases=len(counted),
            vs_rival=geometric_mean([found.vs_rival for found in counted.values()]),
            of_floor=geometric_mean([found.of_floor for found in counted.values()]),
            least=min(
                (found.vs_rival, f"{name}, {found.ours} against {found.rival}")
                for name, found in counted.items()
            ),
            without=tuple(name for name in standings if name not in counted),
        )

    def as_json(self) -> dict[str, Any]:
        """Convert to plain values."""
        return asdict(self)

    def __str__(self) -> str:
        """Summarise in one sentence."""
        least, where = self.least
        text = (
            f"score: {self.vs_rival:.2f} x the best rival, {100 * self.of_floor:.0f} % of the "
            f"floor; geometric means of {self.cases} case{'s' if self.cases > 1 else ''} (least "
            f"{least:.2f} x: {where})"
        )
        if self.without:
            text += f"; without a kernel of ours: {', '.join(self.without)}"
        return text


def geometric_mean(values: Sequence[float]) -> float:
    """Compute (product of the values)^(1 / count); all must be positive."""
    return float(np.exp(np.mean(np.log(values))))
