"""The shard when others fail: workers that leave, die or lose their link; its own end; a broker away."""

from __future__ import annotations

import contextlib
import threading
import time

import pytest
from cluster_parts import ANY_PORT, endpoints, nodes_of, running_broker
from shard_parts import MS, FakeFrontend, FakeWorker, S, World, spec, world

from broker.server import Broker
from scheduler import fleet
from scheduler.shard import Settings, Shard
from symphony.bus import BusError
from symphony.status import Status, SymphonyError

LEASE = {"lease_ms": 600}


def _end(w: World, worker: FakeWorker, how: str) -> None:
    if how == "link":
        worker.cut()
    elif how == "leave":
        worker.node.membership.leave()
    else:  # its links stand, but nothing is heard of it
        w.nodes.crash(worker.node)


def test_an_address_that_is_not_of_this_machine_is_told_and_nothing_is_left() -> None:
    shard = Shard(
        Settings(
            id="shard-0",
            registry=ANY_PORT,
            publish=ANY_PORT,
            subscribe=ANY_PORT,
            host="192.0.2.1",
            insecure=True,
        )
    )
    with pytest.raises(BusError, match=r"192\.0\.2\.1"):
        shard.start()
    shard.close()


@pytest.mark.parametrize("how", ["link", "leave", "death"])
def test_what_was_out_on_a_lost_worker_is_sent_again(how: str) -> None:
    with world(LEASE) as w:
        one = w.worker("one", [spec("m", max_batch=4)])
        front = w.frontend()
        keys = front.submit(w.shard, [0] * 4)
        w.until(lambda: one.keys == keys)
        two = w.worker("two", [spec("m", max_batch=4)])
        _end(w, one, how)
        w.until(lambda: two.keys == keys)
        assert {batch for batch, _ in two.batches} != {batch for batch, _ in one.batches}
        assert set(two.plans[0].deadline.tolist()) == set(one.plans[0].deadline.tolist())
        two.complete(*two.batches, size=4)
        w.until(lambda: not w.shard.shard.fleet.out)
        assert front.told == {}
        assert not w.shard.shard.core.has_gpu(one.batches[0][1])


def test_a_worker_that_leaves_with_its_last_completion_leaves_nothing_unanswered() -> None:
    """The shard sees both in one turn, and believes the completion: its requests have had their results."""
    with world(LEASE) as w:
        worker = w.worker("one", [spec("m", max_batch=4)])
        front = w.frontend()
        keys = front.submit(w.shard, [0] * 4)
        w.until(lambda: worker.keys == keys)
        shard, gate, held = w.shard.shard, threading.Event(), threading.Event()
        wait = shard._wait

        def held_back() -> None:
            held.set()
            assert gate.wait(20)
            wait()

        shard._wait = held_back  # type: ignore[method-assign]
        w.until(held.is_set)
        worker.complete(*worker.batches, size=4)
        w.until(lambda: not worker._unsent)
        worker.node.membership.leave()
        assert front.node is not None
        w.until(lambda: "one" not in front.node.membership.members)  # type: ignore[union-attr]
        gate.set()
        w.until(lambda: "one" not in shard.membership.members and not shard.fleet.out)
        again = front.submit(w.shard, [0])
        w.until(lambda: set(front.told) == set(again))
        assert front.told == dict.fromkeys(again, Status.UNAVAILABLE)
        assert w.shard.counts.get("completion-of-unknown-batch", 0) == 0


@pytest.mark.parametrize("how", ["link", "leave", "death"])
def test_without_another_worker_the_caller_is_told_unavailable(how: str) -> None:
    with world(LEASE, policy="deferred", overdue_ns=0) as w:
        worker = w.worker("one", [spec("m", max_batch=1, ms=2_000)])
        front = w.frontend()
        out = front.submit(w.shard, [0], due_ns=60 * S)
        w.until(lambda: worker.keys == out)
        queued = front.submit(w.shard, [0, 0], due_ns=60 * S)
        w.until(lambda: sum(w.shard.shard.core.queued_by_model(1)) == 2)
        _end(w, worker, how)
        w.until(lambda: len(front.told) == 3)
        assert front.told == dict.fromkeys(out + queued, Status.UNAVAILABLE)
        later = front.submit(w.shard, [0])
        w.until(lambda: front.told.get(later[0]) == Status.UNAVAILABLE)


