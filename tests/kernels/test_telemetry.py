"""Telemetry: what is sampled, on which clock, what is missing, what fails, what it costs."""

import ctypes
import itertools
import json
import logging
import sys
import threading
import time
from itertools import pairwise
from statistics import median
from types import SimpleNamespace

import pytest
import torch

from livetalk_kernels.bench.telemetry import (
    GpuReader,
    HostReader,
    Telemetry,
    find_nvml,
    open_readers,
    throttle_reasons,
)
from livetalk_kernels.runtime.timeline import Timeline
from livetalk_kernels.testing.fake_nvml import NVMLError, StandIn, field
from livetalk_kernels.testing.trace import trace_problems

CPU = torch.device("cpu")


UUID = "00000000-0000-0000-0000-000000000000"


def nvml_of(**answers) -> StandIn:
    """A GPU that reports its temperature and counts NVLink traffic."""
    kib = itertools.count(1 << 20, 1 << 20)

    def traffic(handle, fields):
        assert all(scope == ctypes.c_uint(-1).value for _, scope in fields)
        return [field(next(kib)) for _ in fields]

    reported = {"nvmlDeviceGetTemperature": lambda handle, sensor: {0: 63}[sensor]}
    return StandIn(**{**reported, "nvmlDeviceGetFieldValues": traffic, **answers})


class Broken:
    """A source that fails at its second sample in a way that nobody foresaw."""

    def __init__(self):
        self.units = {"x": "m"}
        self.reads = 0

    def read(self):
        self.reads += 1
        if self.reads > 1:
            raise RuntimeError("the source broke")
        return [1.5]

    def close(self):
        raise RuntimeError("and does not close")


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "telemetry"]


def test_samples_of_the_host_are_on_the_clock_of_the_timeline():
    origin = time.perf_counter_ns()
    with Telemetry([CPU], period=0.01) as telemetry:
        began = time.perf_counter_ns()
        x = 0
        while time.perf_counter_ns() - began < 150e6:
            x += 1  # keeps one core busy
        ended = time.perf_counter_ns()
    assert not threads()
    result = json.loads(json.dumps(telemetry.as_json(origin), allow_nan=False))
    samples, units = result["samples"], result["units"]
    assert result["period"] == 0.01
    assert list(samples) == ["t", *units]
    assert len({len(column) for column in samples.values()}) == 1
    times = samples["t"]
    assert times == sorted(times) and 3 <= len(times) <= 17 and telemetry.count == len(times)
    assert times[0] >= 0 and times[-1] >= (ended - origin) / 1e9  # the last one is after the end
    assert units == {
        "CPU": "%",
        "CPU of this process": "%",
        "resident memory": "B",
        "CPU clock": "MHz",
    }
    own = [value for value in samples["CPU of this process"][1:-1] if value is not None]
    assert 0 < max(own) <= 100
    assert all(value > 50e6 for value in samples["resident memory"])
    assert all(value is None or value > 100 for value in samples["CPU clock"])


def test_a_gpu_by_a_stand_in_for_nvml():
    nvml = nvml_of()
    reader = GpuReader(nvml, "GPU 3", UUID)
    with Telemetry([], period=0.005, readers=[reader]) as telemetry:
        time.sleep(0.05)
    assert nvml.users == 0
    result = telemetry.as_json(0)
    last = {name: column[-1] for name, column in result["samples"].items() if name != "t"}
    del last["GPU 3 NVLink sent"], last["GPU 3 NVLink received"]
    assert last == {
        "GPU 3 utilisation": 97,
        "GPU 3 SM clock": 1755,
        "GPU 3 memory clock": 3201,
        "GPU 3 power": 698,
        "GPU 3 temperature": 63,
        "GPU 3 memory": 1 << 34,
        "GPU 3 slowed by": 4,
    }
    assert result["units"]["GPU 3 power"] == "W" and result["units"]["GPU 3 memory"] == "B"
    assert result["samples"]["GPU 3 NVLink sent"][0] is None  # a rate needs two readings
    steps = [b - a for a, b in pairwise(result["samples"]["t"])]
    for column in ("GPU 3 NVLink sent", "GPU 3 NVLink received"):
        # Each sample finds 2 GiB more in each direction: the counter rises at both readings.
        rates = result["samples"][column][1:]
        ratios = [rate * step / (2 << 30) for rate, step in zip(rates, steps, strict=True)]
        assert median(ratios) == pytest.approx(1, rel=0.3)


