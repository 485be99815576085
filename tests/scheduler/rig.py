"""The cores side by side: every event goes to all of them, and every answer must be the same.

Beside the reference, which says what the actions should be, the rig keeps books of its own on what it
has sent in and what came out, and checks the invariants on them: every key leaves exactly once, no two
batches overlap on a GPU, none is dispatched after its latest, none before its window opens, and an
idle GPU that gets a batch is the lowest-numbered one.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from reference import Dispatch, Drop, Reference

from scheduler.core.limits import DEPTH, DUPLICATE, LIVE, TYPES
from scheduler.core.machine import Core
from scheduler.core.validate import validate
from scheduler.select import compiled_core

MS = 1_000_000
SETTINGS = ("control_ns", "data_ns", "result_ns", "margin_ns")


def cores() -> list[type[Core]]:
    """The Python core, and the compiled one where there is one."""
    compiled = compiled_core()
    return [Core] if compiled is None else [Core, compiled]


CORES = pytest.mark.parametrize(
    "core_type", cores(), ids=lambda core: "compiled" if core is not Core else "python"
)


def linear(alpha_ms: float, beta_ms: float, largest: int) -> list[int]:
    """l(1) … l(largest) in ns of alpha·b + beta."""
    return [round((alpha_ms * b + beta_ms) * MS) for b in range(1, largest + 1)]


def columns(**values: Any) -> list[Any]:
    """Columns as the core takes them, by name; None stays None."""
    kinds = {
        "model": np.uint32,
        "deadline": np.int64,
        "key": np.uint64,
        "priority": np.uint8,
        "gpu": np.uint32,
        "batch": np.uint64,
        "finished": np.int64,
    }
    return [None if v is None else np.array(v, kinds[name]) for name, v in values.items()]


def read(core: Core) -> tuple[list[Dispatch], list[Drop]]:
    """Take the core's actions out of it, as tuples."""
    found = core.actions.dispatches()
    batches = []
    at = 0
    for i in range(len(found.model)):
        end = at + found.size[i]
        row = (found.model[i], found.priority[i], found.gpu[i], found.size[i], found.batch[i])
        times = (found.exec_at[i], found.finish_at[i])
        batches.append((*row, *times, tuple(found.key[at:end]), tuple(found.deadline[at:end])))
        at = end
    gone = core.actions.drops()
    drops = list(zip(gone.key, gone.model, gone.deadline, gone.reason, strict=True))
    core.clear_actions()
    return batches, drops


def lane_state(core: Core, lane: int) -> tuple[str, int, int, int]:
    """State, timer, candidate size and target of one lane."""
    return (*core.candidate(lane), core.lane_target[lane])


@dataclass
class Books:
    """What has gone in and not come out, and what is out on every GPU, as (batch, exec_at, finish_at)."""

    queued: Counter[int] = field(default_factory=Counter)
    finished: Counter[int] = field(default_factory=Counter)
    out: dict[int, list[tuple[int, int, int]]] = field(default_factory=dict)
    dispatched: list[Dispatch] = field(default_factory=list)
    dropped: list[Drop] = field(default_factory=list)
    taken: dict[int, Dispatch] = field(default_factory=dict)


