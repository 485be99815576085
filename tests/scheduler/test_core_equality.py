"""Python core, compiled core and reference take the same events and must give the same actions."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import pytest
from rig import MS, Rig, columns, cores, read
from streams import Stream, random_settings

import scheduler.compiled
from scheduler.core import limits
from scheduler.core.limits import DUPLICATE, EXPIRED, FULL, HANDED_BACK, LAST_TIME, REASONS, WINDOW
from scheduler.core.machine import Core
from scheduler.select import compiled_core

FOLDER = Path(scheduler.compiled.__path__[0])


def test_the_compiled_class_is_really_compiled() -> None:
    """Where the extensions were built they are what is used: no Python class, C types found."""
    built = {
        path.name.split(".")[0] for path in FOLDER.iterdir() if path.name.endswith(EXTENSION_SUFFIXES[0])
    }
    if not built:
        pytest.skip("no extension was built beside scheduler/compiled: no C compiler, or not installed")
    core = compiled_core()
    if core is None:
        pytest.skip("the extensions are older than the sources; `make env` compiles them")
    assert {
        "machine",
        "fleet",
        "window",
        "gpus",
        "queues",
        "heap",
        "numbers",
        "meter",
        "models",
        "lanes",
        "actions",
    } <= built
    for kind in core.__mro__[:-1]:
        assert kind.__module__.startswith("scheduler.compiled"), kind
        assert not kind.__flags__ & (1 << 9), f"{kind} is a Python class"  # Py_TPFLAGS_HEAPTYPE
    one = core()
    assert not hasattr(one, "__dict__"), "attributes are not C fields: the .pxd was not found"
    for column in (
        one.queues.slab,
        one.queues.record,
        one.ready[0].keys,
        one.models.latency,
        one.actions.key,
    ):
        assert memoryview(column).itemsize == 8
        assert type(column).__name__ == "_memoryviewslice", "a column is a Python object"
    with pytest.raises((TypeError, AttributeError)):
        one.novel = 1  # type: ignore[attr-defined]
    assert not issubclass(core, Core)


def test_constants_are_the_same_in_c() -> None:
    """The compiled modules have the constants from a .pxd, not from ``limits``."""
    text = (FOLDER / "limits.pxd").read_text()
    found = dict(re.findall(r"#define SYMPHONY_(\w+) \(\([a-z ]+\)\{(\w+)\}\)", text))
    assert found.pop("PLAIN") == "0"
    assert len(found) > 30
    assert {name: int(value, 0) for name, value in found.items()} == {
        name: getattr(limits, name) for name in found
    }
    declared = dict(re.findall(r"^    (?:long long|bint) (\w+) \"SYMPHONY_(\w+)\"$", text, re.MULTILINE))
    assert set(declared) == {*found, "PLAIN"}
    assert all(name == macro for name, macro in declared.items())


def test_columns_of_the_compiled_core_lie_in_huge_pages() -> None:
    """Large ones begin at a line of the cache, within chunks that are shared; all keep what they held."""
    columns = import_module("scheduler.compiled.columns")
    small = columns.widen("q", [5, 6], 2, -1)
    assert small.tolist() == [5, 6, -1, -1]
    large = [columns.widen("q", small, 100_000, fill) for fill in (0, 7)]
    for column, fill in zip(large, (0, 7), strict=True):
        assert column[:4].tolist() == [5, 6, -1, -1]
        assert column[4:].tolist() == [fill] * 100_000
        assert column.__array_interface__["data"][0] % columns.LINE == 0
    huge = columns.widen("b", large[0].view("b"), 3 * columns.HUGE)
    assert huge.__array_interface__["data"][0] % columns.HUGE == 0
    assert bytes(huge[:32]) == small.tobytes()
    assert not huge[len(large[0]) * 8 :].any()


@pytest.mark.parametrize("seed", range(24))
def test_against_the_reference(seed: int) -> None:
    """Random settings, models and GPUs; every event by event, every state valid."""
    rng = random.Random(seed)
    rig = Rig(**random_settings(rng))
    stream = Stream(rig, rng, start=rng.choice((0, 1_763_800_000_000_000_000)))
    for _ in range(150):
        stream.step()
    rig.settle()


@pytest.mark.parametrize("seed", range(8))
def test_against_the_reference_next_door(seed: int) -> None:
    """No way to the GPUs and back: in these a stage once ended with the size that its lane began with."""
    rng = random.Random(seed)
    rig = Rig(**random_settings(rng, ("data_ns", "margin_ns")))
    stream = Stream(rig, rng, start=rng.choice((0, 1_763_800_000_000_000_000)))
    for _ in range(150):
        stream.step()
    rig.settle()


@pytest.mark.parametrize("seed", range(12))
def test_against_the_reference_on_types_far_apart(seed: int) -> None:
    """GPU types of which one is many times as fast as the next, in any order of their numbers."""
    rng = random.Random(200 + seed)
    rig = Rig(**random_settings(rng))
    stream = Stream(rig, rng, churn=0.02, kinds=rng.choice((2, 3)), apart=rng.choice((3, 8)))
    for _ in range(150):
        stream.step()
    rig.settle()


def test_the_streams_reach_every_corner() -> None:
    """The random streams are worth something: every kind of action occurs in them."""
    seen: Counter[str] = Counter()
    for seed in range(12):
        rng = random.Random(100 + seed)
        rig = Rig(check=False, reference=False, **random_settings(rng))
        stream = Stream(rig, rng)
        for _ in range(300):
            stream.step()
        rig.settle()
        seen.update(REASONS[drop[3]] for drop in rig.books.dropped)
        seen.update(f"priority {d[1]}" for d in rig.books.dispatched)
        seen["batches of several"] += sum(d[3] > 1 for d in rig.books.dispatched)
        seen["strange completions"] += rig.core.strange_completions
        seen["clock steps"] += rig.core.clock_steps
    wanted = {*REASONS[1:], "priority 0", "priority 1", "priority 3", "batches of several"}
    wanted |= {"strange completions", "clock steps"}
    assert not wanted - {name for name, count in seen.items() if count}


@pytest.mark.parametrize("seed", range(6))
def test_thousands_of_events_at_times_near_the_limit(seed: int) -> None:
    """Sums of times and durations near 2^62 must not overflow in C."""
    rng = random.Random(1000 + seed)
    rig = Rig(check=False, reference=False, **random_settings(rng))
    stream = Stream(rig, rng, start=LAST_TIME - 4_000_000 * MS)
    for _ in range(2500):
        stream.step()
    assert rig.core.now > LAST_TIME - 4_000_000 * MS
    rig.settle()


def test_the_longest_durations_at_the_last_time() -> None:
    most = (1 << 48) - 1
    rig = Rig(control_ns=most, data_ns=most >> 13, result_ns=most, margin_ns=most, horizon_ns=most)
    rig.tell("add_model", 0, most, 4)
    rig.tell("set_profile", LAST_TIME - 10, 0, 0, [most] * 4)
    rig.tell("add_gpu", LAST_TIME - 10, 0)
    rig.tell("set_gpu_margin", 0, most)
    rig.submit(LAST_TIME - 5, [0, 0], [LAST_TIME - 5 + most, 2**63 - 1], [1, 2])
    rig.tell("advance", LAST_TIME - 1)
    rig.settle()


def test_full_queues() -> None:
    """Queues that stay full for hundreds of events, in any order of deadlines."""
    rng = random.Random(5)
    rig = Rig(max_queue=300)
    rig.tell("add_model", 0, 200 * MS, 64)
    rig.tell("set_profile", 0, 0, 0, [(b + 5) * MS for b in range(1, 65)])
    rig.tell("add_gpu", 0, 0)
    now, key = 0, 0
    for _ in range(150):
        now += rng.randrange(3 * MS)
        n = rng.randrange(40)
        deadlines = [now + rng.randrange(10 * MS, 400 * MS) for _ in range(n)]
        rig.submit(now, [0] * n, deadlines, list(range(key + 1, key + n + 1)))
        key += n
        done = [b for b, _, end in rig.books.out.get(0, []) if end <= now]
        rig.complete(now, [0] * len(done), done, [now] * len(done))
    reasons = Counter(drop[3] for drop in rig.books.dropped)
    assert reasons[FULL] > 100
    assert reasons[WINDOW] + reasons[EXPIRED] > 100
    rig.settle()


def test_a_recorded_log_replays_to_the_same_actions() -> None:
    rng = random.Random(11)
    rig = Rig(**random_settings(rng))
    stream = Stream(rig, rng)
    for _ in range(400):
        stream.step()
    rig.settle()
    log = json.loads(json.dumps(rig.log))  # as it would come from a file
    assert len(log) > 400
    for core_type in cores():
        core = core_type(**rig.settings)
        dispatched, dropped = replay(core, log)
        assert dispatched == rig.books.dispatched
        assert dropped == rig.books.dropped


def replay(core: Core, log: list[Any]) -> tuple[list[Any], list[Any]]:
    dispatched, dropped = [], []
    for name, arguments in log:
        if name == "submit":
            now, model, deadline, key, priority, again = arguments
            m, d, k, p = columns(model=model, deadline=deadline, key=key, priority=priority)
            core.submit(now, m, d, k, p, again)
        elif name == "complete":
            now, gpu, batch, finished = arguments
            core.complete(now, *columns(gpu=gpu, batch=batch, finished=finished))
        else:
            getattr(core, name)(*arguments)
        batches, drops = read(core)
        dispatched += batches
        dropped += drops
    return dispatched, dropped


def test_nothing_happens_before_the_wake_up() -> None:
    """Between events nothing is due before next_wakeup: an advance to any earlier moment is idle."""
    idle = 0
    for seed in range(8):
        rng = random.Random(50 + seed)
        rig = Rig(check=False, **random_settings(rng))
        stream = Stream(rig, rng)
        for _ in range(120):
            stream.step()
            due = rig.core.next_wakeup()
            if due - rig.now > 2 and rng.random() < 0.5:
                stream.now = rng.choice((due - 1, rng.randrange(rig.now, due)))
                stream.now = min(stream.now, rig.now + 100 * MS)
                assert rig.tell("advance", stream.now) == ([], [])
                idle += 1
    assert idle > 100


def test_duplicates_do_not_take_the_first_ones_place() -> None:
    rig = Rig()
    rig.tell("add_model", 0, 100 * MS, 8)
    rig.tell("set_profile", 0, 0, 0, [MS] * 8)
    rig.tell("add_gpu", 0, 0)
    rig.submit(0, [0, 0], [100 * MS] * 2, [5, 5])
    assert rig.books.dropped == [(5, 0, 100 * MS, DUPLICATE)]
    assert rig.tell("remove_model", 1, 0)[1] == [(5, 0, 100 * MS, HANDED_BACK)]
