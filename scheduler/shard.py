"""One scheduler shard: the process around the core.

The loop (:meth:`Shard.run`) waits for the first of a message and the core's next moment, takes in
everything that has arrived, and sends what the core decided. The moment is good to a fraction of a
millisecond: see :mod:`symphony.waiter`; how late the shard really wakes is measured, published with
its statistics, and becomes part of the margin that the core keeps before every deadline.
"""

from __future__ import annotations

import logging
import time
from typing import Any, Final

import msgpack
import numpy as np
import zmq

from scheduler.assignment import Assignment
from scheduler.core.machine import Core
from scheduler.fleet import Fleet
from scheduler.following import Following
from scheduler.frontends import Frontends
from scheduler.intake import Intake
from scheduler.leadership import Leadership
from scheduler.phases import Phases
from scheduler.select import core_class, flavour
from scheduler.settings import Settings
from scheduler.stats import Stats, summary
from scheduler.table import ModelTable
from scheduler.timers import Timers
from symphony import wire
from symphony.bus import SUBMIT_HWM, Bus, drain, send, subscribe, tcp
from symphony.clock import ClusterClock
from symphony.faults import Faults
from symphony.membership import (
    Event,
    MemberChanged,
    Membership,
    ModelChanged,
    PlanChanged,
    Refusal,
    SlotChanged,
    describe,
)
from symphony.pace import REST_SHARE, Pace
from symphony.status import SymphonyError
from symphony.stopping import StopRequest
from symphony.waiter import Waiter

_log = logging.getLogger(__name__)

REPORT_NS: Final = 1_000_000_000
SLICE_NS: Final = 25_000_000
"""A slice of the margins and factors is worked out that often at most; thousands of GPUs take longer than a
second, but have few new completions each in one."""
GATHER_NS: Final = 50_000_000
"""Completions gather for that long, or until they are many, before they are learned from."""
TIMER_SHARE: Final = 50
GPU_SHARE: Final = 20
RESULT_SHARE: Final = 10
"""What is learned of late timers, of batches that run over or wait for their inputs, and of results' way back
is at most the tightest objective divided by these: time that is kept free serves nobody."""
MAX_SUBMIT_BYTES: Final = 4 << 20
SUBMIT_BUFFER: Final = 1 << 20
BACKLOG_TIME_SHARE: Final = 10
"""While most of it is refused for its age, a backlog is read for the tightest objective divided by this."""
WAIT, TIMERS, MEMBERS, COMPLETIONS, SUBMITS, ACT, LEARN = range(7)
MAX_DONE_BYTES: Final = 8 << 20


