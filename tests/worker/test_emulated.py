"""Emulated GPUs keep their time by the profile, under a clock that only the test moves."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from fake_peers import separate
from hypothesis import given, settings
from hypothesis import strategies as st

from symphony import native, wire
from symphony.pace import REST_SHARE
from symphony.profile import Profile
from symphony.status import Status
from worker import columns, plans, starting
from worker.emulated import MIXED, EmulatedGpus, Ended

PROFILES = {"m": Profile.linear(1.082, 5.204, 128), "n": Profile.linear(2, 1, 4)}
HERE = frozenset(range(100))


def plan(*batches: tuple[int, str, int, int], shard: str = "shard-0") -> wire.Plan:
    """(batch, model, gpu, size) each; keys and deadlines tell the batch: key % 1000 is its number."""
    names = sorted({model for _, model, _, _ in batches})
    sizes = [size for *_, size in batches]
    keys = [1000 * i + number for number, _, _, size in batches for i in range(size)]
    return wire.Plan(
        shard,
        names,
        np.array([b[0] for b in batches], np.uint64),
        np.array([b[2] for b in batches], np.uint32),
        np.array([names.index(b[1]) for b in batches], np.uint32),
        np.array([7 * b[0] for b in batches], np.int64),
        np.array(sizes, np.uint32),
        np.array(keys, np.uint64),
        np.array([key + 5 for key in keys], np.int64),
    )


class Loops(EmulatedGpus):
    """With the loops, run as Python."""

    def __init__(self, profiles: Any) -> None:
        super().__init__(profiles, compiled=False)
        self._loops = starting


FORMS = {
    "columns": lambda profiles: EmulatedGpus(profiles, compiled=False),
    "loops": Loops,
    "built": EmulatedGpus,
}


def gpus(form: str = "built") -> EmulatedGpus:
    made = FORMS[form](PROFILES)
    made.changed()
    return made


def start(device: EmulatedGpus, now: int, *batches: tuple[int, str, int, int]) -> None:
    assert plans.take_columns(plan(*batches), device, HERE, now) == []


def rows(ended: Ended) -> list[tuple[int, str, int, int, int, int, list[int]]]:
    """(batch, model, gpu, received, started, finished, keys) of each."""
    found, end = [], 0
    for i, size in enumerate(ended.size.tolist()):
        numbers = (int(c[i]) for c in (ended.gpu, ended.received, ended.started, ended.finished))
        keys = ended.key[end : end + size].tolist()
        found.append((int(ended.batch[i]), ended.names[int(ended.model[i])], *numbers, keys))
        end += size
    return found  # type: ignore[return-value]


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_takes_as_long_as_its_profile_says(form: str) -> None:
    device = gpus(form)
    start(device, 1_000, (5, "m", 3, 77))
    end = 1_000 + PROFILES["m"].latency(77)
    assert (len(device), device.requests, device.next_wakeup()) == (1, 77, end)
    assert list(device.finish(end - 1)) == []
    (ended,) = device.finish(end)
    assert rows(ended) == [(5, "m", 3, 1_000, 1_000, end, [1000 * i + 5 for i in range(77)])]
    assert (ended.exec_at.tolist(), ended.last_due.tolist()) == ([35], [76_010])
    assert (len(device), device.requests, device.next_wakeup()) == (0, 0, None)


def test_a_late_look_does_not_make_the_gpu_slower() -> None:
    device = gpus()
    start(device, 0, (1, "m", 0, 1))
    (ended,) = device.finish(10**12)
    assert ended.finished.tolist() == [PROFILES["m"].latency(1)]


def test_it_may_be_looked_at_late_by_a_part_of_the_tightest_objective() -> None:
    device = gpus()
    assert device.longest_rest_ns == 0
    device.changed(50_000_000)
    assert device.longest_rest_ns == 50_000_000 // REST_SHARE


BATCH = st.tuples(st.sampled_from("mn"), st.integers(0, 3), st.integers(1, 4), st.integers(0, 30_000_000))


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(BATCH, min_size=1, max_size=9), max_size=30))
def test_each_gpu_is_a_queue_and_ends_come_in_order(
    form: str, messages: list[list[tuple[str, int, int, int]]]
) -> None:
    device = gpus(form)
    now = number = 0
    free: dict[int, int] = {}
    book: dict[int, Any] = {}
    finished: list[Any] = []
    for message in messages:
        now += message[0][3]
        finished += [row for ended in device.finish(now) for row in rows(ended)]
        batches = []
        for model, gpu, size, _ in message:
            batches.append((number, model, gpu, size))
            begin = max(now, free.get(gpu, 0))
            free[gpu] = begin + PROFILES[model].latency(size)
            keys = [1000 * i + number for i in range(size)]
            book[number] = (number, model, gpu, now, begin, free[gpu], keys)
            number += 1
        start(device, now, *batches)
    while (end := device.next_wakeup()) is not None:
        finished += [row for ended in device.finish(end) for row in rows(ended)]
    assert sorted(finished) == [book[i] for i in range(number)]
    assert [row[5] for row in finished] == sorted(row[5] for row in finished)
    assert device.requests == 0


def test_what_ended_goes_in_messages_that_hold_it() -> None:
    device = EmulatedGpus({"m": Profile.linear(1, 1, 4096)})
    device.changed()
    start(device, 0, *((i, "m", i, 4000) for i in range(40)))
    parts = list(device.finish(10**12))
    assert [part.key.size for part in parts] == [64_000, 64_000, 32_000]
    assert [row[0] for part in parts for row in rows(part)] == list(range(40))


@pytest.mark.parametrize("form", FORMS)
def test_what_cannot_run_is_left_and_the_rest_runs(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device = gpus(form)
    mixed = plan(
        (0, "m", 0, 2), (1, "x", 0, 1), (2, "n", 1, 5), (3, "n", 9, 1), (4, "m", 1, 0), (5, "n", 1, 4)
    )
    assert plans.take_columns(mixed, device, frozenset({0, 1}), 0) == [1, 2, 3, 4]
    assert device.requests == 6
    monkeypatch.setattr(plans, "MAX_OUTSTANDING", 4)
    assert plans.take_columns(plan((6, "m", 0, 2), (7, "m", 0, 1)), device, frozenset({0, 1}), 0) == [1]
    assert device.requests == 8
    ends = [row for ended in device.abandon() for row in rows(ended)]
    assert sorted(row[0] for row in ends) == [0, 5, 6]
    assert len(device) == 0


def test_models_that_have_gone_end_what_they_began_and_take_no_more() -> None:
    profiles = dict(PROFILES)
    device = EmulatedGpus(profiles)
    device.changed()
    start(device, 0, (0, "m", 0, 3))
    del profiles["m"]
    profiles["o"] = Profile.linear(1, 1, 2)
    device.changed()
    assert plans.take_columns(plan((1, "m", 0, 1), (2, "o", 0, 2)), device, frozenset({0}), 0) == [0]
    assert [row[:2] for ended in device.finish(10**12) for row in rows(ended)] == [(0, "m"), (2, "o")]


@given(
    st.lists(
        st.tuples(st.sampled_from("mn"), st.lists(st.sampled_from([1, 2, 65_535]), min_size=1, max_size=6)),
        max_size=5,
    )
)
def test_every_frontend_gets_its_own_keys_of_every_batch(shape: list[tuple[str, list[int]]]) -> None:
    slots = [sorted(mine) for _, mine in shape]
    size = np.array([len(mine) for mine in slots])
    flat = [(slot << 48) + n for n, slot in enumerate(s for mine in slots for s in mine)]
    key = np.array(flat, np.uint64)
    n = len(shape)
    at = np.arange(n)
    model = np.array(["mn".index(name) for name, _ in shape], np.int64)
    times = (at, at, at + 10, at + 20, at + 30)
    slot = np.array([mine[0] if len(set(mine)) == 1 else MIXED for mine in slots], np.int64)
    ended = Ended(["a", "b"], ["m", "n"], at % 2, at.astype(np.uint64), at, model, size, *times, slot, key)
    told = columns.told(ended, 100)
    got: dict[int, list[int]] = {}
    for reply in columns.replies("w", ended, told, Status.OK):
        results = wire.decode_results(reply.frame)
        assert results.worker == "w"
        for result in separate(results):
            i = result.batch
            assert (result.model, result.gpu, result.size) == (shape[i][0], i, len(shape[i][1]))
            assert (result.started, result.finished) == (i + 110, i + 120)
            assert set(result.status.tolist()) == {Status.OK}
            got.setdefault(reply.slot, []).extend(result.key.tolist())
    assert got == {slot: [k for k in flat if k >> 48 == slot] for slot in {k >> 48 for k in flat}}
    heard = []
    for shard in np.unique(ended.shard).tolist():
        done = wire.decode_done(columns.done("w", 3, ended, told, shard, 100, Status.OK))
        assert set((done.batch % 2).tolist()) == {shard}
        names = [done.models[m] for m in done.model.tolist()]
        heard += list(zip(done.batch.tolist(), names, done.size.tolist(), strict=True))
        assert not done.failed.any()
        assert (done.started - 110).tolist() == done.batch.tolist() == (done.finished - 120).tolist()
    assert sorted(heard) == [(i, name, len(mine)) for i, (name, mine) in enumerate(shape)]


def test_each_shard_is_told_of_its_own_batches() -> None:
    device = gpus()
    for number, shard in enumerate(["shard-1", "shard-0", "shard-1"]):
        assert plans.take_columns(plan((number, "m", number, 1), shard=shard), device, HERE, 0) == []
    (ended,) = device.finish(10**12)
    found = {}
    for shard in range(2):
        done = wire.decode_done(
            columns.done("w", 1, ended, columns.told(ended, 0), shard, 0, Status.UNAVAILABLE)
        )
        found[ended.shards[shard]] = (done.batch.tolist(), done.size.tolist(), done.failed.tolist())
    assert found == {"shard-1": ([0, 2], [0, 0], [1, 1]), "shard-0": ([1], [0], [1])}


def test_names_of_shards_that_have_nothing_here_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.emulated.MOST_SHARDS", 4)
    device = gpus()
    assert plans.take_columns(plan((0, "m", 0, 100), shard="stays"), device, HERE, 0) == []
    for number in range(1, 40):
        assert plans.take_columns(plan((number, "n", 1, 1), shard=f"s{number}"), device, HERE, 0) == []
        if number < 30:
            (ended,) = device.finish(number * PROFILES["n"].latency(1))
            assert [ended.shards[i] for i in ended.shard.tolist()] == [f"s{number}"]
    assert len(device) == 11
    ends = [(e.shards[s], int(b)) for e in device.abandon() for s, b in zip(e.shard, e.batch, strict=True)]
    assert sorted(ends) == sorted([("stays", 0), *((f"s{n}", n) for n in range(30, 40))])


@pytest.mark.parametrize("form", FORMS)
def test_a_plan_may_be_larger_than_what_is_copied_out_of_its_message(form: str) -> None:
    n = 4_999  # so that columns begin anywhere in the message
    batches = [(i, "mn"[i % 2], i % 100, 1 + i % 4) for i in range(n)]
    found = wire.decode_plan(wire.encode_plan(plan(*batches, shard="odd")))
    assert not all(c.flags.aligned for c in (found.batch, found.gpu, found.exec_at, found.key))
    device = gpus(form)
    assert plans.take_columns(found, device, HERE, 0) == []
    ends = [row for ended in device.abandon() for row in rows(ended)]
    assert sorted((number, model, gpu, len(keys)) for number, model, gpu, *_, keys in ends) == batches


def slots(plan: wire.Plan, *numbers: int) -> wire.Plan:
    """With the keys of these frontends, in turn."""
    slot = np.resize(np.array(numbers, np.uint64), plan.key.size)
    return dataclasses.replace(plan, key=plan.key | slot << np.uint64(wire.SLOT_SHIFT))


@pytest.mark.parametrize("form", FORMS)
def test_batches_tell_whose_requests_they_are(form: str) -> None:
    device = gpus(form)
    for made in (
        slots(plan((0, "m", 0, 3), (1, "m", 1, 1)), 7),
        slots(plan((2, "m", 2, 2), (3, "m", 3, 1), (4, "m", 4, 2)), 7, 65_535),
    ):
        assert plans.take_columns(made, device, HERE, 0) == []
    found = {
        int(b): int(s) for ended in device.abandon() for b, s in zip(ended.batch, ended.slot, strict=True)
    }
    assert found == {0: 7, 1: 7, 2: MIXED, 3: 7, 4: MIXED}


def test_one_batch_that_takes_long_does_not_keep_the_room_of_thousands_that_ended() -> None:
    device = EmulatedGpus({"m": Profile.linear(1, 1, 4), "slow": Profile.linear(1, 10**6, 4)})
    device.changed()
    start(device, 0, (0, "slow", 99, 4))
    for number in range(1, 5_000):
        start(device, 10_000_000 * number, (number, "m", number % 90, 4))
        (ended,) = device.finish(10_000_000 * number + 9_000_000)
        assert rows(ended)[0][-1] == [1000 * i + number for i in range(4)]
    assert device._end.size == 64
    (ended,) = device.abandon()
    assert rows(ended)[0][-1] == [0, 1000, 2000, 3000]


def test_gpus_of_another_worker_and_numbers_beyond_all_are_not_here() -> None:
    device = gpus()
    gpu = np.array([0, 3, 4, 5, 2**32 - 1], np.uint32)
    assert device.here(gpu, frozenset({3, 4})).tolist() == [False, True, True, False, False]
    assert device.here(gpu, frozenset({0})).tolist() == [True, False, False, False, False]
    assert not device.here(gpu, frozenset()).any()


@pytest.mark.skipif(
    native.compiled("starting", "worker", ".") is None, reason="no compiled loops in this build"
)
def test_the_compiled_loops_are_compiled() -> None:
    assert type(native.compiled("starting", "worker", ".").start) is not type(starting.start)
