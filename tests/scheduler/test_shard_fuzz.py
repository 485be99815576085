"""Hostile messages on the shard's sockets: counted by reason, and the shard serves on."""

from __future__ import annotations

import random

import msgpack
import numpy as np
import pytest
import zmq
from shard_parts import FakeFrontend, FakeWorker, S, World, spec, world

from symphony import wire
from symphony.bus import Bus, drain, link_events, send
from symphony.status import Status


def _submit(**changes: object) -> list[object]:
    fields: dict[str, object] = {
        "kind": wire.SUBMIT,
        "version": wire.VERSION,
        "incarnation": 1,
        "slot": 3,
        "model": np.zeros(2, "<u4").tobytes(),
        "deadline": np.zeros(2, "<i8").tobytes(),
        "key": np.array([(3 << 48) + 1, (3 << 48) + 2], "<u8").tobytes(),
        "priority": None,
    }
    return list((fields | changes).values())


BAD_SUBMITS: list[tuple[str, bytes, str]] = [
    ("empty", b"", "submit-malformed"),
    ("one byte", b"\x98", "submit-malformed"),
    ("not msgpack", b"\xc1" * 40, "submit-malformed"),
    ("a map", msgpack.packb({"kind": 1}), "submit-malformed"),
    ("deep", b"\x91" * 5_000, "submit-malformed"),
    ("truncated", msgpack.packb(_submit())[:-9], "submit-malformed"),
    ("trailing bytes", msgpack.packb(_submit()) + b"\x00", "submit-malformed"),
    ("huge length", b"\x98\x01\x01\x01\x03\xc6\xff\xff\xff\xff", "submit-malformed"),
    ("another kind", msgpack.packb(_submit(kind=wire.DONE)), "submit-unexpected-kind"),
    ("another version", msgpack.packb(_submit(version=2)), "submit-wrong-version"),
    ("too few fields", msgpack.packb(_submit()[:-1]), "submit-malformed"),
    ("ragged", msgpack.packb(_submit(deadline=b"\x00" * 8)), "submit-ragged"),
    ("half an entry", msgpack.packb(_submit(model=b"\x00" * 7)), "submit-malformed"),
    ("text for a column", msgpack.packb(_submit(model="aaaaaaaa")), "submit-malformed"),
    ("keys of another slot", msgpack.packb(_submit(slot=4)), "submit-foreign-key"),
    ("slot out of range", msgpack.packb(_submit(slot=70_000)), "submit-malformed"),
    ("negative incarnation", msgpack.packb(_submit(incarnation=-1)), "submit-malformed"),
    (
        "too many requests",
        msgpack.packb(_submit(model=bytes(4 * 70_000), deadline=bytes(8 * 70_000), key=bytes(8 * 70_000))),
        "submit-oversized",
    ),
]


def _still_serves(w: World, worker: FakeWorker, front: FakeFrontend) -> None:
    before = len(worker.keys)
    keys = front.submit(w.shard, [0, 0])
    w.until(lambda: worker.keys[before:] == keys)
    worker.complete(*worker.batches[-1:], size=2)
    w.until(lambda: not w.shard.shard.fleet.out)


def test_malformed_submits_are_counted_and_harmless() -> None:
    with world() as w, Bus() as bus:
        worker, front = w.worker("worker", [spec("m")]), w.frontend()
        sock = bus.connect(zmq.PUSH, w.shard.shard.membership.me.endpoints["submit"])
        for name, frame, reason in BAD_SUBMITS:
            before = w.shard.counts.get(reason, 0)
            assert send(sock, frame)
            w.until(lambda b=before, r=reason: w.shard.counts.get(r, 0) == b + 1, 10, name)  # type: ignore[misc]
        before = w.shard.counts["submit-malformed"]
        assert send(sock, [b"", b""])
        w.until(lambda: w.shard.counts["submit-malformed"] == before + 2, what="each frame to count")
        _still_serves(w, worker, front)
        assert front.told == {}


