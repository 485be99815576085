"""What the core dispatches reaches the right worker, whole and in order, in as few messages as may be."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from shard_parts import MS, spec
from test_outstanding import dispatches

from scheduler.assignment import Assignment
from scheduler.core.machine import Core
from scheduler.fleet import Fleet
from scheduler.table import ModelTable
from symphony import wire
from symphony.bus import Bus
from symphony.control import GpuInfo
from symphony.faults import Faults
from symphony.membership import describe
from symphony.waiter import Waiter

LOG = logging.getLogger(__name__)
MODELS = ("a", "b", "c")


class Parts:
    """A fleet whose workers' links stand by decree: nothing listens at their endpoints."""

    def __init__(self) -> None:
        self.bus, self.waiter, self.faults = Bus(), Waiter(), Faults(LOG)
        self.core = Core("eager")
        self.table = ModelTable(self.core, self.faults)
        for name in MODELS:
            self.table.learn(0, spec(name))
        assigned = Assignment("shard-0")
        self.fleet = Fleet("shard-0", self.bus, self.waiter, self.core, self.table, assigned, self.faults)

    def worker(self, name: str, gpus: list[int]) -> None:
        infos = [GpuInfo(number=number, type="t") for number in gpus]
        endpoints = {"dispatch": "tcp://127.0.0.1:9"}
        fields: dict[str, Any] = {"gpus": infos, "models": list(MODELS), "state": "ready", "shard": "shard-0"}
        member = describe(name, "worker", endpoints=endpoints, **fields)
        self.fleet.saw(0, member)
        self.fleet.workers[name].linked = True
        self.fleet.place(0, self.fleet.workers[name])

    def close(self) -> None:
        for worker in list(self.fleet.workers.values()):
            self.fleet.gone(0, worker.member)
        self.bus.close()
        self.waiter.close()


@pytest.fixture
def parts() -> Iterator[Parts]:
    made = Parts()
    yield made
    made.close()


def batch(number: int, gpu: int, model: int, keys: list[int]) -> dict[str, Any]:
    due = [key + 7 for key in keys]
    return {
        "batch": number, "gpu": gpu, "model": model, "priority": 0, "finish_at": 9, "key": keys, "due": due,
    }  # fmt: skip


def rows(plan: wire.Plan) -> list[tuple[int, int, str, list[int], list[int]]]:
    """(batch, gpu, model, keys, deadlines) of a plan."""
    found, end = [], 0
    for number, gpu, model, size in zip(
        plan.batch.tolist(), plan.gpu.tolist(), plan.model.tolist(), plan.size.tolist(), strict=True
    ):
        keys, due = plan.key[end : end + size].tolist(), plan.deadline[end : end + size].tolist()
        found.append((number, gpu, plan.models[model], keys, due))
        end += size
    return found


@pytest.mark.parametrize("seed", range(5))
def test_batches_are_grouped_by_worker_in_their_order(parts: Parts, seed: int) -> None:
    rng = random.Random(seed)
    owner = {0: "x", 1: "y", 2: "x", 5000: "z", 3: "y"}
    for name in "xyz":
        parts.worker(name, [gpu for gpu, w in owner.items() if w == name])
    for turn in range(20):
        new = [
            batch(
                10 * turn + i,
                rng.choice(list(owner)),
                rng.randrange(3),
                rng.sample(range(999), rng.randint(1, 9)),
            )
            for i in range(rng.randrange(8))
        ]
        sent = parts.fleet.plan(dispatches(new))
        got = {worker.member.id: rows(wire.decode_plan(frame)) for worker, frame in sent}
        assert len(got) == len(sent), "one message each"
        for name in "xyz":
            mine = [
                (b["batch"], b["gpu"], MODELS[b["model"]], b["key"], b["due"])
                for b in new
                if owner[b["gpu"]] == name
            ]
            assert got.get(name, []) == mine
    assert parts.faults.counts == {}


