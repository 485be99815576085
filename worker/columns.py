"""What an emulated device has finished, as messages: RESULTS for frontends, columns for DONE."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from symphony import wire
from symphony.status import Status
from worker.emulated import Ended


class Reply(NamedTuple):
    """One RESULTS message for the frontend of a slot; the latest deadline in it, cluster time."""

    slot: int
    frame: bytes
    last_due: int


def replies(worker: str, ended: Ended, offset_ns: int, status: Status) -> Iterator[Reply]:
    """The results of these batches as each frontend gets them.

    Args:
        worker: this worker's id.
        ended: the batches.
        offset_ns: cluster time minus monotonic time.
        status: of every request.
    """
    slots = (ended.key >> np.uint64(wire.SLOT_SHIFT)).astype(np.int64)
    if not slots.size:
        return
    if (slots == slots[0]).all():  # by far the most frequent case
        rows = np.arange(ended.batch.size)
        yield _reply(worker, ended, offset_ns, status, int(slots[0]), rows, ended.size, ended.key)
        return
    of_batch = np.repeat(np.arange(ended.batch.size), ended.size)
    for slot in np.unique(slots).tolist():
        mine = slots == slot
        counts = np.bincount(of_batch[mine], minlength=ended.batch.size)
        rows = np.flatnonzero(counts)
        yield _reply(worker, ended, offset_ns, status, slot, rows, counts[rows], ended.key[mine])


def _reply(
    worker: str, ended: Ended, offset_ns: int, status: Status, slot: int, rows: Any, count: Any, key: wire.U64
) -> Reply:
    names, index = _named(ended, rows)
    size = ended.size[rows] if status == Status.OK else np.zeros(rows.size, np.uint32)
    message = wire.Results(
        worker,
        names,
        ended.batch[rows],
        ended.gpu[rows],
        index,
        size,
        ended.started[rows] + offset_ns,
        ended.finished[rows] + offset_ns,
        count,
        key,
        np.full(key.size, status, np.uint8),
    )
    return Reply(slot, wire.encode_results(message), int(ended.last_due[rows].max()))


def _named(ended: Ended, rows: Any) -> tuple[list[str], Any]:
    """The names of these batches' models, and the index of each batch's."""
    numbers, index = np.unique(ended.model[rows], return_inverse=True)
    return [ended.names[number] for number in numbers.tolist()], index


def done(worker: str, sequence: int, ended: Ended, shard: int, offset_ns: int, status: Status) -> bytes:
    """The DONE message of those of these batches that the shard with this index has planned."""
    rows: Any = ended.shard == shard
    names, index = _named(ended, rows)
    size = ended.size[rows]
    ok = status == Status.OK
    message = wire.Done(
        worker,
        sequence,
        names,
        ended.batch[rows],
        ended.gpu[rows],
        index,
        size if ok else np.zeros_like(size),
        np.zeros_like(size) if ok else size,
        ended.received[rows] + offset_ns,
        ended.exec_at[rows],
        ended.started[rows] + offset_ns,
        ended.finished[rows] + offset_ns,
    )
    return wire.encode_done(message)
