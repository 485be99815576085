"""``symphony telemetry``: what it shows, and everything that ends it."""

from __future__ import annotations

import io
import json
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq
from cluster_parts import nodes_of, running_broker
from commands import end, start
from helpers import wait_until

from broker.server import Broker
from symphony.bus import Bus, Sock, send
from symphony.cli.telemetry import follow
from symphony.control import encode_stamp
from symphony.stopping import StopRequest
from symphony.topics import to_json
from symphony.wire import Done, encode_done

DONE = Done(
    "w",
    4,
    ["net"],
    *(np.array([n]) for n in (7, 2)),  # type: ignore[arg-type]
    *(np.array([n]) for n in (0, 5, 1, 100, 110, 120, 190)),  # type: ignore[arg-type]
)


@pytest.fixture
def broker() -> Iterator[Broker]:
    with running_broker() as running:
        yield running


@pytest.fixture
def publisher(broker: Broker) -> Iterator[Callable[[], None]]:
    """Publishes one of each kind whenever it is called."""
    with Bus() as bus:
        pub = bus.connect(zmq.PUB, broker.publish)

        def publish() -> None:
            send(pub, [b"done.w", encode_done(DONE)])
            send(pub, [b"stats.shard-0", msgpack.packb({"rate": 2.5, "bad": float("nan"), "raw": b"\1"})])

        yield publish


class Follower:
    """:func:`follow` on a thread."""

    def __init__(self, endpoint: str, *topics: str, **limits: Any) -> None:
        self.stopping = StopRequest()
        self.out = io.StringIO()
        self.written: int | None = None
        self._thread = threading.Thread(target=self._run, args=(endpoint, topics or ("",), limits))
        self._thread.start()

    def _run(self, endpoint: str, topics: tuple[str, ...], limits: dict[str, Any]) -> None:
        self.written = follow(endpoint, topics, self.out, self.stopping, **limits)

    def lines(self) -> list[dict[str, Any]]:
        return [
            json.loads(line) for line in self.out.getvalue().splitlines(keepends=True) if line.endswith("\n")
        ]

    def topics(self) -> set[str]:
        return {line["topic"] for line in self.lines()}

    def stop(self) -> None:
        self.stopping.set()
        self._thread.join(10)
        self.stopping.close()


def test_every_known_message_becomes_a_line(broker: Broker, publisher: Callable[[], None]) -> None:
    follower = Follower(broker.subscribe)
    try:
        wait_until(lambda: (publisher(), {"done.w", "stats.shard-0"} <= follower.topics())[1])
        with nodes_of(broker) as nodes:
            nodes.add("w")
            nodes.until(lambda: "member" in follower.topics())
    finally:
        follower.stop()
    by_topic = {line["topic"]: line for line in follower.lines()}
    assert by_topic["done.w"]["broker"] == broker.incarnation
    assert by_topic["done.w"]["body"] == {
        "worker": "w",
        "sequence": 4,
        "batches": [
            {
                "batch": 7,
                "gpu": 2,
                "model": "net",
                "size": 5,
                "failed": 1,
                "received": 100,
                "exec_at": 110,
                "started": 120,
                "finished": 190,
            }
        ],
    }
    assert by_topic["stats.shard-0"]["body"] == {"rate": 2.5, "bad": None, "raw": "01"}
    assert by_topic["member"]["body"]["event"] == "join"
    assert by_topic["member"]["body"]["member"]["id"] == "w"


def test_topics_filter_by_prefix(broker: Broker, publisher: Callable[[], None]) -> None:
    follower = Follower(broker.subscribe, "stats.", "member")
    try:
        wait_until(lambda: (publisher(), len(follower.lines()) >= 5)[1])
        assert follower.topics() == {"stats.shard-0"}
        numbers = [line["seq"] for line in follower.lines()]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    finally:
        follower.stop()


def test_count_and_seconds_limit_it(broker: Broker, publisher: Callable[[], None]) -> None:
    follower = Follower(broker.subscribe, count=3)
    try:
        wait_until(lambda: (publisher(), follower.written is not None)[1])
        assert follower.written == len(follower.lines()) == 3
    finally:
        follower.stop()
    follower = Follower(broker.subscribe, "nothing", seconds=0.05)
    try:
        wait_until(lambda: follower.written == 0)
    finally:
        follower.stop()


def test_what_cannot_be_decoded_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    stamp = encode_stamp(1, 1)
    with Bus() as bus:
        pub, endpoint = bus.bind(zmq.PUB, "tcp://127.0.0.1:0")
        follower = Follower(endpoint)
        try:
            wait_until(lambda: (_publish_nonsense(pub, stamp), follower.lines())[1])
            assert follower.topics() == {"stats.s"}
        finally:
            follower.stop()
    assert {record.message.split()[0] for record in caplog.records} >= {
        "telemetry-malformed",
        "telemetry-unknown-topic",
        "telemetry-bad-topic",
    }


def _publish_nonsense(pub: Sock, stamp: bytes) -> None:
    for frames in (
        [b""],
        [b"done.w", b"\xc1", b""],
        [b"done.w", stamp, b"\xff"],
        [b"new.w", stamp, b"\x80"],
        [b"\xff", stamp, b"\x80"],
        [b"stats.s", stamp, b"\x80"],
    ):
        send(pub, frames)


def test_deep_values_are_cut() -> None:
    value: Any = 1
    for _ in range(400):
        value = [value]
    assert "…" in json.dumps(to_json({"deep": value}), ensure_ascii=False)


@pytest.mark.live
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_command(
    broker: Broker, publisher: Callable[[], None], number: signal.Signals
) -> None:
    process = start("telemetry", "--subscribe", broker.subscribe, "--topic", "done.")
    try:
        _wait_for_output(process, publisher)
        process.send_signal(number)
        out, err = process.communicate(timeout=10)
    finally:
        if process.returncode is None:
            end(process)
    assert process.returncode == 0, err
    assert err == ""
    assert all(json.loads(line)["topic"] == "done.w" for line in out.splitlines())


@pytest.mark.live
def test_a_closed_pipe_ends_the_command_even_if_nothing_more_comes(
    broker: Broker, publisher: Callable[[], None]
) -> None:
    process = start("telemetry", "--subscribe", broker.subscribe)
    try:
        _wait_for_output(process, publisher)
        assert process.stdout is not None
        process.stdout.close()
        wait_until(lambda: process.poll() is not None, 10, "the command to end")
        assert process.stderr is not None
        assert process.stderr.read() == ""
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait(10)
        if process.stderr is not None:
            process.stderr.close()


def _wait_for_output(process: Any, publish: Callable[[], None]) -> None:
    poller = zmq.Poller()
    poller.register(process.stdout.fileno(), zmq.POLLIN)
    wait_until(lambda: (publish(), poller.poll(20))[1], 30, "a line")


@pytest.mark.live
def test_limits_of_the_command_and_a_note_that_no_broker_answers(broker: Broker) -> None:
    process = start(
        "telemetry", "--seconds", "0.1", SYMPHONY_BROKER_REGISTRY_PORT="1", SYMPHONY_BROKER_SUBSCRIBE_PORT="2"
    )
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert out == ""
    assert "no broker answered at tcp://127.0.0.1:1" in err
