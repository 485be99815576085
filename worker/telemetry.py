"""What an NVIDIA GPU says of itself, by NVML (package ``nvidia-ml-py``, module ``pynvml``).

Without the package, the driver or a GPU there is no telemetry, and :attr:`Telemetry.absent` says why. A
value that this GPU does not tell is None and not a reason to stop.
"""

from __future__ import annotations

import importlib
import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from symphony.status import SymphonyError

_log = logging.getLogger(__name__)

INTERVAL_S: Final = 1.0
THROTTLE_REASONS: Final = {
    "GpuIdle": "idle",
    "ApplicationsClocksSetting": "applications-clocks",
    "SwPowerCap": "sw-power-cap",
    "HwSlowdown": "hw-slowdown",
    "SyncBoost": "sync-boost",
    "SwThermalSlowdown": "sw-thermal",
    "HwThermalSlowdown": "hw-thermal",
    "HwPowerBrakeSlowdown": "hw-power-brake",
    "DisplayClockSetting": "display-clocks",
}
"""NVML's bits by the end of their constant's name, and what they are called here."""
_REASON_NAMES: Final = ("EventReason", "ThrottleReason")
"""What drivers of R535 and later call them, and what earlier ones did."""


class Telemetry:
    """One GPU. All methods are called from one thread.

    Args:
        device: as PyTorch calls it, ``cuda:N``; anything else has no telemetry.
        pynvml: the module; None: import it.
        uuid: the GPU's. N does not tell: NVML counts by the bus, CUDA by speed or as
            ``CUDA_VISIBLE_DEVICES`` says.
    """

    def __init__(self, device: str, pynvml: Any = None, uuid: str | None = None) -> None:
        self.absent: str | None = None
        """Why there is none; None if there is."""
        self._nvml: Any = None
        self._handle: Any = None
        if not device.startswith("cuda"):
            self.absent = f"device {device} is no NVIDIA GPU"
            return
        try:
            nvml = pynvml or importlib.import_module("pynvml")
        except ModuleNotFoundError:
            self.absent = "the package nvidia-ml-py is not installed"
            return
        try:
            nvml.nvmlInit()
            self._nvml = nvml
            if uuid is not None:
                self._handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
            else:
                self._handle = nvml.nvmlDeviceGetHandleByIndex(int(device.partition(":")[2] or 0))
        except nvml.NVMLError as error:
            self.absent = f"NVML: {error}"
            self.close()

    def driver(self) -> str | None:
        """The driver's version."""
        nvml = self._nvml
        return None if nvml is None else self._ask(lambda: _text(nvml.nvmlSystemGetDriverVersion()))

    def clocks(self) -> dict[str, int]:
        """MHz now: ``sm`` and ``memory``; empty without telemetry."""
        nvml = self._nvml
        if nvml is None:
            return {}
        read = {
            "sm": self._ask(lambda: nvml.nvmlDeviceGetClockInfo(self._handle, nvml.NVML_CLOCK_SM)),
            "memory": self._ask(lambda: nvml.nvmlDeviceGetClockInfo(self._handle, nvml.NVML_CLOCK_MEM)),
        }
        return {name: int(value) for name, value in read.items() if value is not None}

    def read(self) -> dict[str, Any]:
        """Everything that is published, as ``docs/wire-protocol.md`` lists it for topic ``gpu.<worker>``."""
        nvml, handle = self._nvml, self._handle
        if nvml is None:
            return {"v": 1, "absent": self.absent}
        rates = self._ask(lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
        memory = self._ask(lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
        power = self._ask(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
        clocks = self.clocks()
        return {
            "v": 1,
            "absent": None,
            "name": self._ask(lambda: _text(nvml.nvmlDeviceGetName(handle))),
            "utilization": None if rates is None else rates.gpu / 100,
            "memory_utilization": None if rates is None else rates.memory / 100,
            "memory_used_mb": None if memory is None else int(memory.used) >> 20,
            "memory_total_mb": None if memory is None else int(memory.total) >> 20,
            "temperature_c": self._ask(
                lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)
            ),
            "power_w": None if power is None else power / 1000,
            "sm_mhz": clocks.get("sm"),
            "memory_mhz": clocks.get("memory"),
            "throttle": self._throttle(),
            "ecc_corrected": self._ecc("NVML_MEMORY_ERROR_TYPE_CORRECTED"),
            "ecc_uncorrected": self._ecc("NVML_MEMORY_ERROR_TYPE_UNCORRECTED"),
        }

    def close(self) -> None:
        """Let NVML go."""
        nvml, self._nvml = self._nvml, None
        if nvml is not None:
            try:
                nvml.nvmlShutdown()
            except nvml.NVMLError as error:
                _log.debug("NVML would not end: %s", error)

    def _throttle(self) -> list[str] | None:
        """By either name: an old driver knows only the old one, the package may drop it one day."""
        nvml = self._nvml
        for kind in _REASON_NAMES:
            question = getattr(nvml, f"nvmlDeviceGetCurrentClocks{kind}s", None)
            bits = None if question is None else self._ask(partial(question, self._handle))
            if bits is not None:
                constants = {f"nvmlClocks{kind}{end}": name for end, name in THROTTLE_REASONS.items()}
                return [name for constant, name in constants.items() if getattr(nvml, constant, 0) & bits]
        return None

    def _ecc(self, kind: str) -> int | None:
        nvml = self._nvml
        value = self._ask(
            lambda: nvml.nvmlDeviceGetTotalEccErrors(
                self._handle, getattr(nvml, kind), nvml.NVML_VOLATILE_ECC
            )
        )
        return None if value is None else int(value)

    def _ask(self, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except self._nvml.NVMLError:
            return None  # this GPU does not tell
        except AttributeError as error:
            raise SymphonyError(f"this pynvml is not nvidia-ml-py: {error}") from None


class Watch:
    """Reads a GPU once a second in a thread of its own: some of NVML's questions take milliseconds.

    Args:
        device: as the configuration calls it; an emulated one is no GPU that could be asked.
        telemetry: by default :class:`Telemetry` of the device.
    """

    def __init__(self, device: str, telemetry: Telemetry | None = None) -> None:
        self._device = device
        self._telemetry = telemetry
        self.latest: dict[str, Any] = {"v": 1}
        """What was read last; always another object."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)

    def start(self, uuid: str = "") -> None:
        """Begin, if there is something to read. ``uuid``: of the GPU, where it is known."""
        read = self._telemetry = self._telemetry or Telemetry(self._device, uuid=uuid or None)
        if read.absent is None:
            self._thread.start()
        else:
            self.latest = read.read()

    def _run(self) -> None:
        assert self._telemetry is not None
        while not self._stop.is_set():
            try:
                self.latest = self._telemetry.read()
            except SymphonyError as error:
                self.latest = {"v": 1, "absent": str(error)}
                break
            self._stop.wait(INTERVAL_S)
        self._telemetry.close()

    def close(self, timeout_s: float = 2.0) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
