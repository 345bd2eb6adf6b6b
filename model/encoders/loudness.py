"""Loudness of mono speech after ITU-R BS.1770-4: K-weighting, blocks of 0.4 s, two gates.

The filters are the high shelf and the high pass of R. Bristow-Johnson's "Audio EQ cookbook", with
the parameters of pyloudnorm, which the published model uses. Filtered samples are rounded to the
input's dtype, as there.

A recursive filter is linear: its output for a block is a matrix times the block's samples and the
two preceding state variables. Nothing loops over samples, and nothing is truncated.

Layout legend: N samples, K blocks, B samples per block.
"""

from collections.abc import Sequence
from math import cos, pi, sin, sqrt
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Samples: TypeAlias = NDArray[np.floating[Any]]
Doubles: TypeAlias = NDArray[np.float64]

GATE_SECONDS = 0.4  # one measuring block; the next starts 0.1 s later
_STEPS = 10  # block starts per second
_ABSOLUTE_GATE = -70.0  # LUFS
_RELATIVE_GATE = -10.0  # LU, relative to the mean of what passes the first gate
_BLOCK = 32  # samples per filter block: fewer lengthen the scan, more enlarge the product


class LoudnessMeter:
    """Measures the integrated loudness of speech at one sample rate."""

    def __init__(self, sample_rate: int) -> None:
        """Compute the K-weighting for ``sample_rate`` samples per second."""
        self._rate = sample_rate
        self._filters = (_high_shelf(sample_rate), _high_pass(sample_rate))

    def measure(self, samples_N: Samples) -> float:
        """Measure the integrated loudness.

        A block has -0.691 + 10 log10(mean square of its filtered samples) LUFS. The result is that
        of the mean over the blocks louder than -70, and louder than the mean over these less 10.

        Args:
            samples_N: float32 or float64 [N], at least 0.4 s.

        Returns:
            LUFS; -inf if no block is louder than -70.
        """
        for biquad in self._filters:
            samples_N = biquad(samples_N).astype(samples_N.dtype)
        energies = self._energies(samples_N)
        levels = _loudness(energies)
        heard = levels >= _ABSOLUTE_GATE
        if not heard.any():
            return -np.inf
        gate = max(_ABSOLUTE_GATE, _loudness(energies[heard].mean()) + _RELATIVE_GATE)
        return float(_loudness(energies[levels > gate].mean()))

    def _energies(self, samples_N: Samples) -> Doubles:
        """Compute every block's mean square; the last may extend past the end, into silence."""
        seconds = len(samples_N) / self._rate
        blocks = round((seconds - GATE_SECONDS) / (1 / _STEPS)) + 1
        ends = [step * self._rate // _STEPS for step in range(blocks + 4)]
        squares_N, share = np.square(samples_N), 1 / (GATE_SECONDS * self._rate)
        pieces = (squares_N[start:end] for start, end in zip(ends, ends[4:], strict=False))
        return np.array([piece.sum() * share for piece in pieces], np.float64)


class Biquad:
    """The filter y[n] = b0 x[n] + b1 x[n-1] + b2 x[n-2] - a1 y[n-1] - a2 y[n-2], from rest."""

    def __init__(self, b: Sequence[float], a: Sequence[float]) -> None:
        """Run the recursion for every unit vector of a block's samples and of the state.

        Args:
            b: Three input coefficients.
            a: Three output coefficients; all are divided by the first.
        """
        (b0, b1, b2), (a1, a2) = (value / a[0] for value in b), (value / a[0] for value in a[1:])
        units = np.eye(_BLOCK + 2)
        outputs, first, second = np.empty((_BLOCK + 2, _BLOCK)), units[:, -2], units[:, -1]
        for n in range(_BLOCK):
            x = units[:, n]
            y = outputs[:, n] = b0 * x + first
            first, second = b1 * x - a1 * y + second, b2 * x - a2 * y
        states = np.stack((first, second), axis=1)
        self._outputs_of: tuple[Doubles, Doubles] = outputs[:_BLOCK], outputs[_BLOCK:]
        self._states_of: tuple[Doubles, Doubles] = states[:_BLOCK], states[_BLOCK:]

    def __call__(self, samples_N: Samples) -> Doubles:
        """Filter float [N] to float64 [N]."""
        count = len(samples_N)
        blocks_KB = np.zeros((-(-count // _BLOCK), _BLOCK))
        blocks_KB.ravel()[:count] = samples_N
        of_samples, of_state = self._outputs_of
        result_KB = blocks_KB @ of_samples
        result_KB[1:] += self._states(blocks_KB)[:-1] @ of_state
        return result_KB.ravel()[:count]

    def _states(self, blocks_KB: Doubles) -> Doubles:
        """Compute the two state variables after every block, [K, 2], by a doubling scan.

        After each round, row k holds the contributions of twice as many blocks up to k.
        """
        of_samples, of_state = self._states_of
        states_K2, reach = blocks_KB @ of_samples, 1
        while reach < len(states_K2):
            states_K2[reach:] += states_K2[:-reach] @ of_state
            of_state, reach = of_state @ of_state, 2 * reach
        return states_K2


def _high_shelf(rate: int, hertz: float = 1500.0, decibels: float = 4.0) -> Biquad:
    """Model the head: boost frequencies above ``hertz``; Q = sqrt(1/2)."""
    gain, angle = 10 ** (decibels / 40), 2 * pi * hertz / rate
    more, less, bend = gain + 1, gain - 1, sqrt(2 * gain) * sin(angle)
    top, bottom = more + less * cos(angle), more - less * cos(angle)
    b = (top + bend, -2 * (less + more * cos(angle)), top - bend)
    a = (bottom + bend, 2 * (less - more * cos(angle)), bottom - bend)
    return Biquad([gain * value for value in b], a)


def _high_pass(rate: int, hertz: float = 38.0) -> Biquad:
    """Model the ear: attenuate frequencies below ``hertz``; Q = 1/2."""
    angle = 2 * pi * hertz / rate
    half = (1 + cos(angle)) / 2
    return Biquad((half, -2 * half, half), (1 + sin(angle), -2 * cos(angle), 1 - sin(angle)))


def _loudness(energy: Any) -> Any:
    """Convert mean squares to LUFS."""
    with np.errstate(divide="ignore"):  # silence is -inf
        return -0.691 + 10.0 * np.log10(energy)
