"""Completion timings: DONE messages for the shard, which predicts by them, and for whoever listens."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import zmq

from symphony import wire
from symphony.bus import Bus, BusError, Sock, send
from symphony.control import Member
from symphony.faults import Faults
from worker.batch import Batch


class Completions:
    """Gathers finished batches; one message carries all of one turn of the loop.

    Args:
        bus: makes the two publishers.
        worker: this worker's id.
        publish: where the broker takes in publications.
        faults: counts messages that could not be sent.
    """

    def __init__(self, bus: Bus, worker: str, publish: str, faults: Faults) -> None:
        self._bus = bus
        self._worker = worker
        self._faults = faults
        self._topic = f"done.{worker}".encode()
        self._sequence = 0
        self._finished: list[Batch] = []
        self._ops = bus.connect(zmq.PUB, publish)
        self._shard: Sock | None = None
        self._shard_is: tuple[int, str] | None = None

    def follow_shard(self, shard: Member | None) -> None:
        """The shard that this worker belongs to, as the membership knows it now; None if it has gone."""
        endpoint = shard.endpoints.get("done") if shard is not None else None
        wanted = (shard.incarnation, endpoint) if shard is not None and endpoint is not None else None
        if wanted == self._shard_is:
            return
        if self._shard is not None:
            self._bus.drop(self._shard)
        self._shard, self._shard_is = None, wanted
        if wanted is not None:
            try:
                self._shard = self._bus.connect(zmq.PUB, wanted[1])
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
        if not self._finished:
            return
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
        frames = [self._topic, wire.encode_done(message)]
        for sock in (self._shard, self._ops):
            if sock is not None and not send(sock, frames):
                self._faults.count("done-full")
