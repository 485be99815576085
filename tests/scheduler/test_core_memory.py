"""An hour of traffic in virtual time, with bursts, leaves a core as large as its first minutes did."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from rig import MS, linear

from scheduler.core.machine import Core
from scheduler.core.memory import memory
from scheduler.core.replay import Replay
from scheduler.core.validate import validate
from scheduler.select import core_class, replay_class

MODELS, GPUS, MINUTES = 5, 4, 60
BURST = 1_500
"""Requests that come within 50 ms, once a minute, for one model in turn."""


def minutes() -> Iterator[tuple[np.ndarray[Any, Any], ...]]:
    """For each minute arrivals (ns), model numbers, deadlines and keys: 10 requests/s and a burst."""
    rng = np.random.default_rng(7)
    key = 1
    for minute in range(MINUTES):
        begin = minute * 60_000 * MS
        calm = begin + rng.integers(0, 60_000 * MS, 600)
        burst = begin + 30_000 * MS + rng.integers(0, 50 * MS, BURST)
        at = np.concatenate((calm, burst))
        model = np.concatenate((rng.integers(0, MODELS, 600), np.full(BURST, minute % MODELS)))
        order = np.argsort(at, kind="stable")
        slo = 200 * MS - rng.integers(0, MS, len(at))
        keys = np.arange(key, key + len(at), dtype=np.uint64)
        key += len(at)
        yield at[order], model[order].astype(np.uint32), at[order] + slo, keys


@pytest.fixture
def replay() -> Replay:
    core: Core = core_class()(margin_ns=MS)
    for model in range(MODELS):
        core.add_model(model, 200 * MS, 16)
        core.set_profile(0, model, 0, linear(1, 5, 16))
    for gpu in range(GPUS):
        core.add_gpu(0, gpu)
    exact = np.zeros(1, np.int64), np.full(1, 1_000_000, np.int64)
    return replay_class()(core, GPUS, 0, 0, 0, MS, *exact)


def test_an_hour_of_bursts_leaves_the_memory_flat(replay: Replay) -> None:
    core = replay.core
    tracemalloc.start()
    held: dict[str, int] = {}
    rings = objects = left = 0
    for minute, columns in enumerate(minutes()):
        replay.run(*columns)
        left += core.actions.requests + core.actions.dropped
        replay.clear()
        if minute == 2 * MODELS:
            held, rings = memory(core), core.queues.slots()
            gc.collect()
            objects = tracemalloc.get_traced_memory()[0]
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - objects
    tracemalloc.stop()
    validate(core)
    assert memory(core) == held
    assert core.queues.slots() == rings
    assert grown < 20_000, f"{grown} bytes of Python objects more"
    assert left + sum(core.queued_by_model(MODELS)) == MINUTES * (600 + BURST)
    # A burst was queued as a whole once; afterwards its ring is another lane's to use.
    assert rings * 16 == held["queued"] <= 16 * 8 * BURST


def test_what_each_part_takes(replay: Replay) -> None:
    """The sum over the parts is the sum over all columns; it grows with models and GPUs."""
    core = replay.core
    before = memory(core)
    assert before["queued"] == 16 * core.queues.slots()
    assert before["once"] >= 8 * 65_536
    for model in range(MODELS, 1000):
        core.add_model(model, 200 * MS, 16)
    for gpu in range(GPUS, 1000):
        core.add_gpu(0, gpu)
    after = memory(core)
    assert {name for name in after if after[name] > before[name]} == {"models", "gpus"}
    assert 100 * 1000 < after["gpus"] < 400 * 1000
    assert 500 * 1000 < after["models"] < 1300 * 1000
