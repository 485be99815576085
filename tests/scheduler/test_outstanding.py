"""The rings of outstanding batches do what a dictionary does, whatever happens in whatever order."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler import select
from scheduler.core import ledger
from scheduler.core.actions import Actions, Dispatches
from scheduler.outstanding import Outstanding
from scheduler.recent import Recent

RESULT_NS = 10


def dispatches(batches: list[dict[str, Any]]) -> Dispatches:
    """Columns as the core gives them."""
    actions = Actions()
    for b in batches:
        names = ("model", "priority", "gpu")
        at = actions.open_batch(*(b[n] for n in names), len(b["key"]), b["batch"], 5, b["finish_at"])
        for i, (key, due) in enumerate(zip(b["key"], b["due"], strict=True)):
            actions.key[at + i], actions.deadline[at + i] = key, due % 2**64
    return actions.dispatches()


class Both:
    """The rings and the dictionary."""

    def __init__(self, seed: int, loops: Any = None) -> None:
        self.rng = random.Random(seed)
        self.rings = Outstanding(batches=4, requests=8, loops=loops)
        self.book: dict[int, dict[str, Any]] = {}
        self.next = self.rng.choice([0, 1, 2**40])
        self.largest = self.requests = 0

    def send(self, batches: int) -> None:
        new = []
        for _ in range(batches):
            size = self.rng.choice([1, 1, 2, 5, 30])
            new.append(
                {
                    "batch": self.next,
                    "model": self.rng.randrange(5),
                    "priority": self.rng.randrange(4),
                    "gpu": self.rng.randrange(6),
                    "finish_at": self.rng.randrange(1000),
                    "key": [self.rng.getrandbits(64) for _ in range(size)],
                    "due": [self.rng.randrange(-50, 200) for _ in range(size)],
                }
            )
            self.next += 1
        self.rings.record(dispatches(new))
        self.book |= {b["batch"]: b for b in new}
        self.largest = max(self.largest, len(self.book))
        self.requests = max(self.requests, sum(len(b["key"]) for b in self.book.values()))

    def complete(self, stragglers: bool) -> None:
        named: list[tuple[int, int, int]] = []
        out = sorted(self.book)
        for _ in range(self.rng.randrange(6)):
            pool = out if stragglers else out[len(out) // 3 :]
            batch = self.rng.choice(pool) if pool and self.rng.random() < 0.8 else self.rng.getrandbits(64)
            known = self.book.get(batch)
            gpu = known["gpu"] if known and self.rng.random() < 0.9 else self.rng.randrange(6)
            named += [(batch, gpu, self.rng.randrange(200))] * self.rng.choice([1, 1, 1, 2])
        self.rng.shuffle(named)
        columns = list(zip(*named, strict=True)) or [(), (), ()]
        batch, gpu, finished = np.array(columns[0], np.uint64), np.array(columns[1], np.uint32), columns[2]
        taken, strange = self.rings.take(batch, gpu, np.array(finished, np.int64), RESULT_NS)
        expected, odd = [], []
        for at, (number, on, end) in enumerate(named):
            b = self.book.get(number)
            if b is None or b["gpu"] != on:
                odd.append(at)
                continue
            del self.book[number]
            good = sum(due >= end + RESULT_NS for due in b["due"])
            expected.append((at, b["model"], len(b["key"]), b["finish_at"], good))
        assert sorted(zip(*(c.tolist() for c in taken), strict=True)) == expected
        assert sorted(strange.tolist()) == odd

    def lose(self) -> None:
        gone = self.rng.sample(range(6), self.rng.randrange(3))
        lost = self.rings.take_gpus(np.array(gone, np.int64))
        expected = [b for b in self.book.values() if b["gpu"] in gone]
        assert [
            (o.gpu, o.model, o.priority, o.finish_at, o.key.tolist(), o.deadline.tolist()) for o in lost
        ] == [(b["gpu"], b["model"], b["priority"], b["finish_at"], b["key"], b["due"]) for b in expected]
        for b in expected:
            del self.book[b["batch"]]

    def check(self) -> None:
        assert len(self.rings) == len(self.book)
        assert list(self.rings) == sorted(self.book)
        for number, b in self.book.items():
            out = self.rings[number]
            assert (out.gpu, out.key.tolist(), out.deadline.tolist()) == (b["gpu"], b["key"], b["due"])


WAYS = [None, ledger] + ([select.ledger()] if select.ledger() else [])
"""In NumPy's columns; by the loops, as Python and compiled."""


@pytest.mark.parametrize("loops", WAYS)
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    events=st.lists(st.sampled_from(["send", "burst", "done", "done", "lose"]), max_size=60),
)
def test_the_rings_are_a_dictionary(loops: Any, seed: int, events: list[str]) -> None:
    both = Both(seed, loops)
    for event in events:
        if event == "lose":
            both.lose()
        elif event == "done":
            both.complete(stragglers=True)
        else:
            both.send(both.rng.randrange(4) if event == "send" else 12)
        both.check()


@pytest.mark.skipif(select.ledger() is None, reason="no compiled core in this build")
def test_the_compiled_loops_are_compiled() -> None:
    assert not select.ledger().__file__.endswith(".py")
    assert select.ledger().take is not ledger.take


@pytest.mark.parametrize("loops", WAYS)
@pytest.mark.parametrize("seed", range(2))
def test_room_follows_what_is_out_and_not_the_time(seed: int, loops: Any) -> None:
    """Batches that never come back do not make the rings grow while the others come and go."""
    both = Both(seed, loops)
    for turn in range(3_000):
        both.send(3)
        while len(both.book) > 12:
            both.complete(stragglers=False)
        if turn % 500 == 0:
            both.check()
    both.check()
    rows, requests = both.rings.room
    assert rows <= 4 * both.largest
    assert requests <= 4 * both.requests
    assert min(both.book) < both.next - 1_000, "there are stragglers"


SERIES = st.lists(st.lists(st.tuples(st.integers(0, 12), st.integers(-99, 99)), max_size=20), max_size=12)


@given(SERIES, st.integers(1, 100), st.integers(1, 20))
def test_recent_values_are_those_of_a_deque(
    columns: list[list[tuple[int, int]]], percent: int, limit: int
) -> None:
    recent = Recent(4, np.int64)
    book: dict[int, deque[int]] = {}
    percent = min(percent, 99)
    for column in columns:
        recent.add(np.array([s for s, _ in column], np.int64), np.array([v for _, v in column], np.int64))
        for series, value in column:
            book.setdefault(series, deque(maxlen=4)).append(value)
        if column and column[0][1] % 3 == 0:
            recent.forget(column[0][0])
            book.pop(column[0][0], None)
    if book:
        values, counts = recent.percentile(np.array(sorted(book)), percent)
        assert counts.tolist() == [len(book[s]) for s in sorted(book)]
        assert values.tolist() == [sorted(book[s])[len(book[s]) * percent // 100] for s in sorted(book)]
    swept = [s for _ in range(recent.sweeps(limit)) for s in recent.sweep(limit).tolist()]
    assert sorted(swept) == sorted(book)
    assert not any(recent.sweep(limit).size for _ in range(recent.sweeps(limit) + 1))
