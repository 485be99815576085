"""A real broker process: killed and restarted, stopped in order, started twice."""

from __future__ import annotations

import signal
from types import SimpleNamespace

import pytest
import zmq
from cluster_parts import Nodes
from commands import broker_process, run
from helpers import free_ports, wait_until

from symphony.bus import Bus, drain, send
from symphony.control import ModelSpec
from symphony.membership import fetch_snapshot

pytestmark = pytest.mark.live

QUICK = {"SYMPHONY_BROKER_HEARTBEAT_MS": "100", "SYMPHONY_BROKER_LEASE_MS": "1000"}


def test_a_killed_broker_comes_back_and_knows_everybody_again() -> None:
    ports = free_ports(3)
    registry, _, subscribe = (f"tcp://127.0.0.1:{port}" for port in ports)
    nodes = Nodes(SimpleNamespace(registry=registry, subscribe=subscribe))  # type: ignore[arg-type]
    everybody = {"front", "shard-0", "worker"}
    spec = ModelSpec(name="net", slo_ms=50.0, max_batch=1, profiles={"t": [1_000_000]})
    try:
        with broker_process(ports, "--fresh", **QUICK) as first:
            front = nodes.add("front", "frontend")
            nodes.add("shard-0", "scheduler", models=["net"])
            worker = nodes.add("worker", options={"gpus_wanted": 2, "gpu_type": "t", "models": [spec]})
            nodes.until(lambda: all(node.known == everybody for node in nodes.all), 20)
            before = fetch_snapshot(registry)
            slot, offset = front.membership.me.slot, front.clock.offset_ns
            first.send_signal(signal.SIGKILL)
            first.wait(10)
        with Bus() as bus:  # what members have between themselves goes on
            pull, endpoint = bus.bind(zmq.PULL, "tcp://127.0.0.1:0")
            push = bus.connect(zmq.PUSH, endpoint)
            send(push, b"x")
            nodes.until(lambda: list(drain(pull)))
        nodes.until(lambda: not any(node.membership.broker_alive for node in nodes.all))
        assert all(node.known == everybody and node.membership.joined for node in nodes.all)
        with broker_process(ports, **QUICK) as second:
            nodes.until(lambda: {m.id for m in fetch_snapshot(registry).members} == everybody, 20)
            nodes.until(lambda: all(n.membership.synced and n.membership.broker_alive for n in nodes.all))
            after = fetch_snapshot(registry)
            assert after.broker != before.broker
            assert after.models == before.models == [spec]
            assert {m.id: m for m in after.members} == {m.id: m for m in before.members}
            nodes.pump_for(1.2)  # past the lease
            assert all(node.known == everybody for node in nodes.all)
            assert not any(event in ("death", "leave") for node in nodes.all for event, _ in node.changes())
            assert front.membership.me.slot == slot
            assert [gpu.number for gpu in worker.membership.me.gpus] == [0, 1]
            nodes.until(lambda: front.clock.synced)
            assert abs(front.clock.offset_ns - offset) < 1_000_000_000
            newcomer = nodes.add("late", options={"gpus_wanted": 1, "gpu_type": "t"})
            nodes.until(lambda: newcomer.known == front.known == {*everybody, "late"})
            assert [gpu.number for gpu in newcomer.membership.me.gpus] == [2]
            assert second.poll() is None
    finally:
        nodes.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_broker_in_order(number: signal.Signals) -> None:
    with broker_process(free_ports(3)) as broker:
        broker.send_signal(number)
        wait_until(lambda: broker.poll() is not None, 10, "the broker to end")
        out, err = broker.communicate(timeout=10)
        assert broker.returncode == 0
        assert out == ""
        assert "ready: registry tcp://127.0.0.1:" in err
        assert "Traceback" not in err


def test_a_second_broker_on_the_same_ports_says_what_to_do() -> None:
    ports = free_ports(3)
    with broker_process(ports):
        code, _, err = run("broker", "--registry-port", str(ports[0]))
        assert code == 1
        assert f"{ports[0]} is in use: is another cluster running" in err
        assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "expected", "message"),
    [
        (["--host", "192.0.2.1"], 1, "insecure"),
        (["--host", "nonsense"], 2, "expected an IP address"),  # an option that is malformed by itself
        (["--registry-port", "5551"], 1, "must differ"),
        (["--config", "/nonexistent.yaml"], 1, "there is no such configuration file"),
    ],
)
def test_what_a_broker_cannot_be_told(arguments: list[str], expected: int, message: str) -> None:
    code, _, err = run("broker", *arguments)
    assert code == expected
    assert message in err
    assert "Traceback" not in err