class Shard:
    """One shard; :meth:`start`, :meth:`run` until :meth:`stop`, :meth:`close`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.faults = Faults(_log)
        self.clock = ClusterClock()
        self.stopping = StopRequest()
        self.core: Core = core_class()(
            settings.policy,
            settings.control_ns,
            settings.data_ns,
            settings.result_ns,
            settings.margin_ns,
            settings.max_queue,
            overdue_ns=settings.overdue_ns,
        )
        self.table = ModelTable(self.core, self.faults)
        self.stats = Stats()
        self.timers = Timers(self.core, self.clock, self.stats)
        self._phases = Phases("wait", "timers", "members", "completions", "submits", "act", "learn")
        self._bus = Bus(insecure=settings.insecure)
        self._waiter = Waiter(settings.spin_ns)
        self._pace = Pace()
        self._longest_rest_ns = 0
        self._backlog_ns = 0
        self._behind = False
        self._frontends = Frontends(self._bus, settings.id, self.faults)
        self._intake = Intake(self.core, self.table, self.stats, self.timers, self._frontends, self.faults)
        self.assignment = Assignment(settings.id)
        self.fleet = Fleet(
            settings.id, self._bus, self._waiter, self.core, self.table, self.assignment, self.faults
        )
        self._report_at = 0
        self._drain_until: int | None = None
        self._learn_at = 0
        self._gather_at = 0
        self._ready: list[Any] = []
        self._leadership: Leadership | None = None

    # --- startup, loop, shutdown -------------------------------------------------------------

    def start(self) -> None:
        """Bind and begin to join.

        Raises:
            BusError: an address cannot be bound.
        """
        s = self.settings
        self._submit, submit = self._bus.bind(
            zmq.PULL, tcp(s.host), hwm=SUBMIT_HWM, max_message=MAX_SUBMIT_BYTES, buffer=SUBMIT_BUFFER
        )
        self._done, done = self._bus.bind(zmq.SUB, tcp(s.host), max_message=MAX_DONE_BYTES)
        subscribe(self._done, ["done."])
        self._publisher = self._bus.connect(zmq.PUB, s.publish)
        member = describe(
            s.id, "scheduler", endpoints={"submit": submit, "done": done}, state="ready", shard=s.id
        )
        self.membership = Membership(
            self._bus, s.registry, s.subscribe, member, clock=self.clock, faults=self.faults
        )
        self._following = Following(self.membership, self.fleet, self.table, self.assignment)
        self._leadership = Leadership(s.leading(member.incarnation))
        for watched in (self._submit, self._done, self.stopping.fd, *self.membership.sockets):
            self._waiter.register(watched)
        self._report_at = time.monotonic_ns() + REPORT_NS
        _log.info("%s: submit %s, done %s, %s core, policy %s", s.id, submit, done, flavour(), s.policy)

    def run(self) -> None:
        """Schedule until :meth:`stop`, then drain.

        Raises:
            SymphonyError: the broker refuses this shard for good.
        """
        lap = self._phases.lap
        while not self._finished():
            self._wait()
            woke = lap(WAIT)
            self.timers.fire()
            lap(TIMERS)
            self._read_completions()  # before the news that their worker has gone
            lap(COMPLETIONS)
            self._follow_members()
            self._follow_links()
            lap(MEMBERS)
            self._read_submits()
            lap(SUBMITS)
            self.timers.look_ahead(self._pace.cycle_ns)
            lap(TIMERS)
            self._act()
            acted = lap(ACT)
            self._learn_from_completions(acted)
            self._report()
            ended = lap(LEARN)
            self._pace.worked(woke, ended, 0 if self._behind else self._longest_rest_ns)
            self.stats.iterated(ended - woke)
            self._phases.turn()

    def stop(self) -> None:
        """Make :meth:`run` drain and return; from any thread or signal handler."""
        self.stopping.set()

    def close(self) -> None:
        """Answer what is left, leave, close every socket; also after :meth:`start` has failed."""
        now = self.timers.now()
        for number in range(len(self.table.names)):
            self.core.remove_model(now, number)
        self._act()
        if self._leadership is not None:
            self._leadership.close()
            self.membership.leave()
        for worker in list(self.fleet.workers.values()):
            self.fleet.gone(now, worker.member)
        self._bus.close(linger_ms=200)
        self._waiter.close()
        self.stopping.close()

    def _finished(self) -> bool:
        """Whether the loop may end: asked to stop, and nothing is queued or out any more (or too long)."""
        if not self.stopping.is_set():
            return False
        now = time.monotonic_ns()
        if self._drain_until is None:
            _log.info("%s: draining", self.settings.id)
            self._drain_until = now + int(self.settings.drain_s * 1e9)
            self._waiter.unregister(self.stopping.fd)
            self.membership.update(self.membership.me.model_copy(update={"state": "draining"}))
        empty = not self.fleet.out and not any(self.core.queued_by_model(len(self.table.names)))
        return empty or now >= self._drain_until

    # --- the loop's steps --------------------------------------------------------------------

    def _wait(self) -> None:
        due = self.clock.to_monotonic(self.core.next_wakeup())
        until = min(due, self.membership.next_wakeup(), self._report_at, self._learn_at)
        links = self.fleet.next_wakeup(self.clock.now())
        if links is not None:
            until = min(until, self.clock.to_monotonic(links))
        if self._frontends.waiting or self._drain_until is not None:
            until = min(until, time.monotonic_ns() + 10_000_000)
        self._ready = self._waiter.wait_paced(until, self._pace.until)

    def _follow_members(self) -> None:
        mono = time.monotonic_ns()
        if mono < self.membership.next_wakeup() and not any(
            s in self._ready for s in self.membership.sockets
        ):
            return
        for event in self.membership.step(mono):
            self._take_in(event)
        if self._leadership is not None:
            self._leadership.step(mono, self.membership.members)

    def _take_in(self, event: Event) -> None:
        now = self.timers.now()
        match event:
            case ModelChanged(spec):
                self._following.model(now, spec.name)
            case PlanChanged(plan):
                self._following.plan(now, plan)
            case MemberChanged(what, member):
                left = what in ("leave", "death")
                if member.role == "frontend" and not left:
                    if what == "join" and member.slot is not None:
                        self.core.forget_slot(member.slot)
                    self._frontends.saw(member)
                elif member.role == "frontend":
                    self._frontends.lost(member)
                elif member.role == "worker" and left:
                    self._following.gone(now, member)
                elif member.role == "worker":
                    self._following.worker(now, member)
            case Refusal(reason, True):
                raise SymphonyError(f"the broker refuses {self.settings.id}: {reason}")
            case Refusal(reason, False):
                _log.warning("the broker asks to wait: %s", reason)
            case SlotChanged() | _:
                pass

    def _follow_links(self) -> None:
        now = self.timers.now()
        self.fleet.read_links(now, self._ready)
        self.fleet.release(now)
        if self.fleet.changed:
            self.fleet.changed = False
            self._following.announce()
        lost = self.fleet.take_lost()
        if not lost:
            return
        self._act()
        size = [out.key.size for out in lost]
        _log.warning("sending %d requests of %d batches again", sum(size), len(lost))
        self.core.submit(
            now,
            np.repeat(np.array([out.model for out in lost], np.uint32), size),
            np.concatenate([out.deadline for out in lost]),
            np.concatenate([out.key for out in lost]),
            np.repeat(np.array([out.priority for out in lost], np.uint8), size),
            True,
        )
        self._act(lost=True)

    def _read_completions(self) -> None:
        messages = []
        for frames in drain(self._done):
            if len(frames) == 2:
                messages.append(frames[1])
            else:
                self.faults.count("done-malformed", f"{len(frames)} frames instead of two")
        if not messages:
            return
        done = wire.join_dones(messages)
        for error in done.errors:
            self.faults.count(f"done-{error.reason}", error)
        self.fleet.lessons.returning.observe(self.clock.now(), done.finished)
        self.fleet.completed(self.timers.catch_up(), done)

    def _read_submits(self) -> None:
        self._behind = False
        if self._submit in self._ready:
            incarnation = self.membership.me.incarnation
            self._behind = self._intake.read(self._submit, incarnation, self._backlog_ns)

    def _act(self, lost: bool = False) -> None:
        """Carry out what the core has decided; sending may make it decide more."""
        now = self.clock.now()
        actions = self.core.actions
        while actions.dispatched or actions.dropped:
            dispatches = actions.dispatches()
            if actions.dropped:
                drops = actions.drops()
                self.stats.dropped(np.frombuffer(drops.model, np.int64), len(self.table.names))
                self._frontends.drops(now, drops.key, drops.reason, lost)
                del drops
            plans = self.fleet.plan(dispatches)
            del dispatches
            self.core.clear_actions()
            self.fleet.send(now, plans)
        self._frontends.retry(now)

    def _learn_from_completions(self, mono: int) -> None:
        """A slice of the margins and factors at a time; once a second all, if they are not too many."""
        due = mono >= self._learn_at
        if (due and mono >= self._gather_at) or self.fleet.has_much_to_learn:
            self._gather_at = mono + GATHER_NS
            back = self.fleet.take_back()
            if back is not None:
                self.stats.completed(back, len(self.table.names))
        if due:
            self._learn_at = mono + max(SLICE_NS, REPORT_NS // self.fleet.lessons.slices)
            self.fleet.lessons.relearn(self.timers.now(), self.table.tightest_slo_ns() // GPU_SHARE)

    def _report(self) -> None:
        mono = time.monotonic_ns()
        if mono < self._report_at:
            return
        self._report_at = mono + REPORT_NS
        _, p99_us = self.stats.lateness_us()
        slo = self.table.tightest_slo_ns()
        self._longest_rest_ns = min(self.settings.rest_ns, slo // REST_SHARE)
        self._backlog_ns = slo // BACKLOG_TIME_SHARE
        learned = min(int(p99_us * 1e3) + self.clock.uncertainty_ns, slo // TIMER_SHARE)
        self.core.set_margin(max(self.settings.margin_ns, learned))
        gpus, kinds = self.fleet.gpus()
        caps = (slo // GPU_SHARE, slo // RESULT_SHARE)
        self.fleet.lessons.relearn_types(self.timers.now(), gpus, kinds, *caps)
        measured, out = self.fleet.lessons.corrections.measured, self.fleet.out.gpus()
        report = self.stats.report(self.clock.now(), self.core, self.table, gpus, out, measured)
        slow = self.fleet.lessons.slow.factors
        report["slow_gpus"] = {str(gpu): round(x, 2) for gpu, x in sorted(slow.items())}
        report["loop"] = self._phases.report()
        report["margin_us"] = self.core.margin / 1e3
        report["control_us"] = self.core.control / 1e3
        report["result_us"] = self.core.result / 1e3
        report["faults"] = dict(self.faults.counts)
        self.membership.set_stats(summary(report))
        topic = f"stats.{self.settings.id}".encode()
        if not send(self._publisher, [topic, msgpack.packb(report)]):
            self.faults.count("stats-pipe-full")
