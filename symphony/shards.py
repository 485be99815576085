"""The sockets to the scheduler shards: one PUSH each, watched, with what gathers for it.

A submit message leaves at once when the line has been idle for :data:`GATHER_NS`, and otherwise
carries what gathered in that time, at most :data:`MOST` requests: one encode, one system call and
one wake-up of the shard for many requests, at a price of a fraction of a millisecond under load.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import zmq

from symphony import wire
from symphony.bus import SUBMIT_HWM, Bus, BusError, Sock, link_events, send
from symphony.control import Member
from symphony.faults import Faults
from symphony.membership import Event, MemberChanged, PlanChanged
from symphony.pending import Outcome, PendingTable, Request
from symphony.routing import Link, Routes
from symphony.status import Status
from symphony.waiter import Waiter

MOST: Final = 256
"""Requests in one submit message."""
GATHER_NS: Final = 200_000
"""Least time between two submit messages to one shard, unless one is full."""


class _Shard:
    """One shard's socket, its monitor, and the requests that wait for the next message."""

    __slots__ = ("gathered", "link", "monitor", "sent_at", "sock")

    def __init__(self, link: Link, sock: Sock, monitor: Sock) -> None:
        self.link = link
        self.sock = sock
        self.monitor = monitor
        self.sent_at = 0
        self.gathered: list[Request] = []


class Shards:
    """Follows the membership's schedulers and sends requests to them.

    Args:
        bus: makes the sockets.
        waiter: watches the monitors.
        handlers: what the owner's loop calls when a socket has input; monitors are entered here.
        table: the requests in flight.
        now: cluster time, for outcomes.
        faults: counts refused endpoints and full pipes.
    """

    def __init__(
        self,
        bus: Bus,
        waiter: Waiter,
        handlers: dict[Any, Callable[[], None]],
        table: PendingTable,
        now: Callable[[], int],
        faults: Faults,
    ) -> None:
        self.routes = Routes()
        self.changed = False
        """Set when a way may have opened or closed; the owner clears it."""
        self._bus = bus
        self._waiter = waiter
        self._handlers = handlers
        self._table = table
        self._now = now
        self._faults = faults
        self._shards: dict[str, _Shard] = {}
        self._busy: list[_Shard] = []
        self._slot = 0
        self._sequence = 0
        self._sent_at = 0

    # -- who is there ----------------------------------------------------------------------------

    def follow(self, event: Event, now: int) -> None:
        """Take in a change of the membership; ``now`` is monotonic ns."""
        if isinstance(event, PlanChanged):
            self.routes.follow(event.plan.routes)
            self.changed = True
            return
        if not isinstance(event, MemberChanged) or event.member.role != "scheduler":
            return
        member = event.member
        self.changed = True
        known = self._shards.get(member.id)
        if known is not None and known.link.member.incarnation != member.incarnation:
            if event.event in ("leave", "death"):
                return  # of a predecessor
            self._close(known, "was replaced by a newer process")
            known = None
        if event.event in ("leave", "death"):
            if known is not None:
                self._close(known, "has left" if event.event == "leave" else "has died")
        elif known is not None:
            self._send(known)  # its indexes are those of the table as it was
            self.routes.put(member, now)
        else:
            self._open(member, now)

    def _open(self, member: Member, now: int) -> None:
        endpoint = member.endpoints.get("submit", "")
        try:
            sock, monitor = self._bus.connect_watched(zmq.PUSH, endpoint, hwm=SUBMIT_HWM)
        except BusError as error:
            self._faults.count("shard-endpoint", f"{member.id}: {error}")
            return
        shard = _Shard(self.routes.put(member, now), sock, monitor)
        self._shards[member.id] = shard
        self._waiter.register(monitor)
        self._handlers[monitor] = lambda: self._follow_link(shard)

    def _close(self, shard: _Shard, why: str) -> None:
        member = shard.link.member
        for request in shard.gathered:
            self._table.finish(request, Outcome(Status.UNAVAILABLE, self._now(), f"{member.id} {why}"))
        shard.gathered = []
        self.routes.remove(member.id, f"{member.id} {why} before the answer came")
        del self._shards[member.id]
        self._waiter.unregister(shard.monitor)
        del self._handlers[shard.monitor]
        self._bus.drop(shard.sock)
        shard.monitor.close()

    def _follow_link(self, shard: _Shard) -> None:
        member = shard.link.member
        for up in link_events(shard.monitor):
            self.changed = True
            if up:
                self.routes.connected(member.id)
            else:
                why = f"the connection to {member.id} was lost before the answer came"
                self.routes.disconnected(member.id, why)

    # -- what goes out ---------------------------------------------------------------------------

    def number(self, slot: int, sequence: int | None = None) -> None:
        """Keys carry ``slot`` from now on; ``sequence`` sets where they start."""
        self._flush_all()
        self._slot = slot
        if sequence is not None:
            self._sequence = sequence

    def gather(self, request: Request, link: Link) -> None:
        """Number an admitted request and put it into the shard's next message."""
        shard = self._shards[link.member.id]
        assert link.line is not None
        self._sequence += 1
        self._table.assign(request, (self._slot << wire.SLOT_SHIFT) | self._sequence, link.line)
        if not shard.gathered:
            self._busy.append(shard)
        shard.gathered.append(request)
        if len(shard.gathered) >= MOST:
            self._send(shard)

    def flush(self, now: int) -> None:
        """Send what has gathered on lines that are idle."""
        if self._busy:
            for shard in self._busy:
                if now - shard.sent_at >= GATHER_NS:
                    self._send(shard)
            self._busy = [shard for shard in self._busy if shard.gathered]

    def held_until(self, now: int) -> int | None:
        """Until when some line is busy, so that waking up for one more request would be in vain."""
        until = self._sent_at + GATHER_NS
        return until if until > now else None

    def _flush_all(self) -> None:
        for shard in self._busy:
            self._send(shard)
        self._busy = []

    def _send(self, shard: _Shard) -> None:
        requests = [request for request in shard.gathered if not request.done]
        shard.gathered = []
        if not requests:
            return
        link = shard.link
        message = wire.encode_submit(
            wire.Submit(
                incarnation=link.member.incarnation,
                slot=self._slot,
                model=np.array([link.index[r.model] for r in requests], dtype=np.uint32),
                deadline=np.array([r.deadline for r in requests], dtype=np.int64),
                key=np.array([r.key for r in requests], dtype=np.uint64),
                priority=_priorities(requests),
            )
        )
        shard.sent_at = self._sent_at = time.monotonic_ns()
        if not send(shard.sock, message):
            self._refused(shard, requests)

    def _refused(self, shard: _Shard, requests: list[Request]) -> None:
        self._follow_link(shard)
        name = shard.link.member.id
        if shard.link.line is None:
            outcome = Outcome(Status.UNAVAILABLE, self._now(), f"the connection to {name} was lost")
        else:
            self._faults.count("submit-full", name)
            outcome = Outcome(Status.OVERLOADED, self._now(), f"the pipe to {name} is full; retry later")
        for request in requests:
            self._table.finish(request, outcome)

    def close(self) -> None:
        """Close the monitors; the sockets are the bus's."""
        for shard in list(self._shards.values()):
            self._close(shard, "was given up")


def _priorities(requests: list[Request]) -> wire.U8 | None:
    if not any(r.priority for r in requests):
        return None
    return np.array([r.priority for r in requests], dtype=np.uint8)
