"""Heap, queues, meter and latency tables, each against the plainest thing that does the same."""

from __future__ import annotations

import importlib
import random
from bisect import insort
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.core.limits import (
    APART,
    BASE,
    FIELDS,
    FIRST,
    HEAD,
    LARGE_RING,
    LAST,
    MASK,
    SAMPLE_NS,
    SAMPLES,
    SMALLEST_RING,
)
from scheduler.core.validate import _check_numbers
from scheduler.select import compiled_core

FLAVOURS = ["scheduler.core"] + (["scheduler.compiled"] if compiled_core() else [])
QUICK = settings(max_examples=60, deadline=None, database=None)


@pytest.fixture(params=FLAVOURS, scope="module")
def part(request: pytest.FixtureRequest) -> Any:
    """part("heap") is that module in the flavour under test."""

    def get(name: str) -> ModuleType:
        return importlib.import_module(f"{request.param}.{name}")

    return get


# --- heap --------------------------------------------------------------------------------------

COMMANDS = st.lists(st.tuples(st.booleans(), st.integers(0, 19), st.integers(-5, 5)), max_size=80)


@QUICK
@given(commands=COMMANDS)
def test_a_heap_is_a_sorted_list(part: Any, commands: list[tuple[bool, int, int]]) -> None:
    """Insert, re-key and remove in any order; the smallest key, then the smallest id, is on top."""
    heap = part("heap").Heap(20)
    plain: dict[int, int] = {}
    for put, ident, key in commands:
        if put:
            heap.put(ident, key)
            plain[ident] = key
        else:
            heap.discard(ident)
            plain.pop(ident, None)
        heap.validate()
        assert heap.size == len(plain)
        assert [heap.has(i) for i in range(20)] == [i in plain for i in range(20)]
        if plain:
            assert (heap.keys[0], heap.ids[0]) == min((k, i) for i, k in plain.items())
    order = []
    while heap.size:
        order.append((heap.keys[0], heap.ids[0]))
        heap.discard(heap.ids[0])
    assert order == sorted((k, i) for i, k in plain.items())


def test_a_heap_with_extreme_keys_and_growth(part: Any) -> None:
    heap = part("heap").Heap(0)
    heap.reserve(3)
    for ident, key in enumerate((2**63 - 1, -(2**63), 0)):
        heap.put(ident, key)
    heap.reserve(1000)
    heap.reserve(10)  # never shrinks
    heap.put(999, -(2**63))
    heap.validate()
    assert [heap.ids[0], heap.size, len(heap.place)] == [1, 4, 1000]


