"""The member's side against a real broker on loopback."""

from __future__ import annotations

import time
from typing import Any

import msgpack
import pytest
import zmq
from cluster_parts import Nodes, endpoints, nodes_of, running_broker
from helpers import free_ports, wait_until

from symphony import control
from symphony.bus import Bus, drain, send
from symphony.control import GpuInfo, ModelSpec, encode_control
from symphony.membership import (
    Joined,
    ModelChanged,
    Published,
    Refusal,
    SlotChanged,
    describe,
    fetch_snapshot,
)
from symphony.status import Unavailable


def spec(name: str = "net", **fields: Any) -> ModelSpec:
    return ModelSpec.model_validate({"name": name, "slo_ms": 100.0, "max_batch": 2, **fields})


def test_members_find_each_other_and_the_models() -> None:
    with running_broker() as broker, nodes_of(broker) as nodes:
        one = nodes.add("one", "scheduler", endpoints={"submit": "tcp://127.0.0.1:1"})
        nodes.until(lambda: one.membership.synced)
        two = nodes.add("two", options={"models": [spec()]})
        nodes.until(lambda: one.known == two.known == {"one", "two"})
        nodes.until(lambda: "net" in one.membership.models)
        assert one.changes() == [("join", "two")]
        assert two.changes() == [("join", "one")]
        assert [type(e) for e in one.events].count(ModelChanged) == 1
        assert one.membership.members["one"].endpoints == {"submit": "tcp://127.0.0.1:1"}
        assert one.membership.joined
        assert one.membership.broker_alive
        assert one.membership.broker == broker.incarnation


def test_the_clock_is_set_by_ping_pong() -> None:
    with running_broker() as broker, nodes_of(broker) as nodes:
        node = nodes.add("one")
        nodes.until(lambda: node.clock.synced)
        nodes.until(lambda: node.membership.synced)
        error = abs(node.clock.now() - broker.clock.now())
        assert error <= node.clock.uncertainty_ns + 5_000_000  # two readings are not one moment


def test_a_leave_is_told_as_such_and_a_silence_as_a_death() -> None:
    with running_broker() as broker, nodes_of(broker) as nodes:
        watcher, polite, silent = nodes.add("watcher", "ops"), nodes.add("polite"), nodes.add("silent")
        nodes.until(lambda: watcher.known == {"watcher", "polite", "silent"})
        polite.membership.leave()
        nodes.until(lambda: ("leave", "polite") in watcher.changes())
        nodes.crash(silent)
        nodes.until(lambda: ("death", "silent") in watcher.changes())
        assert watcher.known == {"watcher"}
        assert not {("death", "polite"), ("leave", "silent")} & set(watcher.changes())


def test_updates_reach_everybody() -> None:
    with running_broker() as broker, nodes_of(broker) as nodes:
        one, two = nodes.add("one", "ops"), nodes.add("two")
        nodes.until(lambda: one.known == two.known == {"one", "two"})
        two.membership.update(two.membership.me.model_copy(update={"state": "ready"}), [spec("late")])
        nodes.until(lambda: one.membership.members["two"].state == "ready")
        nodes.until(lambda: "late" in one.membership.models)
        assert one.changes()[-1] == ("update", "two")


def test_an_update_before_the_join_is_answered_is_not_lost() -> None:
    with running_broker() as broker, nodes_of(broker) as nodes:
        one, two = nodes.add("one", "ops"), nodes.add("two", options={"gpus_wanted": 1, "gpu_type": "t"})
        wait_until(lambda: (two.pump(), two.membership._join_sent)[1], what="the join to be sent")
        two.membership.update(two.membership.me.model_copy(update={"state": "ready"}))
        nodes.until(lambda: "two" in one.known and one.membership.members["two"].state == "ready")
        assert [gpu.number for gpu in one.membership.members["two"].gpus] == [0]


def test_an_update_that_was_lost_is_repeated_until_it_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    with running_broker() as broker, nodes_of(broker) as nodes:
        one, two = nodes.add("one", "ops"), nodes.add("two")
        nodes.until(lambda: one.known == two.known == {"one", "two"} and two.membership.synced)
        real, tried = two.membership._send, []

        def lossy(message: Any) -> bool:
            if isinstance(message, control.Update):
                tried.append(message)
                return len(tried) < 3 or real(message)
            return real(message)

        monkeypatch.setattr(two.membership, "_send", lossy)
        two.membership.update(two.membership.me.model_copy(update={"state": "ready"}))
        nodes.until(lambda: one.membership.members["two"].state == "ready")
        nodes.until(lambda: two.membership.members["two"].state == "ready")
        assert len(tried) >= 3


