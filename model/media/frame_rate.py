"""Frame rates as exact fractions, so that sound and frames never drift apart."""

import re
from fractions import Fraction

from livetalk_kernels.errors import UserError

HIGHEST = 1000
"""Frames per second."""
_LARGEST_DENOMINATOR = 100_000  # so that floats round-trip: neighbours are 1e-10 apart
_NTSC_DECIMALS = (2, 3, 4, 5)
_LONGEST = 40  # characters of input
_TEXT = re.compile(r"\s*[+-]?[0-9]*\.?[0-9]*(/[0-9]+)?\s*")  # no exponent: 1e999999999 takes hours


def frame_rate(rate: float | Fraction | str) -> Fraction:
    """Parse a frame rate exactly; the result, and the float nearest to it, parse to the same again.

    NTSC rates are n * 1000/1001, but are written as decimals: a number that equals one of them
    rounded to two to five decimals (29.97, 23.976, 23.98, 59.94) is taken for it.

    Args:
        rate: Frames per second, or text such as ``25``, ``29.97`` and ``30000/1001``.

    Raises:
        UserError: It is not a number, not positive, or above `HIGHEST`.
    """
    exact = _number(rate).limit_denominator(_LARGEST_DENOMINATOR)
    ntsc = round(exact * 1001 / 1000) * Fraction(1000, 1001)
    if exact in (round(ntsc, decimals) for decimals in _NTSC_DECIMALS):
        exact = ntsc
    if not 0 < exact <= HIGHEST:
        raise UserError(
            f"frame rate {str(rate)[:_LONGEST]}: must be above 0 and at most {HIGHEST}; "
            "use 25, for example"
        )
    return exact


def _number(rate: float | Fraction | str) -> Fraction:
    """Convert a number as written; for floats, the shortest decimals that mean the same.

    Raises:
        UserError: It is not a number.
    """
    if isinstance(rate, Fraction):
        return rate
    text = rate if isinstance(rate, str) else repr(rate)
    try:
        if isinstance(rate, str) and (len(text) > _LONGEST or not _TEXT.fullmatch(text)):
            raise ValueError(text)
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise UserError(
            f"frame rate {text[:_LONGEST]!r}: is not a number; write 25, 29.97 or 30000/1001"
        ) from None
