"""Files that change under a model: fingerprints, and definitions and weights that are read again."""

from __future__ import annotations

import os
import re
from typing import Any

from fake_device import FakeDevice, definition, executor
from helpers import wait_until
from loading_parts import batch, failure, run

from symphony.status import Status
from worker.definition import Definition, load_definition
from worker.versions import SETTLE_NS, Versions, fingerprint


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
