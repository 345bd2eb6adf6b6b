"""Numbers on the command line: their kinds and ranges."""

import argparse
import math
from dataclasses import dataclass

MAX_THREADS = 1024
MAX_RANKS = 1024
MAX_TRACKS = 10_000  # of a file
MAX_STEPS = 1000  # of the sampler
MAX_CHUNKS = 100_000  # more than a day of video
MIN_PAIRS = 10  # to separate noise from a change
MAX_ROUNDS = 1_000_000
MAX_SECONDS = 1e6  # eleven days
_SHOWN = 40  # characters of what was given, in the error


@dataclass(frozen=True)
class Number:
    """A ``type`` of argparse: reads a number, and rejects anything else or out of range.

    Attributes:
        kind: ``int`` or ``float``.
        low: The least.
        high: The most.
    """

    kind: type[int] | type[float]
    low: float
    high: float

    def __call__(self, text: str) -> int | float:
        """Read a number.

        Raises:
            argparse.ArgumentTypeError: It is not a number, not finite, or out of range.
        """
        try:
            value = self.kind(text) if len(text) <= _SHOWN else math.nan
        except ValueError:
            value = math.nan
        if not self.low <= value <= self.high:
            raise argparse.ArgumentTypeError(f"{text:.{_SHOWN}} is not {self}")
        return value

    def __str__(self) -> str:
        """Describe what is accepted."""
        words = "a whole number" if self.kind is int else "a number"
        return f"{words} from {_shown(self.low)} to {_shown(self.high)}"


def whole(low: int, high: int) -> Number:
    """Accept whole numbers in a range, ends included, for ``add_argument(type=...)``."""
    return Number(int, low, high)


def number(low: float, high: float) -> Number:
    """Accept finite numbers in a range, ends included, for ``add_argument(type=...)``."""
    return Number(float, low, high)


def _shown(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


THREADS = whole(1, MAX_THREADS)
RANKS = whole(1, MAX_RANKS)
TRACK = whole(1, MAX_TRACKS)
STEPS = whole(1, MAX_STEPS)
CHUNKS = whole(1, MAX_CHUNKS)
PAIRS = whole(MIN_PAIRS, MAX_CHUNKS)
ROUNDS = whole(1, MAX_ROUNDS)
SECONDS = number(0.001, MAX_SECONDS)