@pytest.mark.parametrize(("link", "kind"), [("submit", zmq.PUSH), ("done", zmq.XPUB)])
def test_a_frame_beyond_the_limit_costs_its_sender_the_connection_and_nobody_else(
    link: str, kind: int
) -> None:
    with world() as w, Bus() as bus:
        worker, front = w.worker("worker", [spec("m")]), w.frontend()
        sock = bus.connect(kind, w.shard.shard.membership.me.endpoints[link])
        monitor = bus.monitor(sock)
        if kind == zmq.XPUB:
            w.until(lambda: list(drain(sock)), what="the shard's subscription")
        send(sock, bytes(5 << 20) if kind == zmq.PUSH else [b"done.x", bytes(9 << 20)])
        w.until(lambda: False in link_events(monitor), what=f"the {link} socket to hang up")
        monitor.close()
        bus.drop(sock)
        _still_serves(w, worker, front)
        assert w.shard.counts == {}


BAD_DONES: list[tuple[str, list[bytes], str]] = [
    ("no body", [b"done.x"], "done-malformed"),
    ("three frames", [b"done.x", b"", b""], "done-malformed"),
    ("empty body", [b"done.x", b""], "done-malformed"),
    ("random", [b"done.x", b"\xc1\x00\xff"], "done-malformed"),
    ("a submit", [b"done.x", msgpack.packb(_submit())], "done-unexpected-kind"),
    ("another version", [b"done.x", msgpack.packb([wire.DONE, 9])], "done-wrong-version"),
    ("too short", [b"done.x", msgpack.packb([wire.DONE, wire.VERSION])], "done-malformed"),
]


def test_malformed_completions_are_counted_and_harmless() -> None:
    with world() as w, Bus() as bus:
        worker, front = w.worker("worker", [spec("m")]), w.frontend()
        sock = bus.connect(zmq.XPUB, w.shard.shard.membership.me.endpoints["done"])
        w.until(lambda: list(drain(sock)), what="the shard's subscription")
        for name, frames, reason in BAD_DONES:
            before = w.shard.counts.get(reason, 0)
            assert send(sock, frames)
            w.until(lambda b=before, r=reason: w.shard.counts.get(r, 0) == b + 1, 10, name)  # type: ignore[misc]
        _still_serves(w, worker, front)


@pytest.mark.parametrize("seed", range(3))
def test_random_bytes_and_flipped_bits_do_not_end_the_loop(seed: int) -> None:
    rng = random.Random(seed)
    good = msgpack.packb(_submit())
    with world() as w, Bus() as bus:
        worker, front = w.worker("worker", [spec("m")]), w.frontend()
        me = w.shard.shard.membership.me
        submit = bus.connect(zmq.PUSH, me.endpoints["submit"])
        done = bus.connect(zmq.XPUB, me.endpoints["done"])
        w.until(lambda: list(drain(done)))
        worker.complete((99, 0))
        (template,) = worker._unsent
        for _ in range(300):
            send(submit, rng.randbytes(rng.randrange(200)))
            send(done, [b"done.x", rng.randbytes(rng.randrange(200))])
            for sock, frame in ((submit, good), (done, template)):
                flipped = bytearray(frame)
                for _ in range(rng.randint(1, 4)):
                    flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
                body = bytes(flipped[: rng.randrange(len(flipped) + 1)] if rng.random() < 0.3 else flipped)
                send(sock, body if sock is submit else [b"done.x", body])
        _still_serves(w, worker, front)
        assert sum(w.shard.counts.values()) > 600


