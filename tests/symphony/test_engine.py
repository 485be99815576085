"""The engine over real loopback sockets, against the real broker and fake shards: how requests end."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import numpy as np
import pytest
import zmq
from engine_parts import Outcomes, X, submit
from fake_cluster import GRACE_MS, FakeCluster
from helpers import wait_until

from symphony.bus import Bus, send
from symphony.engine import Engine
from symphony.pending import Outcome, Request
from symphony.status import InvalidRequest, Overloaded, Status, Unavailable


@pytest.mark.parametrize(
    ("model", "status", "text"),
    [
        ("double", Status.OK, ""),
        ("plain", Status.OK, ""),
        ("late", Status.OK, ""),
        ("drops", Status.DROPPED, "the deadline could not be met"),
        ("full", Status.OVERLOADED, "the shard's queue is full"),
        ("fails", Status.FAILED, "ValueError: the model's own text"),
        ("refuses", Status.INVALID, "x is not what it should be"),
        ("silent", Status.TIMEOUT, "nobody answered"),
        ("nix", Status.UNKNOWN_MODEL, "unknown model 'nix'; the cluster serves: double, drops"),
    ],
)
def test_each_way_to_end(engine: Engine, model: str, status: Status, text: str) -> None:
    done = Outcomes()
    request = submit(engine, model, done)
    assert done.wait(1) == {status: 1}
    outcome = done.by_tag[0]
    assert text in outcome.detail
    if model != "nix":  # it has no SLO, and so no deadline
        assert (outcome.at > request.deadline) == (model in ("late", "silent"))
    assert engine.in_flight == 0


def test_second_answers_are_counted_and_ignored(engine: Engine) -> None:
    done = Outcomes()
    for tag in range(5):
        submit(engine, "twice", done, tag)
    assert done.wait(5) == {Status.OK: 5}
    wait_until(lambda: engine.faults.counts["duplicate-answer"] == 10)
    assert done.calls == 5


def test_an_answer_after_the_grace_is_counted_and_ignored(engine: Engine) -> None:
    done = Outcomes()
    submit(engine, "very-late", done, deadline_ns=engine.clock.now() + 20_000_000)
    assert done.wait(1) == {Status.TIMEOUT: 1}
    wait_until(lambda: engine.faults.counts["duplicate-answer"] == 1)
    assert done.calls == 1


def test_answers_that_wait_to_be_read_are_answers_whatever_the_time(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller holds the engine up until all that is asked has expired; its answers are there by then."""
    monkeypatch.setattr("symphony.loop.ANSWERS", 1)
    done = Outcomes()
    expired = engine.clock.now() + 1_000_000_000 + engine.grace_ns

    def slow(request: Request, outcome: Outcome) -> None:
        if not done.calls:
            wait_until(lambda: engine.clock.now() > expired + 100_000_000, 30, "expiry")
        done(request, outcome)

    for tag, model in enumerate(("plain", "drops", "full")):
        deadline = expired - engine.grace_ns
        engine.submit_raw(model, None, on_done=slow, tag=tag, deadline_ns=deadline)
    assert done.wait(3) == {Status.OK: 1, Status.DROPPED: 1, Status.OVERLOADED: 1}


def test_as_many_answers_as_a_turn_takes_and_no_more_keep_nobody_waiting(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the one answer the loop may think that there are more; the other request expires still."""
    monkeypatch.setattr("symphony.loop.ANSWERS", 1)
    done = Outcomes()
    submit(engine, "plain", done, "answered")
    submit(engine, "silent", done, "silent")
    assert done.wait(2) == {Status.OK: 1, Status.TIMEOUT: 1}


def test_a_flood_of_messages_keeps_no_request_waiting(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the loop never catches up with may be answers: it expires late then, but it does."""
    monkeypatch.setattr("symphony.loop.ANSWERS", 1)
    monkeypatch.setattr("symphony.loop.CATCH_UP_NS", 300_000_000)
    me = wait_until(lambda: next((m for m in engine.members.values() if m.role == "frontend"), None))
    assert me is not None
    done = Outcomes()
    with Bus() as bus:
        sock = bus.connect(zmq.PUSH, me.endpoints["reply"])
        sent = 0

        def flooded() -> bool:
            nonlocal sent
            while sent < engine.faults.counts["reply-malformed"] + 20_000 and send(sock, [b""]):
                sent += 1
            return bool(done.calls)

        flooded()
        submit(engine, "silent", done)
        wait_until(flooded, 30, "the outcome")
        assert engine.faults.counts["reply-malformed"] < sent, "the loop was never behind"
    assert done.wait(1) == {Status.TIMEOUT: 1}


def test_thousands_in_flight_each_get_one(engine: Engine, cluster: FakeCluster) -> None:
    done, count = Outcomes(), 4_000
    for tag in range(count):
        submit(engine, ("double", "plain", "drops", "upper2", "fails")[tag % 5], done, tag)
    statuses = done.wait(count)
    assert statuses == {
        Status.OK: 1600,
        Status.DROPPED: 800,
        Status.UNKNOWN_MODEL: 800,
        Status.FAILED: 800,
    }
    keys = np.concatenate([message.key for message in cluster.shards[0].submitted])
    assert (np.diff(keys.astype(np.int64)) > 0).all()
    assert len(cluster.shards[0].submitted) < count / 10  # they travel together


def test_several_threads_share_an_engine(engine: Engine) -> None:
    collected = [Outcomes() for _ in range(8)]

    def caller(done: Outcomes) -> None:
        for tag in range(200):
            submit(engine, "double", done, tag)

    threads = [threading.Thread(target=caller, args=(done,)) for done in collected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for done in collected:
        assert done.wait(200) == {Status.OK: 200}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"model": ""}, "a model is named by a string"),
        ({"model": 5}, "a model is named by a string, not 5"),
        ({"priority": 4}, r"priority must be 0 \(normal\) to 3 \(highest\), not 4"),
        ({"priority": True}, "priority must be"),
        ({"deadline_ns": 1}, r"the deadline has passed \d+\.\d+ ms ago"),
        ({"deadline_ns": 1 << 62}, "more than a day ahead"),
        ({"inputs": {"y": 1}}, "unknown tensor 'y'; the model takes x"),
        ({"inputs": {"x": np.zeros(3)}}, "tensor 'x' must be FP32, not FP64"),
        ({"inputs": {"x": np.zeros((3, 1), np.float32)}}, r"must have shape \[-1\]"),
        ({"inputs": None}, "tensor 'x' is missing"),
        ({"inputs": [1]}, "inputs must map tensor names to arrays"),
    ],
)
def test_what_is_invalid_raises_and_nothing_is_sent(
    engine: Engine, cluster: FakeCluster, arguments: dict[str, Any], text: str
) -> None:
    done = Outcomes()
    everything: dict[str, Any] = {"model": "double", "inputs": X, "on_done": done} | arguments
    with pytest.raises(InvalidRequest, match=text):
        engine.submit_raw(**everything)
    submit(engine, "plain", done)
    assert done.wait(1) == {Status.OK: 1}
    assert sum(message.key.size for message in cluster.shards[0].submitted) == 1


