"""The batches that are out: rings of columns, in which a message's completions are looked up at once.

The core numbers batches upwards, so batch b has its row at b modulo the size of the ring, and the keys and
deadlines of all batches lie in a second ring in the order in which they were sent. Both have room for
what is out, and double when that grows; a batch that stays out while the rings go round (its worker hangs
but lives) moves to a dictionary, so that one straggler makes nothing grow. Nothing is allocated per batch.

Memory: 57 bytes per row, 16 per request; at most twice as many of each as were ever out at once, rounded
up to a power of two.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from scheduler.core.actions import Dispatches
from scheduler.recent import Ids
from symphony.wire import I64, U64

Column = npt.NDArray[Any]
NOTHING: Final = np.zeros(0, np.int64)


class Out(NamedTuple):
    """One batch that is out: what is needed to judge its completion, or to send it again."""

    gpu: int
    model: int
    priority: int
    finish_at: int
    key: U64
    deadline: I64


class Taken(NamedTuple):
    """Columns over batches that were out and have come back.

    ``row``: positions in the columns that :meth:`Outstanding.take` was given; ``size``: requests as sent;
    ``good``: how many of them were in time.
    """

    row: Ids
    model: Ids
    size: Ids
    finish_at: Ids
    good: Ids


class Outstanding:
    """See the module's text.

    Args:
        batches: rows to begin with, a power of two.
        requests: keys to begin with, a power of two.
        loops: :mod:`scheduler.core.ledger`, compiled; None: everything in NumPy's columns.
    """

    def __init__(self, batches: int = 1 << 10, requests: int = 1 << 15, loops: Any = None) -> None:
        self._loops = loops
        self._batch = np.full(batches, -1, np.int64)
        self._gpu = np.zeros(batches, np.int64)
        self._model = np.zeros(batches, np.int64)
        self._priority = np.zeros(batches, np.uint8)
        self._size = np.zeros(batches, np.int64)
        self._finish_at = np.zeros(batches, np.int64)
        self._first_due = np.zeros(batches, np.int64)
        self._start = np.zeros(batches, np.int64)
        self._key = np.zeros(requests, np.uint64)
        self._deadline = np.zeros(requests, np.int64)
        self._head = 0
        self._tail = 0
        self._in_ring = 0
        self._stragglers: dict[int, Out] = {}

    def __len__(self) -> int:
        return self._in_ring + len(self._stragglers)

    def __iter__(self) -> Iterator[int]:
        """Batch numbers, ascending."""
        return iter(sorted([*self._batch[self._batch >= 0].tolist(), *self._stragglers]))

    def __getitem__(self, batch: int) -> Out:
        row = batch & (self._batch.size - 1)
        if self._batch[row] == batch:
            return self._out(row)
        return self._stragglers[batch]

    @property
    def room(self) -> tuple[int, int]:
        """Rows and requests that there is memory for."""
        return self._batch.size, self._key.size

    # --- out ---------------------------------------------------------------------------------

    def record(self, d: Dispatches) -> None:
        """Remember what the core dispatched; nothing of ``d`` is kept."""
        batch = np.frombuffer(d.batch, np.int64)
        if not batch.size:
            return
        n = batch.size
        self._make_rows(batch)
        self._make_keys(len(d.key))
        self._in_ring += n
        if self._loops is not None:
            self._head = self._loops.record(tuple(d), self._rows(), self._key, self._deadline, self._head)
            return
        size = np.frombuffer(d.size, np.int64)
        deadline = np.frombuffer(d.deadline, np.int64)
        start = size.cumsum()
        start -= size
        row: Any = batch & (self._batch.size - 1)
        if row[-1] - row[0] == n - 1:  # in a row, which is how the core numbers them
            row = slice(int(row[0]), int(row[0]) + n)
        self._batch[row] = batch
        self._gpu[row] = np.frombuffer(d.gpu, np.int64)
        self._model[row] = np.frombuffer(d.model, np.int64)
        self._priority[row] = np.frombuffer(d.priority, np.int64)
        self._size[row] = size
        self._finish_at[row] = np.frombuffer(d.finish_at, np.int64)
        self._first_due[row] = np.minimum.reduceat(deadline, start)
        start += self._head
        self._start[row] = start
        self._write(np.frombuffer(d.key, np.uint64), deadline)

    def _rows(self) -> tuple[Column, ...]:
        """The columns by row, as the loops name them."""
        ids = (self._batch, self._gpu, self._model, self._priority)
        return (*ids, self._size, self._finish_at, self._first_due, self._start)

    def _write(self, key: U64, deadline: I64) -> None:
        """Append to the ring of requests, in two pieces where it goes round."""
        at = self._head & (self._key.size - 1)
        n = min(key.size, self._key.size - at)
        self._key[at : at + n], self._deadline[at : at + n] = key[:n], deadline[:n]
        rest = key.size - n
        self._key[:rest], self._deadline[:rest] = key[n:], deadline[n:]
        self._head += key.size

    def _make_rows(self, batch: Ids) -> None:
        """Free rows for these batches: grow if half of them are in use, else move stragglers out."""
        while True:
            row = batch & (self._batch.size - 1)
            there = self._batch[row] >= 0
            span = int(batch[-1] - batch[0]) + 1
            if span <= self._batch.size and not np.count_nonzero(there):
                return
            taken = row[there]
            if self._in_ring + batch.size > self._batch.size // 2 or span > self._batch.size:
                self._widen_rows()
            else:
                self._evict(taken)

    def _widen_rows(self) -> None:
        live = np.flatnonzero(self._batch >= 0)
        size = 2 * self._batch.size
        row = self._batch[live] & (size - 1)
        for name in ("_gpu", "_model", "_priority", "_size", "_finish_at", "_first_due", "_start"):
            old = getattr(self, name)
            new = np.zeros(size, old.dtype)
            new[row] = old[live]
            setattr(self, name, new)
        batch = np.full(size, -1, np.int64)
        batch[row] = self._batch[live]
        self._batch = batch

    def _make_keys(self, n: int) -> None:
        """Room for ``n`` more requests: grow if half of it is in use, else move stragglers out."""
        if self._head + n - self._tail <= self._key.size:
            return
        live = np.flatnonzero(self._batch >= 0)
        used = int(self._size[live].sum())
        while 2 * (used + n) > self._key.size:
            self._widen_keys(live)
        self._evict(live[self._start[live] < self._head + n - self._key.size])
        live = live[self._batch[live] >= 0]
        self._tail = int(self._start[live].min()) if live.size else self._head

    def _widen_keys(self, live: Ids) -> None:
        """Twice the room, what is out in its order at the front."""
        live = live[np.argsort(self._start[live], kind="stable")]
        old = self._places(live)
        size = self._size[live]
        room = 2 * self._key.size
        key, deadline = np.zeros(room, np.uint64), np.zeros(room, np.int64)
        key[: old.size], deadline[: old.size] = self._key[old], self._deadline[old]
        self._key, self._deadline = key, deadline
        self._start[live] = np.cumsum(size) - size
        self._head, self._tail = old.size, 0

    def _places(self, rows: Ids) -> Ids:
        """Where the requests of these rows' batches lie, batch after batch."""
        size = self._size[rows]
        before = np.cumsum(size) - size
        return (np.repeat(self._start[rows] - before, size) + np.arange(int(size.sum()))) & (
            self._key.size - 1
        )

    def _evict(self, rows: Ids) -> None:
        for row in rows.tolist():
            self._stragglers[int(self._batch[row])] = self._out(row)
        self._clear(rows)

    def _clear(self, rows: Ids) -> None:
        self._batch[rows] = -1
        self._in_ring -= rows.size

    def _out(self, row: int) -> Out:
        places = self._places(np.array([row]))
        return Out(
            int(self._gpu[row]),
            int(self._model[row]),
            int(self._priority[row]),
            int(self._finish_at[row]),
            self._key[places],
            self._deadline[places],
        )

    # --- back --------------------------------------------------------------------------------

    def take(self, batch: U64, gpu: Column, finished: I64, result_ns: int) -> tuple[Taken, Ids]:
        """Batches have come back; of several equal ones the first counts.

        Args:
            batch, gpu: as completions name them; anything may come.
            finished: ns.
            result_ns: what a result takes to its frontend.

        Returns:
            What was out, and the positions of what was not (unknown, done already, or on another GPU).
        """
        if self._loops is not None:
            return self._take_in_loops(batch, gpu, finished, result_ns)
        number = batch.view(np.int64)
        row = number & (self._batch.size - 1)
        known = self._batch[row] == number
        known &= self._gpu[row] == gpu
        known &= number >= 0
        if len(set(number.tolist())) < number.size:
            known[_repeated(number, known)] = False
        whole = np.count_nonzero(known) == known.size
        at = np.arange(known.size) if whole else known.nonzero()[0]
        if not whole:
            row = row[at]
            due = finished[at] + result_ns
        else:
            due = finished + result_ns
        size = self._size[row]
        good = size
        is_late = self._first_due[row] < due
        if np.count_nonzero(is_late):
            good = size.copy()
            late = is_late.nonzero()[0]
            in_time = self._deadline[self._places(row[late])] >= due[late].repeat(size[late])
            good[late] = np.add.reduceat(in_time, size[late].cumsum() - size[late], dtype=np.int64)
        taken = Taken(at, self._model[row], size, self._finish_at[row], good)
        self._clear(row)
        if whole:
            return taken, NOTHING
        strange = (~_marked(at, batch.size)).nonzero()[0]
        if self._stragglers:
            return self._take_stragglers(taken, strange, batch, gpu, finished + result_ns)
        return taken, strange

    def _take_in_loops(self, batch: U64, gpu: Column, finished: I64, result_ns: int) -> tuple[Taken, Ids]:
        found, odd = np.empty((5, batch.size), np.int64), np.empty(batch.size, np.int64)
        came = (batch, gpu, finished)
        n = self._loops.take(came, result_ns, self._rows(), self._deadline, found.reshape(-1), odd)
        self._in_ring -= n
        taken, strange = Taken(*found[:, :n]), odd[: batch.size - n]
        if strange.size and self._stragglers:
            return self._take_stragglers(taken, strange, batch, gpu, finished + result_ns)
        return taken, strange

    def _take_stragglers(
        self, taken: Taken, strange: Ids, batch: U64, gpu: Column, due: I64
    ) -> tuple[Taken, Ids]:
        rest = []
        found = []
        for at in strange.tolist():
            out = self._stragglers.get(int(batch[at]))
            if out is None or out.gpu != gpu[at]:
                rest.append(at)
                continue
            del self._stragglers[int(batch[at])]
            good = int(np.count_nonzero(out.deadline >= due[at]))
            found.append((at, out.model, out.key.size, out.finish_at, good))
        if found:
            columns = np.array(found, np.int64).T
            taken = Taken(*(np.concatenate(pair) for pair in zip(taken, columns, strict=True)))
        return taken, np.array(rest, np.int64)

    def gpus(self) -> Ids:
        """Numbers of the GPUs that batches are out on."""
        return np.bincount(self._gpu[self._batch >= 0]).nonzero()[0]

    def take_gpus(self, gpus: Ids) -> list[Out]:
        """Give up what is out on these GPUs, in order of the batches."""
        rows = np.flatnonzero((self._batch >= 0) & np.isin(self._gpu, gpus))
        rows = rows[np.argsort(self._batch[rows])]
        found = [self._out(row) for row in rows.tolist()]
        self._clear(rows)
        gone = set(gpus.tolist())
        late = [batch for batch, out in self._stragglers.items() if out.gpu in gone]
        return [self._stragglers.pop(batch) for batch in sorted(late)] + found


def _marked(at: Ids, size: int) -> npt.NDArray[np.bool_]:
    marks = np.zeros(size, np.bool_)
    marks[at] = True
    return marks


def _repeated(number: Ids, known: npt.NDArray[np.bool_]) -> Ids:
    """Positions, among the known, of numbers that stood there before."""
    at = known.nonzero()[0]
    _, first = np.unique(number[at], return_index=True)
    return np.delete(at, first)
