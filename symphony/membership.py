"""The member's side of the registry: join, heartbeat, cluster clock, and a copy of who is there.

No thread and no wait of its own: the owner's loop registers :attr:`Membership.sockets` in its waiter,
calls :meth:`Membership.step` when one of them has input or :meth:`Membership.next_wakeup` has come,
and gets back what happened. While the broker is away everything that is known stays, requests are
repeated, and the data plane goes on; when it is back the member announces itself again, asks to keep
its slot and GPU numbers, and takes a new snapshot.
"""

from __future__ import annotations

import logging
import os
import random
import socket
import time
from collections.abc import Iterable
from typing import Any, Final

import zmq
from pydantic import ValidationError

from symphony import control
from symphony._version import __version__
from symphony.bus import Bus, Sock, drain, send, subscribe
from symphony.clock import ClusterClock, PingPong
from symphony.control import Member, ModelSpec, Role
from symphony.faults import Faults
from symphony.member_events import Event, Joined, Proposed, Published, Refusal, SlotChanged
from symphony.plans import Accepted, ClusterPlan, Declined, PlanEvent, Propose
from symphony.replica import (
    TOPICS,
    Change,
    MemberChanged,
    ModelChanged,
    PlanChanged,
    PlanRefused,
    Replica,
    same_record,
)
from symphony.snapshot import fetch_snapshot
from symphony.status import SymphonyError
from symphony.wire import WireError

__all__ = [
    "Change",
    "Event",
    "Joined",
    "MemberChanged",
    "Membership",
    "ModelChanged",
    "PlanChanged",
    "Proposed",
    "Published",
    "Refusal",
    "SlotChanged",
    "describe",
    "fetch_snapshot",
]

_log = logging.getLogger(__name__)

_MS: Final = 1_000_000
RETRY_NS: Final = 50 * _MS
"""Pause before a message is tried again that could not be sent, because no broker is connected."""
ANSWER_NS: Final = 1_000 * _MS
"""How long an answer may take before the question is asked again."""


