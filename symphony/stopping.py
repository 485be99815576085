"""Asking a loop to stop: from a signal, from another thread, and so that a wait ends at once."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Iterator


class StopRequest:
    """A flag with a file descriptor, :attr:`fd`, that a waiter can watch; it has input once set."""

    def __init__(self) -> None:
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)
        self._set = False

    @property
    def fd(self) -> int:
        """To be registered in a waiter or poller."""
        return self._read.fileno()

    def set(self) -> None:
        """Ask to stop; safe in a signal handler and in any thread, before and after :meth:`close`."""
        self._set = True
        with contextlib.suppress(OSError):
            self._write.send(b"x")

    def is_set(self) -> bool:
        """Whether somebody has asked."""
        return self._set

    def close(self) -> None:
        """Close the descriptors."""
        self._read.close()
        self._write.close()

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT set the flag while the block runs; for the main thread only."""
        numbers = (signal.SIGTERM, signal.SIGINT)
        previous = [signal.signal(number, lambda *_: self.set()) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, previous, strict=True):
                signal.signal(number, handler)
