"""A device without PyTorch: models are Python functions on stacked arrays."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from helpers import wait_until

from symphony.status import InvalidRequest
from worker.definition import Definition, load_definition
from worker.device import Executed, Item, rows_of
from worker.executor import Executor
from worker.runners import DeviceRunner

Function = Callable[[np.ndarray[Any, Any]], Any]


def double(x: np.ndarray[Any, Any]) -> Any:
    """``y`` = twice the sum of each item's ``x``."""
    return 2 * x.sum(axis=1)


def definition(name: str = "double", **change: Any) -> Definition:
    """``x`` FP32 [2] → ``y`` FP32 []; the profile says 1 ms and more."""
    values: dict[str, Any] = {
        "name": name,
        "slo_ms": 100,
        "max_batch": 32,
        "loader": "nowhere:load",
        "inputs": [{"name": "x", "dtype": "FP32", "shape": [2]}],
        "outputs": [{"name": "y", "dtype": "FP32", "shape": []}],
        "profile": {"alpha_ms": 0.1, "beta_ms": 1},
    }
    return load_definition(values | change)


class FakeDevice:
    """Runs ``function``; :attr:`gate`, when cleared, holds batches on the device."""

    gpu_type = "fake"
    memory_mb = 123

    def __init__(self, function: Function = double) -> None:
        self.function = function
        self.gate = threading.Event()
        self.gate.set()
        self.entered = 0
        self.sizes: list[int] = []
        self.prepared: list[int] = []
        self.free: int | None = None
        self.tuned: list[str] = []
        self.definitions: dict[str, Definition] = {}

    def free_bytes(self) -> int | None:
        return self.free

    def load(self, key: str, definition: Definition) -> None:
        self.definitions[key] = definition

    def unload(self, key: str) -> None:
        self.definitions.pop(key, None)

    def tune(self, key: str, items: Any, turn: Any) -> None:
        with turn():
            self.tuned.append(key)

    def used_bytes(self) -> int:
        return 2 << 20

    def peak_bytes(self, reset: bool = False) -> int:
        return 3 << 20

    def weights_bytes(self, key: str) -> int:
        return 1 << 20

    def graph_sizes(self, key: str) -> list[int]:
        return []

    def describe(self) -> dict[str, str]:
        return {"torch": "none", "driver": "1.2"}

    def check(self, key: str, item: Item) -> None:
        if (item["x"] == 13).any():
            raise InvalidRequest("13 is not a number that this model takes")

    def prepare(self, key: str, items: Sequence[Item]) -> Any:
        self.prepared.append(len(items))
        return np.stack([item["x"] for item in items])

    def launch(self, key: str, prepared: Any, count: int) -> Executed:
        self.entered += 1
        assert self.gate.wait(30)
        self.sizes.append(count)
        started = time.monotonic_ns()
        outputs = rows_of(self.definitions[key], {"y": np.asarray(self.function(prepared))}, count)
        return Executed(outputs, started, time.monotonic_ns())

    def collect(self, launched: Executed) -> Executed:
        return launched


def runner(device: FakeDevice, *definitions: Definition) -> DeviceRunner:
    return DeviceRunner(Executor(lambda: device, definitions))


def xs(a: float, b: float = 0.0) -> dict[str, Any]:
    """Inputs of one request."""
    return {"x": np.array([a, b], dtype=np.float32)}


@contextmanager
def executor(device: FakeDevice, *definitions: Definition, **options: Any) -> Iterator[Executor]:
    """A started executor on the device, with ``double`` where no definitions are given."""
    made = Executor(lambda: device, definitions or [definition()], **options)
    made.start()
    try:
        wait_until(lambda: made.ready() is not None)
        yield made
    finally:
        device.gate.set()
        assert made.close()