def test_what_a_gpu_does_not_report_is_none_and_the_rest_is_there():
    nvml = nvml_of(
        nvmlDeviceGetPowerUsage=None,
        nvmlDeviceGetCurrentClocksThrottleReasons=None,
        nvmlDeviceGetFieldValues=lambda handle, fields: [field(None) for _ in fields],
    )
    with Telemetry(
        [], period=0.005, readers=[GpuReader(nvml, "GPU 0", f"GPU-{UUID}")]
    ) as telemetry:
        time.sleep(0.03)
    samples = telemetry.as_json(0)["samples"]
    for column in ("power", "slowed by", "NVLink sent", "NVLink received"):
        assert set(samples[f"GPU 0 {column}"]) == {None}
    assert set(samples["GPU 0 temperature"]) == {63}
    names = {event["name"] for event in telemetry.counters(0, 0)}
    assert "GPU 0 temperature, °C" in names and not any("power" in name for name in names)


def test_a_gpu_that_nvml_does_not_know_leaves_nvml_closed():
    nvml = nvml_of()
    with pytest.raises(NVMLError):
        GpuReader(nvml, "GPU 0", "other")
    assert nvml.users == 0


def test_without_a_gpu_or_without_nvml_only_the_host_is_sampled(monkeypatch):
    (reader,) = open_readers([CPU, CPU], nvml_of())
    assert isinstance(reader, HostReader)
    (reader,) = open_readers([torch.device("cuda", 0)], None)
    assert isinstance(reader, HostReader)
    assert find_nvml().__name__ == "pynvml"
    monkeypatch.setitem(sys.modules, "pynvml", None)  # as if it were not installed
    assert find_nvml() is None


def test_gpus_of_the_run_are_found_by_their_uuid(monkeypatch):
    properties = {0: SimpleNamespace(uuid="unknown"), 1: SimpleNamespace(uuid=UUID)}
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties.get)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    nvml = nvml_of()
    devices = [torch.device("cuda", 0), torch.device("cuda"), torch.device("cuda")]
    host, gpu = open_readers(devices, nvml)  # GPU 0 is not known to NVML, GPU 1 counts once
    assert isinstance(host, HostReader) and "GPU 1 power" in gpu.units and nvml.users == 1


def test_a_source_that_breaks_ends_alone(caplog):
    broken = Broken()
    with (
        caplog.at_level(logging.WARNING),
        Telemetry([], period=0.005, readers=[broken, HostReader()]) as telemetry,
    ):
        time.sleep(0.05)
    samples = telemetry.as_json(0)["samples"]
    assert samples["x"][0] == 1.5 and set(samples["x"][1:]) == {None} and broken.reads == 2
    assert samples["resident memory"][-1] > 0 and not threads()
    assert [record.message.count("broke") for record in caplog.records] == [1, 0]


def test_an_error_of_the_run_passes_and_the_thread_ends():
    with pytest.raises(KeyError), Telemetry([CPU], period=0.01):
        raise KeyError("of the run")
    assert not threads()


def test_a_short_run_has_samples_too():
    with Telemetry([CPU], period=60) as telemetry:
        pass
    assert telemetry.count >= 1 and not threads()


def test_memory_is_bounded_and_the_whole_run_stays_covered():
    with Telemetry([CPU], period=0.002, capacity=16) as telemetry:
        time.sleep(0.25)
    result = telemetry.as_json(0)
    times = result["samples"]["t"]
    assert len(times) < 16 < telemetry.count
    assert result["period"] == telemetry.period > 0.002
    assert times[-1] - times[0] > 0.2


def test_counters_go_into_the_trace_of_a_timeline():
    with Telemetry([CPU], period=0.005) as telemetry:
        time.sleep(0.02)
        timeline = Timeline(CPU, rank=3, capacity=9)
        origin = time.perf_counter_ns()
        with timeline.range("stage"):
            time.sleep(0.03)
    events = telemetry.counters(origin, 3)
    trace = timeline.trace({})
    trace["traceEvents"] += events
    assert not trace_problems(trace)
    memory = [event for event in events if event["name"] == "resident memory, B"]
    assert 2 <= len(memory) < telemetry.count  # those before the timeline are left out
    assert all(event["pid"] == 3 and event["args"]["value"] > 0 for event in memory)
    assert memory[0]["ts"] < memory[-1]["ts"] < 1e6


def test_reasons_in_words():
    assert throttle_reasons(0) == []
    assert throttle_reasons(0x44) == ["power cap", "temperature (hardware)"]
    assert throttle_reasons(0x1000) == ["another reason"]


def test_the_cost_of_a_sample_is_small():
    with Telemetry([CPU], period=0.002) as telemetry:
        time.sleep(0.3)
    each = telemetry.seconds / telemetry.count
    assert 0 < each < 2e-3, f"{each * 1e6:.0f} us of CPU time a sample"  # 2 % of 0.1 s
