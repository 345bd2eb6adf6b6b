"""Formats quantities with their units in one style: three digits, SI prefixes, ``61 %``.

Bytes are decimal, as in data sheets of GPUs and bandwidths: 1 GB is 10^9 bytes.
"""

import math

_TIMES = ((1e6, "µs"), (1e3, "ms"), (1.0, "s"))
_PREFIXES = ("", "k", "M", "G", "T", "P")


def number(value: float) -> str:
    """Format three digits, or all those before the point: ``0.123``, ``1234``."""
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def seconds(value: float) -> str:
    """Format a time in a suitable unit: ``81.7 µs``, ``850 ms``, ``14.7 s``."""
    factor, unit = time_unit(value)
    return f"{number(value * factor)} {unit}"


def time_unit(value: float) -> tuple[float, str]:
    """Choose the unit in which a time in seconds is below 1000; return its factor and name."""
    return next((unit for unit in _TIMES if abs(value) * unit[0] < 999.5), _TIMES[-1])


def ms(value: float) -> str:
    """Format a time in seconds as ms, with three digits or whole: ``14,717 ms``."""
    value *= 1e3
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms"


def duration(value: float) -> str:
    """Format a long time in the units that matter: ``3 h 20 min``, ``12 min``, ``40 s``."""
    minutes = round(value / 60)
    if value < 100:
        return f"{value:.0f} s"
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 100 else f"{minutes} min"


def data_size(count: float) -> str:
    """Format bytes: ``512 B``, ``9.5 MB``, ``37.8 GB``."""
    if count < 999.5:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 999.95:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} TB"


def big_count(count: int) -> str:
    """Format a count with a letter for the scale: ``18.9 B`` is 18.9 billion."""
    for limit, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= limit:
            return f"{count / limit:.1f} {unit}"
    return str(count)


def prefixed(value: float) -> str:
    """Format three digits and an SI prefix, to be followed by a unit: ``140 G``."""
    value = float(f"{value:.3g}")  # 999.6 is 1 k
    power = min(len(_PREFIXES) - 1, max(0, math.floor(math.log10(value) / 3))) if value > 0 else 0
    return f"{value / 1000**power:.3g} {_PREFIXES[power]}"


def percent(share: float) -> str:
    """Format a fraction of 1 in per cent: ``61 %``, ``0.7 %``."""
    return f"{100 * share:.0f} %" if abs(share) >= 0.0995 else f"{100 * share:.2g} %"


def percent_change(ratio: float) -> str:
    """Format a ratio as a signed change in per cent, without the unit: ``+9.8``, ``+200``."""
    value = 100 * (ratio - 1)
    return f"{value:+.0f}" if abs(value) >= 99.5 else f"{value:+.1f}"
