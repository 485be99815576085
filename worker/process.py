"""One worker process: its sockets, and the loop that moves batches between them and the device.

::

    PLAN from the shard ─► fetch inputs from the frontends ─► device ─► RESULT to the frontends
                                                                   └──► DONE to the shard and to ops

The thread that calls :meth:`Worker.run` owns every socket; a real device has two threads of its own
(:mod:`worker.executor`). No message, however malformed, ends the loop: it is counted by reason.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import zmq

from symphony import wire
from symphony.bus import Bus, drain_views, tcp
from symphony.clock import ClusterClock
from symphony.control import Member
from symphony.faults import Faults
from symphony.membership import Joined, MemberChanged, Membership, PlanChanged, Refusal, describe
from symphony.pace import Pace
from symphony.plans import ClusterPlan
from symphony.status import Status, SymphonyError
from symphony.waiter import Waiter
from symphony.wire import WireError
from worker import columns, plans
from worker.batch import Batch, given_up, results
from worker.completions import Completions
from worker.definition import Definition
from worker.emulated import Ended
from worker.following import Following
from worker.frontends import Frontends
from worker.holdings import Ready
from worker.lifecycle import State
from worker.record import announced, span
from worker.runners import Runner
from worker.telemetry import Watch

_log = logging.getLogger(__name__)

MAX_PLAN_BYTES: Final = 16 * 1024 * 1024
FAREWELL_NS: Final = 300_000_000
"""A draining worker stays at least that long: plans may be on their way before its shard knows."""
LONGEST_REST_NS: Final = 2_000_000
"""Limit of the rests in which a busy emulated device lets plans and ends gather."""
LINGER_MS: Final = 500
ANSWER_GRACE_NS: Final = 250_000_000
"""How long after its deadline a result is kept for a frontend that is not known yet."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Who this worker is and where it finds the others."""

    id: str
    shard: str
    registry: str
    publish: str
    subscribe: str
    host: str = "127.0.0.1"
    insecure: bool = False
    device: str = "emulated"
    gpus: int = 1
    drain_s: float = 4.0
    """Longest time from the wish to stop to the end; what has not run by then is ``UNAVAILABLE``."""


