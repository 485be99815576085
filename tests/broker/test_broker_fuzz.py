"""Whatever arrives on its sockets, the broker goes on, counts it by reason, and answers it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
import zmq
from cluster_parts import nodes_of, running_broker
from helpers import wait_until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.server import MAX_FRAME, Broker
from symphony import control
from symphony.bus import Bus, Sock, drain, port_of, send, subscribe
from symphony.control import MAX_CONTROL_BYTES, Member, ModelSpec, decode_control, encode_control
from symphony.membership import fetch_snapshot

GOOD = [
    encode_control(message)
    for message in (
        control.Join(
            member=Member(id="w", role="worker", incarnation=1),
            models=[ModelSpec(name="m", slo_ms=1.0, max_batch=1)],
        ),
        control.Heartbeat(id="w", incarnation=1, stats={"a": 1}),
        control.Update(member=Member(id="w", role="worker", incarnation=1)),
        control.Ping(t=1),
        control.AskSnapshot(),
        control.Leave(id="w", incarnation=1),
    )
]


@pytest.fixture(scope="module")
def shared() -> Iterator[Broker]:
    with running_broker() as running:
        yield running


@pytest.fixture
def broker() -> Iterator[Broker]:
    with running_broker() as running:
        yield running


def asks(broker: Broker, bus: Bus) -> Sock:
    return bus.connect(zmq.DEALER, broker.registry)


def answer_to(sock: Sock, frames: list[bytes]) -> Any:
    sock.send_multipart(frames)
    assert sock.poll(10_000), "no answer"
    got = sock.recv_multipart()
    assert len(got) == 1
    return decode_control(got[0])


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([b""], "malformed"),
        ([b"", b""], "malformed"),
        ([b"", GOOD[3]], "malformed"),
        ([GOOD[3], GOOD[3]], "malformed"),
        ([b"\xc1"], "malformed"),
        ([b"hello"], "malformed"),
        ([msgpack.packb([1, 2])], "malformed"),
        ([b"\xdf\xff\xff\xff\xff"], "malformed"),
        ([b"\x91" * 5_000], "malformed"),
        ([bytes(MAX_CONTROL_BYTES + 1)], "oversized"),
        ([msgpack.packb({})], "wrong-version"),
        ([msgpack.packb({"type": "ping", "t": 1, "v": 2})], "wrong-version"),
        ([msgpack.packb({"type": "ping", "t": 1, "v": "1"})], "wrong-version"),
        ([msgpack.packb({"type": "ping", "v": 1})], "invalid"),
        ([msgpack.packb({"type": "ping", "v": 1, "t": "9" * 4_000})], "invalid"),
        ([msgpack.packb({"type": "ping", "v": 1, "t": 1, "x": 1})], "invalid"),
        ([msgpack.packb({"type": "no-such", "v": 1})], "invalid"),
        ([msgpack.packb({"type": {}, "v": 1})], "invalid"),
        ([encode_control(control.Left())], "refused"),
    ],
)
def test_every_malformed_question_is_refused_with_its_reason(
    shared: Broker, frames: list[bytes], reason: str
) -> None:
    before = shared.faults.counts[f"registry-{reason}"]
    with Bus() as bus:
        refused = answer_to(asks(shared, bus), frames)
    assert isinstance(refused, control.Refused)
    assert refused.retry_ms is None
    if reason != "refused":
        assert reason in refused.reason
    assert shared.faults.counts[f"registry-{reason}"] == before + 1


@pytest.mark.parametrize("whole", GOOD)
def test_every_truncation_of_a_good_question_is_answered(shared: Broker, whole: bytes) -> None:
    with Bus() as bus:
        sock = asks(shared, bus)
        for length in range(len(whole)):
            assert isinstance(answer_to(sock, [whole[:length]]), control.Refused)


_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
_TYPES = [
    "join",
    "heartbeat",
    "update",
    "leave",
    "ping",
    "pong",
    "snapshot",
    "member",
    "model",
    "beat",
    "joined",
]
_FIELDS = ["id", "incarnation", "stats", "member", "models", "gpus_wanted", "gpu_type", "t", "now", "broker"]
_MAPS = st.fixed_dictionaries(
    {"type": st.sampled_from(_TYPES), "v": st.just(1)},
    optional=dict.fromkeys(_FIELDS, _VALUES),
).map(msgpack.packb)


@st.composite
def _mutated(draw: st.DrawFn) -> bytes:
    frame = bytearray(draw(st.sampled_from(GOOD)))
    for _ in range(draw(st.integers(1, 4))):
        frame[draw(st.integers(0, len(frame) - 1))] = draw(st.integers(0, 255))
    return bytes(frame)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(frames=st.lists(st.binary(max_size=60) | _MAPS | _mutated(), min_size=1, max_size=3))
def test_random_questions_always_get_an_answer(shared: Broker, frames: list[bytes]) -> None:
    with Bus() as bus:
        sock = asks(shared, bus)
        answer_to(sock, frames)
        assert isinstance(answer_to(sock, [encode_control(control.AskSnapshot())]), control.Snapshot)


def test_random_publications_are_counted_and_the_good_ones_pass(broker: Broker) -> None:
    hostile: list[list[bytes]] = [
        [b""],
        [b"", b""],
        [b"stats.s"],
        [b"stats.s", b""],
        [b"stats.s", b"\xc1"],
        [b"stats.s", b"\x81"],
        [b"stats.s", bytes(MAX_CONTROL_BYTES + 1)],
        [b"stats.s", msgpack.packb({"v": 7})],
        [b"done.w", b"\x00" * 100],
        [b"stats." + b"s" * 100_000, b"\x80"],
        [b"stats.s", b"\x80", b"\x80"],
        [b"what", b"\x80"],
        [b"member", GOOD[0]],
    ]
    expected = {
        "publish-malformed",
        "publish-oversized",
        "publish-wrong-version",
        "publish-bad-topic",
        "publish-unknown-topic",
        "publish-reserved-topic",
    }
    with Bus() as bus:
        sub = bus.connect(zmq.SUB, broker.subscribe)
        subscribe(sub, [""])
        pub = bus.connect(zmq.PUB, broker.publish)
        wait_until(lambda: (send(pub, [b"stats.s", b"\x80"]), sub.poll(10))[1])
        for frames in hostile:
            assert send(pub, frames)
        wait_until(lambda: expected <= set(broker.faults.counts), what="every reason to be counted")
        for _ in drain(sub):
            pass
        send(pub, [b"stats.last", b"\x80"])
        got: list[bytes] = []
        wait_until(lambda: (got.extend(f[0] for f in drain(sub)), b"stats.last" in got)[1])
        assert set(got) <= {b"stats.s", b"stats.last"}


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    messages=st.lists(
        st.lists(
            st.binary(max_size=60) | st.sampled_from([b"done.w", b"stats.s", b"member"]),
            min_size=1,
            max_size=4,
        ),
        max_size=5,
    )
)
def test_random_publications_never_stop_the_broker(shared: Broker, messages: list[list[bytes]]) -> None:
    with Bus() as bus:
        pub = bus.connect(zmq.DEALER, shared.publish)  # the wrong kind of peer, too
        real = bus.connect(zmq.PUB, shared.publish)
        for frames in messages:
            send(pub, frames)
            send(real, frames)
    assert fetch_snapshot(shared.registry).broker == shared.incarnation


def raw_peer(endpoint: str, socket_type: bytes) -> socket.socket:
    """A TCP connection that has greeted as a ZMTP 3.0 peer without security; libzmq would not let
    its user send what follows."""
    tcp = socket.create_connection(("127.0.0.1", port_of(endpoint)), 10)
    tcp.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32))
    ready = b"\x05READY\x0bSocket-Type" + len(socket_type).to_bytes(4, "big") + socket_type
    tcp.sendall(bytes([4, len(ready)]) + ready)
    heard = b""
    while b"Socket-Type" not in heard:  # the broker has greeted, too: frames may follow
        more = tcp.recv(1_000)
        assert more, "the broker refused the greeting"
        heard += more
    return tcp


def closed_by_peer(tcp: socket.socket) -> bool:
    try:
        return tcp.recv(1_000) == b""
    except ConnectionError:
        return True


def long_frame(body: bytes) -> bytes:
    return b"\x02" + len(body).to_bytes(8, "big") + body


def test_hostile_subscribers_are_counted_or_cut_off(broker: Broker) -> None:
    with raw_peer(broker.subscribe, b"SUB") as tcp:
        for frame in (b"", b"\x02abc", b"\xff", b"\x01" + b"t" * 1_000):
            tcp.sendall(long_frame(frame))
        wait_until(lambda: broker.faults.counts["subscribe-malformed"] >= 3)
        wait_until(lambda: broker.faults.counts["subscribe-oversized"] >= 1)
        # libzmq keeps subscriptions in a recursive tree: too long a one would overflow its stack.
        with contextlib.suppress(ConnectionError):
            tcp.sendall(long_frame(b"\x01" + b"t" * 1_000_000))
        wait_until(lambda: closed_by_peer(tcp))
    assert fetch_snapshot(broker.registry).broker == broker.incarnation


@pytest.mark.parametrize("which", ["registry", "publish", "subscribe"])
def test_bytes_that_are_no_zmtp_and_half_a_handshake(broker: Broker, which: str) -> None:
    endpoint = getattr(broker, which)
    address = ("127.0.0.1", port_of(endpoint))
    for garbage in (
        b"",
        b"\0",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff" * 200,
        bytes(100),
        b"\xff" + bytes(8) + b"\x7f\x03",
    ):
        with socket.create_connection(address, 10) as tcp:
            tcp.sendall(garbage)
    kind = {"registry": b"DEALER", "publish": b"PUB", "subscribe": b"SUB"}[which]
    with raw_peer(endpoint, kind) as tcp:
        tcp.sendall(b"\x02\x7f" + b"\xff" * 7)  # announces a frame of eight exabytes
    assert fetch_snapshot(broker.registry).broker == broker.incarnation


def test_a_frame_beyond_the_limit_costs_its_sender_the_connection_and_nobody_else(broker: Broker) -> None:
    with Bus() as bus:
        flood = asks(broker, bus)
        send(flood, bytes(MAX_FRAME + 1))
        assert answer_to(asks(broker, bus), [GOOD[3]]).t == 1


@pytest.mark.parametrize("deep", [20, 200, 500, 5_000])
def test_deep_nesting_neither_kills_the_loop_nor_gets_into_a_record(broker: Broker, deep: int) -> None:
    with Bus() as bus, nodes_of(broker) as nodes:
        node = nodes.add("w", "frontend")
        nodes.until(lambda: node.membership.synced)
        beat = {"type": "heartbeat", "v": 1, "id": "w", "incarnation": node.membership.me.incarnation}
        nested = b"\x81\xa1a" + b"\x91" * deep + b"\x01"
        frame = msgpack.packb({**beat, "stats": None})[:-1] + nested
        assert isinstance(answer_to(asks(broker, bus), [frame]), control.Refused)
        assert fetch_snapshot(broker.registry).members[0].stats == {}
