"""A broker on a thread, and members that a test drives step by step."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from helpers import wait_until

from broker.server import Broker
from symphony.bus import Bus
from symphony.clock import ClusterClock
from symphony.control import Member
from symphony.membership import Event, MemberChanged, Membership, describe

ANY_PORT = "tcp://127.0.0.1:0"


@contextlib.contextmanager
def running_broker(
    registry: str = ANY_PORT, publish: str = ANY_PORT, subscribe: str = ANY_PORT, **options: Any
) -> Iterator[Broker]:
    """A broker that runs on a thread for as long as the block; quick heartbeats and a short lease."""
    values = {"heartbeat_ms": 50, "lease_ms": 800, "fresh": True, **options}
    broker = Broker(registry, publish, subscribe, **values)
    thread = threading.Thread(target=broker.run, name="broker")
    try:
        broker.start()
        thread.start()
        yield broker
        assert thread.is_alive(), "the broker's loop has ended"
    finally:
        broker.stop()
        if thread.ident is not None:
            thread.join(10)
        broker.close()


def endpoints(broker: Broker) -> tuple[str, str, str]:
    """To start another broker on the same ports."""
    return broker.registry, broker.publish, broker.subscribe


class Node:
    """One member with its bus; :meth:`pump` is its loop's step."""

    def __init__(self, registry: str, subscribe: str, member: Member, **options: Any) -> None:
        self.bus = Bus()
        self.clock = ClusterClock()
        self.membership = Membership(self.bus, registry, subscribe, member, clock=self.clock, **options)
        self.events: list[Event] = []

    @property
    def known(self) -> set[str]:
        """Ids that it knows as live."""
        return set(self.membership.members)

    def changes(self) -> list[tuple[str, str]]:
        """What it was told of other members, in order."""
        return [(e.event, e.member.id) for e in self.events if isinstance(e, MemberChanged)]

    def of(self, kind: type) -> list[Any]:
        """Its events of one kind."""
        return [event for event in self.events if isinstance(event, kind)]

    def pump(self) -> None:
        """Step once."""
        self.events += self.membership.step(time.monotonic_ns())


class Nodes:
    """Several members, driven together."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.all: list[Node] = []

    def add(
        self, name: str, role: str = "worker", options: dict[str, Any] | None = None, **fields: Any
    ) -> Node:
        """A new member that has not been pumped yet."""
        member = describe(name, role, **fields)  # type: ignore[arg-type]
        node = Node(self.broker.registry, self.broker.subscribe, member, **(options or {}))
        self.all.append(node)
        return node

    def until(self, condition: Callable[[], Any], timeout: float = 10.0, what: str = "the condition") -> None:
        """Pump every member until ``condition``."""

        def check() -> Any:
            for node in self.all:
                node.pump()
            return condition()

        wait_until(check, timeout, what)

    def pump_for(self, seconds: float) -> None:
        """Pump every member for that long, to see that something does not happen."""
        end = time.monotonic() + seconds
        self.until(lambda: time.monotonic() >= end, seconds + 10)

    def crash(self, node: Node) -> None:
        """The member is gone without a word."""
        self.all.remove(node)
        node.bus.close()

    def close(self) -> None:
        """Close every member's sockets."""
        for node in self.all:
            node.bus.close()


@contextlib.contextmanager
def nodes_of(broker: Broker) -> Iterator[Nodes]:
    """Members of ``broker``, closed at the end."""
    nodes = Nodes(broker)
    try:
        yield nodes
    finally:
        nodes.close()