def test_what_cannot_be_in_time_any_more_is_not_sent_again() -> None:
    with world() as w:
        one = w.worker("one", [spec("m", ms=1_500)])
        front = w.frontend()
        # In time when it is sent first; not when it comes back, since a batch takes 1.5 s.
        keys = front.submit(w.shard, [0, 0], due_ns=2 * S)
        w.until(lambda: one.keys == keys)
        two = w.worker("two", [spec("m", ms=1_500)])
        due = int(one.plans[0].deadline[0])
        w.until(lambda: w.shard.shard.clock.now() > due - 1_400 * MS)
        one.cut()
        w.until(lambda: len(front.told) == 2)
        assert front.told == dict.fromkeys(keys, Status.UNAVAILABLE)
        assert two.keys == []


def test_a_late_completion_of_a_batch_that_was_sent_again_changes_nothing() -> None:
    with world() as w:
        one = w.worker("one", [spec("m")])
        two = w.worker("two", [spec("m")])
        front = w.frontend()
        keys = front.submit(w.shard, [0])
        w.until(lambda: one.keys == keys)
        one.node.membership.leave()
        w.until(lambda: two.keys == keys)
        one.complete(*one.batches)
        w.until(lambda: w.shard.counts.get("completion-of-unknown-batch") == 1)
        two.complete(*two.batches)
        w.until(lambda: not w.shard.shard.fleet.out)
        two.complete(*two.batches)
        w.until(lambda: w.shard.counts["completion-of-unknown-batch"] == 2)
        assert front.told == {}


def test_a_completion_for_another_gpu_than_the_batch_was_sent_to_is_ignored() -> None:
    with world() as w:
        worker = w.worker("one", [spec("m")], gpus=2)
        front = w.frontend()
        front.submit(w.shard, [0])
        w.until(lambda: len(worker.keys) == 1)
        ((batch, gpu),) = worker.batches
        other = next(number for number in worker.gpus if number != gpu)
        worker.complete((batch, other), (batch + 1_000, gpu), (batch, 1 << 30))
        w.until(lambda: w.shard.counts.get("completion-of-unknown-batch") == 3)
        assert list(w.shard.shard.fleet.out) == [batch]
        worker.complete((batch, gpu))
        w.until(lambda: not w.shard.shard.fleet.out)


def test_a_restarted_worker_of_the_same_id_takes_part_again() -> None:
    with world(LEASE) as w:
        first = w.worker("one", [spec("m")])
        front = w.frontend()
        keys = front.submit(w.shard, [0])
        w.until(lambda: first.keys == keys)
        first.cut()
        w.nodes.crash(first.node)
        w.until(lambda: front.told == {keys[0]: Status.UNAVAILABLE})
        # Refused while the lease of the first one stands, then taken in.
        second = w.worker("one", [spec("m")])
        more = front.submit(w.shard, [0])
        w.until(lambda: second.keys == more)


def test_a_worker_that_drains_gets_no_more_and_finishes_what_it_has() -> None:
    with world() as w:
        one = w.worker("one", [spec("m", max_batch=1)])
        front = w.frontend()
        first = front.submit(w.shard, [0])
        w.until(lambda: one.keys == first)
        two = w.worker("two", [spec("m", max_batch=1)])
        one.set_state("draining")
        w.until(lambda: w.shard.shard.fleet.workers["one"].member.state == "draining")
        one.complete(*one.batches)
        w.until(lambda: not w.shard.shard.fleet.out)
        second = front.submit(w.shard, [0])
        w.until(lambda: two.keys == second)
        assert one.keys == first
        one.node.membership.leave()
        w.until(lambda: "one" not in w.shard.shard.fleet.workers)
        assert front.told == {}


