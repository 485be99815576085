"""The engine while shards and brokers come and go, at its start, and among strangers."""

from __future__ import annotations

import random

import msgpack
import numpy as np
import pytest
import zmq
from engine_parts import Outcomes, submit
from fake_cluster import GRACE_MS, FakeCluster
from helpers import free_ports, wait_until

from symphony import wire
from symphony.bus import Bus, BusError, send
from symphony.control import Join, encode_control
from symphony.engine import Engine
from symphony.membership import describe
from symphony.status import Status, SymphonyError, Unavailable, UnknownModel

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
        # Before the first snapshot nobody is there, and the model's words come before the shard's record.
        wait_until(lambda: "shard-1" in engine.members and "upper" in engine.members["shard-1"].models)
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
        ("tcp://127.0.0.1:5550", "gpu-box", "cannot bind|refusing to bind"),
    ],
)
def test_bad_addresses_are_told(registry: str, host: str, text: str) -> None:
    engine = Engine(registry, "tcp://127.0.0.1:5552", host=host)
    with pytest.raises(BusError, match=text):
        engine.start()


def test_a_name_that_no_member_may_have_is_told() -> None:
    engine = Engine("tcp://127.0.0.1:5550", "tcp://127.0.0.1:5552", name="my client")
    with pytest.raises(SymphonyError, match=r"frontend 'my client-.*: id: String should match"):
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
