"""Completion timings: DONE messages for the shards, which predict by them, and for whoever listens.

A publisher loses what it publishes before its subscriber's subscription has come. A shard must not
miss a completion, so its messages are kept until the subscription is seen (an XPUB tells), and again
while the connection is lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

import msgpack
import numpy as np
import zmq

from symphony import wire
from symphony.bus import Bus, BusError, Sock, drain, send
from symphony.control import Member
from symphony.faults import Faults
from symphony.status import Status
from symphony.waiter import Waiter
from worker import columns
from worker.batch import Batch
from worker.emulated import Ended

MAX_KEPT: Final = 10_000
"""Messages kept for a shard that has not subscribed; the oldest go first."""
NEAR: Final = 64
"""Shards that are connected at once; a worker of a thousand emulated GPUs may work for several."""


class _Link:
    """The way to one run of one shard."""

    __slots__ = ("identity", "kept", "sock", "subscriptions")

    def __init__(self, sock: Sock, identity: tuple[int, str]) -> None:
        self.sock = sock
        self.identity = identity
        self.subscriptions: set[bytes] = set()
        self.kept: deque[list[bytes]] = deque()


class Completions:
    """Gathers finished batches; one message to each shard carries all of its own of one turn of the loop.

    Args:
        bus: makes the publishers.
        waiter: wakes when a shard subscribes.
        worker: this worker's id.
        publish: where the broker takes in publications.
        find: the live shard of an id as the membership knows it; None if there is none.
        faults: counts messages that could not be sent.
    """

    def __init__(
        self,
        bus: Bus,
        waiter: Waiter,
        worker: str,
        publish: str,
        find: Callable[[str], Member | None],
        faults: Faults,
    ) -> None:
        self._bus = bus
        self._waiter = waiter
        self._worker = worker
        self._find = find
        self._faults = faults
        self._topic = f"done.{worker}".encode()
        self._sequence = 0
        self._finished: dict[str, list[Batch]] = {}
        self._encoded: list[tuple[str, bytes]] = []
        self._ops = bus.connect(zmq.PUB, publish)
        self._links: dict[str, _Link] = {}

    def follow(self, shard: str) -> None:
        """The shard has come, changed, or gone: connect to it as it is now, if it is there."""
        member = self._find(shard)
        endpoint = member.endpoints.get("done") if member is not None else None
        identity = (member.incarnation, endpoint) if member is not None and endpoint is not None else None
        link = self._links.get(shard)
        if link is not None and link.identity != identity:
            self._waiter.unregister(link.sock)
            self._bus.drop(link.sock)
            del self._links[shard]
            link = None
        if link is None and identity is not None and len(self._links) < NEAR:
            try:
                sock = self._bus.connect(zmq.XPUB, identity[1])
            except BusError as error:
                self._faults.count("done-bad-endpoint", error)
                return
            self._links[shard] = _Link(sock, identity)
            self._waiter.register(sock)

    def knows(self, shard: str) -> bool:
        """Whether there is a connection to that shard."""
        return shard in self._links

    def add(self, batch: Batch) -> None:
        """A batch is over, whatever became of it."""
        self._finished.setdefault(batch.shard, []).append(batch)

    def add_columns(self, ended: Ended, told: columns.Told, offset_ns: int, status: Status) -> None:
        """Batches of an emulated device are over; arguments as for :func:`worker.columns.done`."""
        shards = np.bincount(ended.shard).nonzero()[0].tolist() if len(ended.shards) > 1 else [0]
        for shard in shards:
            self._sequence += 1
            body = columns.done(self._worker, self._sequence, ended, told, shard, offset_ns, status)
            self._encoded.append((ended.shards[shard], body))

    def publish(self, topic: str, body: Mapping[str, Any]) -> None:
        """A map for ops, on the control channel."""
        if not send(self._ops, [topic.encode(), msgpack.packb(body)]):
            self._faults.count("ops-full", topic)

    def flush(self, to_cluster: Callable[[int], int]) -> None:
        """Publish what has gathered.

        ``size`` is what the device executed (0 if nothing was left), ``failed`` what was planned and
        did not end as OK.
        """
        finished, self._finished = self._finished, {}
        bodies, self._encoded = self._encoded, []
        bodies += [(shard, self._message(batches, to_cluster)) for shard, batches in finished.items()]
        for shard, body in bodies:
            frames = [self._topic, body]
            if not send(self._ops, frames):
                self._faults.count("done-ops-full")
            if shard not in self._links:
                self.follow(shard)
            link = self._links.get(shard)
            if link is not None:
                link.kept.append(frames)
                if len(link.kept) > MAX_KEPT:
                    link.kept.popleft()
                    self._faults.count("done-lost")
        for link in self._links.values():
            if link.kept and any(map(self._topic.startswith, link.subscriptions)):
                while link.kept and send(link.sock, link.kept[0]):
                    link.kept.popleft()

    def follow_subscriptions(self, ready: Collection[Any]) -> None:
        """Look what shards have subscribed to, on those sockets that have input."""
        for link in self._links.values():
            if link.sock not in ready:
                continue
            for subscription, *_ in drain(link.sock):
                known = link.subscriptions
                change = known.add if subscription[:1] == b"\x01" else known.discard
                change(subscription[1:])

    def _message(self, done: list[Batch], to_cluster: Callable[[int], int]) -> bytes:
        names = list(dict.fromkeys(batch.model for batch in done))
        self._sequence += 1
        message = wire.Done(
            self._worker,
            self._sequence,
            names,
            np.array([b.id for b in done], dtype=np.uint64),
            np.array([b.gpu for b in done], dtype=np.uint32),
            np.array([names.index(b.model) for b in done], dtype=np.uint32),
            np.array([b.ran for b in done], dtype=np.uint32),
            np.array([b.not_ok() for b in done], dtype=np.uint32),
            np.array([to_cluster(b.received_ns) for b in done], dtype=np.int64),
            np.array([b.exec_at for b in done], dtype=np.int64),
            np.array([to_cluster(b.started_ns) for b in done], dtype=np.int64),
            np.array([to_cluster(b.finished_ns) for b in done], dtype=np.int64),
        )
        return wire.encode_done(message)
