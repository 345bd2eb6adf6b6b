"""Substitutes the module ``pynvml`` in `fake_cuda`: H200s that their power cap throttles."""

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any


class NVMLError(Exception):
    """``pynvml.NVMLError``."""


NVML_SUCCESS, NVML_TEMPERATURE_GPU = 0, 0
NVML_CLOCK_SM, NVML_CLOCK_MEM = 1, 2
NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON, NVML_FI_DEV_NVLINK_LINK_COUNT = 90, 91
NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX, NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX = 138, 139
_NOT_SUPPORTED = 3
_CLOCKS = {NVML_CLOCK_SM: 1755, NVML_CLOCK_MEM: 3201}
_FIELDS = {NVML_FI_DEV_NVLINK_SPEED_MBPS_COMMON: 26_562, NVML_FI_DEV_NVLINK_LINK_COUNT: 18}
_UUID = "GPU-00000000-0000-0000-0000-00000000000"  # followed by the GPU's number


def _hidden(*arguments: object) -> None:
    raise NVMLError("Not Supported")


def _find(uuid: str) -> int:
    if uuid[:-1] != _UUID:
        raise NVMLError("Not Found")
    return int(uuid[-1])


def field(value: int | None) -> SimpleNamespace:
    """Build a result of ``nvmlDeviceGetFieldValues``; None: the GPU does not report it."""
    result = _NOT_SUPPORTED if value is None else NVML_SUCCESS
    return SimpleNamespace(nvmlReturn=result, value=SimpleNamespace(uiVal=value, ullVal=value))


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "nvmlInit": lambda: None,
    "nvmlShutdown": lambda: None,
    "nvmlSystemGetDriverVersion": lambda: "580.00",
    "nvmlDeviceGetCount": lambda: 1,
    "nvmlDeviceGetHandleByIndex": lambda index: index,
    "nvmlDeviceGetHandleByUUID": _find,
    "nvmlDeviceGetName": lambda handle: "Fake H200",
    "nvmlDeviceGetUUID": lambda handle: f"{_UUID}{handle}",
    "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(used=1 << 34, total=1 << 37),
    "nvmlDeviceGetUtilizationRates": lambda handle: SimpleNamespace(gpu=97, memory=40),
    "nvmlDeviceGetClockInfo": lambda handle, kind: _CLOCKS[kind],
    "nvmlDeviceGetMaxClockInfo": lambda handle, kind: _CLOCKS[kind],
    "nvmlDeviceGetPowerUsage": lambda handle: 698_000,
    "nvmlDeviceGetPowerManagementLimit": lambda handle: 700_000,
    "nvmlDeviceGetTemperature": _hidden,
    "nvmlDeviceGetCurrentClocksThrottleReasons": lambda handle: 0x004,
    "nvmlDeviceGetNvLinkState": lambda handle, link: 1,
    "nvmlDeviceGetFieldValues": lambda handle, fields: [
        field(_FIELDS.get(name[0] if isinstance(name, tuple) else name)) for name in fields
    ],
}
"""Name -> function; other names do not exist."""
globals().update(FUNCTIONS)


class StandIn(SimpleNamespace):
    """The module with other answers; it answers only while open.

    Attributes:
        users: Number of opens without a close.
    """

    def __init__(self, **answers: Callable[..., Any] | None) -> None:
        """Set ``answers``: name -> function; None: the GPU does not report it."""
        given = {**FUNCTIONS, **{name: answer or _hidden for name, answer in answers.items()}}
        known = {name: value for name, value in globals().items() if name.startswith("NVML")}
        super().__init__(**known, **{name: self._open(call) for name, call in given.items()})
        self.users = 0
        self.nvmlInit, self.nvmlShutdown = (lambda: self._count(1)), (lambda: self._count(-1))

    def _open(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def answer(*arguments: Any) -> Any:
            assert self.users, "NVML is not open"
            return call(*arguments)

        return answer

    def _count(self, change: int) -> None:
        self.users += change
