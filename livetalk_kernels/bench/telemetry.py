"""Samples the machine during a run: clocks, power, temperature, memory and load over time.

A thread samples the host through psutil and GPUs through NVML. Samples carry
``time.perf_counter_ns``, the clock of `livetalk_kernels.runtime.timeline`, so that both share an
axis.

The tests pass in a substitute for the library.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

if TYPE_CHECKING:
    import torch

_LOG = logging.getLogger(__name__)

PERIOD = 0.1  # seconds between two samples
CAPACITY = 4096  # samples; when full, every second one is dropped and the period doubles
_CLOCK_SECONDS = 1.0  # reading frequencies wakes idle cores, so it is done rarely
_JOIN_SECONDS = 5.0  # a hanging driver must not hang the run
_ALL_LINKS = 0xFFFFFFFF  # NVML's scope for the sum over all NVLinks
_DIGITS = 9  # decimals of the times, s

THROTTLED = "slowed by"
"""Suffix of a GPU's column of reasons; see `throttle_reasons`."""

_REASONS = {  # NVML's bits: nvmlClocksEventReasons
    0x001: "idle",
    0x002: "clocks set by the user",
    0x004: "power cap",
    0x008: "hardware slowdown",
    0x010: "sync boost",
    0x020: "temperature (software)",
    0x040: "temperature (hardware)",
    0x080: "power brake",
    0x100: "display clocks",
}

Value = float | None
T = TypeVar("T")


def throttle_reasons(bits: int) -> list[str]:
    """List why a GPU's clocks are not higher, in words; empty if nothing throttles them.

    Args:
        bits: A value from a column whose name ends in `THROTTLED`.
    """
    known = [reason for bit, reason in _REASONS.items() if bits & bit]
    return known + (["another reason"] if bits & ~sum(_REASONS) else [])


class Reader(Protocol):
    """A source of samples.

    Attributes:
        units: Column -> unit, in the order of `read`.
    """

    units: Mapping[str, str]

    def read(self) -> Sequence[Value]:
        """Return the current values; None for those not available."""

    def close(self) -> None:
        """Release the source; nothing is read afterwards."""


class HostReader:
    """Load of all cores, of this process, its resident memory, and the cores' mean frequency."""

    def __init__(self) -> None:
        """Record the counters' starting values; loads count from here."""
        import psutil  # optional where only a GPU is measured

        self._psutil = psutil
        self.units: Mapping[str, str] = {
            "CPU": "%",
            "CPU of this process": "%",
            "resident memory": "B",
            "CPU clock": "MHz",
        }
        self._process = psutil.Process()
        self._cores = psutil.cpu_count() or 1
        self._before = self._counters()
        self._clock: Value = None
        self._clock_read_at = -_CLOCK_SECONDS

    def read(self) -> Sequence[Value]:
        """See the base class; both loads are relative to all cores together."""
        now = self._counters()
        idle, every, own, elapsed = (a - b for a, b in zip(now, self._before, strict=True))
        self._before = now
        if now[-1] - self._clock_read_at >= _CLOCK_SECONDS:
            self._clock, self._clock_read_at = _cpu_clock(self._psutil), now[-1]
        return (
            _share(every - idle, every),
            _share(own, elapsed * self._cores),
            float(self._process.memory_info().rss),
            self._clock,
        )

    def close(self) -> None:
        """See the base class."""

    def _counters(self) -> tuple[float, float, float, float]:
        """Return idle and total CPU seconds, those of this process, and the clock."""
        times = self._psutil.cpu_times()._asdict()
        idle = times["idle"] + times.get("iowait", 0.0)
        # The users' time already includes their guests'.
        every = sum(value for name, value in times.items() if not name.startswith("guest"))
        return idle, every, time.process_time(), time.perf_counter()


def _cpu_clock(psutil: ModuleType) -> Value:
    """Return the mean frequency of the cores in MHz; None if the system does not report it."""
    try:
        frequency = psutil.cpu_freq()
    except (OSError, NotImplementedError, AttributeError):  # psutil lacks it on some systems
        return None
    return round(frequency.current, 1) if frequency else None


def _share(part: float, whole: float) -> Value:
    """Compute a percentage; None if the counters have not moved."""
    return min(100.0, max(0.0, round(100 * part / whole, 1))) if whole > 0 else None


