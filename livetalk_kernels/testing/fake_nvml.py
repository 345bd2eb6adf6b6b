"""Stands for the module ``pynvml`` beside `fake_cuda`: one H200 that its power cap slows down."""

from types import SimpleNamespace


class NVMLError(Exception):
    """``pynvml.NVMLError``."""


NVML_SUCCESS, NVML_TEMPERATURE_GPU = 0, 0
NVML_CLOCK_SM, NVML_CLOCK_MEM = 1, 2
NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX, NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX = 138, 139
_CLOCKS = {NVML_CLOCK_SM: 1755, NVML_CLOCK_MEM: 3201}


def _hidden(*arguments: object) -> None:
    raise NVMLError("Not Supported")


FUNCTIONS = {
    "nvmlInit": lambda: None,
    "nvmlShutdown": lambda: None,
    "nvmlSystemGetDriverVersion": lambda: "580.00",
    "nvmlDeviceGetCount": lambda: 1,
    "nvmlDeviceGetHandleByIndex": lambda index: index,
    "nvmlDeviceGetHandleByUUID": lambda uuid: int(uuid[-1]),
    "nvmlDeviceGetName": lambda handle: "Fake H200",
    "nvmlDeviceGetUUID": lambda handle: f"GPU-00000000-0000-0000-0000-00000000000{handle}",
    "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(used=1 << 34, total=1 << 37),
    "nvmlDeviceGetUtilizationRates": lambda handle: SimpleNamespace(gpu=97, memory=40),
    "nvmlDeviceGetClockInfo": lambda handle, kind: _CLOCKS[kind],
    "nvmlDeviceGetMaxClockInfo": lambda handle, kind: _CLOCKS[kind],
    "nvmlDeviceGetPowerUsage": lambda handle: 698_000,
    "nvmlDeviceGetPowerManagementLimit": lambda handle: 700_000,
    "nvmlDeviceGetTemperature": _hidden,
    "nvmlDeviceGetCurrentClocksThrottleReasons": lambda handle: 0x004,
    "nvmlDeviceGetFieldValues": _hidden,
}
"""Name -> function; what is not here does not exist."""
globals().update(FUNCTIONS)
