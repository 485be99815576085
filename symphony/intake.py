"""The door of the engine: where requests of many threads become the work of one.

Callers leave requests in a list under a lock; if the engine sleeps, the first of them wakes it with a
byte on a socket, and the others need not. Behind the same lock stands whether requests are still
taken, so none can slip in after the engine has looked for the last time.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import Final

from symphony.pending import PendingTable, Request
from symphony.status import Overloaded, Unavailable

TURN: Final = 1_024
"""Requests taken at once: between two turns the engine answers workers and keeps its lease."""


class Intake:
    """See the module's text.

    Args:
        table: the requests that have been taken already; they count towards ``most``.
        most: requests in flight; beyond it :meth:`put` refuses.
    """

    def __init__(self, table: PendingTable, most: int) -> None:
        self.refusing: str | None = "the client is not connected"
        """Why nothing is taken; None while requests are."""
        self.closes_at: int | None = None
        """Monotonic ns at which the engine must end; None if nobody has closed it."""
        self._table = table
        self._most = most
        self._lock = threading.Lock()
        self._requests: list[Request] = []
        self._asleep = False
        self._bell: socket.socket | None = None
        self._ear: socket.socket | None = None

    # -- callers' side ---------------------------------------------------------------------------

    def put(self, requests: list[Request]) -> None:
        """Hand over requests, all or none.

        Raises:
            Unavailable: not open, or closed.
            Overloaded: too many are in flight.
        """
        with self._lock:
            if self.refusing is not None:
                raise Unavailable(self.refusing)
            if len(self._requests) + self._table.live + len(requests) > self._most:
                raise Overloaded(f"{self._most} requests are in flight already; retry later")
            self._requests += requests
            ring, self._asleep = self._asleep, False
        if ring:
            self.ring()

    def close(self, drain_s: float) -> None:
        """Take nothing any more; the engine ends when all have their outcomes, in ``drain_s`` at most."""
        with self._lock:
            self.refusing = "the client is closed"
            moment = time.monotonic_ns() + int(drain_s * 1e9)
            if self.closes_at is None or moment < self.closes_at:
                self.closes_at = moment
        self.ring()

    def ring(self) -> None:
        """Wake the engine."""
        # A full pipe wakes it anyhow; a closed one belongs to an engine that has ended.
        if self._bell is not None:
            with contextlib.suppress(OSError):
                self._bell.send(b"\0")

    # -- the engine's side -----------------------------------------------------------------------

    def listen(self) -> socket.socket:
        """Make and return the socket that is readable when somebody rings."""
        self._ear, self._bell = socket.socketpair()
        self._ear.setblocking(False)
        self._bell.setblocking(False)
        return self._ear

    def open(self) -> None:
        """Requests are taken from now on, unless somebody has closed meanwhile."""
        with self._lock:
            if self.closes_at is None:
                self.refusing = None

    def take(self, sleep: bool = False) -> list[Request]:
        """What has come in, at most :data:`TURN`. With ``sleep`` and nothing there, the next one rings."""
        with self._lock:
            taken, self._requests = self._requests[:TURN], self._requests[TURN:]
            self._asleep = sleep and not taken
        return taken

    def swallow(self) -> None:
        """Read the rings that have woken the engine."""
        assert self._ear is not None
        with contextlib.suppress(BlockingIOError):
            self._ear.recv(4_096)

    def end(self, why: str) -> list[Request]:
        """Take nothing any more, and return what nobody has taken."""
        with self._lock:
            self.refusing = self.refusing or why
            rest, self._requests = self._requests, []
        return rest

    def __len__(self) -> int:
        return len(self._requests)

    def close_sockets(self) -> None:
        """After the engine has ended."""
        for end in (self._bell, self._ear):
            if end is not None:
                end.close()
