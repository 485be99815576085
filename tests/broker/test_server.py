"""The broker's sockets: the control channel, its stamps, and the members on its own machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import msgpack
import numpy as np
import pytest
import zmq
from cluster_parts import nodes_of, running_broker
from helpers import wait_until

from broker.channel import Channel
from broker.processes import Neighbours, birth_of
from broker.server import Broker
from symphony import wire
from symphony.bus import Bus, BusError, Sock, drain, send, subscribe
from symphony.control import Member, decode_control, decode_stamp
from symphony.wire import Done, WireError


def done(worker: str = "w", sequence: int = 1) -> bytes:
    column = np.array([1])
    return wire.encode_done(Done(worker, sequence, ["net"], *[column * 0] * 2, *[column * 0] * 7))  # type: ignore[arg-type]


@pytest.fixture
def broker() -> Iterator[Broker]:
    with running_broker() as running:
        yield running


@pytest.fixture
def bus() -> Iterator[Bus]:
    with Bus() as made:
        yield made


def receive(sock: Sock, got: list[list[bytes]]) -> list[list[bytes]]:
    got += list(drain(sock))
    return got


def test_publications_are_numbered_per_topic(broker: Broker, bus: Bus) -> None:
    sub = bus.connect(zmq.SUB, broker.subscribe)
    subscribe(sub, ["done."])
    pub = bus.connect(zmq.PUB, broker.publish)
    got: list[list[bytes]] = []

    def publish() -> bool:
        for worker in ("a", "b"):
            send(pub, [f"done.{worker}".encode(), done(worker)])
        return len(receive(sub, got)) >= 20

    wait_until(publish)
    by_topic: dict[bytes, list[int]] = {}
    for topic, stamp, body in got:
        assert decode_stamp(stamp).broker == broker.incarnation
        assert wire.decode_done(body).worker == topic.decode().removeprefix("done.")
        by_topic.setdefault(topic, []).append(decode_stamp(stamp).seq)
    assert by_topic.keys() == {b"done.a", b"done.b"}
    for numbers in by_topic.values():
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_publishers_send_nothing_that_nobody_wants(broker: Broker, bus: Bus) -> None:
    pub = bus.connect(zmq.XPUB, broker.publish)
    sub = bus.connect(zmq.SUB, broker.subscribe)
    subscribe(sub, ["stats."])
    seen: list[list[bytes]] = []
    wait_until(lambda: [b"\1stats."] in receive(pub, seen))
    sub.setsockopt(zmq.UNSUBSCRIBE, b"stats.")
    wait_until(lambda: [b"\0stats."] in receive(pub, seen))


def test_a_subscriber_that_does_not_read_stops_nobody(bus: Bus) -> None:
    with running_broker() as broker:
        stuck = bus.connect(zmq.SUB, broker.subscribe, hwm=1)
        reader = bus.connect(zmq.SUB, broker.subscribe)
        for sock in (stuck, reader):
            subscribe(sock, ["stats."])
        pub = bus.connect(zmq.PUB, broker.publish)
        body = msgpack.packb({"text": "x" * 1_500})
        got = 0

        def publish() -> bool:
            nonlocal got
            for _ in range(200):
                send(pub, [b"stats.s", body])
            got += sum(1 for _ in drain(reader))
            return got >= 30_000  # more than the pipes of the stuck one hold

        wait_until(publish, 60)
        assert broker.faults.counts["subscribe-full"] == 0


def test_the_brokers_own_topics_are_its_own(broker: Broker, bus: Bus) -> None:
    sub = bus.connect(zmq.SUB, broker.subscribe)
    subscribe(sub, ["member", "model"])
    pub = bus.connect(zmq.PUB, broker.publish)
    wait_until(lambda: (send(pub, [b"member", b"x"]), broker.faults.counts["publish-reserved-topic"])[1])
    with nodes_of(broker) as nodes:
        nodes.add("w")
        got: list[list[bytes]] = []
        nodes.until(lambda: receive(sub, got))
        assert [frames[0] for frames in got] == [b"member"]
        assert decode_control(got[0][2]).type == "member"
        assert decode_stamp(got[0][1]).seq == 1


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([], "malformed"),
        ([b"done.w"], "malformed"),
        ([b"done.w", done(), b"more"], "malformed"),
        ([b"", done()], "bad-topic"),
        ([b"done." + b"x" * 500, done()], "bad-topic"),
        ([b"done.\xff", done()], "bad-topic"),
        ([b"done.\n", done()], "bad-topic"),
        ([b"done.", done("")], "unknown-topic"),
        ([b"elsewhere.w", done()], "unknown-topic"),
        ([b"done.other", done()], "foreign-topic"),
        ([b"done.w", done()[:-1]], "malformed"),
        ([b"done.w", msgpack.packb([7, 2] + [0] * 12)], "wrong-version"),
        ([b"done.w", msgpack.packb([1, 1])], "unexpected-kind"),
        ([b"stats.s", b"\x90"], "malformed"),
        ([b"stats.s", msgpack.packb({1: 2})], "malformed"),
        ([b"stats.s", msgpack.packb({"v": 2})], "wrong-version"),
        ([b"model", b"x"], "reserved-topic"),
    ],
)
def test_what_publishers_may_not_send(frames: list[bytes], reason: str) -> None:
    with pytest.raises(WireError) as caught:
        Channel(1).stamp(frames)
    assert caught.value.reason == reason


def test_topics_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.channel.MAX_TOPICS", 2)
    channel = Channel(1)
    for name in ("a", "b", "a"):
        channel.stamp([f"stats.{name}".encode(), b"\x80"])
    with pytest.raises(WireError, match="too-many-topics"):
        channel.stamp([b"stats.c", b"\x80"])


def test_a_local_process_that_dies_is_missed_at_once() -> None:
    with running_broker(lease_ms=60_000) as broker, nodes_of(broker) as nodes:
        watcher = nodes.add("watcher", "ops")
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
            victim = nodes.add("victim", pid=process.pid)
            nodes.until(lambda: watcher.known == {"watcher", "victim"})
            nodes.crash(victim)
            process.kill()
            # Not yet reaped, it is a zombie, and gone all the same.
            nodes.until(lambda: ("death", "victim") in watcher.changes())


def test_a_restarted_local_process_does_not_wait_for_the_lease() -> None:
    with running_broker(lease_ms=60_000) as broker, nodes_of(broker) as nodes:
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
            first = nodes.add("same", pid=process.pid)
            nodes.until(lambda: first.membership.joined)
            nodes.crash(first)
            process.kill()
        second = nodes.add("same")
        nodes.until(lambda: second.membership.joined)


def test_processes_are_told_apart_by_their_birth() -> None:
    assert birth_of(os.getpid()) is not None
    assert birth_of(0) is None
    assert birth_of(-1) is None
    assert birth_of(1 << 22 | 1) is None
    neighbours = Neighbours("here")
    me = Member(id="me", role="ops", incarnation=1, host="here", pid=os.getpid())
    neighbours.saw(me)
    assert neighbours.gone("me") is None
    neighbours._births["me"] = (1, me.pid, 0)  # another process had this pid
    assert neighbours.all_gone() == [("me", 1)]
    neighbours.forget("me")
    assert neighbours.all_gone() == []
    neighbours.saw(me.model_copy(update={"host": "elsewhere", "pid": 1 << 22 | 1}))
    neighbours.saw(me.model_copy(update={"id": "unseen", "pid": 1 << 22 | 1}))
    assert neighbours.all_gone() == [], "what was never seen is left to its lease"


def test_a_port_in_use_and_an_open_address_are_refused_with_advice(broker: Broker) -> None:
    second = Broker(broker.registry, "tcp://127.0.0.1:0", "tcp://127.0.0.1:0")
    try:
        with pytest.raises(BusError, match=r"is in use: is another cluster running"):
            second.start()
    finally:
        second.close()
    open_to_all = Broker("tcp://0.0.0.0:0", "tcp://127.0.0.1:0", "tcp://127.0.0.1:0")
    try:
        with pytest.raises(BusError, match="insecure"):
            open_to_all.start()
    finally:
        open_to_all.close()
