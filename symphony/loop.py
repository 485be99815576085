"""What the engine's thread does: wait, take what came, send what is due, give up what is late."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final, Protocol

import zmq

from symphony import answers, fetches
from symphony.bus import Bus, drain, send, tcp
from symphony.clock import ClusterClock
from symphony.control import Member, ModelSpec
from symphony.faults import Faults
from symphony.intake import Intake
from symphony.membership import Membership, Refusal, SlotChanged
from symphony.pending import Outcome, PendingTable, Request
from symphony.shards import MOST, Shards
from symphony.status import InvalidRequest, Status
from symphony.tensors import encode_inputs
from symphony.waiter import Waiter

MAX_FETCH_BYTES: Final = 1 << 20
ANSWERS: Final = 1_000
"""Messages with answers that one turn takes at most."""
CATCH_UP_NS: Final = 2_000_000_000
"""How much longer than its time a request is kept while answers arrive faster than they are taken: its own
may be among those that wait to be read."""
SEQUENCE_TICK: Final = 14


class Owner(Protocol):
    """Whom the loop tells what concerns callers; called on the loop's thread."""

    def opened(self) -> None:
        """Requests can be submitted."""

    def refused(self, refusal: Refusal) -> None:
        """The broker does not take this process in."""

    def changed(self) -> None:
        """Which models can be reached may have changed."""


