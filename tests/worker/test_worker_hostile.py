"""What strangers and broken peers send to a worker: plans, answers to fetches, tensors."""

from __future__ import annotations

import os
import random
from typing import Any

import msgpack
import numpy as np
import pytest
from fake_device import FakeDevice, definition, runner, xs
from fake_peers import FakeFrontend, FakePeers, answered, running

from symphony import wire
from symphony.status import Status

MODEL = definition()


PLAN = wire.encode_plan(
    wire.Plan(
        "shard-0",
        ["double"],
        *(np.array([n], dtype=t) for n, t in ((1, "<u8"), (0, "<u4"), (0, "<u4"), (1, "<i8"), (1, "<u4"))),
        key=np.array([1], dtype=np.uint64),
        deadline=np.array([1], dtype=np.int64),
    )
)


def hostile_plans() -> list[tuple[str, list[bytes]]]:
    """Each with the reason that it must be counted under."""
    fields = msgpack.unpackb(PLAN)
    column = np.zeros(wire.MAX_REQUESTS + 1, dtype=np.uint64).tobytes()
    return [
        ("malformed", [b""]),
        ("malformed", [os.urandom(1_000_000)]),
        ("malformed", [PLAN[:-3]]),
        ("malformed", [PLAN, b"more"]),
        ("malformed", [b"\xc1" * 50]),
        ("unexpected-kind", [wire.encode_fetch(1, [1])]),
        ("wrong-version", [msgpack.packb([wire.PLAN, 99, *fields[2:]])]),
        ("malformed", [msgpack.packb([*fields[:3], ["m"] * 3, *fields[4:]])[:-8]]),
        ("malformed", [msgpack.packb([*fields[:3], [], *fields[4:]])]),
        ("oversized", [msgpack.packb([*fields[:4], column, *fields[5:]])]),
        ("ragged", [msgpack.packb([*fields[:9], b"", *fields[10:]])]),
    ]


def test_nothing_on_the_dispatch_socket_stops_the_worker(peers: FakePeers) -> None:
    rng = random.Random(0)
    with running(peers, runner(FakeDevice(), MODEL), [MODEL]) as worker:
        peers.ready()
        frontend = peers.frontend()
        counts: dict[str, int] = {}
        for reason, frames in hostile_plans():
            peers.dispatch(frames)
            counts[f"dispatch-{reason}"] = counts.get(f"dispatch-{reason}", 0) + 1
        peers.until(lambda: sum(worker.faults.counts.values()) >= len(hostile_plans()))
        assert dict(worker.faults.counts) == counts
        for _ in range(500):
            damaged = bytearray(PLAN)
            for _ in range(rng.randint(1, 4)):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
            peers.dispatch([bytes(damaged[: rng.randint(1, len(damaged))])])
        key = frontend.request(xs(1, 2))
        peers.plan("double", [key])
        peers.until(answered(frontend, [key]))
        assert frontend.answers[key][0][:2] == (Status.OK, {"y": np.float32(6)})


def test_a_peer_that_announces_too_much_is_cut_off(peers: FakePeers) -> None:
    with running(peers, runner(FakeDevice(), MODEL), [MODEL]):
        peers.ready()
        frontend = peers.frontend()
        peers.dispatch([bytes(17 << 20)])
        key = frontend.request(xs(1, 2))

        def retry() -> bool:  # plans queued behind it on the same connection may be lost with it
            if not frontend.answers:
                peers.plan("double", [key])
            return bool(frontend.answers)

        peers.until(retry)


def hostile_replies(frontend: FakeFrontend, fetch: int, keys: list[int]) -> list[list[bytes]]:
    """Every kind of bad answer to a fetch; the last one is true."""
    good = frontend.serve(fetch, keys)
    header = msgpack.unpackb(good[0])
    stranger = wire.Tensors(
        fetch + 1_000, np.array(keys, dtype=np.uint64), ["x"], [["FP32", [2]]] * len(keys)
    )
    return [
        [b""],
        [os.urandom(100_000)],
        [good[0][:-2], *good[1:]],
        [good[0]],
        [*good, b"one frame more"],
        [msgpack.packb([wire.TENSORS, 99, *header[2:]]), *good[1:]],
        [msgpack.packb([*header[:5], [["FP32", [-1]]] * len(keys)]), *good[1:]],
        [msgpack.packb([*header[:5], [["FP32", [1 << 40]]] * len(keys)]), *good[1:]],
        [wire.encode_tensors(stranger), *good[1:]],
        [PLAN],
        good,
        good,
    ]


def test_no_answer_to_a_fetch_stops_the_worker(peers: FakePeers) -> None:
    with running(peers, runner(FakeDevice(), MODEL), [MODEL]) as worker:
        peers.ready()
        frontend = peers.frontend()
        frontend.respond = lambda fetch, keys: hostile_replies(frontend, fetch, keys)
        key = frontend.request(xs(1, 2))
        peers.plan("double", [key])
        peers.until(answered(frontend, [key]))
        assert frontend.answers[key][0][:2] == (Status.OK, {"y": np.float32(6)})
        peers.until(lambda: worker.faults.counts["fetch-unknown-fetch"] == 2)
        assert dict(worker.faults.counts) == {
            "fetch-malformed": 5,
            "fetch-ragged": 2,
            "fetch-wrong-version": 1,
            "fetch-unexpected-kind": 1,
            "fetch-unknown-fetch": 2,
        }


@pytest.mark.parametrize(
    ("spec", "frame"),
    [
        (["FP32", [2]], b""),
        (["FP32", [2]], bytes(1_000_000)),
        (["FP32", [(1 << 31) - 1] * 8], b""),
        (["NOPE", [2]], bytes(8)),
        (["BYTES", [2]], b"\xff\xff\xff\xff"),
        (["FP32", []], bytes(4)),
    ],
)
def test_what_is_no_tensor_is_the_callers_mistake(peers: FakePeers, spec: list[Any], frame: bytes) -> None:
    with running(peers, runner(FakeDevice(), MODEL), [MODEL]):
        peers.ready()
        frontend = peers.frontend()

        def lie(fetch: int, keys: list[int]) -> list[list[bytes]]:
            message = wire.Tensors(fetch, np.array(keys, dtype=np.uint64), ["x"], [spec] * len(keys))
            return [[wire.encode_tensors(message), *[frame] * len(keys)]]

        frontend.respond = lie
        key = frontend.request(xs(1, 2))
        peers.plan("double", [key])
        peers.until(answered(frontend, [key]))
        assert frontend.answers[key][0][0] == Status.INVALID


def test_inputs_sent_by_another_frontend_are_not_taken(peers: FakePeers) -> None:
    with running(peers, runner(FakeDevice(), MODEL), [MODEL]) as worker:
        peers.ready()
        victim, thief = peers.frontend(), peers.frontend()
        victim.silent = True
        key, own = victim.request(xs(1)), thief.request(xs(2))
        thief.inputs[key] = xs(666)
        thief.respond = lambda fetch, keys: [thief.serve(f, [*keys, key]) for f in (fetch - 1, fetch)]
        peers.plan("double", [key], deadline_ms=500)
        peers.plan("double", [own], deadline_ms=500)
        peers.until(answered(thief, [own]))
        peers.until(answered(victim, [key]))
        assert victim.answers[key][0][0] == Status.UNAVAILABLE
        assert worker.faults.counts["fetch-foreign-fetch"] == 1
        assert worker.faults.counts["fetch-unasked"] == 1
