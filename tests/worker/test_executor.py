"""The executor's threads: overlap, order, refusals of single items, models that raise, lost devices."""

from __future__ import annotations

import re
import sys
from typing import Any

import numpy as np
import pytest
from fake_device import FakeDevice, definition, double, executor
from helpers import wait_until

from symphony import tensors
from symphony.status import Status
from worker.batch import Batch, Payload
from worker.definition import DefinitionError
from worker.device import DeviceError, DeviceLost, open_device
from worker.executor import Executor
from worker.holdings import Ready


def batch(*values: Any, names: tuple[str, ...] = ("x",), model: str = "double") -> Batch:
    column = np.arange(len(values), dtype=np.uint64)
    made = Batch(0, 0, model, column, np.zeros(len(values), dtype=np.int64), 0, 0)
    for row, value in enumerate(values):
        if isinstance(value, Payload):
            made.inputs[row] = value
        else:
            dtype, shape, frame = tensors.encode(np.asarray(value, dtype=np.float32))
            made.inputs[row] = Payload(list(names), [[dtype, shape]], [frame])
    return made


def collect(made: Executor, count: int) -> list[Batch]:
    finished: list[Batch] = []

    def enough() -> bool:
        finished.extend(made.finished())
        return len(finished) >= count

    wait_until(enough)
    return finished


def test_it_tells_what_it_loaded() -> None:
    with executor(FakeDevice(), definition(), definition("other")) as made:
        ready = made.ready()
        assert isinstance(ready, Ready)
        assert set(ready.profiles) == {"double", "other"}
        assert (ready.gpu_type, ready.memory_mb, made.gpu_type) == ("fake", 123, "fake")


def test_batches_come_back_in_order_with_their_rows_and_times() -> None:
    with executor(FakeDevice()) as made:
        batches = [batch([i, 1], [i, 2]) for i in range(10)]
        for b in batches:
            made.submit(b)
        finished = collect(made, 10)
    assert finished == batches
    for i, b in enumerate(batches):
        assert b.outputs["y"].tolist() == [2 * (i + 1), 2 * (i + 2)]
        assert b.status.tolist() == [Status.OK] * 2
        assert b.ran == 2
        assert 0 < b.started_ns <= b.finished_ns
    assert [b.started_ns for b in batches] == sorted(b.started_ns for b in batches)


def test_the_next_batch_is_prepared_while_one_runs() -> None:
    device = FakeDevice()
    with executor(device) as made:
        device.prepared.clear()
        device.gate.clear()
        for size in (1, 2, 3):
            made.submit(batch(*[[0, 0]] * size))
        wait_until(lambda: device.prepared == [1, 2, 3])
        assert made.finished() == []
        device.gate.set()
        collect(made, 3)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (Payload(["x"], [["FP32", [3]]], [bytes(12)]), r"'x' must have shape \[2\], not \[3\]"),
        (Payload(["x"], [["FP64", [2]]], [bytes(16)]), r"'x' must be FP32, not FP64"),
        (Payload(["z"], [["FP32", [2]]], [bytes(8)]), r"unknown tensor 'z'; the model takes x"),
        (Payload([], [], []), r"tensor 'x' is missing"),
        (Payload(["x", "x"], [["FP32", [2]]] * 2, [bytes(8)] * 2), r"a tensor is given twice"),
        (Payload(["x"], [["FP32", [2]]], [bytes(7)]), r"7 bytes cannot be"),
        (Payload(["x"], [["FP32", [2]]], [b""]), r"0 bytes cannot be"),
    ],
)
def test_one_bad_request_is_refused_and_the_others_run(payload: Payload, message: str) -> None:
    with executor(FakeDevice()) as made:
        mixed = batch([1, 2], payload, [3, 4])
        made.submit(mixed)
        collect(made, 1)
        alone = batch(payload)
        made.submit(alone)
        collect(made, 1)
    assert mixed.status.tolist() == [Status.OK, Status.INVALID, Status.OK]
    assert mixed.outputs["y"].tolist() == [6, 14]
    assert mixed.ran == 2
    assert alone.status.tolist() == [Status.INVALID]
    assert alone.ran == 0
    assert re.search(message, mixed.errors[1])


