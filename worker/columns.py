"""What an emulated device has finished, as messages: RESULTS for frontends, columns for DONE."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from symphony import wire
from symphony.status import Status
from worker.emulated import MIXED, Ended


class Reply(NamedTuple):
    """One RESULTS message for the frontend of a slot; the latest deadline in it, cluster time."""

    slot: int
    frame: bytes
    last_due: int


class Told(NamedTuple):
    """What both kinds of messages say of batches that have ended: columns as they travel, cluster time."""

    names: list[str]
    batch: wire.U64
    gpu: wire.U32
    model: wire.U32
    size: wire.U32
    started: wire.I64
    finished: wire.I64

    def of(self, rows: Any) -> Told:
        """These batches alone."""
        return Told(self.names, *(column[rows] for column in self[1:]))


def told(ended: Ended, offset_ns: int) -> Told:
    """``offset_ns``: cluster time minus monotonic time."""
    names, index = ended.names, ended.model
    if len(names) > index.size:  # else it is cheaper to send them all
        used = np.bincount(index).nonzero()[0]
        names, index = [names[number] for number in used.tolist()], used.searchsorted(index)
    index = index.astype(np.uint32)
    gpu, size = ended.gpu.astype(np.uint32), ended.size.astype(np.uint32)
    return Told(names, ended.batch, gpu, index, size, ended.started + offset_ns, ended.finished + offset_ns)


def replies(worker: str, ended: Ended, told: Told, status: Status) -> Iterator[Reply]:
    """The results of these batches as each frontend gets them.

    Args:
        worker: this worker's id.
        ended: the batches.
        told: of the same batches.
        status: of every request.
    """
    if not ended.batch.size:
        return
    slot = int(ended.slot[0])
    if (
        slot != MIXED and np.count_nonzero(ended.slot == slot) == ended.slot.size
    ):  # by far the most frequent case
        yield _reply(worker, told, status, slot, told.size, ended.key, ended.last_due)
        return
    slots = (ended.key >> np.uint64(wire.SLOT_SHIFT)).astype(np.int64)
    of_batch = np.repeat(np.arange(ended.batch.size), ended.size)
    for slot in np.unique(slots).tolist():
        mine = slots == slot
        counts = np.bincount(of_batch[mine], minlength=ended.batch.size)
        rows = np.flatnonzero(counts)
        part = told.of(rows)
        yield _reply(worker, part, status, slot, counts[rows], ended.key[mine], ended.last_due[rows])


def _reply(
    worker: str, told: Told, status: Status, slot: int, count: Any, key: wire.U64, last_due: wire.I64
) -> Reply:
    names, batch, gpu, index, size, started, finished = told
    if status != Status.OK:
        size = np.zeros(size.size, np.uint32)
    statuses = np.frombuffer(bytes((status,)) * key.size, np.uint8)
    message = wire.Results(worker, names, batch, gpu, index, size, started, finished, count, key, statuses)
    return Reply(slot, wire.encode_results(message), int(np.maximum.reduce(last_due)))


def done(
    worker: str, sequence: int, ended: Ended, told: Told, shard: int, offset_ns: int, status: Status
) -> bytes:
    """The DONE message of those of these batches that the shard with this index has planned."""
    received, exec_at = ended.received, ended.exec_at
    rows: Any = ended.shard == shard
    if np.count_nonzero(rows) < rows.size:
        told, received, exec_at = told.of(rows), received[rows], exec_at[rows]
    names, batch, gpu, index, size, started, finished = told
    none = np.zeros(size.size, np.uint32)
    ran, failed = (size, none) if status == Status.OK else (none, size)
    received = received + offset_ns
    message = wire.Done(
        worker, sequence, names, batch, gpu, index, ran, failed, received, exec_at, started, finished
    )
    return wire.encode_done(message)
