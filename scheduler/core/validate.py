"""Checks every invariant that can be seen in the core's state; tests call it after every event.

Slow (it looks at everything) and never called in production. It reads public attributes only, so it
works for the Python core and for the compiled one.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from .gpus import Gpus
from .heap import Heap
from .limits import (
    ABSENT,
    BASE,
    DEPTH,
    EXPIRED,
    FIELDS,
    FIRST,
    HANDED_BACK,
    HEAD,
    LAST,
    LIVE,
    MASK,
    PRIORITIES,
    SAMPLES,
    STOP,
    TYPES,
    UNTIL,
    WINDOW,
)
from .machine import Core
from .numbers import Numbers


def validate(core: Core) -> None:
    """Check heaps, lanes, queues, meters, GPUs, and that no key is kept after it left.

    Actions that have not been cleared yet are taken into account: a key that stands among them must
    not be queued any more. (So clear them before requests are submitted ``again``.)

    Raises:
        AssertionError: an invariant is broken; the text names it and the place.
    """
    _check_heap(core.pending, "pending")
    for priority in range(PRIORITIES):
        _check_heap(core.ready[priority], f"ready at priority {priority}")
    assert core.touched.size == core.fresh.size == 0, "lanes were left over after the event"
    _check_queues(core)
    _check_lanes(core)
    _check_meter(core)
    _check_gpus(core.gpus, core.now, core.batches)
    _check_serving(core)
    _check_keys(core)
    assert not core.parked, "lanes are still set aside after the event"
    assert not core.gpus.aside, "GPUs are still set aside after the event"


def _check_heap(heap: Heap, name: str) -> None:
    seen = set()
    for i in range(heap.size):
        ident = heap.ids[i]
        seen.add(ident)
        assert heap.place[ident] == i, f"{name}: the index of {ident} is wrong"
        up = (i - 1) // 2
        if i > 0:
            above = (heap.keys[up], heap.ids[up])
            assert above < (heap.keys[i], ident), f"{name}: out of order at {i}"
    for ident in range(len(heap.place)):
        if ident not in seen:
            assert heap.place[ident] == -1, f"{name}: {ident} has left but is still in the index"


def _check_numbers(numbers: Numbers, name: str) -> None:
    below = {number for number in range(numbers.capacity) if numbers.has(number)}
    assert numbers.held() == sorted(below), f"{name}: not all are found"
    assert numbers.size == len(below), f"{name}: {numbers.size} counted, {len(below)} held"
    for level in range(numbers.levels):
        words = list(numbers.words[numbers.start[level] : numbers.start[level + 1]])
        found = {64 * i + bit for i, word in enumerate(words) for bit in range(64) if word >> bit & 1}
        assert found == below, f"{name}: level {level} does not fit the one below"
        below = {number >> 6 for number in found}


def _check_queues(core: Core) -> None:
    queues = core.queues
    record = queues.record
    rings = []
    for lane in range(queues.lanes):
        row = lane * FIELDS
        count = queues.count(lane)
        size = record[row + MASK] + 1
        assert 0 <= count <= size, f"lane {lane}: {count} requests in a ring of {size}"
        assert count <= core.max_queue, f"lane {lane}: more requests than max_queue"
        if size:
            assert size & (size - 1) == 0, f"lane {lane}: a ring of {size}"
            rings.append((record[row + BASE], record[row + BASE] + size))
        times = [queues.at(lane, i) for i in range(count)]
        assert times == sorted(times), f"lane {lane}: not in deadline order"
        if times:
            ends = (record[row + FIRST], record[row + LAST])
            assert ends == (times[0], times[-1]), f"lane {lane}: ends"
        else:
            assert record[row + UNTIL] < core.now, f"lane {lane}: empty, and would not see a request"
        assert record[row + STOP] - record[row + HEAD] <= min(size, core.max_queue), f"lane {lane}: overflows"
    rings.sort()
    for (_, end), (start, _) in pairwise(rings):
        assert end <= start, "two rings overlap"
    assert not rings or rings[-1][1] <= queues.slots(), "a ring reaches beyond the arena"


def _check_lanes(core: Core) -> None:
    for lane in range(core.queues.lanes):
        model = core.lane_model[lane]
        priority = core.lane_priority[lane]
        assert core.lane_of[model * PRIORITIES + priority] == lane, f"lane {lane} is not found by its model"
        ready = [p for p in range(PRIORITIES) if core.ready[p].has(lane)]
        pending = core.pending.has(lane)
        count = core.queues.count(lane)
        state, due, size = core.candidate(lane)
        if count == 0:
            assert not pending, f"lane {lane} is empty and pending"
            assert not ready, f"lane {lane} is empty and ready"
            assert size == 0, f"lane {lane} is empty with a candidate of {size}"
            continue
        assert state == ("pending" if pending else "ready"), f"lane {lane}: {state}"
        assert core.models.known[model], f"lane {lane} has requests of an unknown model"
        assert ready == ([] if pending else [priority]), f"lane {lane}: pending {pending}, ready {ready}"
        assert 1 <= size <= min(count, core.models.max_batch[model]), f"lane {lane}: candidate of {size}"
        assert 1 <= core.lane_target[lane] <= core.models.max_batch[model], f"lane {lane}: target"
        heap = core.pending if pending else core.ready[priority]
        listed = heap.keys[heap.place[lane]]
        staged = core.lane_stage[lane]
        assert listed <= due if staged else listed == due, f"lane {lane}: listed at {listed}, due at {due}"
        assert listed > core.now or not staged, f"lane {lane}: its stage has passed"
        if staged:
            assert core.queues.record[lane * FIELDS + UNTIL] < listed, f"lane {lane}: looks too late"
        assert due >= core.now + pending, f"lane {lane}: its timer has passed"
        # Margins may have changed since the candidate was formed, but were never negative.
        begin = core.now + core.control + size * core.data
        ends = [begin + core.models.latency[at + size] for at in _tables(core, model)]
        assert min(ends) + core.result <= core.queues.at(lane, 0), (
            f"lane {lane}: its candidate cannot be in time"
        )


def _tables(core: Core, model: int) -> list[int]:
    """Where the latency tables of the model start, of those types that serve it."""
    gpus = core.gpus
    kinds = {gpus.class_type[c] for c in range(gpus.classes) if gpus.holds[c * gpus.models + model]}
    return [core.models.table[model * TYPES + kind] for kind in sorted(kinds)]


def _check_meter(core: Core) -> None:
    meter = core.meter
    for lane in range(meter.lanes):
        if meter.sample[lane] >= 0:
            counts = sum(meter.counts[lane * SAMPLES : (lane + 1) * SAMPLES])
            assert meter.total[lane] == counts, f"lane {lane}: arrivals counted {meter.total[lane]}"
            assert meter.first[lane] <= meter.sample[lane], f"lane {lane}: its samples end before they begin"


def _check_gpus(gpus: Gpus, now: int, batches: int) -> None:
    for c in range(gpus.classes):
        _check_numbers(gpus.idle[c], f"idle GPUs of class {c}")
        _check_heap(gpus.busy[c], f"busy GPUs of class {c}")
    live = [0] * gpus.classes
    there = 0
    for gpu in range(gpus.capacity):
        state = gpus.state[gpu]
        idle = [c for c in range(gpus.classes) if gpus.idle[c].has(gpu)]
        busy = [c for c in range(gpus.classes) if gpus.busy[c].has(gpu)]
        there += state != ABSENT
        if state != LIVE:
            assert not idle, f"GPU {gpu} is not live but idle"
            assert not busy, f"GPU {gpu} is not live but busy"
        else:
            own = gpus.cls[gpu]
            live[own] += 1
            if gpus.stuck[gpu]:
                assert not idle + busy, f"GPU {gpu} waits for a report, but can be taken"
                assert gpus.out_count[gpu] > 0, f"GPU {gpu} waits for a report of nothing"
            else:
                assert idle + busy == [own], f"GPU {gpu} of class {own}: idle in {idle}, busy in {busy}"
                assert gpus.out_count[gpu] < DEPTH, f"GPU {gpu} could be given too much"
            if idle:
                assert gpus.free_at[gpu] <= now, f"GPU {gpu} is idle but not free"
            if busy:
                heap = gpus.busy[own]
                assert heap.keys[heap.place[gpu]] == gpus.free_at[gpu], f"GPU {gpu}: free time"
        _check_out(gpus, gpu, batches)
    assert live == list(gpus.class_live[: gpus.classes]), "live GPUs per class"
    assert there == gpus.count, "number of GPUs"


def _check_out(gpus: Gpus, gpu: int, batches: int) -> None:
    """The batches that are out on a GPU do not overlap by prediction."""
    n = gpus.out_count[gpu]
    assert 0 <= n <= DEPTH, f"GPU {gpu}: {n} batches out"
    places = [gpu * DEPTH + (gpus.out_head[gpu] + k) % DEPTH for k in range(n)]
    out = [gpus.out_batch[i] for i in places]
    assert out == sorted(set(out)), f"GPU {gpu}: batches {out}"
    assert all(0 <= batch < batches for batch in out), f"GPU {gpu}: batches {out}"
    free = 0
    for i in places:
        assert gpus.out_exec[i] >= free, f"GPU {gpu}: batches overlap"
        free = gpus.out_exec[i] + gpus.out_len[i]
    assert n == 0 or gpus.free_at[gpu] >= free, f"GPU {gpu} is free before its last batch ends"


def _check_serving(core: Core) -> None:
    gpus = core.gpus
    for model in range(core.models.capacity):
        alone = []
        for c in range(gpus.classes):
            held = gpus.class_models[c]
            kind = gpus.class_type[c]
            at = core.models.table[model * TYPES + kind]
            serves = bool(core.models.known[model]) and at >= 0 and gpus.class_live[c] > 0
            serves = serves and (held is None or model in held)
            assert bool(gpus.holds[c * gpus.models + model]) == serves, f"class {c} and model {model}"
            if serves:
                alone.append((core.models.latency[at + 1] + core.type_margin[kind], kind))
        fast = core.fast[model]
        if gpus.classes > 1:
            assert fast == (min(alone)[1] if alone else -1), f"model {model}: its fastest type is not {fast}"
        else:
            assert (fast >= 0) == bool(alone), f"model {model}: served, but by no type"


def _check_keys(core: Core) -> None:
    queues = core.queues
    queued = []
    for lane in range(queues.lanes):
        n = queues.count(lane)
        column = np.zeros(n, np.uint64)
        queues.copy(lane, n, column, np.zeros(n, np.uint64), 0)
        queued += column.tolist()
    keys = set(queued)
    assert len(keys) == len(queued), "a key is queued twice"
    actions = core.actions
    assert sum(actions.size[: actions.dispatched]) == actions.requests, "sizes and requests dispatched"
    left = set(actions.key[: actions.requests])
    for i in range(actions.dropped):
        if actions.drop_reason[i] in (EXPIRED, WINDOW, HANDED_BACK):
            left.add(actions.drop_key[i])
    assert not keys & left, f"keys {sorted(keys & left)[:3]} have left and are still queued"
