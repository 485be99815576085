"""The engine over real loopback sockets, against the real broker and fake shards."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq
from fake_cluster import GRACE_MS, FakeCluster
from helpers import free_ports, wait_until

from symphony import wire
from symphony.bus import Bus, BusError, send
from symphony.control import Join, encode_control
from symphony.engine import Engine
from symphony.membership import describe
from symphony.pending import Outcome, Request
from symphony.status import InvalidRequest, Overloaded, Status, Unavailable, UnknownModel

X = {"x": np.ones(2, dtype=np.float32)}


class Outcomes:
    """Collects what ``on_done`` is called with, and fails on a second call for one request."""

    def __init__(self) -> None:
        self.by_tag: dict[Any, Outcome] = {}
        self.calls = 0

    def __call__(self, request: Request, outcome: Outcome) -> None:
        self.calls += 1
        self.by_tag[request.tag] = outcome

    def wait(self, count: int, timeout: float = 20.0) -> Counter[Status]:
        wait_until(lambda: self.calls >= count, timeout, f"{count} outcomes")
        assert self.calls == len(self.by_tag) == count
        return Counter(outcome.status for outcome in self.by_tag.values())


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with FakeCluster() as cluster:
        yield cluster


@pytest.fixture
def engine(cluster: FakeCluster) -> Iterator[Engine]:
    engine = Engine(cluster.registry, cluster.subscribe, grace_ms=GRACE_MS)
    engine.start()
    yield engine
    engine.close()


def submit(engine: Engine, model: str, done: Outcomes, tag: Any = 0, **options: Any) -> Request:
    inputs = X if model in ("double", "fails", "refuses", "holds") else None
    return engine.submit_raw(model, inputs, on_done=done, tag=tag, **options)


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


# -- the cluster changes -------------------------------------------------------------------------


def test_a_lost_shard_means_unavailable_and_a_new_one_serves_again(
    engine: Engine, cluster: FakeCluster
) -> None:
    done = Outcomes()
    submit(engine, "silent", done, "before")
    wait_until(lambda: cluster.shards[0].submitted)
    cluster.shards[0].kill()
    assert done.wait(1) == {Status.UNAVAILABLE: 1}
    assert "the connection to shard-0 was lost before the answer came" in done.by_tag["before"].detail
    submit(engine, "plain", done, "between")
    assert done.wait(2) == {Status.UNAVAILABLE: 2}
    cluster.add_shard(0)
    engine.wait_for_model("plain", 10)
    submit(engine, "plain", done, "after")
    assert done.wait(3)[Status.OK] == 1


def test_a_dead_shards_lease_ends_and_it_is_forgotten(engine: Engine, cluster: FakeCluster) -> None:
    engine.wait_for_model("plain")
    cluster.shards[0].kill()
    wait_until(lambda: "shard-0" not in engine.members)
    done = Outcomes()
    submit(engine, "plain", done)
    assert done.wait(1) == {Status.UNAVAILABLE: 1}
    assert done.by_tag[0].detail == "the cluster has no scheduler shard now"


def test_two_shards_take_turns_and_one_alone_takes_all() -> None:
    with FakeCluster(shards=2, models=["plain"]) as cluster:
        engine, done = Engine(cluster.registry, cluster.subscribe, grace_ms=GRACE_MS), Outcomes()
        engine.start()
        try:
            wait_until(lambda: len(engine.members) >= 2)
            for tag in range(100):
                submit(engine, "plain", done, tag)
                done.wait(tag + 1)
            sent = [sum(m.key.size for m in shard.submitted) for shard in cluster.shards]
            assert sum(sent) == 100
            assert min(sent) >= 40
            cluster.shards[0].leave()
            wait_until(lambda: "shard-0" not in engine.members)
            for tag in range(100, 110):
                submit(engine, "plain", done, tag)
            assert done.wait(110) == {Status.OK: 110}
        finally:
            engine.close()


def test_a_model_that_comes_later_is_found(cluster: FakeCluster) -> None:
    shard = cluster.add_shard(1, ["plain"])
    engine, done = Engine(cluster.registry, cluster.subscribe, grace_ms=GRACE_MS), Outcomes()
    engine.start()
    try:
        shard.announce(["plain", "", "upper"])
        cluster.shards[0].leave()
        wait_until(lambda: "shard-0" not in engine.members)
        assert engine.wait_for_model("upper", 10).inputs[0].name == "text"
        engine.submit_raw("upper", {"text": "a"}, on_done=done)
        assert done.wait(1) == {Status.OK: 1}
    finally:
        engine.close()


def test_requests_go_on_while_the_broker_is_away(engine: Engine, cluster: FakeCluster) -> None:
    done = Outcomes()
    submit(engine, "plain", done, "before")
    done.wait(1)
    cluster.broker.stop()
    for tag in range(50):
        submit(engine, "double", done, tag)
    assert done.wait(51) == {Status.OK: 51}


def test_a_restarted_broker_changes_nothing_for_requests(engine: Engine, cluster: FakeCluster) -> None:
    done, tag = Outcomes(), 0
    before = cluster.broker.incarnation
    slots: list[int] = []
    for restart in (False, True, True):
        if restart:
            cluster.restart_broker()

            def is_back() -> bool:
                me = next((m for m in cluster.broker.members.members.values() if m.role == "frontend"), None)
                if me is not None and me.slot is not None:
                    slots.append(me.slot)
                return me is not None and "shard-0" in cluster.broker.members.members

            while not is_back():
                submit(engine, "double", done, tag)
                tag += 1
                done.wait(tag)
        for _ in range(20):
            submit(engine, "plain", done, tag)
            tag += 1
    assert cluster.broker.incarnation != before
    assert done.wait(tag) == {Status.OK: tag}
    assert len(set(slots)) == 1  # it asks to keep its slot, and nobody else has it


def test_waiting_for_a_model_tells_what_is_wrong(engine: Engine, cluster: FakeCluster) -> None:
    with pytest.raises(UnknownModel, match="unknown model 'nix'; the cluster has: double, drops"):
        engine.wait_for_model("nix", 0.05)
    cluster.shards[0].kill()
    with pytest.raises(Unavailable, match="'plain' is known, but no connected shard serves it now"):
        wait_until(lambda: engine.wait_for_model("plain", 0.0) is None)


# -- starting ------------------------------------------------------------------------------------


def test_no_broker_is_told_early_and_clearly() -> None:
    (port,) = free_ports(1)
    engine = Engine(f"tcp://127.0.0.1:{port}", f"tcp://127.0.0.1:{port}", connect_timeout_s=0.1)
    with pytest.raises(
        Unavailable, match=rf"no broker answered at tcp://127.0.0.1:{port} within 0.1 s.*symphony up"
    ):
        engine.start()
    with pytest.raises(Unavailable):
        engine.submit_raw("plain", None, on_done=Outcomes())


@pytest.mark.parametrize(
    ("registry", "host", "text"),
    [
        ("nonsense", "127.0.0.1", "cannot connect to 'nonsense'"),
        ("tcp://127.0.0.1:5550", "0.0.0.0", "refusing to bind"),
        ("tcp://127.0.0.1:5550", "203.0.113.7", "refusing to bind"),
    ],
)
def test_bad_addresses_are_told(registry: str, host: str, text: str) -> None:
    engine = Engine(registry, "tcp://127.0.0.1:5552", host=host)
    with pytest.raises(BusError, match=text):
        engine.start()


def test_an_engine_starts_once_and_not_after_its_end(engine: Engine) -> None:
    with pytest.raises(RuntimeError, match="starts once"):
        engine.start()
    closed = Engine()
    closed.close()
    with pytest.raises(Unavailable, match="the client is closed"):
        closed.start()


# -- strangers on the sockets --------------------------------------------------------------------


def junk(seed: int) -> list[list[bytes]]:
    rng = random.Random(seed)
    good = wire.encode_fetch(1, np.array([1, 2, 3], np.uint64))
    return [
        [b""],
        [b"", b"", b""],
        [b"\xc1"],
        [good[: len(good) // 2]],
        [good, b"more"],
        [b"\xff" * 100_000],
        [rng.randbytes(rng.randint(1, 300)) for _ in range(3)],
        [msgpack.packb([wire.FETCH, 99, 1, b""])],
        [msgpack.packb([wire.RESULT, 99, "w"])],
        [msgpack.packb([wire.ANSWER, 1, "s", b"x" * 8 * 70_000, b"", None])],
        [msgpack.packb({"type": "join"})],
        *[[rng.randbytes(rng.randint(0, 60))] for _ in range(50)],
    ]


@pytest.mark.parametrize("link", ["fetch", "reply"])
def test_hostile_messages_are_counted_and_harmless(engine: Engine, link: str) -> None:
    me = wait_until(lambda: next((m for m in engine.members.values() if m.role == "frontend"), None))
    assert me is not None
    kind = zmq.DEALER if link == "fetch" else zmq.PUSH
    with Bus() as bus:
        sock = bus.connect(kind, me.endpoints[link])
        messages = junk(7)
        for frames in messages:
            assert send(sock, frames)
        wait_until(
            lambda: sum(n for why, n in engine.faults.counts.items() if why.startswith(link)) >= len(messages)
        )
        # An oversized frame costs the peer its connection.
        send(sock, b"\0" * (2 << 20))
        done = Outcomes()
        submit(engine, "double", done)
        assert done.wait(1) == {Status.OK: 1}


def test_strangers_in_the_membership_are_harmless(engine: Engine, cluster: FakeCluster) -> None:
    with Bus() as bus:
        sock = bus.connect(zmq.DEALER, cluster.registry)
        strangers: dict[str, dict[str, str]] = {
            "bad-endpoint": {"submit": "nonsense"},
            "no-endpoint": {},
            "dead": {"submit": "tcp://127.0.0.1:1"},
        }
        for name, endpoints in strangers.items():
            member = describe(name, "scheduler", endpoints=endpoints, models=["plain"], state="ready")
            assert send(sock, encode_control(Join(member=member)))
        wait_until(lambda: {"bad-endpoint", "no-endpoint", "dead"} <= engine.members.keys())
        done = Outcomes()
        for tag in range(20):
            submit(engine, "plain", done, tag)
        assert done.wait(20) == {Status.OK: 20}
        assert engine.faults.counts["shard-endpoint"] == 2


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