def test_a_models_own_check_refuses_one_request() -> None:
    with executor(FakeDevice()) as made:
        mixed = batch([1, 2], [13, 0])
        made.submit(mixed)
        collect(made, 1)
    assert mixed.status.tolist() == [Status.OK, Status.INVALID]
    assert "13 is not a number" in mixed.errors[1]


def test_a_model_that_raises_on_some_batches_fails_those_and_no_others() -> None:
    def picky(x: Any) -> Any:
        if x.sum() > 100:
            raise RuntimeError("too much\nfor me")
        return double(x)

    with executor(FakeDevice(picky)) as made:
        batches = [batch([i * 50, 0], [1, 1]) for i in range(4)]
        for b in batches:
            made.submit(b)
        collect(made, 4)
    assert [b.status.tolist() for b in batches] == [[Status.OK] * 2] * 2 + [[Status.FAILED] * 2] * 2
    assert batches[3].errors == {0: "RuntimeError: too much for me", 1: "RuntimeError: too much for me"}
    assert batches[3].not_ok() == 2


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: np.zeros(len(x) + 1), r"output 'y' has shape \[3\]; expected \[2\]"),
        (lambda x: np.zeros((len(x), 4)), r"output 'y' has shape \[2, 4\]; expected \[2\]"),
        (lambda x: np.zeros(()), r"output 'y' has shape \[\]"),
    ],
)
def test_outputs_that_are_not_the_definitions_fail_the_batch(function: Any, message: str) -> None:
    device = FakeDevice()
    with executor(device) as made:
        device.function = function
        b = batch([1, 2], [3, 4])
        made.submit(b)
        collect(made, 1)
    assert b.status.tolist() == [Status.FAILED] * 2
    assert re.search(message, b.errors[0])


def test_a_lost_device_fails_this_batch_and_every_later_one() -> None:
    device = FakeDevice()
    with executor(device) as made:

        def lost(x: Any) -> Any:
            raise DeviceLost("device-side assert")

        device.function = lost
        first, second = batch([1, 2]), batch([1, 2])
        made.submit(first)
        collect(made, 1)
        device.function = double
        made.submit(second)
        collect(made, 1)
        assert made.lost is not None
    assert first.status.tolist() == second.status.tolist() == [Status.FAILED]


def test_a_device_that_cannot_be_made_is_told_to_the_owner() -> None:
    def broken() -> FakeDevice:
        raise DeviceError("no such device")

    made = Executor(broken, [definition()])
    made.start()

    def raised() -> bool:
        try:
            return made.ready() is not None
        except DeviceError:
            return True

    wait_until(raised)
    with pytest.raises(DeviceError, match="no such device"):
        made.ready()
    assert made.close()


def test_a_model_that_fails_its_own_samples_is_refused_at_the_start() -> None:
    def broken(x: Any) -> Any:
        raise KeyError("weights")

    made = Executor(lambda: FakeDevice(broken), [definition()])
    made.start()
    with pytest.raises(DefinitionError, match=r"model 'double': a batch of 1 of its samples raised KeyError"):
        wait_until(made.ready)
    assert made.close()


def test_closing_does_not_wait_for_ever() -> None:
    device = FakeDevice()
    made = Executor(lambda: device, [definition()])
    made.start()
    wait_until(lambda: made.ready() is not None)
    device.gate.clear()
    before = device.entered
    made.submit(batch([1, 2]))
    wait_until(lambda: device.entered > before)
    assert not made.close(timeout_s=0.05)
    device.gate.set()
    assert made.close()


def test_a_device_needs_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "worker.torch_device", raising=False)
    with pytest.raises(DeviceError, match=r"device cpu needs 'torch'.*pip install"):
        open_device("cpu", 1, "")