class Loop:
    """The sockets of one engine and what to do when they have something.

    Args:
        owner: is told what concerns callers.
        bus: makes the sockets, and closes them.
        intake: where requests come from.
        table: the requests in flight.
        clock: cluster time.
        faults: counters.
        member: this process; its ``fetch`` and ``reply`` endpoints are filled in.
        registry, subscribe: the broker's endpoints.
        host: address to bind.
        grace_ns: how long after its deadline a request is given up.
        patience_ns: how long a request of a model that is not known yet may wait.

    Raises:
        BusError: an endpoint is malformed or cannot be bound.
    """

    def __init__(
        self,
        owner: Owner,
        bus: Bus,
        intake: Intake,
        table: PendingTable,
        clock: ClusterClock,
        faults: Faults,
        member: Member,
        *,
        registry: str,
        subscribe: str,
        host: str,
        grace_ns: int,
        patience_ns: int,
    ) -> None:
        self.reachable: frozenset[str] = frozenset()
        """Models that some connected shard serves; replaced, never changed."""
        self._owner = owner
        self._intake = intake
        self._table = table
        self._clock = clock
        self._faults = faults
        self._grace_ns = grace_ns
        self._patience_ns = patience_ns
        self._fetch, fetch = bus.bind(zmq.ROUTER, tcp(host), max_message=MAX_FETCH_BYTES)
        self._reply, reply = bus.bind(zmq.PULL, tcp(host))
        member = member.model_copy(update={"endpoints": {"fetch": fetch, "reply": reply}})
        self.membership = Membership(bus, registry, subscribe, member, clock=clock, faults=faults)
        self._waiter = Waiter()
        self._handlers: dict[Any, Callable[[], None]] = {
            self._fetch: self._serve_fetches,
            self._reply: self._take_answers,
            intake.listen().fileno(): intake.swallow,
        }
        for sock in self.membership.sockets:
            self._handlers[sock] = self._follow_cluster
        for sock in self._handlers:
            self._waiter.register(sock)
        self._shards = Shards(bus, self._waiter, self._handlers, table, clock.now, faults)
        self._cluster_due = 0
        self._parked: list[Request] = []
        self._open = False
        self._behind = False
        """More answers may have arrived than were taken in this turn."""

    def run(self) -> None:
        """Until the intake is closed and every request has its outcome, or its time is up."""
        while not self._finished():
            ready = self._waiter.wait(self._next_wakeup())
            now = time.monotonic_ns()
            self._behind = False
            if now >= self._cluster_due:
                self._follow_cluster()
            for sock in ready:
                handler = self._handlers.get(sock)
                if handler is not None:
                    handler()
            self._follow_routes(now)
            self._take_requests(now)
            self._shards.flush(now)
            # What has arrived is an answer, however late it is looked at.
            self._table.expire(now - CATCH_UP_NS if self._behind else now, self._clock.now())

    def close(self) -> None:
        """Say goodbye; the bus closes the sockets."""
        self.membership.leave()
        self._shards.close()
        self._waiter.close()

    def _finished(self) -> bool:
        end = self._intake.closes_at
        if end is None:
            return False
        return (self._table.live == 0 and not len(self._intake)) or time.monotonic_ns() >= end

    def _next_wakeup(self) -> int:
        now = time.monotonic_ns()
        # While a line is busy nothing new would leave, so nobody needs to wake the loop for it.
        # A full message does leave, busy or not.
        held = None if len(self._intake) >= MOST else self._shards.held_until(now)
        if held is None and self._take_requests(now, sleep=True):
            self._shards.flush(now)
            held = self._shards.held_until(now)
            if held is None:
                return now
        moments = [self._cluster_due, held, self._table.next_expiry(), self._intake.closes_at]
        if self._parked:
            moments.append(self._shards.routes.connecting(now))
        return min(moment for moment in moments if moment is not None)

    # -- requests --------------------------------------------------------------------------------

    def _take_requests(self, now: int, sleep: bool = False) -> bool:
        requests = self._intake.take(sleep)
        for request in requests:
            if request.deadline:
                expires = self._clock.to_monotonic(request.deadline) + self._grace_ns
            else:
                expires = now + self._patience_ns
            self._table.admit(request, expires)
            self._send(request, now)
        return bool(requests)

    def _send(self, request: Request, now: int) -> None:
        link = self._shards.routes.pick(request.model)
        if link is None:
            self._explain(request, now)
        elif self._complete(request):
            self._shards.gather(request, link)

    def _complete(self, request: Request) -> bool:
        """Do what could not be done at the door, because the model was not known there yet."""
        if request.deadline and request.raw is None:
            return True
        spec = self.membership.models.get(request.model)
        if spec is None:  # the shard's record has come before the model's
            self._parked.append(request)
            return False
        if not request.deadline:
            request.deadline = request.submitted + slo_ns(spec)
            self._table.reschedule(request, self._clock.to_monotonic(request.deadline) + self._grace_ns)
        if request.raw is not None:
            try:
                request.inputs = encode_inputs(spec.inputs, request.raw)
            except InvalidRequest as error:
                self._table.finish(request, Outcome(Status.INVALID, self._clock.now(), str(error)))
                return False
            request.raw = None
        return True

    def _explain(self, request: Request, now: int) -> None:
        """Nobody takes it: say why, or let it wait if a connection may yet come about."""
        refusal = self._shards.routes.refusal(request.model, self.membership.models, now)
        if refusal is None:
            self._parked.append(request)
        else:
            self._table.finish(request, Outcome(refusal[0], self._clock.now(), refusal[1]))

    def _follow_routes(self, now: int) -> None:
        changed, self._shards.changed = self._shards.changed, False
        if changed:
            self.reachable = self._shards.routes.reachable()
            self._owner.changed()
        if self._parked and (changed or self._shards.routes.connecting(now) is None):
            parked, self._parked = self._parked, []
            for request in parked:
                if not request.done:
                    self._send(request, now)

    # -- sockets ---------------------------------------------------------------------------------

    def _take_answers(self) -> None:
        at = self._clock.now()
        taken = 0
        for frames in drain(self._reply, ANSWERS):
            answers.take(frames, self._table, at, self._faults)
            taken += 1
        self._behind = taken == ANSWERS

    def _serve_fetches(self) -> None:
        for frames in drain(self._fetch):
            answer = fetches.serve(frames, self._table, self._faults)
            if answer is not None and not send(self._fetch, answer, copy=False):
                self._faults.count("fetch-peer-gone")

    def _follow_cluster(self) -> None:
        now = time.monotonic_ns()
        for event in self.membership.step(now):
            if isinstance(event, Refusal):
                self._owner.refused(event)
            elif isinstance(event, SlotChanged):
                self._shards.number(event.new or 0)
            else:
                self._shards.follow(event, now)
                self._shards.changed = True
        self._cluster_due = self.membership.next_wakeup()
        if not self._open and self.membership.joined and self.membership.synced and self._clock.synced:
            self._open = True
            self._shards.number(self.membership.me.slot or 0, first_sequence())
            self._owner.opened()


def slo_ns(spec: ModelSpec) -> int:
    """A model's latency objective in ns."""
    return int(spec.slo_ms * 1e6)


def first_sequence() -> int:
    """Where a client's sequence numbers start: with the wall clock, in ticks of 16 µs.

    A shard refuses keys of a slot that do not rise. A slot is given again when its client is gone,
    and this start lies beyond what the earlier client has used unless that one kept up more than
    61,000 requests/s. Below 2^47 until the year 2043.
    """
    return time.time_ns() >> SEQUENCE_TICK