class GpuReader:
    """One GPU through NVML, which needs no CUDA context."""

    def __init__(self, nvml: ModuleType, name: str, uuid: str) -> None:
        """Find the GPU.

        Args:
            nvml: ``pynvml``, or a substitute.
            name: Prefix of its columns, such as ``"GPU 0"``.
            uuid: As reported by torch or NVML.

        Raises:
            nvml.NVMLError: There is no driver, or it does not know the GPU.
        """
        self._nvml = nvml
        nvml.nvmlInit()
        try:
            handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid.removeprefix('GPU-')}")
        except nvml.NVMLError:
            nvml.nvmlShutdown()
            raise
        self._handle = handle
        self._sent = _Rate()
        self._received = _Rate()
        sm, memory = nvml.NVML_CLOCK_SM, nvml.NVML_CLOCK_MEM
        columns: dict[str, tuple[str, Callable[[], Value]]] = {
            "utilisation": ("%", lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
            "SM clock": ("MHz", lambda: nvml.nvmlDeviceGetClockInfo(handle, sm)),
            "memory clock": ("MHz", lambda: nvml.nvmlDeviceGetClockInfo(handle, memory)),
            "power": ("W", lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000),
            "temperature": (
                "°C",
                lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            ),
            "memory": ("B", lambda: nvml.nvmlDeviceGetMemoryInfo(handle).used),
            THROTTLED: ("bits", lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)),
            "NVLink sent": ("B/s", lambda: self._sent.of(self._link_bytes("TX"))),
            "NVLink received": ("B/s", lambda: self._received.of(self._link_bytes("RX"))),
        }
        self.units: Mapping[str, str] = {f"{name} {k}": unit for k, (unit, _) in columns.items()}
        self._reads = [read for _, read in columns.values()]

    def read(self) -> Sequence[Value]:
        """See the base class."""
        return [self._reported(read) for read in self._reads]

    def close(self) -> None:
        """See the base class."""
        self._nvml.nvmlShutdown()

    def _reported(self, read: Callable[[], Value]) -> Value:
        """Return a value, or None if this GPU, its driver or the user's rights withhold it."""
        try:
            return read()
        except self._nvml.NVMLError:
            return None

    def _link_bytes(self, direction: str) -> int | None:
        """Return the bytes that went through all NVLinks since the driver was loaded."""
        field = getattr(self._nvml, f"NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_{direction}")
        (entry,) = self._nvml.nvmlDeviceGetFieldValues(self._handle, [(field, _ALL_LINKS)])
        return entry.value.ullVal * 1024 if entry.nvmlReturn == self._nvml.NVML_SUCCESS else None


class _Rate:
    """The rate of increase of a counter."""

    def __init__(self) -> None:
        self._before: tuple[float, int] | None = None

    def of(self, count: int | None) -> Value:
        """Return the rate per second since the last call; None at first, or without a counter."""
        before, now = self._before, time.perf_counter()
        self._before = None if count is None else (now, count)
        if before is None or count is None or count < before[1]:
            return None
        return (count - before[1]) / (now - before[0])


def open_readers(devices: "Sequence[torch.device]", nvml: ModuleType | None) -> list[Reader]:
    """Open the host and those GPUs that NVML knows.

    Args:
        devices: Devices of the run; those that are not GPUs count as the host.
        nvml: ``pynvml``; None if not installed.
    """
    import torch  # not needed to sample all GPUs

    readers: list[Reader] = [HostReader()]
    for device in dict.fromkeys(devices):
        if device.type != "cuda" or nvml is None:
            continue
        index = torch.cuda.current_device() if device.index is None else device.index
        uuid = str(torch.cuda.get_device_properties(index).uuid)
        try:
            readers.append(GpuReader(nvml, f"GPU {index}", uuid))
        except nvml.NVMLError as error:
            _LOG.info("no telemetry of GPU %d: %s", index, error)
    return readers


def gpu_readers(nvml: ModuleType | None) -> list[Reader]:
    """Open every GPU that NVML knows, in its order; columns begin with the UUID torch reports."""
    if nvml is None:
        return []
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:  # there is no driver
        return []
    try:
        handles = map(nvml.nvmlDeviceGetHandleByIndex, range(nvml.nvmlDeviceGetCount()))
        uuids = [nvml.nvmlDeviceGetUUID(handle).removeprefix("GPU-") for handle in handles]
        return [GpuReader(nvml, uuid, uuid) for uuid in uuids]
    finally:
        nvml.nvmlShutdown()


