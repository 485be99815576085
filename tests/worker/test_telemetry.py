"""Telemetry from a made-up NVML: what is read, what a GPU does not tell, and its absence."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import msgpack
import pytest
from helpers import wait_until

from symphony.cli.status import _telemetry
from symphony.status import SymphonyError
from symphony.topics import decode_body
from worker.telemetry import Telemetry, Watch


class NVMLError(Exception):
    """As pynvml's."""


class FakeNvml:
    """As much of pynvml as is used; one GPU, number 0."""

    NVMLError = NVMLError
    NVML_CLOCK_SM, NVML_CLOCK_MEM = 1, 2
    NVML_TEMPERATURE_GPU = 0
    NVML_VOLATILE_ECC = 0
    NVML_MEMORY_ERROR_TYPE_CORRECTED, NVML_MEMORY_ERROR_TYPE_UNCORRECTED = 0, 1
    nvmlClocksThrottleReasonSwPowerCap = 4
    nvmlClocksThrottleReasonHwThermalSlowdown = 64

    def __init__(self) -> None:
        self.open = 0
        self.mute: set[str] = set()

    def _say(self, name: str, value: Any) -> Any:
        if name in self.mute:
            raise NVMLError("Not Supported")
        return value

    def nvmlInit(self) -> None:
        self._say("init", None)
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        if index:
            raise NVMLError("Invalid Argument")
        return "gpu-0"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid != "GPU-1":
            raise NVMLError("Not Found")
        return "gpu-0"

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return b"570.1"

    def nvmlDeviceGetName(self, handle: str) -> str:
        return "Fake GPU"

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:
        return int(self._say("clocks", {1: 1410, 2: 1593}[kind]))

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:
        return self._say("rates", SimpleNamespace(gpu=87, memory=40))

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:
        return SimpleNamespace(used=3 << 30, total=80 << 30)

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:
        return 61

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return 312_500

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: str) -> int:
        return int(self._say("throttle", 4 | 64))

    def nvmlDeviceGetTotalEccErrors(self, handle: str, kind: int, counter: int) -> int:
        return int(self._say("ecc", (5, 1)[kind]))


def test_everything_is_read_in_the_documented_units() -> None:
    nvml = FakeNvml()
    telemetry = Telemetry("cuda:0", nvml)
    assert telemetry.read() == {
        "v": 1,
        "absent": None,
        "name": "Fake GPU",
        "utilization": 0.87,
        "memory_utilization": 0.4,
        "memory_used_mb": 3072,
        "memory_total_mb": 81920,
        "temperature_c": 61,
        "power_w": 312.5,
        "sm_mhz": 1410,
        "memory_mhz": 1593,
        "throttle": ["sw-power-cap", "hw-thermal"],
        "ecc_corrected": 5,
        "ecc_uncorrected": 1,
    }
    assert telemetry.driver() == "570.1"
    telemetry.close()
    telemetry.close()
    assert nvml.open == 0


def test_what_a_gpu_does_not_tell_is_none_and_the_rest_is_there() -> None:
    nvml = FakeNvml()
    nvml.mute = {"ecc", "throttle", "rates", "clocks"}
    read = Telemetry("cuda:0", nvml).read()
    for name in ("ecc_corrected", "ecc_uncorrected", "throttle", "utilization", "sm_mhz"):
        assert read[name] is None
    assert read["temperature_c"] == 61


def test_reasons_by_the_new_name_and_by_the_old_one_where_the_driver_knows_no_other() -> None:
    class New(FakeNvml):
        nvmlClocksEventReasonSwThermalSlowdown = 32

        def nvmlDeviceGetCurrentClocksEventReasons(self, handle: str) -> int:
            return int(self._say("events", 32))

    nvml = New()
    telemetry = Telemetry("cuda:0", nvml, uuid="GPU-1")
    assert telemetry.read()["throttle"] == ["sw-thermal"]
    nvml.mute = {"events"}
    assert telemetry.read()["throttle"] == ["sw-power-cap", "hw-thermal"]


def test_a_gpu_is_asked_for_by_its_uuid_where_that_is_known() -> None:
    nvml = FakeNvml()
    assert Telemetry("cuda:3", nvml, uuid="GPU-1").absent is None
    assert Telemetry("cuda:0", nvml, uuid="GPU-2").absent == "NVML: Not Found"
    watch = Watch("cuda:3")
    assert watch.latest == {"v": 1}
    watch.close()


def test_no_gpu_no_telemetry_and_it_is_said() -> None:
    cpu = Telemetry("cpu")
    assert cpu.read() == {"v": 1, "absent": "device cpu is no NVIDIA GPU"}
    assert (cpu.clocks(), cpu.driver()) == ({}, None)
    nvml = FakeNvml()
    assert Telemetry("cuda:3", nvml).absent == "NVML: Invalid Argument"
    assert nvml.open == 0
    nvml.mute = {"init"}
    assert Telemetry("cuda:0", nvml).absent == "NVML: Not Supported"


def test_without_the_package_or_with_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert Telemetry("cuda:0").absent == "the package nvidia-ml-py is not installed"
    nvml = FakeNvml()
    monkeypatch.delattr(FakeNvml, "nvmlDeviceGetName")
    with pytest.raises(SymphonyError, match="this pynvml is not nvidia-ml-py"):
        Telemetry("cuda:0", nvml).read()


def test_a_watch_reads_in_its_thread_and_ends() -> None:
    nvml = FakeNvml()
    watch = Watch("cuda:0", Telemetry("cuda:0", nvml))
    assert watch.latest == {"v": 1}
    watch.start()
    assert wait_until(lambda: watch.latest.get("power_w")) == 312.5
    watch.close()
    assert nvml.open == 0
    absent = Watch("cpu")
    absent.start()
    assert absent.latest["absent"] == "device cpu is no NVIDIA GPU"
    absent.close()


def test_status_says_what_was_read_or_why_not() -> None:
    said = _telemetry(Telemetry("cuda:0", FakeNvml()).read())
    assert said == (
        " (87% busy, 3072 of 81920 MB, 61 °C, 312 W, 1410 MHz, throttled: sw-power-cap, hw-thermal, "
        "1 uncorrected ECC errors)"
    )
    assert _telemetry({"v": 1, "absent": "no driver"}) == " (no telemetry: no driver)"
    assert (_telemetry(None), _telemetry({"v": 1})) == ("", "")


def test_what_is_published_is_what_the_broker_lets_through() -> None:
    body = Telemetry("cuda:0", FakeNvml()).read()
    assert decode_body("gpu", "worker-0", msgpack.packb(body)) == body