def describe(member_id: str, role: Role, **fields: Any) -> Member:
    """This process as a :class:`Member`: new incarnation, host, pid and version filled in.

    Args:
        member_id: letters, digits and ``._:@/-``. ``fields``: any others of :class:`Member`.

    Raises:
        SymphonyError: a field is malformed, such as the id.
    """
    own: dict[str, Any] = {"host": socket.gethostname(), "pid": os.getpid(), "version": __version__}
    own |= {"id": member_id, "role": role, "incarnation": random.SystemRandom().getrandbits(62)}
    try:
        return Member.model_validate(own | fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise SymphonyError(f"{role} {member_id!r:.140}: {first['loc'][0]}: {first['msg']}") from None


class Membership:
    """One process's membership; see the module's text.

    Args:
        bus: makes the two sockets; it closes them, too.
        registry_endpoint: the broker's registry, e.g. ``tcp://127.0.0.1:5550``.
        subscribe_endpoint: the broker's control channel, e.g. ``tcp://127.0.0.1:5552``.
        member: this process's record, see :func:`describe`.
        models: specifications that it announces.
        clock: set by ping-pong with the broker.
        gpus_wanted: numbers to be given to so many GPUs of type ``gpu_type``; they are then in
            ``me.gpus``. 0 if ``member.gpus`` has its numbers already.
        topics: prefixes to follow besides the registry's own; their messages come as :class:`Published`.
        faults: counts what comes in malformed.
    """

    def __init__(
        self,
        bus: Bus,
        registry_endpoint: str,
        subscribe_endpoint: str,
        member: Member,
        models: Iterable[ModelSpec] = (),
        *,
        clock: ClusterClock,
        gpus_wanted: int = 0,
        gpu_type: str = "",
        topics: Iterable[str] = TOPICS,
        faults: Faults | None = None,
    ) -> None:
        self.me = member
        self.joined = False
        """Taken in at least once and not finally refused since; a broker that is away changes nothing."""
        self.clock = clock
        self.faults = faults if faults is not None else Faults(_log)
        self._announced = list(models)
        self._gpus_wanted = gpus_wanted
        self._gpu_type = gpu_type
        self._may_renumber = gpus_wanted > 0
        self._registry = bus.connect(zmq.DEALER, registry_endpoint, live_only=True)
        self._events = bus.connect(zmq.SUB, subscribe_endpoint)
        subscribe(self._events, dict.fromkeys((*TOPICS, *topics)))
        self._heartbeat_ns = 500 * _MS
        self._lease_ns = 2_000 * _MS
        self._replica = Replica(self._lease_ns)
        self._stats: dict[str, Any] | None = None
        self._now = time.monotonic_ns()
        self._heard: int | None = None
        self._leaving = False
        self._registered = False
        self._update_refused = False
        self._join_at: int | None = self._now
        self._join_sent = False
        self._heartbeat_at = self._now
        self._snapshot_at = self._now
        self._pings = PingPong(clock, self._now)

    @property
    def sockets(self) -> list[Sock]:
        """To be registered in the owner's waiter."""
        return [self._registry, self._events]

    @property
    def members(self) -> dict[str, Member]:
        """Every live member by id, this one included. Not to be changed by the owner."""
        return self._replica.members

    @property
    def models(self) -> dict[str, ModelSpec]:
        """The catalogue by name. Not to be changed by the owner."""
        return self._replica.models

    @property
    def plan(self) -> ClusterPlan | None:
        """The cluster's plan, the newest that has come; None before the first."""
        return self._replica.plan

    @property
    def synced(self) -> bool:
        """Whether a snapshot of the present broker is in, and no event is known to be missing."""
        return self._replica.synced

    @property
    def broker(self) -> int | None:
        """The broker's incarnation, None before its first answer."""
        return self._replica.broker

    @property
    def broker_alive(self) -> bool:
        """Whether the broker has answered within the last lease (as of the last :meth:`step`)."""
        return self._heard is not None and self._now - self._heard < self._lease_ns

    def next_wakeup(self) -> int:
        """Monotonic ns at which :meth:`step` wants to be called even if nothing comes in."""
        if self._leaving:
            return self._now + ANSWER_NS
        moments = [self._pings.next_at, self._join_at if not self._registered else self._heartbeat_at]
        if self._registered:
            replica = self._replica.next_wakeup() if self.synced else self._now
            moments.append(None if replica is None else max(replica, self._snapshot_at))
        return min(moment for moment in moments if moment is not None)

    def update(self, member: Member | None = None, models: Iterable[ModelSpec] | None = None) -> None:
        """Announce another record or other models; id, incarnation and slot stay what they are.

        The record is repeated until the broker has published it. Numbers that were granted to
        ``gpus_wanted`` GPUs stay, unless ``member.gpus`` names some.
        """
        if member is not None:
            kept: dict[str, Any] = {name: getattr(self.me, name) for name in ("id", "incarnation", "slot")}
            if not member.gpus:
                kept["gpus"] = self.me.gpus
            self.me = member.model_copy(update=kept)
        if models is not None:
            self._announced = list(models)
        self._update_refused = False
        if self._registered:
            self._send_update()
        elif self._join_at is None and not self._leaving:
            self._join_at = self._now

    def propose(self, proposal: Propose) -> bool:
        """Ask the broker to put a plan in force; :class:`Proposed` tells. False if none is connected."""
        return self._send(proposal)

    def follow(self, topics: Iterable[str]) -> None:
        """Follow further topics by prefix; their messages come as :class:`Published`."""
        subscribe(self._events, topics)

    def unfollow(self, topics: Iterable[str]) -> None:
        """Follow these prefixes no more."""
        for topic in topics:
            self._events.setsockopt(zmq.UNSUBSCRIBE, topic.encode())

    def set_stats(self, stats: dict[str, Any]) -> None:
        """Numbers for ``symphony status``; the next heartbeat carries them."""
        self._stats = stats

    def leave(self) -> None:
        """Say goodbye; close the bus with some ``linger_ms`` so that it is heard."""
        if not self._leaving:
            self._leaving = True
            self._send(control.Leave(id=self.me.id, incarnation=self.me.incarnation))

    def step(self, mono_ns: int) -> list[Event]:
        """Take in what has arrived, send what is due. Never raises on what others sent.

        Args:
            mono_ns: ``time.monotonic_ns()``.
        """
        self._now = mono_ns
        events: list[Event] = []
        for frames in drain(self._registry):
            self._on_answer(frames, events)
        for frames in drain(self._events):
            self._on_published(frames, events)
        if not self._leaving:
            self._send_due()
        return events

    # -- what comes in ---------------------------------------------------------------------------

    def _on_answer(self, frames: list[bytes], events: list[Event]) -> None:
        received = time.monotonic_ns()
        try:
            if len(frames) != 1:
                raise WireError("malformed", f"{len(frames)} frames instead of one")
            message = control.decode_control(frames[0])
        except WireError as error:
            self.faults.count(f"registry-{error.reason}", error)
            return
        self._heard = self._now
        match message:
            case control.Pong():
                self._pings.pong(message.t, message.now, received)
            case control.Joined():
                self._on_joined(message, events)
            case control.Beat():
                self._on_beat(message)
            case control.Snapshot():
                self._saw_broker(message.broker)
                events += self._others(self._replica.saw_snapshot(self._now, message))
                self._snapshot_at = self._now + RETRY_NS
                # The subscription may have come later than the snapshot: a beat soon tells.
                self._heartbeat_at = min(self._heartbeat_at, self._now + RETRY_NS)
            case control.Refused():
                self._on_refused(message, events)
            case Accepted():
                events.append(Proposed("", message.stamp))
            case Declined():
                self.faults.count("plan-declined", message.reason)
                events.append(Proposed(message.reason, message.have))
            case control.Left():
                pass
            case _:
                self.faults.count("registry-unexpected", message.type)

    def _saw_broker(self, broker: int) -> None:
        before = self._replica.broker
        if self._replica.saw_broker(self._now, broker) and before is not None:
            _log.info("the broker has restarted; announcing this process again")
            self._pings.restart(self._now)

    def _on_joined(self, joined: control.Joined, events: list[Event]) -> None:
        self._saw_broker(joined.broker)
        self._heartbeat_ns = joined.heartbeat_ms * _MS
        self._lease_ns = self._replica.lease_ns = joined.lease_ms * _MS
        self._heartbeat_at = self._now + self._heartbeat_ns
        self._registered, self._join_sent, self._join_at = True, False, None
        old, new = self.me.slot, joined.member.slot
        # The owner may have updated its record meanwhile: only what the broker grants is taken over.
        granted: dict[str, Any] = {"slot": new}
        if self._gpus_wanted:
            granted["gpus"], self._gpus_wanted = joined.member.gpus, 0
        self.me = self.me.model_copy(update=granted)
        if self.joined and old != new:
            events.append(SlotChanged(old, new))
        self.joined = True
        events.append(Joined(self.me))
        if not same_record(joined.member, self.me):
            self._send_update()
        self._replica.saw_sequences(self._now, joined.broker, joined.sequences)

    def _on_beat(self, beat: control.Beat) -> None:
        self._saw_broker(beat.broker)
        self._replica.saw_sequences(self._now, beat.broker, beat.sequences)
        if not beat.known and self._registered:
            self._registered = False
            self._join_at = self._now

    def _on_refused(self, refused: control.Refused, events: list[Event]) -> None:
        if not self._join_sent:
            self._update_refused = True
            events.append(Refusal(refused.reason, final=True))
            return
        self._join_sent = False
        if refused.retry_ms is not None:
            self._join_at = self._now + max(1, refused.retry_ms) * _MS
        elif self.joined and self._may_renumber and self.me.gpus:
            # Away for longer than the lease, and somebody else has the granted numbers now.
            self._gpus_wanted, self._join_at = len(self.me.gpus), self._now
            self._gpu_type = self.me.gpus[0].type
            self.me = self.me.model_copy(update={"gpus": []})
            self.joined = False
        else:
            self._join_at, self.joined = None, False
        events.append(Refusal(refused.reason, final=self._join_at is None))

    def _on_published(self, frames: list[bytes], events: list[Event]) -> None:
        try:
            if len(frames) != 3:
                raise WireError("malformed", f"{len(frames)} frames instead of 3")
            topic = frames[0].decode("ascii", "replace")
            stamp = control.decode_stamp(frames[1])
            if topic not in TOPICS:
                events.append(Published(topic, stamp.broker, stamp.seq, frames[2]))
                return
            message = control.decode_control(frames[2])
        except WireError as error:
            self.faults.count(f"channel-{error.reason}", error)
            return
        if isinstance(message, control.MemberEvent | control.ModelEvent | PlanEvent):
            events += self._others(self._replica.saw_event(stamp, message))
        else:
            self.faults.count("channel-unexpected", message.type)

    def _others(self, changes: list[Change]) -> list[Change]:
        mine = self.me.incarnation
        for change in changes:
            if isinstance(change, PlanRefused):
                self.faults.count("plan-older", f"{change.plan.stamp}; {change.have.stamp} is in force")
        return [c for c in changes if not isinstance(c, MemberChanged) or c.member.incarnation != mine]

    # -- what goes out ---------------------------------------------------------------------------

    def _send(self, message: Any) -> bool:
        return send(self._registry, control.encode_control(message))

    def _send_due(self) -> None:
        now = self._now
        if now >= self._pings.next_at:
            sent_at = time.monotonic_ns()
            sent = self._send(control.Ping(t=sent_at))
            self._pings.sent(sent_at, now + (ANSWER_NS if sent else RETRY_NS))
        if not self._registered:
            if self._join_at is not None and now >= self._join_at:
                wanted: dict[str, Any] = {"gpus_wanted": self._gpus_wanted, "gpu_type": self._gpu_type}
                join = control.Join(member=self.me, models=self._announced, **wanted)
                self._join_sent = self._send(join)
                self._join_at = now + (ANSWER_NS if self._join_sent else RETRY_NS)
            return
        if now >= self._heartbeat_at:
            self._heartbeat_at = now + (self._heartbeat_ns if self._beat() else RETRY_NS)
        if self._replica.due(now) and now >= self._snapshot_at:
            sent = self._send(control.AskSnapshot())
            self._snapshot_at = now + (ANSWER_NS if sent else RETRY_NS)

    def _beat(self) -> bool:
        beat = control.Heartbeat(id=self.me.id, incarnation=self.me.incarnation, stats=self._stats)
        if not self._send(beat):
            return False
        self._stats = None
        # An update may have been lost with a connection: repeat it until it has been published.
        if self.synced and self.me.id in self.members:
            missing = any(model.name not in self.models for model in self._announced)
            if missing or not self._replica.publishes(self.me):
                self._send_update()
        return True

    def _send_update(self) -> None:
        if not self._update_refused:
            self._send(control.Update(member=self.me, models=self._announced))
