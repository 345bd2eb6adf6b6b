"""GPUs' clocks, power, temperature, load and memory beside the parts of ``make gpu-report``.

By NVML, in a thread, without torch. GPUs are told apart by UUID: torch may see fewer than NVML, in
another order (CUDA_VISIBLE_DEVICES). Untested on a GPU: the tests hand in a stand-in for the
library.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from statistics import median
from types import ModuleType, TracebackType
from typing import Any, Self

PERIOD = 0.5  # seconds
UNITS = {"SM clock": "MHz", "power": "W", "temperature": "°C", "load": "%", "memory": "GB"}


def find_nvml() -> ModuleType | None:
    """``pynvml`` where it is installed and there is a driver, else None."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # neither is there, which the report says
        return None
    return pynvml


class Telemetry:
    """Samples every GPU while its ``with`` block runs.

    Attributes:
        samples: (time.monotonic(), GPU's UUID, column -> value or None).
    """

    def __init__(self, nvml: ModuleType | None, *, period: float = PERIOD) -> None:
        """Without a library nothing is sampled."""
        self.samples: list[tuple[float, str, dict[str, float | None]]] = []
        self._period, self._stop = period, threading.Event()
        self._reads: dict[str, dict[str, Callable[[], float]]] = {}
        if nvml is not None:
            for index in range(nvml.nvmlDeviceGetCount()):
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                self._reads[_uuid(nvml.nvmlDeviceGetUUID(handle))] = _reads(nvml, handle)
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)

    def __enter__(self) -> Self:
        """Begin."""
        if self._reads:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End."""
        self._stop.set()
        if self._reads:
            self._thread.join(2)

    def summary(
        self, begin: float, end: float, uuids: Sequence[str] | None = None
    ) -> list[dict[str, Any]]:
        """Median and most of every column between two times, one entry per GPU.

        Args:
            begin: By ``time.monotonic``.
            end: The same.
            uuids: The GPUs, in torch's order, which numbers them; None: all, in NVML's.
        """
        rows = []
        for gpu, uuid in enumerate(self._reads if uuids is None else map(_uuid, uuids)):
            values = [v for t, u, v in list(self.samples) if u == uuid and begin <= t <= end]
            rows.append({"gpu": gpu, **{name: _median_and_most(values, name) for name in UNITS}})
        return rows if self._reads else []

    def _run(self) -> None:
        while not self._stop.wait(self._period):
            for uuid, reads in self._reads.items():
                self.samples.append(
                    (time.monotonic(), uuid, {k: _told(r) for k, r in reads.items()})
                )


def _uuid(name: str | bytes) -> str:
    """As torch has it: older versions of NVML give bytes, all give a prefix."""
    text = name.decode("ascii") if isinstance(name, bytes) else name
    return text.removeprefix("GPU-")


def _reads(nvml: ModuleType, handle: Any) -> dict[str, Callable[[], float]]:
    return {
        "SM clock": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
        "power": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
        "temperature": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        "load": lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu,
        "memory": lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used / 1e9,
    }


def _told(read: Callable[[], float]) -> float | None:
    """A value, or None where the GPU does not give it."""
    with suppress(Exception):  # NVML's own errors have no common base that is known here
        return float(read())
    return None


def _median_and_most(
    values: Sequence[Mapping[str, float | None]], name: str
) -> dict[str, float] | None:
    known = [value for sample in values if (value := sample[name]) is not None]
    if not known:
        return None
    return {"median": median(known), "most": max(known)}
