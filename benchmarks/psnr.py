"""Compares frames of two runs that should be equal, such as on one rank and on several.

For ``chunk.py``, ``scaling.py`` and the end-to-end suites.
"""

import math
from collections.abc import Mapping

import numpy as np

PEAK = 255.0
FLOOR: Mapping[str, float] = {"float32": 60.0, "bfloat16": 35.0}
"""Dtype -> required dB: for fp32 the contract's; for bf16, whose rounding depends on the order of
sums, over 40 layers and 4 steps."""


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Compute the peak signal-to-noise ratio of uint8 frames in dB; infinite if equal."""
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return 10 * math.log10(PEAK**2 / error) if error else math.inf