def test_stats_are_in_snapshots() -> None:
    with running_broker() as broker, nodes_of(broker) as nodes:
        node = nodes.add("one", "scheduler")
        node.membership.set_stats({"queued": 5})
        nodes.until(lambda: node.membership.joined)
        nodes.until(lambda: fetch_snapshot(broker.registry).members[0].stats == {"queued": 5})


def test_unnumbered_gpus_get_numbers_that_last() -> None:
    with running_broker() as broker, nodes_of(broker) as nodes:
        first = nodes.add("a", options={"gpus_wanted": 2, "gpu_type": "t"})
        nodes.until(lambda: first.membership.joined)
        second = nodes.add("b", options={"gpus_wanted": 1, "gpu_type": "t"})
        nodes.until(lambda: second.membership.joined)
        assert [gpu.number for gpu in first.membership.me.gpus] == [0, 1]
        assert second.membership.me.gpus == [GpuInfo(number=2, type="t")]
        second.membership.update(second.membership.me.model_copy(update={"gpus": [], "state": "ready"}))
        assert second.membership.me.gpus == [GpuInfo(number=2, type="t")]


def test_a_conflict_over_gpu_numbers_is_refused_for_good() -> None:
    with running_broker() as broker, nodes_of(broker) as nodes:
        first = nodes.add("a", gpus=[{"number": 0, "type": "t"}])
        nodes.until(lambda: first.membership.joined)
        second = nodes.add("b", gpus=[{"number": 0, "type": "t"}])
        nodes.until(lambda: second.of(Refusal))
        assert second.of(Refusal)[0].final
        assert "GPU 0 already belongs to 'a'" in second.of(Refusal)[0].reason
        assert not second.membership.joined
        fixed = second.membership.me.model_copy(update={"gpus": [GpuInfo(number=1, type="t")]})
        second.membership.update(fixed)
        nodes.until(lambda: second.membership.joined)


def test_two_live_members_with_the_same_id() -> None:
    with running_broker() as broker, nodes_of(broker) as nodes:
        first = nodes.add("same")
        nodes.until(lambda: first.membership.joined)
        second = nodes.add("same")
        nodes.until(lambda: second.of(Refusal))
        assert not second.of(Refusal)[0].final, "the first one might be dead"
        nodes.until(lambda: second.of(Refusal)[-1].final)
        assert "two processes with the same id" in second.of(Refusal)[-1].reason
        assert not second.membership.joined
        assert fetch_snapshot(broker.registry).members[0].incarnation == first.membership.me.incarnation


def test_a_member_that_restarts_waits_for_its_own_old_lease() -> None:
    with running_broker() as broker, nodes_of(broker) as nodes:
        watcher, first = nodes.add("watcher", "ops"), nodes.add("same")
        nodes.until(lambda: watcher.known == {"watcher", "same"})
        nodes.crash(first)
        second = nodes.add("same")
        nodes.until(lambda: second.membership.joined)
        nodes.until(lambda: watcher.changes()[-1] == ("join", "same"))
        assert watcher.changes() == [("join", "same"), ("death", "same"), ("join", "same")]
        assert all(not refusal.final for refusal in second.of(Refusal))


def test_a_member_that_was_cut_off_for_longer_than_its_lease_comes_back() -> None:
    with running_broker() as broker, nodes_of(broker) as nodes:
        watcher, sleeper = nodes.add("watcher", "ops"), nodes.add("sleeper", "frontend")
        nodes.until(lambda: watcher.known == {"watcher", "sleeper"})
        slot = sleeper.membership.me.slot
        nodes.all.remove(sleeper)
        nodes.until(lambda: ("death", "sleeper") in watcher.changes())
        nodes.all.append(sleeper)
        nodes.until(lambda: watcher.changes()[-1] == ("join", "sleeper"))
        nodes.until(lambda: len(sleeper.of(Joined)) == 2)
        assert sleeper.membership.me.slot == slot