class Rig:
    """All cores of this installation and the reference, with the same settings.

    Args:
        check: call ``validate`` after every event.
        reference: False leaves the reference out, where it would take too long.
        plain: there is one type of GPUs, and no margins per type or GPU: then a window and the
            lowest-numbered idle GPU can be told from outside.
        settings: as for the core.
    """

    def __init__(
        self, check: bool = True, reference: bool = True, plain: bool = False, **settings: Any
    ) -> None:
        self.settings = settings
        self.cores = [core(**settings) for core in cores()]
        self.reference = Reference(**settings) if reference else None
        self.check = check
        self.plain = plain
        self.books = Books()
        self.log: list[tuple[str, tuple[Any, ...]]] = []
        self.now = 0
        self.looks = 0

    @property
    def core(self) -> Core:
        return self.cores[0]

    def event(self, name: str, *arguments: Any, **named: Any) -> tuple[list[Dispatch], list[Drop]]:
        """One event to all; the actions, on which they must agree."""
        for core in self.cores:
            getattr(core, name)(*arguments, **named)
            if self.check:
                validate(core)
        return self._agree(name)

    def submit(
        self,
        now: int,
        model: list[int],
        deadline: list[int],
        key: list[int],
        priority: list[int] | None = None,
        again: bool = False,
    ) -> tuple[list[Dispatch], list[Drop]]:
        """Requests, as lists."""
        self.books.queued.update(key)
        self._tell("submit", now, model, deadline, key, priority, again)
        columned = columns(model=model, deadline=deadline, key=key, priority=priority)
        return self.event("submit", now, *columned, again)

    def complete(
        self, now: int, gpu: list[int], batch: list[int], finished: list[int]
    ) -> tuple[list[Dispatch], list[Drop]]:
        """Completions, as lists."""
        for g, b in zip(gpu, batch, strict=True):
            out = self.books.out.get(g, [])
            if b in [entry[0] for entry in out]:
                self.books.out[g] = [entry for entry in out if entry[0] > b]
        self._tell("complete", now, gpu, batch, finished)
        return self.event("complete", now, *columns(gpu=gpu, batch=batch, finished=finished))

    def tell(self, name: str, *arguments: Any) -> tuple[list[Dispatch], list[Drop]]:
        """Any other event: it is called in the same way on all."""
        if name == "remove_gpu":
            self.books.out.pop(arguments[1], None)
        self._tell(name, *arguments)
        return self.event(name, *arguments)

    def _tell(self, name: str, *arguments: Any) -> None:
        self.log.append((name, arguments))
        if self.reference is not None:
            getattr(self.reference, name)(*arguments)

    def _agree(self, name: str) -> tuple[list[Dispatch], list[Drop]]:
        answers = [read(core) for core in self.cores]
        self.looks += 1
        if self.looks % 4 == 0:  # not after every event: a core that is asked forms lanes otherwise
            wakeups = {core.next_wakeup() for core in self.cores}
            assert len(wakeups) == 1, f"after {name}: next_wakeup is {wakeups}"
        self.now = self.cores[0].now
        for core, answer in zip(self.cores[1:], answers[1:], strict=True):
            assert answer == answers[0], f"after {name}: {type(core)} differs from {type(self.cores[0])}"
            assert (core.now, core.batches) == (self.now, self.cores[0].batches)
        if self.reference is not None:
            expected = self.reference.actions()
            assert answers[0][1] == expected[1], f"drops after {name} at {self.now}"
            assert answers[0][0] == expected[0], f"dispatches after {name} at {self.now}"
            lanes = self.reference.lanes.values()
            assert [lane_state(self.core, lane.number) for lane in lanes] == [
                (lane.state, lane.due if lane.queue else 0, lane.size, lane.target) for lane in lanes
            ], f"candidates after {name} at {self.now}"
            assert self.core.clock_steps == self.reference.clock_steps
            assert self.core.strange_completions == self.reference.strange_completions
        self._book(*answers[0])
        return answers[0]

    def _book(self, dispatches: list[Dispatch], drops: list[Drop]) -> None:
        books = self.books
        for drop in drops:
            assert books.queued[drop[0]] > 0, f"key {drop[0]} left twice"
            books.queued[drop[0]] -= 1
            assert drop[3] == DUPLICATE or books.queued[drop[0]] == 0
            books.dropped.append(drop)
        for dispatch in dispatches:
            _, _, gpu, size, batch, exec_at, finish_at, keys, deadlines = dispatch
            assert size == len(keys) == len(deadlines) > 0
            for key in keys:
                assert books.queued[key] > 0, f"key {key} left twice"
                books.queued[key] -= 1
            out = books.out.setdefault(gpu, [])
            assert len(out) < DEPTH, f"GPU {gpu} was given too much"
            assert not out or exec_at >= out[-1][2], f"two batches overlap on GPU {gpu}"
            out.append((batch, exec_at, finish_at))
            self._in_time(dispatch)
            books.dispatched.append(dispatch)
            books.taken[batch] = dispatch

    def _in_time(self, dispatch: Dispatch) -> None:
        model, _, gpu, size, _, exec_at, finish_at, _, deadlines = dispatch
        data, margin = (self.settings.get(name, 0) for name in ("data_ns", "margin_ns"))
        control, result = self.core.control, self.core.result
        assert exec_at >= self.now + control + size * data, "begins before it can have arrived"
        latest = min(deadlines) - result - margin - (finish_at - exec_at) - size * data - control
        assert self.now <= latest, "dispatched after its latest"
        assert finish_at + margin + result <= min(deadlines), "would end late"
        if not self.plain:
            return
        models = self.core.models
        if size < models.max_batch[model] and self.settings.get("policy", "deferred") == "deferred":
            longer = models.latency[models.table[model * TYPES] + size + 1]
            opens = min(deadlines) - result - margin - control - longer - (size + 1) * data
            assert self.now >= opens, "dispatched before its window opens"
        for lower in range(gpu):
            if self._could_take(lower, model):
                raise AssertionError(f"GPU {gpu} was taken although {lower} is idle")

    def _could_take(self, gpu: int, model: int) -> bool:
        """Whether the GPU has nothing to do and holds the model."""
        gpus = self.core.gpus
        if not self.core.has_gpu(gpu) or gpus.state[gpu] != LIVE or self.books.out.get(gpu):
            return False
        held = gpus.class_models[gpus.cls[gpu]]
        return held is None or model in held

    def due(self) -> int:
        """The first opening of a pending lane, found without a word to the core."""
        lanes = range(self.core.queues.lanes)
        openings = [due for state, due, _ in map(self.core.candidate, lanes) if state == "pending"]
        return min(openings, default=self.now)

    def queued(self) -> int:
        """Requests that have neither been dispatched nor dropped, by the rig's books."""
        return sum(self.books.queued.values())

    def settle(self) -> None:
        """Every model goes: every key that is left must come out."""
        for model in range(self.core.models.capacity):
            if self.core.has_model(model):
                self.tell("remove_model", self.now, model)
        assert self.queued() == 0, "keys that never left"
        assert sum(self.core.queued_by_model(self.core.models.capacity)) == 0
