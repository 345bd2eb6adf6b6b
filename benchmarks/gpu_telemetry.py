"""GPUs' clocks, power, temperature, load and memory beside the parts of ``make gpu-report``.

By NVML, in a thread, without torch. Untested on a GPU: the tests hand in a stand-in for the
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
        samples: (time.monotonic(), GPU, column -> value or None).
    """

    def __init__(self, nvml: ModuleType | None, *, period: float = PERIOD) -> None:
        """Without a library nothing is sampled."""
        self.samples: list[tuple[float, int, dict[str, float | None]]] = []
        self._period, self._stop = period, threading.Event()
        self._reads: list[dict[str, Callable[[], float]]] = []
        if nvml is not None:
            count = nvml.nvmlDeviceGetCount()
            self._reads = [_reads(nvml, index) for index in range(count)]
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

    def summary(self, begin: float, end: float) -> list[dict[str, Any]]:
        """Median and most of every column between two times, one entry per GPU."""
        rows = []
        for gpu in range(len(self._reads)):
            values = [v for t, g, v in list(self.samples) if g == gpu and begin <= t <= end]
            rows.append({"gpu": gpu, **{name: _median_and_most(values, name) for name in UNITS}})
        return rows

    def _run(self) -> None:
        while not self._stop.wait(self._period):
            for gpu, reads in enumerate(self._reads):
                self.samples.append(
                    (time.monotonic(), gpu, {k: _told(r) for k, r in reads.items()})
                )


def _reads(nvml: ModuleType, index: int) -> dict[str, Callable[[], float]]:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
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