class Worker:
    """See the module's text. :meth:`stop` may be called from any thread or signal handler.

    Args:
        settings: endpoints and names.
        runner: what holds models and executes batches; closed at the end.
        definitions: every model that the cluster's plan may ask it to hold.
    """

    def __init__(self, settings: Settings, runner: Runner, definitions: Sequence[Definition] = ()) -> None:
        self._settings = settings
        self._runner = runner
        self._following = Following(definitions)
        self._planned = False
        self._device = runner.columns
        self._pace = Pace()
        self.faults = Faults(_log)
        self._stop_fd, self._stop_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._stopping = False
        self._error: SymphonyError | None = None
        self.stopped_cleanly = True
        """False after :meth:`run` if a thread of the device would not end."""
        self._outstanding: dict[int, Batch] = {}
        self._waiting_requests = 0
        self._counts = {"batches": 0, "requests": 0, "not_ok": 0}
        self._ready: Ready | None = None
        self._numbers: frozenset[int] = frozenset()
        self._announced = False
        self._drain_since: int | None = None
        self._drain_ns = round(settings.drain_s * 1e9)
        self._cluster_due = 0
        self._watch = Watch(settings.device)
        self._told: dict[str, Any] = {}

    def stop(self) -> None:
        """Drain and end; a second call changes nothing."""
        self._stopping = True
        with contextlib.suppress(OSError):  # full, so the loop will wake anyway; or closed with the loop
            os.write(self._stop_write, b"x")

    def run(self) -> None:
        """Serve until :meth:`stop`, then drain, leave, and return.

        Raises:
            BusError: the dispatch socket cannot be bound.
            DefinitionError, DeviceError: a model or the device cannot be used.
            SymphonyError: the broker refuses this worker for good, or the device is lost.
        """
        self._waiter = Waiter()
        for source in (self._stop_fd, self._runner.fd):
            if source is not None:
                self._waiter.register(source)
        with Bus(self._settings.insecure) as bus:
            try:
                self._identify()
                if not self._stopping:
                    self._open(bus)
                    self._loop()
                    self._membership.leave()
            finally:
                self.stopped_cleanly = self._runner.close()
                self._watch.close()
                self._waiter.close()
                os.close(self._stop_fd)
                os.close(self._stop_write)
                bus.close(LINGER_MS)
        if self._error is not None:
            raise self._error

    def _identify(self) -> None:
        """Open the device: only then it is known what kind of GPU joins the cluster."""
        self._runner.start()
        while not self._runner.gpu_type and not self._stopping:
            self._waiter.wait()
            self._runner.ready()  # raises if there is no such device
        self._watch.start(self._runner.uuid)

    def _open(self, bus: Bus) -> None:
        settings = self._settings
        self._clock = ClusterClock()
        self._dispatch, endpoint = bus.bind(zmq.PULL, tcp(settings.host), max_message=MAX_PLAN_BYTES)
        member = describe(settings.id, "worker", endpoints={"dispatch": endpoint}, shard=settings.shard)
        self._membership = Membership(
            bus,
            settings.registry,
            settings.subscribe,
            member,
            clock=self._clock,
            gpus_wanted=settings.gpus,
            gpu_type=self._runner.gpu_type,
            faults=self.faults,
        )
        self._frontends = Frontends(bus, self._waiter, self.faults)
        self._completions = Completions(
            bus, self._waiter, settings.id, settings.publish, self._shard, self.faults
        )
        for source in (self._dispatch, *self._membership.sockets):
            self._waiter.register(source)

    def _loop(self) -> None:
        while not self._finished():
            ready = self._waiter.wait_paced(self._next_wakeup(), self._pace.until)
            woke = time.monotonic_ns()
            self._follow_cluster(ready)
            self._follow_device()
            self._take_plans(ready)
            self._take_inputs(ready)
            self._answer(self._runner.advance(time.monotonic_ns()))
            if self._device is not None:
                self._answer_columns(self._device.finish(time.monotonic_ns()), Status.OK)
            self._completions.follow_subscriptions(ready)
            self._completions.flush(self._clock.to_cluster)
            self._frontends.expire(time.monotonic_ns())
            if self._device is not None:
                longest = min(LONGEST_REST_NS, self._device.longest_rest_ns)
                self._pace.worked(woke, time.monotonic_ns(), longest)

    def _next_wakeup(self) -> int:
        now = time.monotonic_ns()
        moments = [self._cluster_due, self._runner.next_wakeup(now), self._frontends.next_wakeup()]
        if self._drain_since is not None:
            farewell = self._drain_since + FAREWELL_NS
            moments.append(farewell if now < farewell else self._drain_since + self._drain_ns)
        return max(self._pace.until, min(moment for moment in moments if moment is not None))

    # -- the cluster -----------------------------------------------------------------------------

    def _follow_cluster(self, ready: list[Any]) -> None:
        now = time.monotonic_ns()
        if now >= self._cluster_due:
            self._membership.set_stats(self._stats())
            if self._watch.latest is not self._told and not self._watch.latest.get("absent"):
                self._completions.publish(f"gpu.{self._settings.id}", self._watch.latest)
            self._told = self._watch.latest
        elif not any(sock in ready for sock in self._membership.sockets):
            return
        for event in self._membership.step(now):
            match event:
                case MemberChanged():
                    for slot in self._frontends.follow(event):
                        self._runner.lost(slot)
                    if event.member.role == "scheduler" and self._works_for(event.member.id):
                        self._completions.follow(event.member.id)
                case PlanChanged(plan):
                    self._follow_plan(now, plan)
                case Joined():
                    self._numbers = frozenset(gpu.number for gpu in event.member.gpus)
                    if self._membership.plan is not None:
                        self._follow_plan(now, self._membership.plan)
                    _log.info("joined as %s with GPUs %s", event.member.id, span(self._numbers))
                case Refusal(reason=reason, final=True):
                    self._give_up(SymphonyError(f"the broker refuses {self._settings.id}: {reason}"))
                case Refusal(reason=reason):
                    _log.info("the broker says: %s; asking again", reason)
                case _:
                    pass
        self._cluster_due = self._membership.next_wakeup()

    def _follow_plan(self, now: int, plan: ClusterPlan) -> None:
        wants = self._following.wants(plan, self._numbers)
        if wants is not None:
            self._runner.assign(now, self._numbers, wants)
            self._planned = True

    def _works_for(self, shard: str) -> bool:
        return shard == self._settings.shard or self._completions.knows(shard)

    def _shard(self, shard: str) -> Member | None:
        member = self._membership.members.get(shard)
        return member if member is not None and member.role == "scheduler" else None

    def _follow_device(self) -> None:
        """Announce the models once they are loaded, and as they change; give up when the device is lost."""
        ready, changes = self._runner.ready(), self._runner.changes()
        news = self._planned or bool(changes) or ready is not self._ready
        self._ready, self._planned = ready, False
        if news and self._announced and self._drain_since is None:
            self._announce("ready")
        for change in changes:
            level = logging.WARNING if change.state == State.FAILED else logging.INFO
            because = f": {change.reason}" if change.reason else ""
            _log.log(level, "model %s (copy %d) is %s%s", change.model, change.copy, change.state, because)
        failure = self._runner.failure()
        if failure is not None:
            self._drain_ns = FAREWELL_NS  # what is on it will not come back
            self._give_up(SymphonyError(f"the device is lost: {failure}"))
        if self._stopping and self._drain_since is None:
            self._drain_since = time.monotonic_ns()
            self._waiter.unregister(self._stop_fd)
            _log.info("draining: %d batches are left", self._left())
            self._announce("draining")
        elif not self._announced and self._ready is not None and self._numbers:
            self._announced = True
            self._announce("ready")
            _log.info("ready: %s on %s", ", ".join(self._ready.profiles), self._runner.gpu_type)

    def _announce(self, state: str) -> None:
        me = self._membership.me
        if self._ready is None:
            self._membership.update(me.model_copy(update={"state": state}))
            return
        record, models = announced(me, state, self._runner, self._ready, self._following.unknown)
        if record != me:
            self._membership.update(record, models)

    def _give_up(self, error: SymphonyError) -> None:
        if self._error is None:
            self._error = error
            _log.error("%s", error)
        self._stopping = True

    def _stats(self) -> dict[str, Any]:
        faults = dict(self.faults.counts.most_common(20))
        stats = {**self._counts, "outstanding": self._left(), "faults": faults}
        if self._settings.device == "emulated":
            return stats
        return {**stats, "gpu": self._watch.latest, "versions": self._runner.versions()}

    # -- batches ---------------------------------------------------------------------------------

    def _take_plans(self, ready: list[Any]) -> None:
        for frames in drain_views(self._dispatch) if self._dispatch in ready else ():
            now = time.monotonic_ns()
            try:
                if len(frames) != 1:
                    raise WireError("malformed", f"{len(frames)} frames instead of 1")
                plan = wire.decode_plan(frames[0])
            except WireError as error:
                self.faults.count(f"dispatch-{error.reason}", error)
                continue
            rest = None
            if self._device is not None:
                rest = plans.take_columns(plan, self._device, self._numbers, now)
            for batch in plans.batches(plan, now, rest):
                self._accept(batch)

    def _accept(self, batch: Batch) -> None:
        profiles = self._ready.profiles if self._ready is not None else {}
        waiting = self._waiting_requests + (0 if self._device is None else self._device.requests)
        no = plans.refusal(batch, profiles, self._numbers, waiting)
        if no is None and self._device is not None and batch.key.size:
            no = Status.OVERLOADED, f"{waiting} requests wait here already"
        if no is None and batch.key.size:
            batch.expected_ns = profiles[batch.model].latency(int(batch.key.size))
            self._outstanding[id(batch)] = batch
            self._waiting_requests += int(batch.key.size)
            local = self._clock.to_monotonic
            deadlines = (int(batch.deadline.min()), int(batch.deadline.max()))
            fetches = self._runner.accept(batch, local(batch.exec_at), *map(local, deadlines))
            for fetch in fetches:
                question = wire.encode_fetch(fetch.id, fetch.key)
                if not self._frontends.fetch(fetch.slot, question, fetch.until_ns):
                    self._runner.lost(fetch.slot)
            return
        if no is not None:
            self.faults.count(f"dispatch-{no[0].name.lower()}", no[1])
            batch.settle_pending(no[0], f"{self._settings.id}: {no[1]}")
        self._answer([batch])

    def _take_inputs(self, ready: list[Any]) -> None:
        for slots, header, frames in self._frontends.arrived(ready):
            try:
                message = wire.decode_tensors(header, len(frames))
                strange = self._runner.arrived(slots, message, frames)
            except WireError as error:
                self.faults.count(f"fetch-{error.reason}", error)
                continue
            if strange:
                self.faults.count("fetch-unasked", n=strange)

    def _answer(self, batches: Iterable[Batch]) -> None:
        for batch in batches:
            if self._outstanding.pop(id(batch), None) is not None:
                self._waiting_requests -= int(batch.key.size)
            self._counts["batches"] += 1
            self._counts["requests"] += int(batch.key.size)
            self._counts["not_ok"] += batch.not_ok()
            until = ANSWER_GRACE_NS + (
                self._clock.to_monotonic(int(batch.deadline.max())) if batch.key.size else 0
            )
            for slot, frames in results(self._settings.id, batch, self._clock.to_cluster):
                self._frontends.reply(slot, frames, until)
            self._completions.add(batch)

    def _answer_columns(self, parts: Iterable[Ended], status: Status) -> None:
        offset = self._clock.offset_ns
        for ended in parts:
            self._counts["batches"] += ended.batch.size
            self._counts["requests"] += ended.key.size
            self._counts["not_ok"] += 0 if status == Status.OK else ended.key.size
            told = columns.told(ended, offset)
            for reply in columns.replies(self._settings.id, ended, told, status):
                until = self._clock.to_monotonic(reply.last_due) + ANSWER_GRACE_NS
                self._frontends.reply(reply.slot, [reply.frame], until)
            self._completions.add_columns(ended, told, offset, status)

    # -- the end ---------------------------------------------------------------------------------

    def _left(self) -> int:
        """Batches that have not ended."""
        return len(self._outstanding) + (0 if self._device is None else len(self._device))

    def _finished(self) -> bool:
        if self._drain_since is None:
            return False
        waited = time.monotonic_ns() - self._drain_since
        known = self._announced and self._membership.broker_alive and self._error is None
        if not self._left() and (waited >= FAREWELL_NS or not known):
            return True
        if waited < self._drain_ns:
            return False
        _log.warning("%d batches did not finish in time", self._left())
        self._answer([given_up(batch) for batch in self._outstanding.values()])
        if self._device is not None:
            self._answer_columns(self._device.abandon(), Status.UNAVAILABLE)
        self._completions.flush(self._clock.to_cluster)
        return True


def stop_on_signals(stop: Callable[[], None]) -> None:
    """SIGTERM and SIGINT call ``stop``; from the main thread only."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop())
