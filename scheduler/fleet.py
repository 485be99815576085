"""The shard's workers: links, their GPUs in the core, and the batches that are out on them.

Batches are columns all the way: what the core dispatches is grouped by worker with one sort and leaves as
one PLAN message per worker; what comes back is looked up, judged and learned from per turn of the loop.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final

import numpy as np
import zmq

from scheduler.assignment import Assignment, Models
from scheduler.core.actions import Dispatches
from scheduler.core.machine import Core
from scheduler.lessons import Lessons, Ran
from scheduler.outstanding import Out, Outstanding, Taken
from scheduler.recent import Ids
from scheduler.select import ledger
from scheduler.table import ModelTable
from scheduler.workers import Back, Worker
from symphony import wire
from symphony.bus import Bus, BusError, link_events, send
from symphony.control import Member
from symphony.faults import Faults
from symphony.messages import to_ranges
from symphony.waiter import Waiter

_log = logging.getLogger(__name__)

MANY_BACK: Final = 4_096
"""Batches that may have come back before they are learned from."""
PAUSE_NS: Final = 100_000_000
"""How long a worker whose pipe was full gets nothing."""


class Fleet:
    """Follows the membership's workers; sends plans; takes completions.

    Args:
        shard: this shard's id.
        bus: makes the sockets.
        waiter: watches the links' monitors.
        core: has the GPUs.
        table: has the models.
        assignment: which GPUs of which workers are this shard's.
        faults: counters.
    """

    def __init__(
        self,
        shard: str,
        bus: Bus,
        waiter: Waiter,
        core: Core,
        table: ModelTable,
        assignment: Assignment,
        faults: Faults,
    ) -> None:
        self.out = Outstanding(loops=ledger())
        self.workers: dict[str, Worker] = {}
        self.changed = False
        """Set when GPUs came, went or hold other models; the owner clears it."""
        self.lessons = Lessons(core, table, faults)
        self._shard = shard
        self._bus = bus
        self._waiter = waiter
        self._core = core
        self._table = table
        self._assignment = assignment
        self._faults = faults
        self._owner = np.full(1024, -1, np.int64)  # by GPU: the index of its worker
        self._kind = np.zeros(1024, np.int64)  # by GPU: its type
        self._members: list[Worker | None] = []  # by index
        self._monitors: dict[object, Worker] = {}
        self._paused: list[Worker] = []
        self._lost: list[Out] = []
        self._back: list[tuple[Taken, wire.Completed]] = []
        self._back_batches = 0

    # --- who is there ------------------------------------------------------------------------

    def saw(self, now: int, member: Member) -> None:
        """A worker has joined or changed, or the plan has; some of its GPUs may be ours."""
        known = self.workers.get(member.id)
        ours = self._assignment.serves(member)
        if known is not None and (
            member.incarnation != known.member.incarnation
            or member.endpoints.get("dispatch") != known.member.endpoints.get("dispatch")
            or not (ours or known.gpus)
        ):
            self._forget(now, known)
            known = None
        if not ours and known is None:
            return
        if known is None:
            try:
                sock, monitor = self._bus.connect_watched(zmq.PUSH, member.endpoints.get("dispatch", ""))
            except BusError as error:
                self._faults.count("worker-endpoint", f"{member.id}: {error}")
                return
            known = self.workers[member.id] = Worker(member, sock, monitor)
            self._waiter.register(monitor)
            self._monitors[monitor] = known
            if None not in self._members:
                self._members.append(None)
            known.index = self._members.index(None)
            self._members[known.index] = known
        known.member = member
        self.place(now, known)

    def gone(self, now: int, member: Member) -> None:
        """A worker has left or died."""
        known = self.workers.get(member.id)
        if known is not None and known.member.incarnation == member.incarnation:
            self._forget(now, known)

    def _forget(self, now: int, worker: Worker) -> None:
        self._withdraw(now, worker)
        del self.workers[worker.member.id]
        self._members[worker.index] = None
        self._waiter.unregister(worker.monitor)
        del self._monitors[worker.monitor]
        self._bus.drop(worker.sock)
        worker.monitor.close()

    def read_links(self, now: int, ready: Iterable[object]) -> None:
        """Take in which connections stand, if their monitors are ``ready``.

        A worker whose link is lost gets no more, and what was out on it is lost; once the link stands
        again, it takes part again.
        """
        for monitor in ready:
            worker = self._monitors.get(monitor)
            for up in link_events(worker.monitor) if worker is not None else ():
                assert worker is not None
                worker.linked = up
                if up:
                    self.place(now, worker)
                else:
                    _log.warning("lost the link to %s", worker.member.id)
                    self._withdraw(now, worker)
        if self._paused:
            for worker in [worker for worker in self._paused if now >= worker.paused_until]:
                self._paused.remove(worker)
                worker.paused_until = 0
                if self.workers.get(worker.member.id) is worker:
                    self.place(now, worker)

    def next_wakeup(self, now: int) -> int | None:
        """When :meth:`read_links` has something to do without news, cluster ns; None if never."""
        if self._lost:
            return now
        return min((worker.paused_until for worker in self._paused), default=None)

    def place(self, now: int, worker: Worker) -> None:
        """Bring the core's GPUs in line with the worker's record."""
        member = worker.member
        if member.state == "draining":
            for gpu in worker.gpus:
                self._core.drain_gpu(now, gpu)
            return
        if member.state != "ready" or not worker.linked or worker.paused_until:
            return
        mine = self._assignment.of(member)
        numbers: dict[Models, tuple[int, ...]] = {}
        for number, (info, models) in mine.items():
            if number in worker.leaving:  # it comes again, once it has gone
                continue
            if models not in numbers:
                numbers[models] = tuple(self._table.numbers(models))
            if number in worker.gpus:
                if worker.gpus[number] != numbers[models]:
                    self._core.set_gpu_models(now, number, numbers[models])
                    worker.gpus[number] = numbers[models]
                    self.changed = True
            elif self._core.has_gpu(number):
                self._faults.count("gpu-number-taken", f"{member.id} brings GPU {number} again")
            else:
                kind = self._table.type_number(info.type)
                if kind is None:
                    continue
                self._core.add_gpu(now, number, kind, numbers[models])
                self._own(number, worker.index, kind)
                worker.gpus[number] = numbers[models]
                self.changed = True
        self._give_up(now, worker, [gpu for gpu in worker.gpus if gpu not in mine])

    def _give_up(self, now: int, worker: Worker, gpus: list[int]) -> None:
        """GPUs that are not ours any more: those that have gone at once, the others once they are empty."""
        there = {info.number for info in worker.member.gpus}
        self._take_out(now, worker, [gpu for gpu in gpus if gpu not in there])
        for gpu in gpus:
            if gpu in there:
                self._core.drain_gpu(now, gpu)
                worker.leaving.add(gpu)

    def _own(self, gpu: int, index: int, kind: int) -> None:
        if gpu >= self._owner.size:
            more = max(gpu + 1, 2 * self._owner.size) - self._owner.size
            self._owner = np.concatenate((self._owner, np.full(more, -1, np.int64)))
            self._kind = np.concatenate((self._kind, np.zeros(more, np.int64)))
        self._owner[gpu] = index
        self._kind[gpu] = kind

    def release(self, now: int) -> None:
        """Take out the GPUs that are to leave and have nothing out any more."""
        for worker in [worker for worker in self.workers.values() if worker.leaving]:
            gone = [gpu for gpu in sorted(worker.leaving) if not self._core.outstanding(gpu)]
            self._take_out(now, worker, gone)
            if gone:
                self.saw(now, worker.member)

    def owned(self) -> list[int]:
        """The GPUs that are in the core, as ranges."""
        return to_ranges(gpu for worker in self.workers.values() for gpu in worker.gpus)

    def held(self) -> set[int]:
        """Every model that one of these GPUs holds, by number."""
        sets = {models for worker in self.workers.values() for models in worker.gpus.values()}
        return {model for models in sets for model in models}

    def _withdraw(self, now: int, worker: Worker) -> None:
        self._take_out(now, worker, sorted(worker.gpus))

    def _take_out(self, now: int, worker: Worker, gpus: list[int]) -> None:
        if not gpus:
            return
        self.changed = True
        worker.leaving.difference_update(gpus)
        self._owner[gpus] = -1
        self._lost += self.out.take_gpus(np.array(gpus))
        for gpu in gpus:
            del worker.gpus[gpu]
            self.lessons.forget(gpu)
            self._core.remove_gpu(now, gpu)

    def take_lost(self) -> list[Out]:
        """Batches that were out on GPUs which have gone since the last call."""
        lost, self._lost = self._lost, []
        return lost

    # --- batches -----------------------------------------------------------------------------

    def plan(self, d: Dispatches) -> list[tuple[Worker, bytes]]:
        """Remember what the core dispatched as out; returns the messages for :meth:`send`.

        Nothing of ``d`` is kept. What was meant for a GPU that has gone since is lost.
        """
        if not len(d.batch):
            return []
        self.out.record(d)
        gpu = np.frombuffer(d.gpu, np.int64)
        owner = self._owner[gpu]
        first = int(owner[0])
        if first >= 0 and np.count_nonzero(owner == first) == owner.size:
            return self._frames(first, d, None)
        messages: list[tuple[Worker, bytes]] = []
        order = np.argsort(owner, kind="stable")
        for rows in np.split(order, np.flatnonzero(np.diff(owner[order])) + 1):
            index = int(owner[rows[0]])
            if index >= 0:
                messages += self._frames(index, d, rows)
            else:
                self._lost += self.out.take_gpus(np.unique(gpu[rows]))
        return messages

    def _frames(self, index: int, d: Dispatches, rows: Ids | None) -> list[tuple[Worker, bytes]]:
        """The messages for one worker: one, unless it holds more requests than a message may."""
        worker = self._members[index]
        assert worker is not None
        batch, gpu, model, exec_at, size = (
            np.frombuffer(column, np.int64) for column in (d.batch, d.gpu, d.model, d.exec_at, d.size)
        )
        key, deadline = np.frombuffer(d.key, np.uint64), np.frombuffer(d.deadline, np.int64)
        if rows is not None:
            start = (np.cumsum(size) - size)[rows]
            batch, gpu, model, exec_at, size = (c[rows] for c in (batch, gpu, model, exec_at, size))
            places = np.repeat(start - (np.cumsum(size) - size), size) + np.arange(int(size.sum()))
            key, deadline = key[places], deadline[places]
        numbers = np.bincount(model).nonzero()[0]
        names = [self._table.names[number] for number in numbers.tolist()]
        indexes = numbers.searchsorted(model)
        if key.size <= wire.MAX_REQUESTS:
            plan = wire.Plan(self._shard, names, batch, gpu, indexes, exec_at, size, key, deadline)  # type: ignore[arg-type]
            return [(worker, wire.encode_plan(plan))]
        messages = []
        end = np.cumsum(size)
        at = sent = 0
        while at < size.size:
            stop = max(at + 1, int(np.searchsorted(end, sent + wire.MAX_REQUESTS, "right")))
            b, k = slice(at, stop), slice(sent, int(end[stop - 1]))
            part = (batch[b], gpu[b], indexes[b], exec_at[b], size[b], key[k], deadline[k])
            messages.append((worker, wire.encode_plan(wire.Plan(self._shard, names, *part))))  # type: ignore[arg-type]
            at, sent = stop, int(end[stop - 1])
        return messages

    def send(self, now: int, messages: list[tuple[Worker, bytes]]) -> None:
        """Send plans; a worker that cannot take its message is paused."""
        for worker, frame in messages:
            if worker.paused_until or self._members[worker.index] is not worker:
                continue  # withdrawn just now: its batches are among the lost
            if not send(worker.sock, frame):
                self._faults.count("dispatch-pipe-full", worker.member.id)
                worker.paused_until = now + PAUSE_NS
                self._paused.append(worker)
                self._withdraw(now, worker)

    @property
    def has_much_to_learn(self) -> bool:
        """Whether :meth:`take_back` should be called soon, because much has gathered for it."""
        return self._back_batches >= MANY_BACK

    def completed(self, now: int, done: wire.Completed) -> None:
        """Take in completions; what they teach waits for :meth:`take_back`.

        Raises nothing on batches that are unknown, done already or on another GPU: they are counted.
        """
        if not done.batch.size:
            return
        taken, strange = self.out.take(done.batch, done.gpu, done.finished, self._core.result)
        if strange.size:
            detail = f"batch {done.batch[strange[0]]} on GPU {done.gpu[strange[0]]}"
            self._faults.count("completion-of-unknown-batch", detail, int(strange.size))
        if not taken.row.size:
            return
        if strange.size:
            row = taken.row
            done = wire.Completed._make([*(column[row] for column in done[:7]), []])
        self._core.complete(now, done.gpu, done.batch, done.finished)
        self._back.append((taken, done))
        self._back_batches += taken.row.size

    def take_back(self) -> Back | None:
        """Learn from what has come back since the last call; returns it for the statistics.

        Whoever owns the fleet calls it now and then: many batches at once cost little more than one.
        """
        if not self._back:
            return None
        parts, self._back, self._back_batches = self._back, [], 0
        model, size, finish_at, good = (np.concatenate([part[0][i] for part in parts]) for i in range(1, 5))
        gpu, ran, failed, exec_at, started, finished = (
            np.concatenate([part[1][i] for part in parts]).astype(np.int64) for i in range(1, 7)
        )
        there = self._owner[gpu] >= 0  # of a GPU that has gone since there is nothing to learn
        columns = (gpu, self._kind[gpu], model, ran, finish_at, exec_at, started, finished)
        self.lessons.observe(Ran._make(column[there] for column in columns))
        return Back(model, size, good, failed, started, finished, gpu)

    def gpus(self) -> tuple[Ids, Ids]:
        """The GPUs that are in the core, and their types."""
        gpus = np.flatnonzero(self._owner >= 0)
        return gpus, self._kind[gpus]
