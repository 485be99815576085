"""Emulated GPUs: they keep a GPU's time by its profile and do nothing else; no I/O, no clock.

A batch starts when it arrives or when its GPU has finished what it was given before, whichever is
later, and finishes l(size) after that. So its end is known when it arrives, and one table of ends
stands for thousands of GPUs: plans come in as columns, what has ended goes out as columns, and nothing
loops over batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from symphony import native
from symphony.pace import REST_SHARE
from symphony.profile import Profile
from symphony.wire import I64, MAX_REQUESTS, SLOT_SHIFT, U64, Plan
from worker.keyring import KeyRing

NEVER: Final = (1 << 63) - 1
MOST_SHARDS: Final = 1_000
"""Names of shards that are remembered before those without batches are forgotten."""
SHARD, BATCH, GPU, MODEL, SIZE, RECEIVED, EXEC_AT, STARTED, DUE, SLOT, START = range(11)
"""Rows of the table of batches, as in :class:`Ended`; START: where its keys begin."""
MIXED: Final = -1
"""Instead of a slot: the keys are of several frontends."""

Column = npt.NDArray[Any]


class Ended(NamedTuple):
    """Columns over batches that have ended, in order of their ends; times in monotonic ns.

    ``shard`` indexes ``shards``, ``model`` indexes ``names``; ``key`` holds ``size[i]`` entries for batch i;
    ``last_due``: no request of batch i has a later deadline, cluster time. ``slot``: the frontend of all its
    requests, :data:`MIXED` if there are several.
    """

    shards: list[str]
    names: list[str]
    shard: Column
    batch: U64
    gpu: Column
    model: Column
    size: Column
    received: I64
    exec_at: I64
    started: I64
    finished: I64
    last_due: I64
    slot: Column
    key: U64


class EmulatedGpus:
    """GPUs by their number in the cluster.

    Memory: some 200 bytes per batch that has not ended, and its keys (:class:`~worker.keyring.KeyRing`).

    Args:
        profiles: by model; looked up anew after :meth:`changed`.
        compiled: whether to use the compiled loops where the build has them.
    """

    def __init__(self, profiles: Mapping[str, Profile], compiled: bool = True) -> None:
        usable = compiled and not native.pure()
        self._loops: Any = native.compiled("starting", "worker", ".") if usable else None
        self.requests = 0
        """In batches that have not ended."""
        self.longest_rest_ns = 0
        """For how long what has ended or arrived may wait to be looked at."""
        self._profiles = profiles
        self._names: list[str] = []
        self._number: dict[str, int] = {}
        # By model and size; 0: cannot be run. The last row is for models that are not here, the last column
        # for sizes beyond all.
        self._latency = np.zeros((1, 1), np.int64)
        self._asked: list[str] = []  # for models
        self._found = np.zeros(0, np.int64)
        self._gpus: frozenset[int] = frozenset()  # for here
        self._here = np.zeros(1, np.bool_)
        self._free_at = np.zeros(0, np.int64)
        self._mark = np.zeros(0, np.int64)  # by GPU, for _run
        self._upto = np.arange(1 << 10)
        # Batches in the order in which they came, from _tail to _head; those that have ended leave holes.
        self._end = np.full(64, NEVER, np.int64)  # NEVER in a hole
        self._fields = np.zeros((11, 64), np.int64)
        self._tail = self._head = 0
        self._keys = KeyRing(compiled=compiled)
        self._shards: list[str] = []
        self._out = 0
        self._next_end = NEVER

    def __len__(self) -> int:
        return self._out

    def changed(self, tightest_slo_ns: int = 0) -> None:
        """The profiles are others than before: batches that come from now on run by them.

        ``tightest_slo_ns``: of the models that are there; what must not rest has 0.
        """
        largest = max((profile.max_batch for profile in self._profiles.values()), default=0)
        for name in self._profiles:
            if name not in self._number:
                self._number[name] = len(self._names)
                self._names.append(name)
        self._asked, self._found = [], np.zeros(0, np.int64)
        self._latency = np.zeros((len(self._names) + 1, largest + 2), np.int64)
        for name, profile in self._profiles.items():
            self._latency[self._number[name], 1 : profile.max_batch + 1] = profile.latency_ns
        self.longest_rest_ns = tightest_slo_ns // REST_SHARE

    def models(self, plan: Plan) -> I64:
        """The number here of each of the plan's batches' models; -1 if it is not here."""
        return self._known(plan).take(plan.model)

    def _known(self, plan: Plan) -> I64:
        """By index into the plan's names: the model's number here, or -1."""
        if plan.models != self._asked:  # most plans have the same
            self._asked = plan.models
            number = self._number.get
            self._found = np.array([number(name, -1) for name in plan.models], np.int64)
        return self._found

    def lengths(self, model: I64, size: Column) -> I64:
        """l(size) in ns of batches of these models (numbers); 0 where one is not here, or never so large."""
        width = self._latency.shape[1]
        flat = np.minimum(size, width - 1, dtype=np.int64)
        flat += model * width
        found: I64 = self._latency.ravel().take(flat, mode="wrap")  # model -1 is the last row
        return found

    def here(self, gpu: Column, gpus: frozenset[int]) -> npt.NDArray[np.bool_]:
        """Which of these are among ``gpus``."""
        found: npt.NDArray[np.bool_] = self._mask(gpus).take(gpu, mode="clip")
        return found

    def _mask(self, gpus: frozenset[int]) -> npt.NDArray[np.bool_]:
        """By GPU whether it is among these; the last is not."""
        if gpus is not self._gpus:
            self._gpus = gpus
            self._here = np.zeros(max(gpus, default=-1) + 2, np.bool_)  # false at the end
            self._here[list(gpus)] = True
            more = self._here.size - self._free_at.size
            if more > 0:
                self._free_at = np.concatenate((self._free_at, np.zeros(more, np.int64)))
                self._mark = np.zeros(self._free_at.size, np.int64)
        return self._here

    def start_whole(self, plan: Plan, gpus: frozenset[int], received_ns: int) -> bool:
        """Take in all of a plan in compiled loops; False if there are none, or a batch cannot be run: then
        nothing has changed.

        Args:
            plan: as it came.
            gpus: the GPUs that are here.
            received_ns: now.
        """
        n = plan.batch.size
        if self._loops is None or not n:
            return False
        read: tuple[Column, ...] = (plan.batch.view(np.int64), plan.gpu, plan.model, plan.exec_at, plan.size)
        columns = tuple(column if column.flags.aligned else column.copy() for column in read)
        known, here = self._known(plan), self._mask(gpus)
        if not self._loops.fits(columns, known, self._latency, here.view(np.uint8)):
            return False
        shard = self._shard_number(plan.shard)
        first = self._keys.append(plan.key, self._needed)
        slot = _slot(*self._keys.latest(plan.key.size))
        at, to = self._room(n)
        due = int(np.maximum.reduce(plan.deadline))
        given = (at, shard, received_ns, due, slot, first)
        end = self._loops.start(columns, known, self._latency, self._free_at, self._end, self._fields, given)
        if slot == MIXED:
            starts = self._fields[START, at:to] - first
            self._fields[SLOT, at:to] = _slots(plan.key, starts, self._fields[SIZE, at:to])
        self._out += n
        self.requests += plan.key.size
        self._next_end = min(self._next_end, end)
        return True

    def start(self, plan: Plan, rows: Column | None, model: I64, lengths: I64, received_ns: int) -> None:
        """Take in batches of a plan that arrived now.

        Args:
            plan: as it came.
            rows: the positions of its batches that start; None: all.
            model: of those, by number.
            lengths: of those in ns, none of them 0.
            received_ns: now.
        """
        n = model.size
        if not n:
            return
        key, deadline = plan.key, plan.deadline
        size = plan.size.astype(np.int64)
        starts = size.cumsum()
        starts -= size
        batch: Column = plan.batch
        gpu: Column = plan.gpu
        exec_at: Column = plan.exec_at
        if rows is not None:
            batch, gpu, exec_at, size, before = (c[rows] for c in (batch, gpu, exec_at, size, starts))
            starts = size.cumsum() - size
            places = (before - starts).repeat(size) + np.arange(int(size.sum()))
            key, deadline = key[places], deadline[places]
        shard = self._shard_number(plan.shard)
        started, end = self._run(gpu, lengths, received_ns)
        first = self._keys.append(key, self._needed)
        at, to = self._room(n)
        self._end[at:to] = end
        one = _slot(*self._keys.latest(key.size))
        slot = one if one != MIXED else _slots(key, starts, size)
        columns: tuple[Any, ...] = (
            shard, batch.view(np.int64), gpu, model, size, received_ns,
            exec_at, started, np.maximum.reduce(deadline), slot, starts,
        )  # fmt: skip
        for field, column in zip(self._fields, columns, strict=True):
            field[at:to] = column
        self._fields[START, at:to] += first
        self._out += n
        self.requests += key.size
        self._next_end = min(self._next_end, int(np.minimum.reduce(end)))

    def _shard_number(self, shard: str) -> int:
        """Its place among the shards; names of shards that have nothing here any more make room."""
        if shard not in self._shards:
            if len(self._shards) >= MOST_SHARDS:
                self._pack()
                there = self._fields[SHARD, : self._head]
                used, number = np.unique(there, return_inverse=True)
                self._shards = [self._shards[i] for i in used.tolist()]
                there[:] = number
            self._shards.append(shard)
        return self._shards.index(shard)

    def _run(self, gpu: Column, length: I64, now: int) -> tuple[I64, I64]:
        """Starts and ends; batches for the same GPU follow one another in their order."""
        order = self._upto[: gpu.size] if gpu.size <= self._upto.size else np.arange(gpu.size)
        mark = self._mark
        mark[gpu] = order
        if np.count_nonzero(mark.take(gpu) == order) == gpu.size:  # no GPU twice: nearly always
            started = np.maximum(self._free_at.take(gpu), now)
            self._free_at[gpu] = end = started + length
            return started, end
        started, end = np.zeros(gpu.size, np.int64), np.zeros(gpu.size, np.int64)
        left = order
        while left.size:
            _, first = np.unique(gpu[left], return_index=True)
            turn = left[first]
            started[turn] = np.maximum(now, self._free_at[gpu[turn]])
            end[turn] = started[turn] + length[turn]
            self._free_at[gpu[turn]] = end[turn]
            left = np.delete(left, first)
        return started, end

    def _needed(self) -> int | None:
        """Where the keys begin that are still needed; None if none are."""
        there = self._end[self._tail : self._head] < NEVER
        starts = self._fields[START, self._tail : self._head][there]
        return int(starts.min()) if starts.size else None

    def _room(self, count: int) -> tuple[int, int]:
        """Places for so many more batches, behind the others."""
        if self._head + count > self._end.size:
            self._pack()
            room = self._end.size
            while room < 2 * (self._head + count):
                room *= 2
            if room > self._end.size:
                more = room - self._end.size
                self._end = np.concatenate((self._end, np.full(more, NEVER, np.int64)))
                self._fields = np.concatenate(
                    (self._fields, np.zeros((len(self._fields), more), np.int64)), axis=1
                )
        at = self._head
        self._head += count
        return at, self._head

    def _pack(self) -> None:
        """Close the holes."""
        there = (self._end[: self._head] < NEVER).nonzero()[0]
        self._fields[:, : there.size] = self._fields[:, there]
        self._end[: there.size] = self._end[there]
        self._end[there.size : self._head] = NEVER
        self._tail, self._head = 0, there.size

    def next_wakeup(self) -> int | None:
        """Monotonic ns at which :meth:`finish` has something; None if every GPU is idle."""
        return self._next_end if self._out else None

    def finish(self, now: int) -> Iterator[Ended]:
        """Batches whose end has come, in order of their ends, as many at a time as a message may hold."""
        if self._next_end <= now:
            yield from self._give(now)

    def abandon(self) -> Iterator[Ended]:
        """Give up what has not ended."""
        yield from self._give(NEVER - 1)

    def _give(self, now: int) -> Iterator[Ended]:
        ends = self._end[self._tail : self._head]
        rows = (ends <= now).nonzero()[0]
        rows = rows[ends.take(rows).argsort(kind="stable")]
        rows += self._tail
        while rows.size:
            fields = self._fields.take(rows, axis=1)
            total = fields[SIZE].cumsum()
            if total[-1] > MAX_REQUESTS:
                some = max(1, int(total.searchsorted(MAX_REQUESTS, "right")))
                fields, total = fields[:, :some], total[:some]
            now_ended, rows = rows[: fields.shape[1]], rows[fields.shape[1] :]
            key = self._keys.take(fields[START], fields[SIZE])
            finished = self._end.take(now_ended)
            self._end[now_ended] = NEVER
            self._next_end = int(np.minimum.reduce(ends))
            self._out -= now_ended.size
            self.requests -= key.size
            batch = fields[BATCH].view(np.uint64)
            columns = (fields[SHARD], batch, *fields[GPU:DUE], finished, *fields[DUE:START], key)
            yield Ended._make((self._shards, self._names, *columns))
        there = self._end[self._tail : self._head] < NEVER
        self._tail += int(there.argmax()) if self._out else there.size


def _slot(key: U64, more: U64) -> int:
    """The slot that all keys have; :data:`MIXED` if they differ."""
    pieces = [key, more] if more.size else [key]
    least = min(int(np.minimum.reduce(piece)) for piece in pieces) >> SLOT_SHIFT
    most = max(int(np.maximum.reduce(piece)) for piece in pieces) >> SLOT_SHIFT
    return least if least == most else MIXED


def _slots(key: U64, starts: I64, size: I64) -> I64:
    """Of each batch, as :func:`_slot`."""
    slot = (key >> np.uint64(SLOT_SHIFT)).astype(np.int64)
    least, most = np.minimum.reduceat(slot, starts), np.maximum.reduceat(slot, starts)
    return np.where(least == most, least, MIXED)
