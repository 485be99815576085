"""Models come and go on a real device while others serve: versions, failures, memory, hanging batches."""

from __future__ import annotations

import re
import threading
import time
from typing import Any

import numpy as np
import pytest
from fake_device import FakeDevice, definition, double, executor
from helpers import wait_until
from loading_parts import batch, failure, run, until_held

from symphony import tensors
from symphony.status import Status, SymphonyError
from worker.batch import Batch, Payload
from worker.definition import Definition
from worker.device import OutOfMemory
from worker.emulated_models import EmulatedModels
from worker.executor import Executor
from worker.lifecycle import State

MB = 1 << 20


def test_a_model_is_added_and_another_removed_while_batches_run() -> None:
    device = FakeDevice()
    with executor(device) as made:
        run(made, batch(1))
        made.want([definition(), definition("other")])
        until_held(made, "double", "other")
        run(made, batch(2, "other"), batch(3))
        made.want([definition("other")])
        until_held(made, "other")
        wait_until(lambda: (made.finished(), len(device.definitions) == 1)[1])
        refused = batch(4)
        run(made, refused)
        assert refused.status.tolist() == [Status.UNAVAILABLE]
        assert refused.errors == {0: "model 'double' is not loaded here"}


def test_a_batch_that_was_accepted_runs_on_although_its_model_is_to_go() -> None:
    device = FakeDevice()
    with executor(device) as made:
        accepted = batch(5)
        assert made.reserve(accepted)
        made.want([])
        until_held(made)
        run(made, accepted)
        assert accepted.outputs["y"].tolist() == [10]
        wait_until(lambda: (made.finished(), not device.definitions)[1])


def test_a_new_version_replaces_the_old_one_which_finishes_its_batches() -> None:
    device = FakeDevice()
    with executor(device) as made:
        old = batch(1)
        assert made.reserve(old)
        made.want([definition(memory_mb=7)])
        wait_until(lambda: (made.finished(), made.held().definitions["double"].memory_mb == 7)[1])
        assert len(device.definitions) == 2, "the old one still holds a batch"
        run(made, old, batch(2))
        assert old.status.tolist() == [Status.OK]
        wait_until(lambda: (made.finished(), list(device.definitions) == ["double#2"])[1])


def test_a_file_that_changes_is_a_new_version_without_anybody_asking(tmp_path: Any) -> None:
    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"one")
    device = FakeDevice()
    made = definition(options={"weights": str(weights)})
    with executor(device, made) as running:
        assert list(device.definitions) == ["double#1"]
        weights.write_bytes(b"another")
        wait_until(lambda: (running.finished(), list(device.definitions) == ["double#2"])[1])
        good = batch(1)
        run(running, good)
        assert good.status.tolist() == [Status.OK]


def test_a_version_that_cannot_load_leaves_the_old_one() -> None:
    class Picky(FakeDevice):
        def load(self, key: str, definition: Definition) -> None:
            if definition.memory_mb == 7:
                raise RuntimeError("broken file")
            super().load(key, definition)

    with executor(Picky()) as made:
        made.changes()
        made.want([definition(memory_mb=7)])
        change = failure(made)
        assert (change.model, change.reason, change.out_of_memory) == ("double", "broken file", False)
        good = batch(1)
        run(made, good)
        assert good.status.tolist() == [Status.OK]


def test_a_model_larger_than_what_is_free_is_not_even_tried() -> None:
    device = FakeDevice()
    device.free = 100 * MB
    with executor(device) as made:
        made.want([definition(), definition("large", memory_mb=300)])
        change = failure(made)
        assert (change.model, change.out_of_memory) == ("large", True)
        assert change.reason == "needs 300 MB, 100 MB are free"
        assert "large#2" not in device.definitions
        device.free = 400 * MB
        until_held(made, "double", "large")  # the loader looks again every two seconds