def test_more_than_a_message_may_hold_goes_in_several(parts: Parts) -> None:
    parts.worker("x", [0, 1])
    size = 30_000
    new = [batch(i, i % 2, 0, list(range(i * size, (i + 1) * size))) for i in range(5)]
    sent = parts.fleet.plan(dispatches(new))
    plans = [wire.decode_plan(frame) for _, frame in sent]
    assert [plan.batch.tolist() for plan in plans] == [[0, 1], [2, 3], [4]]
    assert [row[3] for plan in plans for row in rows(plan)] == [b["key"] for b in new]


def test_what_was_meant_for_a_gpu_that_has_gone_is_lost_and_wakes_the_shard(parts: Parts) -> None:
    parts.worker("x", [0])
    parts.worker("y", [1])
    parts.fleet.gone(0, parts.fleet.workers["y"].member)
    sent = parts.fleet.plan(dispatches([batch(3, 0, 0, [1]), batch(4, 1, 2, [2, 3])]))
    assert [rows(wire.decode_plan(frame))[0][0] for _, frame in sent] == [3]
    assert parts.fleet.next_wakeup(55) == 55
    (lost,) = parts.fleet.take_lost()
    assert (lost.model, lost.key.tolist(), lost.deadline.tolist()) == (2, [2, 3], [9, 10])
    assert list(parts.fleet.out) == [3]
    assert parts.fleet.next_wakeup(55) is None


def test_a_worker_whose_pipe_is_full_is_paused_and_what_it_had_is_lost(parts: Parts) -> None:
    parts.worker("x", [0, 1])
    parts.fleet.send(MS, parts.fleet.plan(dispatches([batch(3, 0, 0, [1])])))
    assert parts.faults.counts == {"dispatch-pipe-full": 1}, "nobody is connected"
    assert [out.key.tolist() for out in parts.fleet.take_lost()] == [[1]]
    assert not parts.core.has_gpu(0)
    assert not parts.core.has_gpu(1)
    at = parts.fleet.next_wakeup(MS)
    assert at is not None
    parts.fleet.read_links(at - 1, [])
    assert not parts.core.has_gpu(0)
    parts.fleet.read_links(at, [])
    assert parts.core.has_gpu(0)
    assert parts.core.has_gpu(1)
    assert parts.fleet.next_wakeup(at) is None


def test_completions_are_counted_learned_from_and_told_to_the_core(parts: Parts) -> None:
    parts.worker("x", [0, 1])
    due = np.full(2, 10**12)
    parts.core.submit(5, np.zeros(2, np.uint32), due, np.array([1, 2], np.uint64))
    sent = parts.fleet.plan(parts.core.actions.dispatches())
    parts.core.clear_actions()
    ((number, gpu, _, keys, _),) = rows(wire.decode_plan(sent[0][1]))
    named = [(number, gpu), (number, gpu), (number, 1 - gpu), (99, 0), (2**64 - 1, 1)]
    columns = [np.array(c) for c in zip(*named, strict=True)]
    n = len(named)
    done = wire.Completed(
        np.array([b for b, _ in named], np.uint64),
        columns[1].astype(np.uint32),
        np.full(n, 2, np.uint32),
        np.zeros(n, np.uint32),
        np.full(n, 50),
        np.full(n, 100),
        np.full(n, 100 + MS),
        [],
    )
    parts.fleet.completed(10**7, done)
    back = parts.fleet.take_back()
    assert back is not None
    assert (back.size.tolist(), back.good.tolist(), back.model.tolist()) == ([2], [2], [0])
    assert keys == [1, 2]
    assert parts.faults.counts == {"completion-of-unknown-batch": 4}
    assert parts.core.outstanding(gpu) == 0
    assert len(parts.fleet.out) == 0
    parts.fleet.completed(10**7, done)
    assert parts.fleet.take_back() is None
    assert parts.faults.counts == {"completion-of-unknown-batch": 9}
