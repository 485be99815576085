"""Models come and go on a real device while others serve: versions, failures, memory, hanging batches."""

from __future__ import annotations

import os
import re
import threading
import time
from typing import Any

import numpy as np
import pytest
from fake_device import FakeDevice, definition, double, executor
from helpers import wait_until

from symphony import tensors
from symphony.status import Status, SymphonyError
from worker.batch import Batch, Payload
from worker.definition import Definition, load_definition
from worker.device import OutOfMemory
from worker.emulated_models import EmulatedModels
from worker.executor import Executor
from worker.lifecycle import Change, State
from worker.versions import SETTLE_NS, Versions, fingerprint

MB = 1 << 20


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


YAML = """
name: mine
slo_ms: {slo}
max_batch: 4
loader: mine:load
weights: w.pt
finite: {finite}
inputs: [{{name: x, dtype: FP32, shape: [2]}}]
outputs: [{{name: y, dtype: FP32, shape: []}}]
"""


class Folder:
    """A definition's file and its weights; :meth:`look` is a second later each time."""

    def __init__(self, path: Any) -> None:
        self.yaml, self.weights = path / "mine.yaml", path / "w.pt"
        self.weights.write_bytes(b"1")
        self.write()
        self.asked = load_definition(str(self.yaml))
        self.versions = Versions()
        self.now = 0

    def write(self, slo: float = 100, finite: str = "false") -> None:
        self.yaml.write_text(YAML.format(slo=slo, finite=finite))

    def look(self) -> tuple[Definition, str]:
        self.now += SETTLE_NS
        return self.versions.look(self.now, self.asked)


def test_a_definition_that_changes_is_read_again_once_it_is_left_alone(tmp_path: Any) -> None:
    folder = Folder(tmp_path)
    first = folder.look()
    assert first[0] == folder.asked
    folder.write(finite="true")
    assert folder.look() == first, "it may still be being written"
    folder.write(finite="true ")
    assert folder.look() == first, "it was"
    changed, mark = folder.look()
    assert (changed.finite, mark == first[1]) == (True, False)
    assert folder.look() == (changed, mark)
    assert folder.versions.errors() == {}


def test_weights_that_change_are_another_version_once_they_are_left_alone(tmp_path: Any) -> None:
    folder = Folder(tmp_path)
    _, first = folder.look()
    folder.weights.write_bytes(b"12")
    assert folder.look()[1] == first
    folder.weights.write_bytes(b"123")
    assert folder.look()[1] == first
    _, second = folder.look()
    assert second != first
    folder.weights.write_bytes(b"1234")
    assert folder.versions.look(folder.now + 1, folder.asked)[1] == second
    assert folder.versions.look(folder.now + 2, folder.asked)[1] == second, "not a second later yet"


def test_a_definition_that_becomes_unusable_changes_nothing_and_is_told(tmp_path: Any) -> None:
    folder = Folder(tmp_path)
    first = folder.look()
    folder.yaml.write_text("name: [")
    folder.look()
    assert folder.look() == first
    assert "mine.yaml: not YAML" in folder.versions.errors()["mine"]
    folder.write(slo=50)
    folder.look()
    assert folder.look() == first
    assert "slo_ms is another" in folder.versions.errors()["mine"]
    folder.yaml.unlink()
    folder.look()
    assert folder.look() == first
    folder.write(finite="true")
    folder.look()
    assert folder.look()[0].finite
    assert folder.versions.errors() == {}


def test_what_is_wanted_otherwise_counts_at_once(tmp_path: Any) -> None:
    folder = Folder(tmp_path)
    folder.look()
    folder.asked = folder.asked.model_copy(update={"memory_mb": 7})
    assert folder.look()[0].memory_mb == 7
    folder.versions.keep(set())
    assert folder.versions._followed == {}


def test_a_definition_that_changes_is_loaded_beside_the_old_one(tmp_path: Any) -> None:
    folder = Folder(tmp_path)
    device = FakeDevice()
    asked = folder.asked.model_copy(update={"profile": definition().profile})
    with executor(device, asked) as made:
        (before,) = made.versions().values()
        assert re.fullmatch(r"[0-9a-f]{16}#1", before)
        folder.yaml.write_text(YAML.format(slo=100, finite="true") + "profile: {alpha_ms: 1, beta_ms: 1}\n")
        wait_until(lambda: (made.finished(), made.versions()["mine"].endswith("#2"))[1])
        assert made.held().definitions["mine"].finite
        folder.yaml.write_text("broken: true\n")
        change = failure(made)
        assert "broken: unknown key" in change.reason
        assert made.failed().keys() == {"mine"}
        good = batch(1, "mine")
        run(made, good)
        assert good.status.tolist() == [Status.OK]


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
