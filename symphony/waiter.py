"""Waiting for sockets or a moment, whichever is first, good to a fraction of a millisecond.

``zmq_poll`` counts its time-out in milliseconds, which is as long as a small batch. So the moment
is armed on a Linux timerfd, which is just one more file descriptor in the poll: the kernel wakes the
poll within tens of microseconds. The thread's timer slack (50 µs by default) is set to its minimum.
Where there is no timerfd, the poll waits whole milliseconds and spins for the rest.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import time
from typing import Any, Final

import zmq

_CLOCK_MONOTONIC: Final = 1
_TFD_NONBLOCK: Final = os.O_NONBLOCK
_TFD_CLOEXEC: Final = os.O_CLOEXEC
_TFD_TIMER_ABSTIME: Final = 1
_PR_SET_TIMERSLACK: Final = 29
LEAST_REST_NS: Final = 20_000
"""A shorter pause is not worth its system call."""


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("it_interval", _Timespec), ("it_value", _Timespec))


class Waiter:
    """Polls registered sockets and file descriptors until a moment of the monotonic clock.

    Args:
        spin_ns: wake that long before the moment and spin for the rest: lateness falls to a few
            microseconds, and a core is busy for that share of the time. 0 never spins.
    """

    def __init__(self, spin_ns: int = 0) -> None:
        self.spin_ns = spin_ns
        self._poller = zmq.Poller()
        self._timer = -1
        self._armed = False
        if sys.platform == "linux":
            self._libc: Any = ctypes.CDLL(None, use_errno=True)
            self._libc.prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
            self._timer = self._libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_NONBLOCK | _TFD_CLOEXEC)
            self._spec = _Itimerspec()
        if self._timer >= 0:
            self._poller.register(self._timer, zmq.POLLIN)

    def register(self, sock: Any) -> None:
        """Watch a zmq socket or a file descriptor for input."""
        self._poller.register(sock, zmq.POLLIN)

    def unregister(self, sock: Any) -> None:
        """Stop watching; a socket that is not watched is no error."""
        if sock in self._poller:
            self._poller.unregister(sock)

    def wait(self, until_ns: int | None = None) -> list[Any]:
        """Block until input or until ``time.monotonic_ns() >= until_ns``; None waits for input alone.

        Returns the sockets and descriptors that have input, none if the moment came first.
        """
        if until_ns is None:
            return self._poll(None)
        target = until_ns - self.spin_ns
        now = time.monotonic_ns()
        if now < target:
            ready = self._poll_until(target, now)
            if ready or time.monotonic_ns() < target:
                return ready
        ready = self._poll(0)
        while not ready and time.monotonic_ns() < until_ns:
            ready = self._poll(0)
        return ready

    def wait_paced(self, until_ns: int, earliest_ns: int) -> list[Any]:
        """As :meth:`wait`, but input is not looked at before ``earliest_ns``, so that it gathers.

        A moment is never late for that: it is waited for as precisely as without.
        """
        now = time.monotonic_ns()
        rest = min(earliest_ns, until_ns - self.spin_ns) - now
        if rest > LEAST_REST_NS:
            time.sleep(rest / 1e9)
        return self.wait(until_ns)

    def _poll_until(self, target: int, now: int) -> list[Any]:
        if self._timer < 0:
            return self._poll(max(0, (target - now) // 1_000_000))
        self._spec.it_value.tv_sec, self._spec.it_value.tv_nsec = divmod(target, 1_000_000_000)
        self._libc.timerfd_settime(self._timer, _TFD_TIMER_ABSTIME, ctypes.byref(self._spec), None)
        self._armed = True
        return self._poll(None)

    def _poll(self, timeout_ms: int | None) -> list[Any]:
        ready = [sock for sock, _ in self._poller.poll(timeout_ms)]
        if self._armed and self._timer in ready:
            ready.remove(self._timer)
            self._armed = False
            with contextlib.suppress(BlockingIOError):  # re-armed between the poll and the read
                os.read(self._timer, 8)
        return ready

    def close(self) -> None:
        """Close the timer; the sockets belong to their bus."""
        if self._timer >= 0:
            os.close(self._timer)
            self._timer = -1