def test_hostile_columns_in_well_formed_messages_are_refused_one_by_one() -> None:
    with world() as w:
        worker, front = w.worker("worker", [spec("m")]), w.frontend()
        numbers = [0xFFFFFFFF, 1 << 20, 1, 2**31]
        keys = front.submit(w.shard, numbers)
        w.until(lambda: len(front.told) == len(keys))
        extreme = [front.submit(w.shard, [0], due_ns=due) for due in (2**61, -(2**60))]
        w.until(lambda: len(front.told) == len(keys) + len(extreme))
        everything = front.submit(w.shard, [0, 0, 0], priority=[0, 200, 255])
        w.until(lambda: sorted(worker.keys) == everything)
        none = front.submit(w.shard, [])
        assert none == []
        worker.complete(*worker.batches)
        w.until(lambda: not w.shard.shard.fleet.out)
        _still_serves(w, worker, front)


def test_hostile_completions_in_well_formed_messages_change_nothing_but_counters() -> None:
    with world(policy="deferred", overdue_ns=0) as w:
        worker, front = w.worker("worker", [spec("m", max_batch=1, ms=2_000)], gpus=2), w.frontend()
        keys = front.submit(w.shard, [0, 0], due_ns=60 * S)
        w.until(lambda: sorted(worker.keys) == keys)
        (batch, gpu), (other, _) = worker.batches
        worker.complete((batch + 50, gpu), (2**64 - 1, gpu), (batch, 2**32 - 1), (batch, gpu + 7), (7_777, 0))
        w.until(lambda: w.shard.counts.get("completion-of-unknown-batch", 0) == 5)
        assert sorted(w.shard.shard.fleet.out) == sorted([batch, other])
        worker.complete((batch, gpu), (batch, gpu), (batch, gpu))
        w.until(lambda: w.shard.counts["completion-of-unknown-batch"] == 7, what="two of three refused")
        assert list(w.shard.shard.fleet.out) == [other]
        worker.complete((batch, gpu))
        w.until(lambda: w.shard.counts["completion-of-unknown-batch"] == 8)
        for ran in (2**61, -(2**61)):  # it took centuries; it ended before it began
            (again,) = front.submit(w.shard, [0], due_ns=60 * S)
            w.until(lambda key=again: key in worker.keys)  # type: ignore[misc]
            worker.complete(worker.batches[-1], ran_ns=ran)
            w.until(lambda: list(w.shard.shard.fleet.out) == [other])
        worker.complete((other, worker.batches[1][1]))
        w.until(lambda: not w.shard.shard.fleet.out)


def test_a_key_that_is_still_queued_is_no_second_request() -> None:
    with world(policy="deferred", overdue_ns=0) as w:
        worker, front = w.worker("worker", [spec("m", max_batch=1, ms=2_000)]), w.frontend()
        busy = front.submit(w.shard, [0], due_ns=60 * S)
        w.until(lambda: worker.keys == busy)
        queued = front.submit(w.shard, [0], due_ns=60 * S)
        front.submit(w.shard, [0, 0], due_ns=60 * S, keys=queued * 2)
        w.until(lambda: w.shard.counts.get("duplicate-key", 0) == 2)
        worker.complete(worker.batches[0])
        w.until(lambda: worker.keys == busy + queued)
        worker.complete(worker.batches[1])
        w.until(lambda: not w.shard.shard.fleet.out)
        assert front.told == {}
        assert sum(w.shard.shard.core.queued_by_model(1)) == 0


def test_with_a_backlog_what_has_waited_for_two_fifths_of_its_objective_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("scheduler.intake.SUBMITS_PER_TURN", 1)  # every message is a backlog
    with world() as w:
        worker, front = w.worker("worker", [spec("m", slo_ms=60_000)]), w.frontend()
        old = front.submit(w.shard, [0, 0, 0], due_ns=35 * S, priority=[0, 1, 2])
        young = front.submit(w.shard, [0, 0], due_ns=37 * S)
        (unknown,) = front.submit(w.shard, [77], due_ns=S)
        w.until(lambda: len(front.told) == 4 and worker.keys == young)
        assert front.told == {**dict.fromkeys(old, Status.OVERLOADED), unknown: Status.UNKNOWN_MODEL}
        assert w.shard.counts == {"submit-backlog": 3}
        worker.complete(*worker.batches, size=2)
        w.until(lambda: not w.shard.shard.fleet.out)