def test_out_of_memory_while_warming_up_is_an_event_and_the_others_serve() -> None:
    class Short(FakeDevice):
        def launch(self, key: str, prepared: Any, count: int) -> Any:
            if key.startswith("large"):
                raise OutOfMemory("tried to allocate 20 GiB")
            return super().launch(key, prepared, count)

    device = Short()
    with executor(device) as made:
        made.want([definition(), definition("large")])
        change = failure(made)
        assert change.out_of_memory
        assert change.reason == "tried to allocate 20 GiB"
        assert list(device.definitions) == ["double#1"], "what it held is freed"
        good = batch(1)
        run(made, good)
        assert good.status.tolist() == [Status.OK]


def test_batches_out_of_memory_fail_and_in_the_end_the_model_leaves_and_the_worker_stays() -> None:
    device = FakeDevice()
    with executor(device, definition(), definition("other")) as made:

        def short(x: Any) -> Any:
            if x.sum() == 1:
                raise MemoryError("no more")
            return double(x)

        device.function = short
        failed = [batch(1) for _ in range(3)]
        for one in failed:
            run(made, one)
        assert {one.errors[0] for one in failed} == {"MemoryError: no more"}
        until_held(made, "other")
        good = batch(2, "other")
        run(made, good)
        assert good.status.tolist() == [Status.OK]


def test_rows_that_are_not_finite_fail_where_the_definition_says_so() -> None:
    def root(x: Any) -> Any:
        with np.errstate(invalid="ignore"):
            return np.sqrt(x[:, 0])

    def two(model: str) -> Batch:
        made = Batch(0, 0, model, np.arange(2, dtype=np.uint64), np.zeros(2, dtype=np.int64), 0, 0)
        for row, value in enumerate((-1, 4)):
            dtype, shape, frame = tensors.encode(np.array([value, 0], dtype=np.float32))
            made.inputs[row] = Payload(["x"], [[dtype, shape]], [frame])
        return made

    strict = definition("strict", finite=True)
    with executor(FakeDevice(root), definition(), strict) as made:
        passed, caught = two("double"), two("strict")
        run(made, passed, caught)
    assert passed.status.tolist() == [Status.OK] * 2
    assert np.isnan(passed.outputs["y"][0])
    assert caught.status.tolist() == [Status.FAILED, Status.OK]
    assert caught.outputs["y"].tolist() == [2]
    assert caught.errors == {0: "output 'y' is not a finite number"}


def test_a_batch_that_hangs_is_noticed() -> None:
    device = FakeDevice()
    with executor(device, hang_ns=50_000_000) as made:
        assert made.hang_due() is None
        device.gate.clear()
        held = batch(1)
        made.submit(held)
        due = wait_until(made.hang_due)
        assert not made.hangs(due - 1)
        assert made.hangs(due)
        device.gate.set()
        wait_until(lambda: made.hang_due() is None)


