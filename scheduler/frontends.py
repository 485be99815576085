"""The shard's way back to frontends: answers for requests that will have no result."""

from __future__ import annotations

import logging
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import zmq

from scheduler.core.limits import (
    DUPLICATE,
    EXPIRED,
    FULL,
    HANDED_BACK,
    OUT_OF_RANGE,
    REASONS,
    UNKNOWN,
    UNSERVED,
    WINDOW,
)
from symphony import wire
from symphony.bus import Bus, BusError, Sock, send
from symphony.control import Member
from symphony.faults import Faults
from symphony.status import Status

_log = logging.getLogger(__name__)

PATIENCE_NS: Final = 2_000_000_000
"""How long answers wait for a frontend that the registry has not told of yet."""
PARKED: Final = 10_000
"""Messages that may wait so."""

STATUS_OF: Final = np.zeros(len(REASONS), np.uint8)
"""Status by the core's reason; a duplicate has none, since its first copy will be answered."""
STATUS_OF[[EXPIRED, WINDOW]] = Status.DROPPED
STATUS_OF[FULL] = Status.OVERLOADED
STATUS_OF[UNKNOWN] = Status.UNKNOWN_MODEL
STATUS_OF[OUT_OF_RANGE] = Status.INVALID
STATUS_OF[[UNSERVED, HANDED_BACK]] = Status.UNAVAILABLE
assert STATUS_OF[DUPLICATE] == Status.OK

U64 = npt.NDArray[np.uint64]
U8 = npt.NDArray[np.uint8]


class Frontends:
    """One PUSH socket per frontend, by slot.

    Args:
        bus: makes the sockets.
        source: the shard's id, in every answer.
        faults: counts what could not be delivered.
    """

    def __init__(self, bus: Bus, source: str, faults: Faults) -> None:
        self._bus = bus
        self._source = source
        self._faults = faults
        self._socks: dict[int, tuple[Sock, str]] = {}
        self._parked: list[tuple[int, int, bytes]] = []

    def saw(self, member: Member) -> None:
        """A frontend is there, or has another slot or endpoint."""
        endpoint = member.endpoints.get("reply", "")
        if member.slot is None or not endpoint:
            return
        for slot, (_, other) in list(self._socks.items()):
            if other == endpoint and slot != member.slot:
                self._close(slot)
        known = self._socks.get(member.slot)
        if known is not None and known[1] == endpoint:
            return
        if known is not None:
            self._close(member.slot)
        try:
            self._socks[member.slot] = (self._bus.connect(zmq.PUSH, endpoint), endpoint)
        except BusError as error:
            self._faults.count("frontend-endpoint", error)

    def lost(self, member: Member) -> None:
        """A frontend has left or died."""
        known = self._socks.get(-1 if member.slot is None else member.slot)
        if known is not None and known[1] == member.endpoints.get("reply"):
            assert member.slot is not None
            self._close(member.slot)

    def _close(self, slot: int) -> None:
        sock, _ = self._socks.pop(slot)
        self._bus.drop(sock)

    def drops(self, now: int, key: Any, reason: Any, lost: bool = False) -> None:
        """Tell the frontends of dropped requests, by the core's reason.

        Args:
            now: ns, for answers that must wait.
            key: uint64 column.
            reason: int64 column of the core's codes.
            lost: the requests came back from a worker that is gone: what cannot be sent again in
                time is UNAVAILABLE, not DROPPED.
        """
        keys = np.frombuffer(key, np.uint64)
        status = STATUS_OF[np.frombuffer(reason, np.int64)]
        if lost:
            status = np.where(status == Status.DROPPED, np.uint8(Status.UNAVAILABLE), status)
        told = status != Status.OK
        if not told.all():
            self._faults.count("duplicate-key", n=int((~told).sum()))
            keys, status = keys[told], status[told]
        self.answer(now, keys, status)

    def answer(self, now: int, key: U64, status: U8, detail: str | None = None) -> None:
        """One message per frontend that has requests among these; any order of keys."""
        if key.size == 0:
            return
        slots = (key >> np.uint64(wire.SLOT_SHIFT)).astype(np.int64)
        if (slots == slots[0]).all():  # by far the most frequent case
            self._answer(now, int(slots[0]), key, status, detail)
            return
        order = np.argsort(slots, kind="stable")
        edges = np.flatnonzero(np.diff(slots[order])) + 1
        for part in np.split(order, edges):
            self._answer(now, int(slots[part[0]]), key[part], status[part], detail)

    def _answer(self, now: int, slot: int, key: U64, status: U8, detail: str | None) -> None:
        for at in range(0, key.size, wire.MAX_REQUESTS):
            some = slice(at, at + wire.MAX_REQUESTS)
            frame = wire.encode_answer(wire.Answer(self._source, key[some], status[some], detail))
            self._send(now, slot, frame)

    def _send(self, now: int, slot: int, frame: bytes) -> None:
        known = self._socks.get(slot)
        if known is None:
            if len(self._parked) < PARKED:
                self._parked.append((now, slot, frame))
            else:
                self._faults.count("answer-undeliverable", f"slot {slot}")
        elif not send(known[0], frame):
            self._faults.count("answer-pipe-full", f"slot {slot}")

    def retry(self, now: int) -> None:
        """Send what waited for frontends that are known by now; forget what waited too long."""
        if not self._parked:
            return
        waiting, self._parked = self._parked, []
        for since, slot, frame in waiting:
            if slot in self._socks:
                self._send(now, slot, frame)
            elif now - since < PATIENCE_NS:
                self._parked.append((since, slot, frame))
            else:
                self._faults.count("answer-undeliverable", f"slot {slot}")

    @property
    def waiting(self) -> bool:
        """Whether answers wait for a frontend."""
        return bool(self._parked)
