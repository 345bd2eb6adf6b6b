"""What the machine did beside a run: clocks, power, temperature, memory and load, over time.

A thread samples the host by psutil and GPUs by NVML. Samples carry ``time.perf_counter_ns``, the
clock of `livetalk_kernels.runtime.timeline`, so that both can be shown on one axis.

The NVML part is untested on a GPU; its tests hand in a stand-in for the library.
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
CAPACITY = 4096  # samples; when they are full, every second one goes and the period doubles
_CLOCK_SECONDS = 1.0  # the system asks each core for its frequency, which wakes idle ones
_JOIN_SECONDS = 5.0  # a driver that hangs may not hang the run
_ALL_LINKS = 0xFFFFFFFF  # NVML's scope of a sum over all NVLinks
_DIGITS = 9  # decimals of the times, s

THROTTLED = "slowed by"
"""Name of a GPU's column of reasons, after the GPU's own; see `throttle_reasons`."""

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
    """Why a GPU's clocks are not higher, in words; empty where nothing holds them down.

    Args:
        bits: A value of a column that ends in `THROTTLED`.
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
        """The values now; None for what is not told."""

    def close(self) -> None:
        """Let go of the source; nothing is read afterwards."""


class HostReader:
    """Load of all cores, of this process, its resident memory, and the cores' mean frequency."""

    def __init__(self) -> None:
        """Note where the counters stand; shares count from here."""
        import psutil  # a machine that is measured for its GPU may be without

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
        """See the base class; both shares are of all cores together."""
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
        """Idle and all CPU seconds, those of this process, and the clock."""
        times = self._psutil.cpu_times()._asdict()
        idle = times["idle"] + times.get("iowait", 0.0)
        # Guests' time is in the users' already.
        every = sum(value for name, value in times.items() if not name.startswith("guest"))
        return idle, every, time.process_time(), time.perf_counter()


def _cpu_clock(psutil: ModuleType) -> Value:
    """Mean frequency of the cores in MHz; None where the system does not tell."""
    try:
        frequency = psutil.cpu_freq()
    except (OSError, NotImplementedError, AttributeError):  # psutil lacks it on some systems
        return None
    return round(frequency.current, 1) if frequency else None


def _share(part: float, whole: float) -> Value:
    """Percent; None where the counters have not moved."""
    return min(100.0, max(0.0, round(100 * part / whole, 1))) if whole > 0 else None


class GpuReader:
    """One GPU by NVML, which needs no CUDA context. Untested on a GPU."""

    def __init__(self, nvml: ModuleType, name: str, uuid: str) -> None:
        """Find the GPU.

        Args:
            nvml: ``pynvml``, or what stands in for it.
            name: How its columns begin, as ``"GPU 0"``.
            uuid: As torch or NVML give it.

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
        return [self._told(read) for read in self._reads]

    def close(self) -> None:
        """See the base class."""
        self._nvml.nvmlShutdown()

    def _told(self, read: Callable[[], Value]) -> Value:
        """A value, or None where this GPU, its driver or this user's rights do not give it."""
        try:
            return read()
        except self._nvml.NVMLError:
            return None

    def _link_bytes(self, direction: str) -> int | None:
        """Bytes that went through all NVLinks since the driver was loaded."""
        field = getattr(self._nvml, f"NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_{direction}")
        (entry,) = self._nvml.nvmlDeviceGetFieldValues(self._handle, [(field, _ALL_LINKS)])
        return entry.value.ullVal * 1024 if entry.nvmlReturn == self._nvml.NVML_SUCCESS else None


class _Rate:
    """How fast a counter rises."""

    def __init__(self) -> None:
        self._before: tuple[float, int] | None = None

    def of(self, count: int | None) -> Value:
        """Per second since the last call; None the first time, and where there is no counter."""
        before, now = self._before, time.perf_counter()
        self._before = None if count is None else (now, count)
        if before is None or count is None or count < before[1]:
            return None
        return (count - before[1]) / (now - before[0])


def open_readers(devices: "Sequence[torch.device]", nvml: ModuleType | None) -> list[Reader]:
    """The host and, as far as NVML knows them, the GPUs.

    Args:
        devices: What the run uses; those that are no GPU count as the host.
        nvml: ``pynvml``; None where it is not installed.
    """
    import torch  # what samples all GPUs may be without

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
    """Every GPU that NVML knows, in its order; columns begin with the UUID, as torch has it."""
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
    """``pynvml``; None where it is not installed."""
    try:
        import pynvml  # takes a moment, and only a run with a GPU wants it
    except ImportError:
        return None
    return pynvml


class Telemetry:
    """Samples in a thread while its ``with`` block runs; nothing that fails here fails the run.

    Attributes:
        seconds: CPU time that sampling has taken.
        count: Samples that were taken, those included that were thinned out since.
    """

    def __init__(
        self,
        devices: "Sequence[torch.device]",
        *,
        period: float = PERIOD,
        capacity: int = CAPACITY,
        readers: Sequence[Reader] | None = None,
    ) -> None:
        """Look for what can be sampled.

        Args:
            devices: GPUs that this process uses; the host is sampled in any case.
            period: Seconds between two samples.
            capacity: How many samples are kept at most. When they are full, every second one is
                dropped and the period doubles, so the whole run stays covered.
            readers: What is sampled instead.
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
        # A daemon does not keep a process alive that dies within the block.
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)

    def __enter__(self) -> Self:
        """Begin."""
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
        """Seconds between two samples; it doubles whenever they are thinned out."""
        return self._period

    def as_json(self, origin_ns: int) -> dict[str, Any]:
        """What was sampled, for a report: ``period`` (s), ``units`` and ``samples`` by column.

        Args:
            origin_ns: ``time.perf_counter_ns`` of the time 0 of column ``t`` (s).
        """
        samples = self._kept()
        columns: dict[str, list[Any]] = {
            "t": [round((ns - origin_ns) / 1e9, _DIGITS) for ns, _ in samples]
        }
        for index, name in enumerate(self._units):
            columns[name] = [values[index] for _, values in samples]
        return {"period": self._period, "units": dict(self._units), "samples": columns}

    def counters(self, origin_ns: int, process: int) -> list[dict[str, Any]]:
        """Chrome trace events, phase ``C``, in the order of time, to add to a timeline's trace.

        Args:
            origin_ns: ``time.perf_counter_ns`` when the timeline began; what was before is left
                out, as is what was not told.
            process: Number of the process in the trace (`Timeline.process`).
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
            ends = self._stop.is_set()  # the last sample is from after the end
            self._sample()
            if ends:
                return
            now = time.perf_counter()
            due = max(due + self._period, now)  # late samples are not caught up with
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
    """What a reader gives; None, with a warning, where it fails in a way nobody foresaw."""
    try:
        return call()
    except Exception as error:  # whatever it is, the run that is measured goes on
        _LOG.warning("telemetry of one source ends: %s: %s", type(error).__name__, error)
        return None
