"""Models come and go on a real device while others serve: versions, failures, memory, hanging batches."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from fake_device import FakeDevice, definition, double
from helpers import wait_until

from symphony import tensors
from symphony.status import Status
from worker.batch import Batch, Payload
from worker.definition import Definition
from worker.device import OutOfMemory
from worker.emulated_models import EmulatedModels
from worker.executor import Executor
from worker.lifecycle import Change, State
from worker.versions import fingerprint

MB = 1 << 20


@contextmanager
def executor(device: FakeDevice, *definitions: Definition, **options: Any) -> Iterator[Executor]:
    made = Executor(lambda: device, definitions or [definition()], **options)
    made.start()
    try:
        wait_until(lambda: made.ready() is not None)
        yield made
    finally:
        device.gate.set()
        assert made.close()


def batch(value: float, model: str = "double") -> Batch:
    made = Batch(0, 0, model, np.zeros(1, dtype=np.uint64), np.zeros(1, dtype=np.int64), 0, 0)
    dtype, shape, frame = tensors.encode(np.array([value, 0], dtype=np.float32))
    made.inputs[0] = Payload(["x"], [[dtype, shape]], [frame])
    return made


def run(made: Executor, *batches: Batch) -> None:
    for one in batches:
        made.submit(one)
    left = set(map(id, batches))

    def over() -> bool:
        left.difference_update(map(id, made.finished()))
        return not left

    wait_until(over)


def until_held(made: Executor, *names: str) -> None:
    wait_until(lambda: (made.finished(), set(made.held().profiles) == set(names))[1])


def failure(made: Executor) -> Change:
    seen: list[Change] = []

    def failed() -> list[Change]:
        made.finished()
        seen.extend(change for change in made.changes() if change.state == State.FAILED)
        return seen

    return wait_until(failed)[0]


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


def test_the_first_models_must_load() -> None:
    device = FakeDevice()
    device.free = 1 * MB
    made = Executor(lambda: device, [definition(memory_mb=3)])
    made.start()
    with pytest.raises(Exception, match=r"model 'double': needs 3 MB, 1 MB are free"):
        wait_until(made.ready)
    assert made.close()


# -- versions --------------------------------------------------------------------------------------


def test_a_fingerprint_changes_with_the_definition_and_with_its_files(tmp_path: Any) -> None:
    weights, module = tmp_path / "w.safetensors", tmp_path / "mine.py"
    weights.write_bytes(b"1")
    module.write_text("1")

    def mark(**change: Any) -> str:
        values = {"loader": "mine:load", "options": {"weights": "w.safetensors"}} | change
        return fingerprint(definition(**values).model_copy(update={"base": tmp_path}))

    first = mark()
    assert re.fullmatch(r"[0-9a-f]{16}", first)
    assert mark() == first
    assert mark(slo_ms=50) != first
    weights.write_bytes(b"12")
    second = mark()
    assert second != first
    os.utime(module, ns=(1, 1))
    assert mark() != second


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
