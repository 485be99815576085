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

from symphony.pace import REST_SHARE
from symphony.profile import Profile
from symphony.wire import I64, MAX_REQUESTS, U64, Plan
from worker.keyring import KeyRing

NEVER: Final = (1 << 63) - 1
MOST_SHARDS: Final = 1_000
"""Names of shards that are remembered before those without batches are forgotten."""
SIZE: Final = 4
"""The row of the fields that holds sizes."""

Column = npt.NDArray[Any]


class Ended(NamedTuple):
    """Columns over batches that have ended, in order of their ends; times in monotonic ns.

    ``shard`` indexes ``shards``, ``model`` indexes ``names``; ``key`` holds ``size[i]`` entries for batch i;
    ``last_due`` is the latest deadline among them, cluster time.
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
    key: U64


class EmulatedGpus:
    """GPUs by their number in the cluster.

    Memory: some 90 bytes per batch that has not ended, and its keys (:class:`~worker.keyring.KeyRing`).

    Args:
        profiles: by model; looked up anew after :meth:`changed`.
    """

    def __init__(self, profiles: Mapping[str, Profile]) -> None:
        self.requests = 0
        """In batches that have not ended."""
        self._profiles = profiles
        self._names: list[str] = []
        self._number: dict[str, int] = {}
        self._latency = np.zeros((0, 1), np.int64)  # by model and size; 0: cannot be run
        self._free_at = np.zeros(0, np.int64)
        self._end = np.full(64, NEVER, np.int64)  # by slot
        self._fields = np.zeros((9, 64), np.int64)  # as in Ended: shard, batch … started, last_due
        self._start = np.zeros(64, np.int64)  # where its keys begin
        self._order = np.zeros(64, np.int64)
        self._keys = KeyRing()
        self._shards: list[str] = []
        self._count = 0
        self._out = 0
        self._next_end = NEVER
        self.longest_rest_ns = 0
        """For how long what has ended or arrived may wait to be looked at."""

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
        self._latency = np.zeros((len(self._names), largest + 1), np.int64)
        for name, profile in self._profiles.items():
            self._latency[self._number[name], 1 : profile.max_batch + 1] = profile.latency_ns
        self.longest_rest_ns = tightest_slo_ns // REST_SHARE

    def lengths(self, plan: Plan) -> I64:
        """l(size) of each of the plan's batches in ns; 0 where its model is not here or it is too large."""
        known = self._numbers(plan)
        if not known.size or not self._latency.size:
            return np.zeros(plan.batch.size, np.int64)
        model = known[plan.model]
        size = plan.size.astype(np.int64)
        fits = (model >= 0) & (size < self._latency.shape[1])
        if np.count_nonzero(fits) < fits.size:
            model, size = np.where(fits, model, 0), np.where(fits, size, 0)
            return self._latency[model, size] * fits
        found: I64 = self._latency[model, size]
        return found

    def _numbers(self, plan: Plan) -> I64:
        """By index into the plan's names: the model's number; -1 if it is not here."""
        return np.array([self._number.get(name, -1) for name in plan.models], np.int64)

    def start(self, plan: Plan, rows: Column, lengths: I64, received_ns: int) -> None:
        """Take in these batches of a plan that arrived now, ``lengths`` ns each, none of them 0."""
        if not rows.size:
            return
        gpu, size = plan.gpu[rows].astype(np.int64), plan.size[rows].astype(np.int64)
        started, end = self._run(gpu, lengths, received_ns)
        starts = size.cumsum() - size
        key, deadline = plan.key, plan.deadline
        if rows.size < plan.batch.size:
            before = plan.size.cumsum(dtype=np.int64) - plan.size
            places = (before[rows] - starts).repeat(size) + np.arange(int(size.sum()))
            key, deadline = key[places], deadline[places]
        first = self._keys.append(key, self._start[self._end < NEVER])
        slot = self._slots(rows.size)
        self._start[slot] = first + starts
        self._end[slot] = end
        self._order[slot] = np.arange(self._count, self._count + rows.size)
        known = self._numbers(plan)
        due = np.maximum.reduceat(deadline, starts)
        columns: tuple[Any, ...] = (
            self._shard_number(plan.shard),
            plan.batch[rows].view(np.int64), gpu, known[plan.model[rows]], size, received_ns,
            plan.exec_at[rows], started, due,
        )  # fmt: skip
        for field, column in zip(self._fields, columns, strict=True):
            field[slot] = column
        self._count += rows.size
        self._out += rows.size
        self.requests += key.size
        self._next_end = min(self._next_end, int(end.min()))

    def _shard_number(self, shard: str) -> int:
        """Its place among the shards; names of shards that have nothing here any more make room."""
        if shard not in self._shards:
            if len(self._shards) >= MOST_SHARDS:
                used, number = np.unique(self._fields[0], return_inverse=True)
                self._shards = [self._shards[i] for i in used.tolist()]
                self._fields[0] = number
            self._shards.append(shard)
        return self._shards.index(shard)

    def _run(self, gpu: I64, length: I64, now: int) -> tuple[I64, I64]:
        """Starts and ends; batches for the same GPU follow one another in their order."""
        largest = int(gpu.max())
        if largest >= self._free_at.size:
            more = max(largest + 1, 2 * self._free_at.size) - self._free_at.size
            self._free_at = np.concatenate((self._free_at, np.zeros(more, np.int64)))
        if len(set(gpu.tolist())) == gpu.size:  # by far the most frequent case
            started = np.maximum(now, self._free_at[gpu])
            self._free_at[gpu] = end = started + length
            return started, end
        started, end = np.zeros(gpu.size, np.int64), np.zeros(gpu.size, np.int64)
        left = np.arange(gpu.size)
        while left.size:
            _, first = np.unique(gpu[left], return_index=True)
            turn = left[first]
            started[turn] = np.maximum(now, self._free_at[gpu[turn]])
            end[turn] = started[turn] + length[turn]
            self._free_at[gpu[turn]] = end[turn]
            left = np.delete(left, first)
        return started, end

    def _slots(self, count: int) -> Column:
        """Free slots."""
        free = np.flatnonzero(self._end == NEVER)
        if free.size < count:
            more = max(count, self._end.size)
            self._end = np.concatenate((self._end, np.full(more, NEVER, np.int64)))
            self._fields = np.concatenate((self._fields, np.zeros((9, more), np.int64)), axis=1)
            self._order = np.concatenate((self._order, np.zeros(more, np.int64)))
            self._start = np.concatenate((self._start, np.zeros(more, np.int64)))
            free = np.flatnonzero(self._end == NEVER)
        return free[:count]

    def next_wakeup(self) -> int | None:
        """Monotonic ns at which :meth:`finish` has something; None if every GPU is idle."""
        return self._next_end if self._out else None

    def finish(self, now: int) -> Iterator[Ended]:
        """Batches whose end has come, in order of their ends, as many at a time as a message may hold."""
        if self._next_end > now:
            return
        slots = np.flatnonzero(self._end <= now)
        yield from self._give(slots[np.lexsort((self._order[slots], self._end[slots]))])

    def abandon(self) -> Iterator[Ended]:
        """Give up what has not ended."""
        slots = np.flatnonzero(self._end < NEVER)
        yield from self._give(slots[np.lexsort((self._order[slots], self._end[slots]))])

    def _give(self, slots: Column) -> Iterator[Ended]:
        while slots.size:
            total = np.cumsum(self._fields[SIZE][slots])
            some = slots[: max(1, int(np.searchsorted(total, MAX_REQUESTS, "right")))]
            slots = slots[some.size :]
            fields = self._fields[:, some]  # a copy
            key = self._keys.take(self._start[some], fields[SIZE])
            finished = self._end[some]
            self._end[some] = NEVER
            self._fields[0, some] = 0
            self._next_end = int(self._end.min())
            self._out -= some.size
            self.requests -= key.size
            columns = (fields[0], fields[1].view(np.uint64), *fields[2:8], finished, fields[8], key)
            yield Ended._make((self._shards, self._names, *columns))
