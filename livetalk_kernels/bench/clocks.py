"""A GPU's clocks around a measurement, without which a time means little."""

from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any

import torch

from .telemetry import THROTTLED, GpuReader, find_nvml, throttle_reasons

DRIFT = 0.03  # relative change of clocks, before to after, that is not worth mentioning
IDLE = "idle"


@dataclass(frozen=True, kw_only=True)
class Clocks:
    """A GPU at one moment; None for what NVML does not report.

    Attributes:
        sm_mhz: Clock of the multiprocessors.
        memory_mhz: Clock of the memory.
        power_w: Watts.
        temperature_c: Degrees.
        held_down_by: What throttles its clocks, in words.
    """

    sm_mhz: float | None
    memory_mhz: float | None
    power_w: float | None
    temperature_c: float | None
    held_down_by: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Convert to plain values."""
        return asdict(self)


def read_clocks(device: torch.device, nvml: ModuleType | None = None) -> Clocks | None:
    """Read a GPU's present state from NVML.

    Args:
        device: The GPU.
        nvml: ``pynvml`` or a substitute; by default the library, if installed.

    Returns:
        The state; None on a CPU and without NVML.
    """
    nvml = nvml or (find_nvml() if device.type == "cuda" else None)
    if device.type != "cuda" or nvml is None:
        return None
    try:
        reader = GpuReader(nvml, "", str(torch.cuda.get_device_properties(device).uuid))
    except nvml.NVMLError:
        return None
    values = dict(zip((name.strip() for name in reader.units), reader.read(), strict=True))
    reader.close()
    return Clocks(
        sm_mhz=values["SM clock"],
        memory_mhz=values["memory clock"],
        power_w=values["power"],
        temperature_c=values["temperature"],
        held_down_by=tuple(throttle_reasons(int(values[THROTTLED] or 0))),
    )


def remark(before: Clocks | None, after: Clocks | None) -> str | None:
    """Summarise what a reader must know of the clocks; None if steady and not throttled."""
    if before is None or after is None:
        return None
    reasons = dict.fromkeys((*before.held_down_by, *after.held_down_by))
    held = [reason for reason in reasons if reason != IDLE]
    begin, end = before.sm_mhz, after.sm_mhz
    moved = begin is not None and end is not None and abs(end - begin) > DRIFT * begin
    if not held and not moved:
        return None
    mhz = " to ".join("?" if clock is None else f"{clock:.0f}" for clock in (begin, end))
    return f"SM clock {mhz} MHz" + (f", held down by {', '.join(held)}" if held else "")
