"""The virtual clock: both engines agree, both cores agree, nothing is lost, no GPU runs two batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from core_system import CoreSystem, make_experiment

from scheduler import select
from scheduler.core.machine import Core
from scheduler.core.replay import Replay
from simulator import engine
from simulator.arrivals import START_NS, Arrivals, make_arrivals
from simulator.engine import Record, cluster_of, make_core, run_core, run_system
from simulator.system import NEVER, Decisions, Sent

NOISY = {
    "network": {"control_us": 100, "data_us": 50, "result_us": 2000, "jitter_us": 200},
    "noise": 0.05,
    "margin_us": 500,
}
COLUMNS = ("model", "gpu", "size", "decided", "start", "end", "answered", "request", "dropped")


def same(one: Record, two: Record) -> None:
    for name in COLUMNS:
        assert np.array_equal(getattr(one, name), getattr(two, name)), name


@pytest.mark.parametrize("policy", ["deferred", "eager", "target", "latest", "timeout:10:8"])
@pytest.mark.parametrize("changes", [{}, NOISY])
def test_the_fast_engine_does_what_the_general_one_does(policy: str, changes: dict[str, Any]) -> None:
    experiment = make_experiment(6000, count=4, seconds=1, **changes)
    arrivals = make_arrivals(experiment)
    cluster = cluster_of(experiment)
    fast = run_core(experiment, cluster, policy, arrivals.pieces())
    general = run_system(experiment, cluster, CoreSystem(make_core(cluster, policy)), arrivals)
    same(fast, general)


@pytest.mark.skipif(select.compiled_core() is None, reason="no compiled core in this build")
@pytest.mark.parametrize("changes", [{}, NOISY, {"coalesce_us": 100}])
def test_compiled_and_python_cores_give_the_same(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = make_experiment(6500, count=3, seconds=1, **changes)
    arrivals = make_arrivals(experiment)
    cluster = cluster_of(experiment)
    compiled = run_core(experiment, cluster, "deferred", arrivals.pieces())
    monkeypatch.setattr(engine, "core_class", lambda: Core)
    monkeypatch.setattr(engine, "replay_class", lambda: Replay)
    same(compiled, run_core(experiment, cluster, "deferred", arrivals.pieces()))


@pytest.mark.parametrize("changes", [{}, NOISY, {"coalesce_us": 200}])
def test_every_request_leaves_once_and_gpus_run_one_batch_at_a_time(changes: dict[str, Any]) -> None:
    experiment = make_experiment(8000, count=5, seconds=1, **changes)
    arrivals = make_arrivals(experiment)
    record = run_core(experiment, cluster_of(experiment), "deferred", arrivals.pieces())
    left = np.sort(np.concatenate([record.request, record.dropped]))
    assert np.array_equal(left, np.arange(len(arrivals.at)))
    assert record.size.sum() == len(record.request)
    for gpu in range(8):
        mine = record.gpu == gpu
        assert (record.start[mine][1:] >= record.end[mine][:-1]).all()
    out = 100_000 + 50_000 * record.size if "network" in changes else 0
    assert (record.start >= record.decided + out).all()


def test_coalesced_arrivals_are_decided_at_the_ticks() -> None:
    experiment = make_experiment(6000, seconds=1, coalesce_us=1000)
    arrivals = make_arrivals(experiment)
    record = run_core(experiment, cluster_of(experiment), "eager", arrivals.pieces())
    first = arrivals.at[record.request[np.cumsum(record.size) - record.size]]
    assert (record.decided >= -(-first // 1_000_000) * 1_000_000).all()


def test_completions_are_reported_at_the_ticks_all_of_a_tick_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard: list[tuple[int, list[int]]] = []

    class Listening(Core):
        def complete(self, now: int, gpu: Any, batch: Any, finished: Any) -> None:
            heard.append((now, list(finished)))
            super().complete(now, gpu, batch, finished)

    monkeypatch.setattr(engine, "core_class", lambda: Listening)
    monkeypatch.setattr(engine, "replay_class", lambda: Replay)
    tick, report = 5_000_000, 100_000
    experiment = make_experiment(6000, seconds=1, coalesce_us=5000, network={"control_us": 100})
    pieces = make_arrivals(experiment).pieces()
    record = run_core(experiment, cluster_of(experiment), "eager", pieces)
    assert len({now for now, _ in heard}) == len(heard)
    assert sorted(end for _, ends in heard for end in ends) == sorted(record.end.tolist())
    for now, ends in heard:
        assert now % tick == 0
        assert all(now - tick < end + report <= now for end in ends)
    assert max(len(ends) for _, ends in heard) > 1


class Scripted:
    """Sends a batch per request to GPU 0 and kills what was sent before it."""

    def __init__(self, latest: int = NEVER) -> None:
        self.decisions = Decisions()
        self.latest = latest
        self.heard: list[tuple[int, int]] = []

    def submit(self, now: int, model: int, deadline: int, key: int) -> None:
        if key > 1 and self.latest == NEVER:
            self.decisions.preempted.append(key - 1)
        self.decisions.sent.append(
            Sent(key, 0, 0, [key], now + self.latest if self.latest < NEVER else NEVER)
        )

    def complete(self, now: int, gpu: int, number: int, finished: int) -> None:
        self.heard.append((number, now - START_NS))

    def advance(self, now: int) -> None:
        raise AssertionError("no timer was asked for")

    def next_wakeup(self) -> int:
        return NEVER


def three(ms: list[float]) -> Arrivals:
    at = START_NS + (np.array(ms) * 1e6).astype(np.int64)
    return Arrivals(at, np.zeros(len(ms), np.uint32), at + 50_000_000)


def test_a_killed_batch_frees_its_gpu_and_has_no_result() -> None:
    experiment = make_experiment(1, network={"control_us": 1000})
    system = Scripted()
    record = run_system(experiment, cluster_of(experiment), system, three([0, 3, 20]))
    # Batch 1 starts at 1 ms, is killed at 4 ms; batch 2 runs 6.286 ms; batch 3 comes after its end.
    assert ((record.start - START_NS) / 1e6).tolist() == [1, 4, 21]
    assert ((record.end - START_NS) / 1e6).tolist() == pytest.approx([4, 10.286, 27.286])
    assert (record.answered == NEVER).tolist() == [True, False, False]
    assert system.heard == [(2, 11_286_000), (3, 28_286_000)]


def test_a_batch_that_comes_too_late_is_discarded_by_the_worker() -> None:
    experiment = make_experiment(1)
    system = Scripted(latest=1_000_000)
    record = run_system(experiment, cluster_of(experiment), system, three([0, 5.5, 5.6]))
    assert (record.answered == NEVER).tolist() == [False, False, True]
    assert record.dropped.tolist() == [2]
    assert record.start[1] - START_NS == 6_286_000