# --- numbers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("capacity", [1, 64, 65, 4_096, 4_097, 300_000])
def test_numbers_are_a_sorted_set(part: Any, capacity: int) -> None:
    """Added and removed in any order, doubly and in vain; there at both ends; found from anywhere on."""
    rng = random.Random(capacity)
    numbers = part("numbers").Numbers(capacity)
    plain: set[int] = set()
    near = [rng.randrange(capacity) for _ in range(40)] + [0, capacity - 1, capacity // 64 * 64 - 1]
    for step in range(1_000):
        number = max(0, min(capacity - 1, rng.choice(near) + rng.randrange(-2, 3)))
        if rng.random() < (0.7 if step < 500 else 0.3):
            numbers.put(number)
            plain.add(number)
        else:
            numbers.discard(number)
            plain.discard(number)
        assert numbers.size == len(plain)
        assert numbers.has(number) == (number in plain)
        if plain:
            assert numbers.first() == min(plain)
        start = rng.randrange(capacity + 1)
        assert numbers.next(start) == min((other for other in plain if other >= start), default=-1)
    assert numbers.held() == sorted(plain)
    numbers.reserve(capacity * 70)
    assert numbers.held() == sorted(plain)
    assert numbers.next(capacity * 70) == -1
    _check_numbers(numbers, "numbers")


# --- queues ------------------------------------------------------------------------------------


class Plain:
    """A lane as a sorted list."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, int, int]] = []
        self.serial = 0

    def push(self, finish: int, key: int) -> None:
        self.serial += 1
        insort(self.rows, (finish, self.serial, key))


def content(queues: Any, lane: int) -> list[tuple[int, int]]:
    n = queues.count(lane)
    keys, deadlines = np.zeros(n + 2, np.uint64), np.zeros(n + 2, np.uint64)
    queues.copy(lane, n, keys, deadlines, 1)
    assert not keys[[0, -1]].any()
    assert not deadlines[[0, -1]].any()
    return list(zip(deadlines[1:-1].tolist(), keys[1:-1].tolist(), strict=True))


def same(queues: Any, lane: int, plain: Plain) -> None:
    rows = content(queues, lane)
    assert rows == [(finish, key) for finish, _, key in plain.rows]
    if rows:
        record = queues.record[lane * FIELDS : lane * FIELDS + FIELDS]
        assert (record[FIRST], record[LAST]) == (rows[0][0], rows[-1][0])
        assert queues.at(lane, len(rows) - 1) == rows[-1][0]


@pytest.mark.parametrize("order", ["rising", "near", "falling", "random", "equal"])
def test_queues_keep_deadline_order(part: Any, order: str) -> None:
    """Three lanes that grow and shrink in turn; equal deadlines stay in order of arrival."""
    rng = random.Random(1)
    queues = part("queues").Queues()
    lanes = [queues.add_lane() for _ in range(3)]
    plain = [Plain() for _ in lanes]
    key = 0
    for step in range(400):
        lane = rng.choice(lanes)
        for _ in range(rng.randrange(6)):
            key += 1
            finish = {
                "rising": key,
                "near": key + rng.randrange(4),
                "falling": 2**62 - key,
                "random": rng.randrange(2**62),
                "equal": 7,
            }[order]
            queues.push(lane, finish, 2**64 - key)
            plain[lane].push(finish, 2**64 - key)
        if step % 3 == 0:
            n = rng.randrange(queues.count(lane) + 1)
            if n:
                queues.pop(lane, n)
                del plain[lane].rows[:n]
        same(queues, lane, plain[lane])
    for lane in lanes:
        same(queues, lane, plain[lane])


@QUICK
@given(rows=st.lists(st.integers(0, 6) | st.integers(0, 2**62), max_size=60))
def test_any_order_of_deadlines(part: Any, rows: list[int]) -> None:
    queues = part("queues").Queues()
    lane = queues.add_lane()
    plain = Plain()
    for key, finish in enumerate(rows):
        queues.push(lane, finish, key)
        plain.push(finish, key)
        same(queues, lane, plain)


def test_rings_are_used_again(part: Any) -> None:
    """A lane that grows leaves its ring to the next; slots are bounded by what was ever held at once."""
    queues = part("queues").Queues()
    first, second = queues.add_lane(), queues.add_lane()
    for key in range(SMALLEST_RING + 1):
        queues.push(first, key, key)
    queues.push(second, 0, 0)
    assert queues.record[second * FIELDS + BASE] == 0
    assert content(queues, first) == [(key, key) for key in range(SMALLEST_RING + 1)]
    before = queues.slots()
    for key in range(100_000):
        queues.push(first, key, key)
        queues.pop(first, 1)
    assert queues.slots() == before


def test_an_empty_queue_starts_again_where_it_began(part: Any) -> None:
    """What it touches is no more than what it holds; how many came is not forgotten."""
    queues = part("queues").Queues()
    starts = []
    for lane in (queues.add_lane(), queues.add_lane()):
        for _ in range(3):
            for key in range(100):
                queues.push(lane, key, key)
            queues.pop(lane, 60)
            assert content(queues, lane) == [(key, key) for key in range(60, 100)]
            queues.pop(lane, 40)
            starts.append(queues.record[lane * FIELDS + HEAD])
        assert queues.ever(lane) == 300
        assert queues.count(lane) == 0
    assert starts == [0, 0, 0, APART, APART, APART]


def test_rings_shrink(part: Any) -> None:
    """Bursts in turn through 30 lanes: the slab holds about two of them, not 30."""
    queues = part("queues").Queues()
    held = []
    for _ in range(30):
        lane = queues.add_lane()
        for key in range(3000):
            queues.push(lane, key, key)
        while queues.count(lane) > 40:
            queues.pop(lane, 40)
        assert queues.record[lane * FIELDS + MASK] < LARGE_RING
        held.append(queues.slots())
    assert held[-1] <= 2 * held[0] + 30 * LARGE_RING
    for lane in range(30):
        assert content(queues, lane) == [(key, key) for key in range(2960, 3000)]


# --- meter -------------------------------------------------------------------------------------


@QUICK
@given(gaps=st.lists(st.tuples(st.integers(0, 130), st.integers(1, 9)), min_size=1, max_size=40))
def test_the_meter_is_a_count_over_whole_samples(part: Any, gaps: list[tuple[int, int]]) -> None:
    meter = part("meter").Meter()
    for _ in range(3):
        meter.add_lane()
    sample, last, first = 1000, None, 0
    arrivals: list[int] = []
    ever = 0
    for gap, n in gaps:
        sample += gap
        if last is None or sample - last > SAMPLES:
            first, arrivals = sample, []
        last = sample
        meter.roll(1, sample, ever)
        ever += n
        arrivals += [sample] * n
        assert meter.total[1] == sum(sample - SAMPLES <= a < sample for a in arrivals)
        assert meter.window_ns(1) == min(SAMPLES, sample - first) * SAMPLE_NS
    assert (meter.total[0], meter.total[2]) == (0, 0)
    meter.clear(1)
    assert meter.window_ns(1) == 0
    meter.roll(1, sample + 1, ever)
    assert (meter.total[1], meter.window_ns(1)) == (0, 0)


# --- latency tables ----------------------------------------------------------------------------


@QUICK
@given(
    table=st.lists(st.integers(0, 50), min_size=1, max_size=20).map(sorted),
    per_request=st.integers(0, 3),
    budget=st.integers(-5, 120),
    hard=st.integers(-5, 60),
)
def test_the_largest_batch_that_fits(
    part: Any, table: list[int], per_request: int, budget: int, hard: int
) -> None:
    models = part("models").Models()
    models.add(0, 100, len(table))
    models.set_table(0, 0, table)
    at = models.table[0]
    for most in range(len(table) + 1):
        fits = [b for b in range(1, most + 1) if table[b - 1] <= hard]
        fits = [b for b in fits if table[b - 1] + b * per_request <= budget]
        assert models.fit(at, most, per_request, budget, hard) == max(fits, default=0)


def test_models_with_equal_latencies_share_a_table(part: Any) -> None:
    """And a table goes when the last of them has gone, so that its place is used again."""
    models = part("models").Models()
    for model in range(3):
        models.add(model, 100, 4)
        models.set_table(model, 0, [1, 2, 3, 4] if model < 2 else [1, 2, 3, 5])
    stride = len(models.table) // models.capacity
    first, second, third = (models.table[model * stride] for model in range(3))
    assert first == second != third
    models.set_table(0, 0, [2, 2, 2, 2])
    assert models.table[stride] == first
    models.set_table(1, 0, [2, 2, 2, 2])
    size = len(models.latency)
    models.set_table(2, 0, [9, 9, 9, 9])
    assert (models.table[2 * stride], len(models.latency)) == (first, size)
