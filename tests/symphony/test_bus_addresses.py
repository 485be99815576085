"""Which addresses are bound and connected to: loopback unless told otherwise, IPv4 and IPv6."""

from __future__ import annotations

import socket

import pytest
import zmq
from fake_cluster import GRACE_MS, FakeCluster

from symphony import Client
from symphony.bus import Bus, BusError, is_loopback, send, tcp


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6 loopback")


@pytest.mark.parametrize(
    ("endpoint", "loopback"),
    [
        ("tcp://127.0.0.1:5550", True),
        ("tcp://127.8.0.1:*", True),
        ("tcp://[::1]:5550", True),
        ("tcp://localhost:5550", True),
        ("ipc:///run/x", True),
        ("tcp://0.0.0.0:5550", False),
        ("tcp://*:5550", False),
        ("tcp://[::]:5550", False),
        ("tcp://10.0.0.1:5550", False),
        ("tcp://[2001:db8::1]:5550", False),
        ("tcp://localhost.example:5550", False),
        ("nonsense", False),
    ],
)
def test_what_counts_as_loopback(endpoint: str, loopback: bool) -> None:
    assert is_loopback(endpoint) is loopback
    if not loopback:
        with Bus() as bus, pytest.raises(BusError, match="refusing to bind"):
            bus.bind(zmq.PULL, endpoint)


@ipv6
def test_messages_over_ipv6() -> None:
    with Bus() as bus:
        pull, endpoint = bus.bind(zmq.PULL, tcp("::1"))
        assert endpoint.startswith("tcp://[::1]:")
        push = bus.connect(zmq.PUSH, endpoint)
        assert send(push, b"hello")
        assert pull.poll(10_000)
        assert pull.recv() == b"hello"


@ipv6
def test_a_client_on_an_ipv6_address_is_answered() -> None:
    with (
        FakeCluster(models=["upper"]) as cluster,
        Client(cluster.registry, cluster.subscribe, grace_ms=GRACE_MS, host="::1") as client,
    ):
        assert client.infer("upper", {"text": "a"})["upper"].item() == b"A"
        me = next(m for m in client.engine.members.values() if m.role == "frontend")
        assert all(endpoint.startswith("tcp://[::1]:") for endpoint in me.endpoints.values())


def test_localhost_can_be_bound() -> None:
    with Bus() as bus:
        assert bus.bind(zmq.PULL, tcp("localhost"))[1].startswith("tcp://127.0.0.1:")


def test_a_port_in_use_is_told_with_what_to_do() -> None:
    with Bus() as bus, Bus() as other:
        _, endpoint = bus.bind(zmq.PULL, tcp("127.0.0.1"))
        with pytest.raises(BusError, match="is in use: is another cluster running on the same ports"):
            other.bind(zmq.PULL, endpoint)