class Stuck(FakeDevice):
    """Loads models called ``stuck``, or runs their first batch, only when :attr:`let_go` is set."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where
        self.let_go = threading.Event()
        self.unloaded: list[str] = []

    def _at(self, where: str, key: str) -> None:
        if where == self.where and key.startswith("stuck"):
            assert self.let_go.wait(30)

    def load(self, key: str, definition: Definition) -> None:
        self._at("load", key)
        super().load(key, definition)

    def launch(self, key: str, prepared: Any, count: int) -> Any:
        self._at("launch", key)
        return super().launch(key, prepared, count)

    def unload(self, key: str) -> None:
        super().unload(key)
        self.unloaded.append(key)


@pytest.mark.parametrize(("where", "what"), [("load", "loading it"), ("launch", "a step of its warm-up")])
def test_a_model_that_hangs_while_it_comes_fails_and_the_others_serve_and_load(where: str, what: str) -> None:
    device = Stuck(where)
    with executor(device) as made:
        made.want([definition(), definition("stuck", load_limit_s=0.2)])
        change = failure(made)
        assert (change.model, change.out_of_memory) == ("stuck", False)
        assert re.fullmatch(rf"{what} has not ended after \d+\.\d s: given up", change.reason)
        good = batch(1)
        run(made, good)
        assert good.status.tolist() == [Status.OK]
        made.want([definition(), definition("stuck", load_limit_s=0.2), definition("other")])
        until_held(made, "double", "other")
        assert made.failed().keys() == {"stuck"}
        device.let_go.set()  # it was only slow: what it holds is freed, and nobody is told
        wait_until(lambda: "stuck#2" in device.unloaded)
        assert set(device.definitions) == {"double#1", "other#3"}


def test_batches_do_not_wait_for_a_warm_up_that_hangs_until_its_own_limit() -> None:
    device = Stuck("launch")
    with executor(device, hang_ns=100_000_000) as made:
        made.want([definition(), definition("stuck", load_limit_s=3600)])
        wait_until(lambda: (made.finished(), made._turns._background is not None)[1])
        due = made.load_due()
        assert due is not None
        assert due > time.monotonic_ns() + 3000 * 10**9
        good = batch(1)
        run(made, good)
        assert good.status.tolist() == [Status.OK]
        assert failure(made).model == "stuck"
        device.let_go.set()


def test_a_first_model_that_hangs_is_an_error_of_the_worker() -> None:
    device = Stuck("load")
    made = Executor(lambda: device, [definition("stuck", load_limit_s=0.1)])
    made.start()
    with pytest.raises(SymphonyError, match=r"loading it has not ended after .* s: given up"):
        wait_until(made.ready)
    assert not made.close(timeout_s=0.05), "its thread is still there"
    device.let_go.set()
    wait_until(made.close)


def test_the_first_models_must_load() -> None:
    device = FakeDevice()
    device.free = 1 * MB
    made = Executor(lambda: device, [definition(memory_mb=3)])
    made.start()
    with pytest.raises(Exception, match=r"model 'double': needs 3 MB, 1 MB are free"):
        wait_until(made.ready)
    assert made.close()


# -- emulated devices ------------------------------------------------------------------------------


def emulated(name: str, **change: Any) -> Definition:
    return definition(name, loader="emulated", **change)


def test_an_emulated_device_takes_the_definitions_time_to_load() -> None:
    models = EmulatedModels("a100")
    models.want(0, [emulated("a", load_ms=10), emulated("b", load_ms=5), emulated("c")])
    assert models.ready() is None
    models.advance(9_999_999)
    assert models.profiles == {}
    models.advance(10_000_000)
    assert set(models.profiles) == {"a"}
    assert models.next_wakeup() == 15_000_000
    models.advance(20_000_000)
    ready = models.ready()
    assert ready is not None
    assert set(ready.profiles) == {"a", "b", "c"}
    assert ready.load_ms == {"a": 10, "b": 5, "c": 0}


def test_models_without_a_load_time_are_there_at_once_and_leave_at_once() -> None:
    models = EmulatedModels("a100")
    models.want(0, [emulated("a")])
    first = models.ready()
    models.want(5, [emulated("b")])
    second = models.ready()
    assert first is not None
    assert second is not None
    assert (set(first.profiles), set(second.profiles)) == ({"a"}, {"b"})
    assert models.next_wakeup() is None


def test_an_emulated_device_runs_out_of_memory_too() -> None:
    models = EmulatedModels("a100", memory_mb=500)
    models.want(0, [emulated("a", memory_mb=400)])
    assert models.ready() is not None
    models.changes()
    models.want(1, [emulated("a", memory_mb=400), emulated("b", memory_mb=200)])
    (change,) = [change for change in models.changes() if change.state == State.FAILED]
    assert (change.model, change.reason) == ("b", "needs 200 MB, 100 MB are free")
    models.want(2, [emulated("b", memory_mb=200)])
    assert set(models.profiles) == {"b"}
