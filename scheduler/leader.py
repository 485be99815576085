"""The leader's process: follows the cluster, runs the allocator, and proposes plans.

The shard that leads starts it (:mod:`scheduler.leadership`) and it ends with that shard: as a process of
its own, so that neither a plan of a thousand models nor the solver ever delays a batch. The decisions are
made by :mod:`scheduler.epochs` and :mod:`scheduler.autoscaling`; here is what they need of the world.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, Final

import msgpack
import zmq

from scheduler.actuators.base import request_of
from scheduler.actuators.command import CommandActuator
from scheduler.allocation import AllocationError, Network, Plan, allocate
from scheduler.census import leader_of
from scheduler.epochs import Action, Allocate, Epochs, Offer, Tell, View
from scheduler.leadership import LeaderSettings
from scheduler.subclusters import SubClusters
from symphony.bus import Bus, send
from symphony.clock import ClusterClock
from symphony.control import encode_control
from symphony.faults import Faults
from symphony.membership import MemberChanged, Membership, Proposed, Published, Refusal, describe
from symphony.plans import Propose
from symphony.scaling import EpochConfig, planned_headroom
from symphony.stopping import StopRequest
from symphony.supervisor import die_with_parent
from symphony.topics import decode_body
from symphony.waiter import Waiter
from symphony.wire import WireError

_log = logging.getLogger("scheduler.leader")  # it is run as a program, too

TICK_NS: Final = 100_000_000
"""While a plan is on its way; what members tell wakes the loop besides."""
IDLE_NS: Final = 1_000_000_000
PLANNING: Final = 0.1
"""Share of an epoch that the solver may take: the load that it plans for is moving on."""
LEAST_PLANNING_S: Final = 0.5
UNSAID: Final = ("what", "reasons", "utilization")
"""Fields of events that are published and not logged."""


class Leader:
    """One run of the leading process; :meth:`run` until :meth:`stop`."""

    def __init__(self, settings: LeaderSettings) -> None:
        self.settings = settings
        self.faults = Faults(_log)
        self.stopping = StopRequest()
        network = Network(settings.control_us, settings.data_us, settings.result_us)
        epoch = settings.epoch or EpochConfig(seconds=0)
        if settings.autoscale.actuator != "none":
            room = planned_headroom(epoch.headroom, settings.autoscale)
            epoch = epoch.model_copy(update={"headroom": room})
        self._epochs = Epochs(settings.shard, epoch, network)
        spent = settings.control_us + settings.result_us
        self._scaling = SubClusters(
            settings.shard, settings.autoscale, round(spent * 1e3), round(settings.data_us * 1e3)
        )
        self._actuator: CommandActuator | None = None
        if settings.autoscale.actuator == "command":
            self._actuator = CommandActuator(settings.autoscale.command, settings.autoscale.command_timeout_s)
        self._clock = ClusterClock()
        self._answers: list[tuple[Plan | None, str]] = []
        self._told: set[str] = set()
        """Shards whose statistics have come since the last round of all of them."""
        self._ear, self._bell = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._solving: threading.Thread | None = None

    def stop(self) -> None:
        """Make :meth:`run` return; from any thread or signal handler."""
        self.stopping.set()

    def run(self) -> None:
        """Lead for as long as the shard is the one that is to."""
        s = self.settings
        waiter = Waiter()
        with Bus(s.insecure) as bus:
            self._publisher = bus.connect(zmq.PUB, s.publish)
            member = describe(f"leader/{s.shard}/{s.incarnation}", "ops", state="ready")
            self._membership = Membership(
                bus, s.registry, s.subscribe, member, clock=self._clock, topics=["stats."], faults=self.faults
            )
            for source in (*self._membership.sockets, self._ear, self.stopping.fd):
                waiter.register(source)
            try:
                self._loop(waiter)
            finally:
                self._membership.leave()
                waiter.close()
                bus.close(linger_ms=100)
                self.stopping.close()
                if self._actuator is not None:
                    self._actuator.close()
                if self._solving is not None and s.epoch is not None:
                    self._solving.join(s.epoch.time_limit_s)

    def _loop(self, waiter: Waiter) -> None:
        tick_at = time.monotonic_ns()
        while not self.stopping.is_set():
            if self._ear in waiter.wait(min(tick_at, self._membership.next_wakeup())):
                os.read(self._ear, 64)
            mono = time.monotonic_ns()
            news = self._follow(mono)
            if news or mono >= tick_at:
                self._step()
                tick_at = mono + (TICK_NS if self._epochs.moving or self._actuator is not None else IDLE_NS)

    def _follow(self, mono: int) -> bool:
        """Take in what has come; whether there is news. Statistics are some once all shards have told."""
        news = False
        for event in self._membership.step(mono):
            match event:
                case Published(topic=topic, body=body):
                    self._take_stats(topic, body)
                    if not self._round_complete(topic):
                        continue
                case MemberChanged("leave" | "death", member):
                    self._epochs.census.gone(member.id)
                    self._scaling.gone(member.id)
                case Proposed(reason=reason):
                    self._epochs.answered(self._clock.now(), not reason)
                case Refusal(reason=reason):
                    _log.warning("the broker says: %s", reason)
                case _:
                    pass
            news = True
        while self._answers:
            plan, problem = self._answers.pop(0)
            self._do(self._epochs.allocated(self._clock.now(), plan, self._view(), problem))
            news = True
        return news

    def _round_complete(self, topic: str) -> bool:
        self._told.add(topic.partition(".")[2])
        members = self._membership.members.values()
        if any(m.role == "scheduler" and m.state == "ready" and m.id not in self._told for m in members):
            return False
        self._told.clear()
        return True

    def _take_stats(self, topic: str, body: bytes) -> None:
        family, _, shard = topic.partition(".")
        try:
            stats = decode_body(family, shard, body)
        except WireError as error:
            self.faults.count(f"stats-{error.reason}", error)
            return
        member = self._membership.members.get(shard)
        if member is None or member.role != "scheduler":
            self.faults.count("stats-of-a-stranger", shard)
        elif not isinstance(stats, dict) or not self._epochs.census.saw(shard, stats):
            self.faults.count("stats-without-numbers", shard)
        elif self.settings.autoscale.actuator != "none" and self._view().leads:
            self._scale(shard, stats)

    def _scale(self, shard: str, stats: Mapping[str, Any]) -> None:
        """Decide about one shard's sub-cluster, publish it, and have it carried out if that is done here."""
        m = self._membership
        try:
            moving = self._epochs.under_way(self._clock.now())
            decision = self._scaling.saw(shard, stats, m.members, m.models, m.plan, moving)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            self.faults.count("stats-without-numbers", f"{shard}: {type(error).__name__}: {error}")
            return
        if decision is None:
            return
        if not send(self._publisher, [f"decision.{shard}".encode(), encode_control(decision)]):
            self.faults.count("decision-pipe-full", shard)
        if decision.kind != "hold":
            _log.info("%s: %s to %s: %s", shard, decision.kind, decision.requested, decision.reason)
            if self._actuator is not None:
                self._actuator.submit(request_of(decision), time.monotonic_ns())

    def _view(self) -> View:
        membership, s = self._membership, self.settings
        mine = membership.members.get(s.shard)
        leads = (
            membership.synced
            and self._clock.synced
            and mine is not None
            and mine.incarnation == s.incarnation
            and leader_of(membership.members.values()) == s.shard
        )
        return View(leads, membership.members, membership.models, membership.plan, membership.broker)

    def _step(self) -> None:
        for outcome in self._actuator.poll(time.monotonic_ns()) if self._actuator is not None else ():
            self._scaling.answered(outcome)
            self._tell({"what": "actuator", "key": outcome.key, "code": outcome.code, "why": outcome.detail})
        if self.settings.epoch is not None:
            self._do(self._epochs.step(self._clock.now(), self._view()))

    # -- what is decided -------------------------------------------------------------------------

    def _do(self, actions: list[Action]) -> None:
        s = self.settings
        for action in actions:
            match action:
                case Offer(plan, base):
                    _log.info("proposing %s", plan.stamp)
                    proposal = Propose(id=s.shard, incarnation=s.incarnation, plan=plan, base=base)
                    if not self._membership.propose(proposal):
                        self._epochs.answered(self._clock.now(), False)
                case Allocate():
                    self._allocate(action)
                case Tell(event):
                    self._tell(event)

    def _allocate(self, action: Allocate) -> None:
        self._tell({"what": "planning", "why": action.why})
        self._solving = threading.Thread(target=self._solve, args=(action,), name="allocate", daemon=True)
        self._solving.start()

    def _solve(self, action: Allocate) -> None:
        """In a thread: the loop goes on meanwhile."""
        epoch = self.settings.epoch or EpochConfig()
        limit = min(epoch.time_limit_s, max(LEAST_PLANNING_S, PLANNING * epoch.seconds))
        try:
            self._answers.append((allocate(action.cluster, time_limit_s=limit), ""))
        except (AllocationError, RuntimeError, ValueError, ArithmeticError) as error:
            self._answers.append((None, f"{type(error).__name__}: {error}"))
            _log.exception("the allocator failed")
        os.write(self._bell, b"x")

    def _tell(self, event: Mapping[str, Any]) -> None:
        said = {key: value for key, value in event.items() if key not in UNSAID and value not in ({}, "")}
        _log.info("%s: %s", event["what"], ", ".join(f"{key} {value}" for key, value in said.items()))
        body = {"v": 1, "at": self._clock.now(), "leader": self.settings.shard, **event}
        if not send(self._publisher, [f"event.{self.settings.shard}".encode(), msgpack.packb(body)]):
            self.faults.count("event-pipe-full")


def main() -> None:
    """Lead as the JSON of the first argument says, until SIGTERM or the shard's end."""
    die_with_parent()
    logging.basicConfig(
        level=os.environ.get("SYMPHONY_LOG_LEVEL", "info").upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    settings = LeaderSettings.model_validate(json.loads(sys.argv[1]))
    os.setpriority(os.PRIO_PROCESS, 0, 0)  # the shard's own may be lower
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the shard says when it is over
    leader = Leader(settings)
    with leader.stopping.on_signals():
        leader.run()


if __name__ == "__main__":
    main()