def find_nvml() -> ModuleType | None:
    """Import ``pynvml``; None if not installed."""
    try:
        import pynvml  # slow to import, and only a run with a GPU needs it
    except ImportError:
        return None
    return pynvml


class Telemetry:
    """Samples in a thread while its ``with`` block runs; its failures never fail the run.

    Attributes:
        seconds: CPU time spent on sampling.
        count: Samples taken, including those thinned out since.
    """

    def __init__(
        self,
        devices: "Sequence[torch.device]",
        *,
        period: float = PERIOD,
        capacity: int = CAPACITY,
        readers: Sequence[Reader] | None = None,
    ) -> None:
        """Find out what can be sampled.

        Args:
            devices: GPUs that this process uses; the host is always sampled.
            period: Seconds between two samples.
            capacity: Maximum number of samples kept. When full, every second one is dropped and the
                period doubles, so the whole run stays covered.
            readers: Sources to sample instead.
        """
        if readers is None:
            has_gpu = any(device.type == "cuda" for device in devices)
            readers = open_readers(devices, find_nvml() if has_gpu else None)
        self.seconds = 0.0
        self.count = 0
        self._period, self._capacity = period, capacity
        self._readers = list(readers)
        self._failed: set[int] = set()
        self._units = {name: unit for reader in readers for name, unit in reader.units.items()}
        self._samples: list[tuple[int, list[Value]]] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        # A daemon does not keep alive a process that dies within the block.
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)

    def __enter__(self) -> Self:
        """Start sampling."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the last sample and end the thread."""
        self._stop.set()
        self._thread.join(_JOIN_SECONDS)
        if self._thread.is_alive():
            _LOG.warning("telemetry does not end: NVML or the system hangs")
            return
        for reader in self._readers:
            _guarded(reader.close)

    @property
    def period(self) -> float:
        """Seconds between two samples; doubles whenever they are thinned out."""
        return self._period

    def as_json(self, origin_ns: int) -> dict[str, Any]:
        """Convert the samples for a report: ``period`` (s), ``units`` and ``samples`` by column.

        Args:
            origin_ns: ``time.perf_counter_ns`` at time 0 of column ``t`` (s).
        """
        samples = self._kept()
        columns: dict[str, list[Any]] = {
            "t": [round((ns - origin_ns) / 1e9, _DIGITS) for ns, _ in samples]
        }
        for index, name in enumerate(self._units):
            columns[name] = [values[index] for _, values in samples]
        return {"period": self._period, "units": dict(self._units), "samples": columns}

    def counters(self, origin_ns: int, process: int) -> list[dict[str, Any]]:
        """Build Chrome trace events, phase ``C``, in order of time, to add to a timeline's trace.

        Args:
            origin_ns: ``time.perf_counter_ns`` at the timeline's start; earlier samples are
                omitted, and so are missing values.
            process: Process number in the trace (`Timeline.process`).
        """
        return [
            {
                "name": f"{name}, {unit}",
                "ph": "C",
                "pid": process,
                "tid": 1,
                "ts": (ns - origin_ns) / 1e3,
                "args": {"value": values[index]},
            }
            for ns, values in self._kept()
            if ns >= origin_ns
            for index, (name, unit) in enumerate(self._units.items())
            if values[index] is not None
        ]

    def _kept(self) -> list[tuple[int, list[Value]]]:
        with self._lock:
            return list(self._samples)

    def _run(self) -> None:
        due = time.perf_counter()
        while True:
            ends = self._stop.is_set()  # the last sample is taken after the end
            self._sample()
            if ends:
                return
            now = time.perf_counter()
            due = max(due + self._period, now)  # missed samples are not made up for
            self._stop.wait(due - now)

    def _sample(self) -> None:
        began = time.thread_time()
        ns = time.perf_counter_ns()
        values: list[Value] = []
        for index, reader in enumerate(self._readers):
            read = None if index in self._failed else _guarded(reader.read)
            if read is None:
                self._failed.add(index)
                read = [None] * len(reader.units)
            values += read
        with self._lock:
            self._samples.append((ns, values))
            self.count += 1
            if len(self._samples) >= self._capacity:
                del self._samples[1::2]
                self._period *= 2
        self.seconds += time.thread_time() - began


def _guarded(call: Callable[[], T]) -> T | None:
    """Return a reader's result; None, with a warning, if it fails unexpectedly."""
    try:
        return call()
    except Exception as error:  # whatever it is, the measured run continues
        _LOG.warning("telemetry of one source ends: %s: %s", type(error).__name__, error)
        return None
