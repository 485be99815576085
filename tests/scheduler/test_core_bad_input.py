"""What the core refuses, what it counts, and that nothing of it does harm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from rig import CORES, MS, columns, linear, read

from scheduler.core.limits import (
    DUPLICATE,
    EXPIRED,
    LARGEST_BATCH,
    LAST_TIME,
    LONGEST,
    MOST_GPUS,
    MOST_MODELS,
    MOST_QUEUED,
    OUT_OF_RANGE,
    TYPES,
    UNKNOWN,
    UNSERVED,
)
from scheduler.core.machine import Core
from scheduler.core.validate import validate

pytestmark = CORES
NOW = 1_000_000 * MS


def serving(core_type: type[Core], **settings: Any) -> Core:
    """One model, one GPU, at time NOW."""
    core = core_type(**settings)
    core.advance(NOW)
    core.add_model(0, 100 * MS, 8)
    core.set_profile(NOW, 0, 0, linear(1, 5, 8))
    core.add_gpu(NOW, 0)
    return core


def submit(core: Core, rows: list[tuple[int, int, int]], now: int = NOW) -> list[tuple[int, int]]:
    """(model, deadline, key) of each; the drops as (key, reason)."""
    model, deadline, key = zip(*rows, strict=True)
    core.submit(now, *columns(model=list(model), deadline=list(deadline), key=list(key)))
    validate(core)
    return [(drop[0], drop[3]) for drop in read(core)[1]]


LENGTHS: list[tuple[int, int, int, int]] = [
    (2, 1, 2, 2),
    (2, 2, 1, 2),
    (1, 2, 2, 2),
    (2, 2, 2, 1),
    (0, 1, 1, 1),
]


@pytest.mark.parametrize("lengths", LENGTHS)
def test_columns_of_different_lengths(core_type: type[Core], lengths: tuple[int, int, int, int]) -> None:
    core = serving(core_type)
    model, deadline, key, priority = (np.zeros(n) for n in lengths)
    with pytest.raises(ValueError, match="lengths"):
        core.submit(
            NOW,
            model.astype(np.uint32),
            deadline.astype(np.int64),
            key.astype(np.uint64),
            priority.astype(np.uint8),
        )
    assert core.submitted == 0
    validate(core)


@pytest.mark.parametrize("lengths", [(1, 2, 2), (2, 1, 2), (2, 2, 1)])
def test_completions_of_different_lengths(core_type: type[Core], lengths: tuple[int, int, int]) -> None:
    core = serving(core_type)
    gpu, batch, finished = lengths
    with pytest.raises(ValueError, match="lengths"):
        core.complete(NOW, np.zeros(gpu, np.uint32), np.zeros(batch, np.uint64), np.zeros(finished, np.int64))
    validate(core)


def test_empty_columns(core_type: type[Core]) -> None:
    core = serving(core_type)
    core.submit(NOW, *columns(model=[], deadline=[], key=[]))
    core.complete(NOW, *columns(gpu=[], batch=[], finished=[]))
    assert read(core) == ([], [])


def test_columns_that_are_views(core_type: type[Core]) -> None:
    """Every other row of an array, and read-only bytes."""
    core = serving(core_type)
    model = np.zeros(6, np.uint32)[::2]
    deadline = np.repeat(np.array([NOW + 100 * MS], np.int64), 6)[::2]
    key = np.arange(1, 7, dtype=np.uint64)[::2]
    key.flags.writeable = False
    core.submit(NOW, model, deadline, key)
    validate(core)
    core.remove_model(NOW, 0)
    assert [drop[0] for drop in read(core)[1]] == [1, 3, 5]


def test_unknown_models(core_type: type[Core]) -> None:
    core = serving(core_type)
    rows = [(model, NOW + 100 * MS, 1 + i) for i, model in enumerate((1, 7, 8, 2**20, 2**32 - 1))]
    assert submit(core, rows) == [(1 + i, UNKNOWN) for i in range(5)]
    assert submit(core_type(), rows) == [(1 + i, UNKNOWN) for i in range(5)]


def test_a_model_without_latencies_is_unserved(core_type: type[Core]) -> None:
    core = serving(core_type)
    core.add_model(1, MS, 1)
    assert submit(core, [(1, NOW + MS, 1)]) == [(1, UNSERVED)]


def test_keys_must_rise_within_their_slot(core_type: type[Core]) -> None:
    core = serving(core_type)
    due = NOW + 100 * MS
    other = (3 << 48) + 2
    last = 2**64 - 1
    rows = [
        (0, due, 5),
        (0, due, other),
        (0, due, 5),
        (0, due, 4),
        (0, due, 6),
        (0, due, last),
        (0, due, last),
    ]
    assert submit(core, rows) == [(5, DUPLICATE), (4, DUPLICATE), (last, DUPLICATE)]
    assert submit(core, [(0, due, 0), (0, due, other)]) == [(0, DUPLICATE), (other, DUPLICATE)]
    core.forget_slot(3)
    core.remove_model(NOW, 0)
    assert len(read(core)[1]) == 4
    core.add_model(0, 100 * MS, 8)
    core.set_profile(NOW, 0, 0, linear(1, 5, 8))
    assert submit(core, [(0, due, (3 << 48) + 1)]) == []


def test_deadlines_past_and_far(core_type: type[Core]) -> None:
    core = serving(core_type, horizon_ns=1000 * MS)
    century = 100 * 365 * 86_400 * 1_000_000_000
    rows = [
        (0, NOW - 1, 1),
        (0, NOW, 2),
        (0, NOW + 6 * MS - 1, 3),
        (0, 0, 4),
        (0, -1, 5),
        (0, -(2**63), 6),
        (0, NOW + 1000 * MS + 1, 7),
        (0, NOW + century, 8),
        (0, 2**63 - 1, 9),
    ]
    reasons = dict(submit(core, rows))
    assert {key for key, reason in reasons.items() if reason == EXPIRED} == {1, 2, 3, 4}
    assert {key for key, reason in reasons.items() if reason == OUT_OF_RANGE} == {5, 6, 7, 8, 9}
    assert submit(core, [(0, NOW + 1000 * MS, 10)]) == []


def test_unknown_and_double_completions(core_type: type[Core]) -> None:
    core = serving(core_type)
    core.submit(NOW, *columns(model=[0] * 8, deadline=[NOW + 100 * MS] * 8, key=list(range(1, 9))))
    assert [d[4] for d in read(core)[0]] == [0]
    strange = [(0, 1), (1, 0), (2**32 - 1, 0), (0, 2**64 - 1), (0, 2**63)]
    gpus, batches = [list(column) for column in zip(*strange, strict=True)]
    core.complete(NOW + MS, *columns(gpu=gpus, batch=batches, finished=[NOW] * 5))
    assert (core.strange_completions, core.outstanding(0)) == (5, 1)
    core.complete(NOW + 2 * MS, *columns(gpu=[0, 0], batch=[0, 0], finished=[NOW + MS, NOW + MS]))
    assert (core.strange_completions, core.outstanding(0)) == (6, 0)
    validate(core)


@pytest.mark.parametrize("finished", [-1, -(2**63), 0, NOW + 1000 * MS, 2**63 - 1])
def test_completions_from_another_time(core_type: type[Core], finished: int) -> None:
    """An end in the future or before all time counts as now; one in the past frees the GPU, no more."""
    core = serving(core_type)
    core.submit(NOW, *columns(model=[0] * 8, deadline=[NOW + 100 * MS] * 8, key=list(range(1, 9))))
    core.complete(NOW + MS, *columns(gpu=[0], batch=[0], finished=[finished]))
    validate(core)
    assert core.gpus.free_at[0] <= NOW + MS
    core.submit(NOW + MS, *columns(model=[0] * 8, deadline=[NOW + 100 * MS] * 8, key=list(range(11, 19))))
    assert read(core)[0][-1][5] == NOW + MS


def test_a_clock_that_steps_back_stands_still(core_type: type[Core]) -> None:
    core = serving(core_type)
    for i, now in enumerate((NOW - 1, 0, -5, LAST_TIME, 2**63 - 1)):
        core.advance(now)
        assert (core.now, core.clock_steps) == (NOW, i + 1)
    assert submit(core, [(0, NOW + 100 * MS, 1)], now=NOW - 50 * MS) == []
    assert core.next_wakeup() == NOW + 93 * MS
    validate(core)


WRONG: dict[str, Callable[[Core], object]] = {
    "model number": lambda core: core.add_model(MOST_MODELS, MS, 1),
    "negative model": lambda core: core.add_model(-1, MS, 1),
    "known model": lambda core: core.add_model(0, MS, 1),
    "no SLO": lambda core: core.add_model(1, 0, 1),
    "an SLO of years": lambda core: core.add_model(1, LONGEST, 1),
    "no batch": lambda core: core.add_model(1, MS, 0),
    "huge batch": lambda core: core.add_model(1, MS, LARGEST_BATCH + 1),
    "profile of an unknown model": lambda core: core.set_profile(NOW, 3, 0, [1]),
    "profile of a wrong type": lambda core: core.set_profile(NOW, 0, TYPES, [1] * 8),
    "short profile": lambda core: core.set_profile(NOW, 0, 0, [1] * 7),
    "empty profile": lambda core: core.set_profile(NOW, 0, 0, []),
    "falling profile": lambda core: core.set_profile(NOW, 0, 0, [1, 2, 3, 4, 5, 6, 7, 6]),
    "negative profile": lambda core: core.set_profile(NOW, 0, 0, [-1, 2, 3, 4, 5, 6, 7, 8]),
    "profile of days": lambda core: core.set_profile(NOW, 0, 0, [1, 2, 3, 4, 5, 6, 7, LONGEST]),
    "GPU number": lambda core: core.add_gpu(NOW, MOST_GPUS),
    "negative GPU": lambda core: core.add_gpu(NOW, -1),
    "GPU type": lambda core: core.add_gpu(NOW, 1, TYPES),
    "GPU that is there": lambda core: core.add_gpu(NOW, 0),
    "models of no GPU": lambda core: core.set_gpu_models(NOW, 5, None),
    "margin of a wrong type": lambda core: core.set_type_margin(TYPES, 1),
    "margin of a negative type": lambda core: core.set_type_margin(-1, 1),
    "slot": lambda core: core.forget_slot(65_536),
    "negative slot": lambda core: core.forget_slot(-1),
}


@pytest.mark.parametrize("name", WRONG)
def test_refused_calls(core_type: type[Core], name: str) -> None:
    core = serving(core_type)
    before = core.models.capacity, core.gpus.capacity
    with pytest.raises(ValueError):
        WRONG[name](core)
    validate(core)
    assert (core.models.capacity, core.gpus.capacity) == before
    assert read(core) == ([], [])


def test_calls_about_what_is_not_there_do_nothing(core_type: type[Core]) -> None:
    core = serving(core_type)
    for number in (-1, 3, 2**20, 2**40):
        core.drain_model(number)
        core.remove_model(NOW, number)
        core.drain_gpu(NOW, number)
        core.remove_gpu(NOW, number)
        core.set_gpu_margin(number, 1)
        assert not core.has_model(number)
        assert not core.has_gpu(number)
        assert core.outstanding(number) == 0
    validate(core)


def test_margins_are_kept_within_range(core_type: type[Core]) -> None:
    core = serving(core_type)
    core.set_margin(-1)
    core.set_gpu_margin(0, 2**62)
    core.set_type_margin(0, -(2**62))
    assert (core.margin, core.gpus.margin[0], core.type_margin[0]) == (0, LONGEST, 0)


@pytest.mark.parametrize(
    "name", ["control_ns", "data_ns", "result_ns", "margin_ns", "horizon_ns", "overdue_ns"]
)
@pytest.mark.parametrize("value", [-1, LONGEST])
def test_settings_out_of_range(core_type: type[Core], name: str, value: int) -> None:
    with pytest.raises(ValueError, match=r"negative|below"):
        core_type(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("most", [0, -1, MOST_QUEUED + 1])
def test_max_queue_out_of_range(core_type: type[Core], most: int) -> None:
    with pytest.raises(ValueError, match="max_queue"):
        core_type(max_queue=most)


BAD_POLICIES = ["", "best", "deferred:1", "timeout", "timeout:", "timeout:x", "timeout:-1", "timeout:inf"]
BAD_POLICIES += ["timeout:nan", "timeout:1:x", "timeout:1:-2", "timeout:1:99999", "timeout:1e300"]


@pytest.mark.parametrize("policy", BAD_POLICIES)
def test_unknown_policies(core_type: type[Core], policy: str) -> None:
    with pytest.raises(ValueError, match="choose deferred, eager, target, latest or timeout:MS"):
        core_type(policy=policy)


def test_models_that_come_and_go_leave_no_memory_behind(core_type: type[Core]) -> None:
    core = serving(core_type)
    size = 0
    for i in range(300):
        now = NOW + i * MS
        core.remove_model(now, 0)
        core.add_model(0, 100 * MS, 8)
        core.set_profile(now, 0, 0, [5 * MS + i] * 8)
        core.submit(
            now, *columns(model=[0] * 50, deadline=[now + 99 * MS] * 50, key=range(i * 99 + 1, i * 99 + 51))
        )
        core.remove_gpu(now, 0)
        core.add_gpu(now, 0, 0, [0, i])
        core.clear_actions()
        held = len(core.models.latency) + core.queues.slots() + len(core.pending.place) + core.gpus.classes
        if i == 10:
            size = held
    assert held == size
    validate(core)
