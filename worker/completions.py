"""Completion timings: DONE messages for the shard, which predicts by them, and for whoever listens.

A publisher loses what it publishes before its subscriber's subscription has come. The shard must not
miss a completion, so its messages are kept until the subscription is seen (an XPUB tells), and again
while the connection is lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from typing import Any, Final

import numpy as np
import zmq

from symphony import wire
from symphony.bus import Bus, BusError, Sock, drain, send
from symphony.control import Member
from symphony.faults import Faults
from symphony.waiter import Waiter
from worker.batch import Batch

MAX_KEPT: Final = 10_000
"""Messages kept for a shard that has not subscribed; the oldest go first."""


class Completions:
    """Gathers finished batches; one message carries all of one turn of the loop.

    Args:
        bus: makes the two publishers.
        waiter: wakes when the shard subscribes.
        worker: this worker's id.
        publish: where the broker takes in publications.
        faults: counts messages that could not be sent.
    """

    def __init__(self, bus: Bus, waiter: Waiter, worker: str, publish: str, faults: Faults) -> None:
        self._bus = bus
        self._waiter = waiter
        self._worker = worker
        self._faults = faults
        self._topic = f"done.{worker}".encode()
        self._sequence = 0
        self._finished: list[Batch] = []
        self._ops = bus.connect(zmq.PUB, publish)
        self._shard: Sock | None = None
        self._shard_is: tuple[int, str] | None = None
        self._subscriptions: set[bytes] = set()
        self._kept: deque[list[bytes]] = deque()

    def follow_shard(self, shard: Member | None) -> None:
        """The shard that this worker belongs to, as the membership knows it now; None if it has gone."""
        endpoint = shard.endpoints.get("done") if shard is not None else None
        wanted = (shard.incarnation, endpoint) if shard is not None and endpoint is not None else None
        if wanted == self._shard_is:
            return
        if self._shard is not None:
            self._waiter.unregister(self._shard)
            self._bus.drop(self._shard)
        self._shard, self._shard_is = None, wanted
        self._subscriptions.clear()
        self._kept.clear()
        if wanted is not None:
            try:
                self._shard = self._bus.connect(zmq.XPUB, wanted[1])
                self._waiter.register(self._shard)
            except BusError as error:
                self._faults.count("done-bad-endpoint", error)

    def add(self, batch: Batch) -> None:
        """A batch is over, whatever became of it."""
        self._finished.append(batch)

    def flush(self, to_cluster: Callable[[int], int]) -> None:
        """Publish what has gathered.

        ``size`` is what the device executed (0 if nothing was left), ``failed`` what was planned and
        did not end as OK.
        """
        if self._finished:
            frames = [self._topic, self._take(to_cluster)]
            if not send(self._ops, frames):
                self._faults.count("done-ops-full")
            if self._shard is not None:
                self._kept.append(frames)
                if len(self._kept) > MAX_KEPT:
                    self._kept.popleft()
                    self._faults.count("done-lost")
        if self._shard is not None and self._kept and any(map(self._topic.startswith, self._subscriptions)):
            while self._kept and send(self._shard, self._kept[0]):
                self._kept.popleft()

    def follow_subscriptions(self, ready: Collection[Any]) -> None:
        """Look what the shard has subscribed to, if its socket is among those that have input."""
        if self._shard is None or self._shard not in ready:
            return
        for subscription, *_ in drain(self._shard):
            change = self._subscriptions.add if subscription[:1] == b"\x01" else self._subscriptions.discard
            change(subscription[1:])

    def _take(self, to_cluster: Callable[[int], int]) -> bytes:
        done, self._finished = self._finished, []
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