def test_a_worker_whose_pipe_is_full_is_left_alone_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    full = {"yes": False}
    real = fleet.send
    monkeypatch.setattr(fleet, "send", lambda sock, frames: not full["yes"] and real(sock, frames))
    with world() as w:
        worker = w.worker("one", [spec("m", max_batch=1)])
        front = w.frontend()
        full["yes"] = True
        lost = front.submit(w.shard, [0])
        w.until(lambda: front.told == {lost[0]: Status.UNAVAILABLE})
        assert w.shard.counts["dispatch-pipe-full"] == 1
        full["yes"] = False
        w.until(lambda: w.has(worker), what="the worker to take part again")
        keys = front.submit(w.shard, [0])
        w.until(lambda: worker.keys == keys)


def test_it_says_that_it_drains_and_ends_when_nothing_is_left() -> None:
    with world(drain_s=30) as w:
        worker = w.worker("one", [spec("m", max_batch=1)])
        front = w.frontend()
        assert front.node is not None
        first = front.submit(w.shard, [0])
        w.until(lambda: worker.keys == first)
        w.shard.shard.stop()
        w.until(lambda: front.node.membership.members["shard-0"].state == "draining")  # type: ignore[union-attr]
        assert w.shard.alive
        worker.complete(*worker.batches)
        w.until(lambda: not w.shard.alive)
        assert w.shard.error is None
        w.until(lambda: "shard-0" not in front.node.membership.members)  # type: ignore[union-attr]
        assert front.told == {}


def test_what_it_cannot_finish_in_time_it_hands_back() -> None:
    with world(drain_s=0.3, policy="deferred", overdue_ns=0) as w:
        worker = w.worker("one", [spec("m", max_batch=1, ms=20_000)])
        front = w.frontend()
        out = front.submit(w.shard, [0], due_ns=300 * S)
        w.until(lambda: worker.keys == out)
        queued = front.submit(w.shard, [0, 0, 0], due_ns=300 * S)
        w.until(lambda: sum(w.shard.shard.core.queued_by_model(1)) == 3)
        began = time.monotonic()
        w.shard.shard.stop()
        w.until(lambda: not w.shard.alive)
        assert time.monotonic() - began < 10
        w.until(lambda: len(front.told) == 3)
        # What runs is the worker's to answer.
        assert front.told == dict.fromkeys(queued, Status.UNAVAILABLE)


def test_serving_goes_on_while_the_broker_is_away_and_after_it_is_back() -> None:
    options = {"heartbeat_ms": 50, "lease_ms": 800}
    first = Broker(ANY_PORT, ANY_PORT, ANY_PORT, fresh=True, **options)  # type: ignore[arg-type]
    first.start()
    thread = threading.Thread(target=first.run)
    thread.start()
    with nodes_of(first) as nodes, contextlib.closing(World(first, nodes)) as w:
        try:
            w.shard.start()
            worker, front = w.worker("one", [spec("m", max_batch=1)]), w.frontend()
        finally:
            first.stop()
            thread.join()
            first.close()
        w.until(lambda: not w.shard.shard.membership.broker_alive)
        _serve_some(w, worker, front)
        with running_broker(*endpoints(first), **{**options, "fresh": False}) as second:
            w.until(lambda: set(second.members.members) == {"shard-0", "one", "front"})
            _serve_some(w, worker, front)
            nodes.pump_for(1.2)  # past the lease
            _serve_some(w, worker, front)
            assert front.told == {}


def _serve_some(w: World, worker: FakeWorker, front: FakeFrontend) -> None:
    for _ in range(3):
        before = len(worker.keys)
        keys = front.submit(w.shard, [0])
        w.until(lambda before=before, keys=keys: worker.keys[before:] == keys)  # type: ignore[misc]
        worker.complete(worker.batches[-1])
        w.until(lambda: not w.shard.shard.fleet.out)


def test_a_second_shard_of_the_same_id_is_refused_with_the_reason() -> None:
    with world(LEASE) as w:
        w.worker("one", [spec("m")])
        s = w.shard.shard.settings
        second = Shard(Settings(id="shard-0", registry=s.registry, publish=s.publish, subscribe=s.subscribe))
        try:
            second.start()
            with pytest.raises(SymphonyError, match="two processes with the same id"):
                second.run()
        finally:
            second.close()
        assert w.shard.alive