def test_a_slot_that_was_given_away_is_replaced() -> None:
    with running_broker() as broker, nodes_of(broker) as nodes:
        sleeper = nodes.add("sleeper", "frontend")
        nodes.until(lambda: sleeper.membership.joined)
        slot = sleeper.membership.me.slot
        nodes.all.remove(sleeper)
        thief = nodes.add("thief", "frontend", slot=slot)
        nodes.until(lambda: not any(m.id == "sleeper" for m in fetch_snapshot(broker.registry).members))
        nodes.until(lambda: thief.membership.joined)
        if thief.membership.me.slot != slot:  # it came before the sleeper's end: ask for the slot again
            nodes.crash(thief)
            thief = nodes.add("thief-2", "frontend", slot=slot)
            nodes.until(lambda: thief.membership.joined)
        nodes.all.append(sleeper)
        nodes.until(lambda: sleeper.of(SlotChanged))
        changed = sleeper.of(SlotChanged)[0]
        assert changed.old == slot
        assert changed.new == sleeper.membership.me.slot != slot


def test_numbers_that_were_given_away_are_replaced_if_they_had_been_granted() -> None:
    with running_broker() as broker, nodes_of(broker) as nodes:
        sleeper = nodes.add("sleeper", options={"gpus_wanted": 1, "gpu_type": "t"})
        nodes.until(lambda: sleeper.membership.joined)
        nodes.all.remove(sleeper)
        nodes.until(lambda: not fetch_snapshot(broker.registry).members)
        other = nodes.add("other", options={"gpus_wanted": 1, "gpu_type": "t"})
        nodes.until(lambda: other.membership.joined)
        nodes.all.append(sleeper)
        nodes.until(lambda: len(sleeper.of(Joined)) == 2)
        assert sleeper.membership.me.gpus == [GpuInfo(number=1, type="t")]
        assert not any(refusal.final for refusal in sleeper.of(Refusal))


def test_a_lost_event_is_made_good_by_a_snapshot() -> None:
    with running_broker() as broker, nodes_of(broker) as nodes:
        watcher = nodes.add("watcher", "ops")
        nodes.until(lambda: watcher.membership.synced and watcher.known == {"watcher"})
        events = watcher.membership._events
        events.setsockopt(zmq.UNSUBSCRIBE, b"member")
        nodes.add("unseen")
        nodes.until(lambda: "unseen" in watcher.known, what="the beat's number to tell of the loss")
        events.setsockopt(zmq.SUBSCRIBE, b"member")
        nodes.add("seen")
        nodes.until(lambda: watcher.known == {"watcher", "unseen", "seen"})


def test_other_topics_come_as_they_are() -> None:
    with running_broker() as broker, nodes_of(broker) as nodes, Bus() as bus:
        node = nodes.add("one", "ops", options={"topics": ["stats."]})
        publisher = bus.connect(zmq.PUB, broker.publish)
        body = msgpack.packb({"rate": 1.5})

        def publish() -> list[Any]:
            send(publisher, [b"stats.shard-0", body])
            return node.of(Published)

        nodes.until(publish)
        first = node.of(Published)[0]
        assert (first.topic, first.broker, first.body) == ("stats.shard-0", broker.incarnation, body)
        assert first.seq >= 1


def restart(nodes: Nodes, **options: Any) -> Any:
    """A broker on the same ports as the one before, which has ended."""
    registry, publish, subscribe = endpoints(nodes.broker)
    return running_broker(registry, publish, subscribe, **options)


def test_everybody_is_known_again_after_a_broker_restart_and_nobody_died_meanwhile() -> None:
    with running_broker() as old:
        nodes = Nodes(old)
        front = nodes.add("front", "frontend")
        shard = nodes.add("shard", "scheduler", options={"models": [spec()]})
        worker = nodes.add("worker", options={"gpus_wanted": 2, "gpu_type": "t"})
        everybody = {"front", "shard", "worker"}
        nodes.until(lambda: all(node.known == everybody for node in nodes.all))
        slot = front.membership.me.slot
    try:
        nodes.until(lambda: not front.membership.broker_alive)
        assert front.membership.joined
        assert all(node.known == everybody for node in nodes.all), "what is known stays"
        with restart(nodes, fresh=False) as new:
            nodes.until(lambda: {m.id for m in fetch_snapshot(new.registry).members} == everybody)
            nodes.until(lambda: all(node.membership.broker == new.incarnation for node in nodes.all))
            nodes.until(lambda: all(node.membership.synced for node in nodes.all))
            nodes.pump_for(1.0)  # past the lease, when the gaps of the new broker begin to count
            assert all(node.known == everybody for node in nodes.all)
            for node in nodes.all:
                assert "death" not in [event for event, _ in node.changes()]
            assert front.membership.me.slot == slot
            assert [gpu.number for gpu in worker.membership.me.gpus] == [0, 1]
            assert shard.membership.models.keys() == {"net"}
            assert fetch_snapshot(new.registry).models == [spec()]
            newcomer = nodes.add("newcomer", "frontend")
            nodes.until(lambda: newcomer.known == front.known == {*everybody, "newcomer"})
            assert newcomer.membership.me.slot != slot
    finally:
        nodes.close()


