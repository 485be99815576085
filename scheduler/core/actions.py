# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: annotation_typing=False, infer_types=True
"""The core's output: preallocated columns of dispatches and drops that grow by doubling."""

from __future__ import annotations

from array import array
from typing import Any, NamedTuple

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
    """What has come out since the last :meth:`clear`.

    ``drop_due`` is ``drop_deadline`` as signed numbers, since what is refused may be negative.
    ``batch_views``, ``request_views`` and ``drop_views`` show the whole columns; they are made when the
    columns grow, so that handing out what is in them is a slice each.
    """

    def __init__(self) -> None:
        self.dispatched = 0
        self.requests = 0
        self.dropped = 0
        self.model = array("q")
        self.priority = array("q")
        self.gpu = array("q")
        self.size = array("q")
        self.batch = array("q")
        self.exec_at = array("q")
        self.finish_at = array("q")
        self.key = array("Q")
        self.deadline = array("Q")
        self.drop_key = array("Q")
        self.drop_model = array("q")
        self.drop_deadline = array("Q")
        self.drop_reason = array("q")
        self.batch_views: tuple[memoryview, ...] = ()
        self.request_views: tuple[memoryview, ...] = ()
        self.drop_views: tuple[memoryview, ...] = ()
        self._grow_batches(256)
        self._grow_requests(4096)
        self._grow_drops(1024)

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
            self._grow_batches(n)
        start = self.requests
        if start + size > len(self.key):
            self._grow_requests(max(size, len(self.key)))
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
        i = self.open_drops(1, model, reason)
        self.drop_key[i] = key
        self.drop_due[i] = deadline

    def open_drops(self, n: int, model: int, reason: int) -> int:
        """Add n requests that leave; returns where they go in ``drop_key`` and ``drop_deadline``."""
        start = self.dropped
        if start + n > len(self.drop_key):
            self._grow_drops(max(n, len(self.drop_key)))
        for i in range(start, start + n):
            self.drop_model[i] = model
            self.drop_reason[i] = reason
        self.dropped = start + n
        return start

    def _grow_batches(self, more: int) -> None:
        model = widen("q", self.model, more)
        priority = widen("q", self.priority, more)
        gpu = widen("q", self.gpu, more)
        size = widen("q", self.size, more)
        batch = widen("q", self.batch, more)
        exec_at = widen("q", self.exec_at, more)
        finish_at = widen("q", self.finish_at, more)
        self.batch_views = _views(model, priority, gpu, size, batch, exec_at, finish_at)
        self.model = model
        self.priority = priority
        self.gpu = gpu
        self.size = size
        self.batch = batch
        self.exec_at = exec_at
        self.finish_at = finish_at

    def _grow_requests(self, more: int) -> None:
        key = widen("Q", self.key, more)
        deadline = widen("Q", self.deadline, more)
        self.request_views = (memoryview(key), _signed(deadline))
        self.key = key
        self.deadline = deadline

    def _grow_drops(self, more: int) -> None:
        key = widen("Q", self.drop_key, more)
        model = widen("q", self.drop_model, more)
        deadline = widen("Q", self.drop_deadline, more)
        reason = widen("q", self.drop_reason, more)
        due: Any = _signed(deadline)
        self.drop_views = (memoryview(key), memoryview(model), due, memoryview(reason))
        self.drop_key = key
        self.drop_model = model
        self.drop_deadline = deadline
        self.drop_due = due
        self.drop_reason = reason

    def dispatches(self) -> Dispatches:
        """Views that hold until the next event."""
        n = self.dispatched
        m = self.requests
        model, priority, gpu, size, batch, exec_at, finish_at = self.batch_views
        key, deadline = self.request_views
        return Dispatches(
            model[:n],
            priority[:n],
            gpu[:n],
            size[:n],
            batch[:n],
            exec_at[:n],
            finish_at[:n],
            key[:m],
            deadline[:m],
        )

    def drops(self) -> Drops:
        """Views that hold until the next event."""
        n = self.dropped
        key, model, deadline, reason = self.drop_views
        return Drops(key[:n], model[:n], deadline[:n], reason[:n])


def _views(*columns: Any) -> tuple[memoryview, ...]:
    return tuple([memoryview(column) for column in columns])


def _signed(column: Any) -> memoryview:
    """Deadlines are kept as unsigned as keys are, so that both are copied in one way."""
    return memoryview(column).cast("B").cast("q")
