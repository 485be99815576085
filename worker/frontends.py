"""Links to the frontends: inputs come over one socket each, results leave over another.

A request key names its frontend by slot; the membership says who has which slot. Sockets are opened
when first needed and closed when the frontend leaves or dies. What concerns a slot that nobody is
known to have yet (its announcement is still on the way) is kept until its time is up.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import zmq

from symphony.bus import Bus, BusError, Sock, send
from symphony.control import Member
from symphony.faults import Faults
from symphony.replica import MemberChanged
from symphony.waiter import Waiter

MAX_PARKED: Final = 10_000
"""Messages kept for slots that are not known yet."""


@dataclass(slots=True, eq=False)
class _Link:
    member: Member
    slots: set[int] = field(default_factory=set)
    fetch: Sock | None = None
    reply: Sock | None = None


class _Parked(NamedTuple):
    until_ns: int
    name: str
    frames: list[Any]


class Frontends:
    """See the module's text.

    Args:
        bus: makes the sockets, and closes those that are left at the end.
        waiter: watches those that inputs come from.
        faults: counts what cannot be sent.
    """

    def __init__(self, bus: Bus, waiter: Waiter, faults: Faults) -> None:
        self._bus = bus
        self._waiter = waiter
        self._faults = faults
        self._links: dict[str, _Link] = {}
        self._by_slot: dict[int, _Link] = {}
        self._parked: dict[int, list[_Parked]] = {}
        self._parked_count = 0
        self._expire_at: int | None = None
        self._gone: set[int] = set()

    # -- who is there ----------------------------------------------------------------------------

    def follow(self, change: MemberChanged) -> set[int]:
        """Take in news of any member; returns the slots whose frontend has gone."""
        member = change.member
        if member.role != "frontend":
            return set()
        if change.event in ("leave", "death"):
            return self._close(member)
        lost = set()
        link = self._links.get(member.id)
        if link is not None and (link.member.incarnation, link.member.endpoints) != (
            member.incarnation,
            member.endpoints,
        ):
            lost |= self._close(link.member)
            link = None
        if link is None:
            link = self._links[member.id] = _Link(member)
        link.member = member
        if member.slot is not None and member.slot not in link.slots:
            before = self._by_slot.pop(member.slot, None)
            if before is not None:  # the slot has been given to somebody else
                before.slots.discard(member.slot)
                lost.add(member.slot)
            # Keys of an earlier slot of the same process stay valid until it is given away.
            link.slots.add(member.slot)
            self._by_slot[member.slot] = link
            self._gone.discard(member.slot)
            self._flush(member.slot)
        return lost

    def _close(self, member: Member) -> set[int]:
        link = self._links.get(member.id)
        if link is None or link.member.incarnation != member.incarnation:
            return set()
        del self._links[member.id]
        for slot in link.slots:
            del self._by_slot[slot]
        self._gone |= link.slots
        for sock in (link.fetch, link.reply):
            if sock is not None:
                self._waiter.unregister(sock)
                self._bus.drop(sock)
        return link.slots

    # -- what goes out ---------------------------------------------------------------------------

    def fetch(self, slot: int, frame: bytes, until_ns: int) -> bool:
        """Ask for inputs; if the slot is not known by ``until_ns``, nothing is asked.

        False if the slot's frontend has gone: nobody will answer.
        """
        if slot in self._gone:
            self._faults.count("fetch-frontend-gone", slot)
            return False
        self._send(slot, _Parked(until_ns, "fetch", [frame]))
        return True

    def reply(self, slot: int, frames: list[Any], until_ns: int) -> None:
        """Send a result; if the slot is not known by ``until_ns``, nobody gets it."""
        if slot in self._gone:
            self._faults.count("reply-frontend-gone", slot)
            return
        self._send(slot, _Parked(until_ns, "reply", frames))

    def _send(self, slot: int, message: _Parked) -> None:
        link = self._by_slot.get(slot)
        if link is None:
            if self._parked_count >= MAX_PARKED:
                self._faults.count(f"{message.name}-unknown-slot", slot)
                return
            self._parked.setdefault(slot, []).append(message)
            self._parked_count += 1
            self._expire_at = min(message.until_ns, self._expire_at or message.until_ns)
            return
        sock = self._socket(link, message.name)
        if sock is None:
            self._faults.count(f"{message.name}-no-endpoint", link.member.id)
        elif not send(sock, message.frames, copy=False):
            self._faults.count(f"{message.name}-full", link.member.id)

    def _socket(self, link: _Link, name: str) -> Sock | None:
        sock = link.fetch if name == "fetch" else link.reply
        endpoint = link.member.endpoints.get(name)
        if sock is not None or endpoint is None:
            return sock
        try:
            sock = self._bus.connect(zmq.DEALER if name == "fetch" else zmq.PUSH, endpoint)
        except BusError as error:
            self._faults.count(f"{name}-bad-endpoint", error)
            return None
        if name == "fetch":
            link.fetch = sock
            self._waiter.register(sock)
        else:
            link.reply = sock
        return sock

    def _flush(self, slot: int) -> None:
        messages = self._parked.pop(slot, [])
        self._parked_count -= len(messages)
        for message in messages:
            self._send(slot, message)

    def expire(self, now: int) -> None:
        """Give up what is kept for slots that did not become known in time."""
        if self._expire_at is None or now < self._expire_at:
            return
        for slot, messages in list(self._parked.items()):
            kept = [message for message in messages if message.until_ns > now]
            for message in messages:
                if message.until_ns <= now:
                    self._faults.count(f"{message.name}-unknown-slot", slot)
            self._parked_count -= len(messages) - len(kept)
            if kept:
                self._parked[slot] = kept
            else:
                del self._parked[slot]
        self._expire_at = min((m.until_ns for held in self._parked.values() for m in held), default=None)

    def next_wakeup(self) -> int | None:
        """When :meth:`expire` may have something to do; None while nothing is kept."""
        return self._expire_at

    # -- what comes in ---------------------------------------------------------------------------

    def arrived(
        self, ready: Collection[Any], limit: int = 100
    ) -> Iterator[tuple[set[int], bytes, list[Any]]]:
        """Answers to fetches as ``(slots of the sender, header, tensor frames)``.

        At most ``limit`` messages from each of the sockets in ``ready``. Tensor frames are views of the
        message's memory.
        """
        for link in [link for link in self._links.values() if link.fetch in ready]:
            fetch = link.fetch
            for _ in range(limit if fetch is not None else 0):
                assert fetch is not None
                try:
                    header, *rest = fetch.recv_multipart(zmq.NOBLOCK, copy=False)
                except zmq.Again:
                    break
                yield link.slots, header.bytes, [frame.buffer for frame in rest]
