# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: annotation_typing=False, infer_types=True
"""The core's output: preallocated columns of dispatches and drops that grow by doubling."""

from __future__ import annotations

from array import array
from typing import NamedTuple

from .columns import widen


class Dispatches(NamedTuple):
    """Columns over n dispatched batches; ``key`` and ``deadline`` hold the batches' requests in turn.

    model, priority, gpu, size: int64. batch: int64, rising. exec_at: predicted start, finish_at: predicted
    end, deadline: int64 ns. key: uint64.
    """

    model: memoryview
    priority: memoryview
    gpu: memoryview
    size: memoryview
    batch: memoryview
    exec_at: memoryview
    finish_at: memoryview
    key: memoryview
    deadline: memoryview


class Drops(NamedTuple):
    """Columns over the requests that left without being dispatched (reason: see ``REASONS``)."""

    key: memoryview
    model: memoryview
    deadline: memoryview
    reason: memoryview


class Actions:
    """What has come out since the last :meth:`clear`."""

    def __init__(self) -> None:
        self.dispatched = 0
        self.requests = 0
        self.dropped = 0
        self.model = array("q", bytes(8 * 256))
        self.priority = array("q", bytes(8 * 256))
        self.gpu = array("q", bytes(8 * 256))
        self.size = array("q", bytes(8 * 256))
        self.batch = array("q", bytes(8 * 256))
        self.exec_at = array("q", bytes(8 * 256))
        self.finish_at = array("q", bytes(8 * 256))
        self.key = array("Q", bytes(8 * 4096))
        self.deadline = array("q", bytes(8 * 4096))
        self.drop_key = array("Q", bytes(8 * 1024))
        self.drop_model = array("q", bytes(8 * 1024))
        self.drop_deadline = array("q", bytes(8 * 1024))
        self.drop_reason = array("q", bytes(8 * 1024))

    def clear(self) -> None:
        """Forget what has been read."""
        self.dispatched = 0
        self.requests = 0
        self.dropped = 0

    def open_batch(
        self, model: int, priority: int, gpu: int, size: int, batch: int, exec_at: int, finish_at: int
    ) -> int:
        """Add a batch; returns where its requests go in ``key`` and ``deadline``."""
        n = self.dispatched
        if n >= len(self.model):
            self._grow_batches()
        start = self.requests
        if start + size > len(self.key):
            self._grow_requests(start + size)
        self.model[n] = model
        self.priority[n] = priority
        self.gpu[n] = gpu
        self.size[n] = size
        self.batch[n] = batch
        self.exec_at[n] = exec_at
        self.finish_at[n] = finish_at
        self.dispatched = n + 1
        self.requests = start + size
        return start

    def drop(self, key: int, model: int, deadline: int, reason: int) -> None:
        """Add a request that leaves."""
        n = self.dropped
        if n >= len(self.drop_key):
            self._grow_drops()
        self.drop_key[n] = key
        self.drop_model[n] = model
        self.drop_deadline[n] = deadline
        self.drop_reason[n] = reason
        self.dropped = n + 1

    def _grow_batches(self) -> None:
        more = len(self.model)
        self.model = widen("q", self.model, more)
        self.priority = widen("q", self.priority, more)
        self.gpu = widen("q", self.gpu, more)
        self.size = widen("q", self.size, more)
        self.batch = widen("q", self.batch, more)
        self.exec_at = widen("q", self.exec_at, more)
        self.finish_at = widen("q", self.finish_at, more)

    def _grow_requests(self, needed: int) -> None:
        more = max(needed, 2 * len(self.key)) - len(self.key)
        self.key = widen("Q", self.key, more)
        self.deadline = widen("q", self.deadline, more)

    def _grow_drops(self) -> None:
        more = len(self.drop_key)
        self.drop_key = widen("Q", self.drop_key, more)
        self.drop_model = widen("q", self.drop_model, more)
        self.drop_deadline = widen("q", self.drop_deadline, more)
        self.drop_reason = widen("q", self.drop_reason, more)

    def dispatches(self) -> Dispatches:
        """Views that hold until the next event."""
        n = self.dispatched
        m = self.requests
        return Dispatches(
            memoryview(self.model)[:n],
            memoryview(self.priority)[:n],
            memoryview(self.gpu)[:n],
            memoryview(self.size)[:n],
            memoryview(self.batch)[:n],
            memoryview(self.exec_at)[:n],
            memoryview(self.finish_at)[:n],
            memoryview(self.key)[:m],
            memoryview(self.deadline)[:m],
        )

    def drops(self) -> Drops:
        """Views that hold until the next event."""
        n = self.dropped
        return Drops(
            memoryview(self.drop_key)[:n],
            memoryview(self.drop_model)[:n],
            memoryview(self.drop_deadline)[:n],
            memoryview(self.drop_reason)[:n],
        )