def test_a_death_during_the_brokers_absence_is_noticed_one_lease_after_its_return() -> None:
    with running_broker() as old:
        nodes = Nodes(old)
        watcher, victim = nodes.add("watcher", "ops"), nodes.add("victim")
        nodes.until(lambda: watcher.known == {"watcher", "victim"})
    try:
        nodes.crash(victim)
        with restart(nodes):
            nodes.until(lambda: ("death", "victim") in watcher.changes())
            assert watcher.known == {"watcher"}
    finally:
        nodes.close()


def test_unnumbered_gpus_wait_for_a_restarted_broker_to_know_the_old_ones() -> None:
    with running_broker(fresh=False, lease_ms=300) as broker, nodes_of(broker) as nodes:
        node = nodes.add("new", options={"gpus_wanted": 1, "gpu_type": "t"})
        nodes.until(lambda: node.membership.joined)
        refusals = node.of(Refusal)
        assert refusals
        assert not any(refusal.final for refusal in refusals)
        assert "just started" in refusals[0].reason


def test_next_wakeup_is_never_far_and_the_member_stays_without_input() -> None:
    with running_broker() as broker, nodes_of(broker) as nodes:
        node = nodes.add("one")
        nodes.until(lambda: node.membership.synced)
        for _ in range(20):
            wakeup = node.membership.next_wakeup()
            assert wakeup <= time.monotonic_ns() + 1_000_000_000
            wait_until(lambda wakeup=wakeup: time.monotonic_ns() >= wakeup, 2)  # type: ignore[misc]
            node.pump()
        assert [m.id for m in fetch_snapshot(broker.registry).members] == ["one"]
        assert len(node.of(Joined)) == 1


def test_without_a_broker_it_waits_and_joins_when_there_is_one() -> None:
    ports = [f"tcp://127.0.0.1:{port}" for port in free_ports(3)]
    nodes = Nodes(_Late(ports))  # type: ignore[arg-type]
    node = nodes.add("early")
    try:
        nodes.pump_for(0.3)
        assert not node.membership.joined
        assert not node.membership.broker_alive
        with running_broker(*ports):
            nodes.until(lambda: node.membership.joined)
    finally:
        nodes.close()


class _Late:
    """Where a broker will be."""

    def __init__(self, ports: list[str]) -> None:
        self.registry, self.publish, self.subscribe = ports


@pytest.mark.parametrize(
    "frames",
    [
        [b""],
        [b"\xff" * 100],
        [b"a", b"b"],
        [msgpack.packb({"type": "pong", "v": 2})],
        [encode_control(control.AskSnapshot())],
    ],
)
def test_hostile_answers_are_counted_and_change_nothing(frames: list[bytes]) -> None:
    with Bus() as bus:
        router, endpoint = bus.bind(zmq.ROUTER, "tcp://127.0.0.1:0")
        xpub, subscribe_endpoint = bus.bind(zmq.PUB, "tcp://127.0.0.1:0")
        place = _Late([endpoint, "", subscribe_endpoint])
        nodes = Nodes(place)  # type: ignore[arg-type]
        node = nodes.add("one")
        try:

            def answer() -> int:
                for peer, *_ in drain(router):
                    send(router, [peer, *frames])
                send(xpub, [b"member", *frames])
                send(xpub, [b"member", b"\xc1", *frames])
                counts = node.membership.faults.counts
                return any(k.startswith("registry-") for k in counts) and any(
                    k.startswith("channel-") for k in counts
                )

            nodes.until(answer)
            assert not node.membership.joined
            assert node.events == []
        finally:
            nodes.close()


def test_fetch_snapshot_names_the_endpoint_where_nobody_answers() -> None:
    with pytest.raises(Unavailable, match=r"no broker answered at tcp://127\.0\.0\.1:\d+ within 0\.05 s"):
        fetch_snapshot(f"tcp://127.0.0.1:{free_ports(1)[0]}", 0.05)


def test_two_runs_of_one_id_differ_in_their_incarnation() -> None:
    assert describe("x", "ops").incarnation != describe("x", "ops").incarnation
    assert describe("x", "ops").pid > 0
