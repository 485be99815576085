"""The shard's workers: links, their GPUs in the core, and the batches that are out on them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
import zmq

from scheduler.core.actions import Dispatches
from scheduler.core.machine import Core
from scheduler.corrections import Corrections
from scheduler.frontends import U64
from scheduler.margins import Margins
from scheduler.table import ModelTable
from symphony import wire
from symphony.bus import Bus, BusError, Sock, link_events, send
from symphony.control import Member
from symphony.faults import Faults
from symphony.waiter import Waiter
from symphony.wire import I64

_log = logging.getLogger(__name__)

PAUSE_NS: Final = 100_000_000
"""How long a worker whose pipe was full gets nothing."""


class Out(NamedTuple):
    """One batch that is out: what is needed to judge its completion, or to send it again."""

    gpu: int
    model: int
    priority: int
    finish_at: int
    key: U64
    deadline: I64


class Batch(NamedTuple):
    """One batch on its way out."""

    batch: int
    exec_at: int
    out: Out


class Worker:
    """One worker process of this shard."""

    __slots__ = ("gpus", "linked", "member", "monitor", "paused_until", "sock")

    def __init__(self, member: Member, sock: Sock, monitor: Sock) -> None:
        self.member = member
        self.sock = sock
        self.monitor = monitor
        self.linked = False
        self.paused_until = 0
        self.gpus: list[int] = []
        """Numbers that are in the core now."""


class Fleet:
    """Follows the membership's workers; sends plans; takes completions.

    Args:
        shard: this shard's id; only workers that name it are served.
        bus: makes the sockets.
        waiter: watches the links' monitors.
        core: has the GPUs.
        table: has the models.
        faults: counters.
    """

    def __init__(
        self, shard: str, bus: Bus, waiter: Waiter, core: Core, table: ModelTable, faults: Faults
    ) -> None:
        self.out: dict[int, Out] = {}
        self.workers: dict[str, Worker] = {}
        self.margins = Margins()
        self.corrections = Corrections()
        self._shard = shard
        self._bus = bus
        self._waiter = waiter
        self._core = core
        self._table = table
        self._faults = faults
        self._owner: dict[int, Worker] = {}
        self._kinds: dict[int, int] = {}
        self._lost: list[Out] = []

    # --- who is there ------------------------------------------------------------------------

    def saw(self, now: int, member: Member) -> None:
        """A worker has joined or changed; it is ours if it names this shard."""
        known = self.workers.get(member.id)
        if known is not None and (
            member.incarnation != known.member.incarnation
            or member.shard != self._shard
            or member.endpoints.get("dispatch") != known.member.endpoints.get("dispatch")
        ):
            self._forget(now, known)
            known = None
        if member.shard != self._shard:
            return
        if known is None:
            try:
                sock, monitor = self._bus.connect_watched(zmq.PUSH, member.endpoints.get("dispatch", ""))
            except BusError as error:
                self._faults.count("worker-endpoint", f"{member.id}: {error}")
                return
            known = self.workers[member.id] = Worker(member, sock, monitor)
            self._waiter.register(monitor)
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
        self._waiter.unregister(worker.monitor)
        self._bus.drop(worker.sock)
        worker.monitor.close()

    def read_links(self, now: int) -> None:
        """Take in which connections stand: a worker whose link is lost gets no more, and what was
        out on it is lost; once the link stands again, it takes part again."""
        for worker in list(self.workers.values()):
            for up in link_events(worker.monitor):
                worker.linked = up
                if up:
                    self.place(now, worker)
                else:
                    _log.warning("lost the link to %s", worker.member.id)
                    self._withdraw(now, worker)
            if worker.paused_until and now >= worker.paused_until:
                worker.paused_until = 0
                self.place(now, worker)

    def place(self, now: int, worker: Worker) -> None:
        """Bring the core's GPUs in line with the worker's record."""
        member = worker.member
        if member.state == "draining":
            for gpu in worker.gpus:
                self._core.drain_gpu(now, gpu)
            return
        if member.state != "ready" or not worker.linked or worker.paused_until:
            return
        models = self._table.numbers(member.models)
        for info in member.gpus:
            kind = self._table.type_number(info.type)
            if kind is None:
                continue
            if info.number in worker.gpus:
                self._core.set_gpu_models(now, info.number, models)
            elif self._core.has_gpu(info.number):
                self._faults.count("gpu-number-taken", f"{member.id} brings GPU {info.number} again")
            else:
                self._core.add_gpu(now, info.number, kind, models)
                self._owner[info.number] = worker
                self._kinds[info.number] = kind
                worker.gpus.append(info.number)
        kept = {info.number for info in member.gpus}
        for gpu in [gpu for gpu in worker.gpus if gpu not in kept]:
            self._take_out(now, worker, gpu)

    def _withdraw(self, now: int, worker: Worker) -> None:
        for gpu in list(worker.gpus):
            self._take_out(now, worker, gpu)

    def _take_out(self, now: int, worker: Worker, gpu: int) -> None:
        worker.gpus.remove(gpu)
        del self._owner[gpu]
        del self._kinds[gpu]
        self.margins.forget(gpu)
        batches = [batch for batch, out in self.out.items() if out.gpu == gpu]
        self._lost += [self.out.pop(batch) for batch in batches]
        self._core.remove_gpu(now, gpu)

    def take_lost(self) -> list[Out]:
        """Batches that were out on GPUs which have gone since the last call."""
        lost, self._lost = self._lost, []
        return lost

    # --- batches -----------------------------------------------------------------------------

    def record(self, d: Dispatches) -> list[Batch]:
        """Copy what the core dispatched and remember it as out; nothing of ``d`` is kept."""
        key = np.array(d.key, np.uint64)
        deadline = np.array(d.deadline, np.int64)
        batches: list[Batch] = []
        at = 0
        columns = (d.batch, d.gpu, d.model, d.priority, d.size, d.exec_at, d.finish_at)
        for batch, gpu, model, priority, size, exec_at, finish_at in zip(
            *(column.tolist() for column in columns), strict=True
        ):
            span = slice(at, at + size)
            at += size
            out = Out(gpu, model, priority, finish_at, key[span], deadline[span])
            self.out[batch] = out
            batches.append(Batch(batch, exec_at, out))
        return batches

    def send(self, now: int, batches: list[Batch]) -> None:
        """Send plans, one message per worker; a worker that cannot take its message is paused."""
        per_worker: dict[str, list[Batch]] = {}
        for batch in batches:
            owner = self._owner.get(batch.out.gpu)
            if owner is None:  # it was withdrawn just now; its batches are among the lost
                continue
            per_worker.setdefault(owner.member.id, []).append(batch)
        for worker_id, plans in per_worker.items():
            numbers = sorted({plan.out.model for plan in plans})
            index = {number: i for i, number in enumerate(numbers)}
            frame = wire.encode_plan(
                wire.Plan(
                    self._shard,
                    [self._table.names[number] for number in numbers],
                    np.array([plan.batch for plan in plans], np.uint64),
                    np.array([plan.out.gpu for plan in plans], np.uint32),
                    np.array([index[plan.out.model] for plan in plans], np.uint32),
                    np.array([plan.exec_at for plan in plans], np.int64),
                    np.array([plan.out.key.size for plan in plans], np.uint32),
                    np.concatenate([plan.out.key for plan in plans]),
                    np.concatenate([plan.out.deadline for plan in plans]),
                )
            )
            worker = self.workers[worker_id]
            if not send(worker.sock, frame):
                self._faults.count("dispatch-pipe-full", worker_id)
                worker.paused_until = now + PAUSE_NS
                self._withdraw(now, worker)

    def completed(self, now: int, done: wire.Done) -> Iterator[tuple[Out, int, int, int]]:
        """Take in one DONE message; yields (batch, started, finished, failed) for what was out."""
        rows: list[int] = []
        entries = zip(
            done.batch.tolist(),
            done.gpu.tolist(),
            done.started.tolist(),
            done.finished.tolist(),
            done.failed.tolist(),
            done.size.tolist(),
            strict=True,
        )
        for i, (batch, gpu, started, finished, failed, size) in enumerate(entries):
            out = self.out.get(batch)
            if out is None or out.gpu != gpu:
                self._faults.count("completion-of-unknown-batch", f"{done.worker}: batch {batch}")
                continue
            del self.out[batch]
            rows.append(i)
            self.margins.observe(gpu, finished - out.finish_at)
            kind = self._kinds.get(gpu)
            if kind is not None:
                profiled = self._table.profiled_ns(out.model, kind, size)
                self.corrections.observe(out.model, kind, finished - started, profiled)
            yield out, started, finished, failed
        if rows:
            self._core.complete(now, done.gpu[rows], done.batch[rows], done.finished[rows])

    def relearn(self, now: int, cap_ns: int) -> None:
        """Give the core the latencies and margins that the completions since the last call call for."""
        for model, gpu_type, factor in self.corrections.changes():
            _log.info("%s takes %.2f times as long as profiled", self._table.names[model], factor)
            self._table.correct(now, model, gpu_type, factor)
        for gpu, margin in self.margins.by_gpu(cap_ns):
            self._core.set_gpu_margin(gpu, margin)
        kinds: dict[int, list[int]] = {}
        for worker in self.workers.values():
            for info in worker.member.gpus:
                kind = self._table.type_number(info.type)
                if kind is not None and info.number in self._owner:
                    kinds.setdefault(kind, []).append(self.margins.of(info.number))
        for kind, margins in kinds.items():
            self._core.set_type_margin(kind, sorted(margins)[len(margins) // 2])