def test_too_many_in_flight_are_refused(cluster: FakeCluster) -> None:
    engine, done = Engine(cluster.registry, cluster.subscribe, max_pending=3), Outcomes()
    engine.start()
    try:
        for tag in range(3):
            submit(engine, "silent", done, tag)
        with pytest.raises(Overloaded, match="3 requests are in flight already"):
            submit(engine, "silent", done, 3)
        assert done.wait(3) == {Status.TIMEOUT: 3}
        submit(engine, "plain", done, 4)
        assert done.wait(4)[Status.OK] == 1
    finally:
        engine.close()


def test_closing_ends_what_is_in_flight(cluster: FakeCluster) -> None:
    engine, done = Engine(cluster.registry, cluster.subscribe, grace_ms=GRACE_MS), Outcomes()
    engine.start()
    for tag in range(100):
        submit(engine, "silent", done, tag)
    engine.close()
    assert done.wait(100) == {Status.UNAVAILABLE: 100}
    assert "closed" in done.by_tag[0].detail
    with pytest.raises(Unavailable, match="the client is closed"):
        submit(engine, "plain", done)
    engine.close()


def test_closing_may_wait_for_what_is_in_flight(cluster: FakeCluster) -> None:
    engine, done = Engine(cluster.registry, cluster.subscribe, grace_ms=GRACE_MS), Outcomes()
    engine.start()
    for tag in range(20):
        submit(engine, "late", done, tag)
    engine.close(drain_s=10)
    assert done.wait(20) == {Status.OK: 20}


def test_closing_while_others_submit_loses_nothing(cluster: FakeCluster) -> None:
    engine, done = Engine(cluster.registry, cluster.subscribe, grace_ms=GRACE_MS), Outcomes()
    engine.start()
    taken: Counter[str] = Counter()

    def caller(number: int) -> None:
        for tag in range(100_000):
            wait_until(lambda: engine.in_flight < 2_000)
            try:
                submit(engine, "plain", done, (number, tag))
            except Unavailable:
                return
            taken[str(number)] += 1

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: done.calls > 50)
    engine.close()
    for thread in threads:
        thread.join()
    done.wait(taken.total())


def test_a_callback_may_submit_and_close(cluster: FakeCluster) -> None:
    engine, done = Engine(cluster.registry, cluster.subscribe, grace_ms=GRACE_MS), Outcomes()
    engine.start()

    def first(request: Request, outcome: Outcome) -> None:
        submit(engine, "silent", done)
        engine.close()

    engine.submit_raw("plain", None, on_done=first)
    assert done.wait(1) == {Status.UNAVAILABLE: 1}
    engine.close()


def test_inputs_leave_without_a_copy_and_are_let_go(engine: Engine, cluster: FakeCluster) -> None:
    done = Outcomes()
    big = np.ones(1 << 20, dtype=np.float32)
    request = engine.submit_raw("double", {"x": big}, on_done=done, tag=0)
    assert done.wait(1) == {Status.OK: 1}
    assert request.inputs is None
    assert done.by_tag[0].batch.row(0)["y"][-1] == 2


def test_a_request_that_has_ended_is_not_fetched(engine: Engine, cluster: FakeCluster) -> None:
    done = Outcomes()
    cluster.shards[0].stalled = True
    submit(engine, "double", done, "gone", deadline_ns=engine.clock.now() + 1_000_000)
    assert done.wait(1) == {Status.TIMEOUT: 1}
    cluster.shards[0].stalled = False
    submit(engine, "double", done, "there")
    assert done.wait(2)[Status.OK] == 1
    assert len(cluster.shards[0].fetched) == 1
