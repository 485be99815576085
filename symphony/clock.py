"""Cluster time: the broker's clock, kept by every process as an offset to its own monotonic clock.

Cluster time is an ``int`` of nanoseconds: the broker's wall clock when it started plus its monotonic
progress since, so it never jumps while one broker lives. A member measures the offset by ping-pong:
it sends at ``sent``, the broker reads the ping at cluster time ``c``, the answer is back at
``received``. Wherever the broker's reading really fell between the two, the offset
``c - (sent + received) / 2`` is wrong by at most half the round trip, so the sample with the smallest
round trip of a sliding window is the one to believe (Cristian 1989). Clocks drift, so a sample loses
:data:`DRIFT_PPM` of its age in trust, and a fresh one soon replaces it.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Final

WINDOW: Final = 32
"""Samples kept; at two every two seconds they span half a minute."""
DRIFT_PPM: Final = 50
"""Assumed worst drift between two monotonic clocks, in parts per million."""
PINGS_FIRST: Final = 8
PINGS_LATER: Final = 2
PING_EVERY_NS: Final = 2_000_000_000
UNKNOWN_NS: Final = 1_000_000_000
"""Uncertainty that is reported before the first sample."""


class ClusterClock:
    """Reads cluster time; one writer thread calls :meth:`sample`, any thread calls the rest.

    Before the first sample the clock is this machine's wall clock, which is right on the broker's
    own host and a guess elsewhere: see :attr:`synced`.

    The offset may step by some microseconds when a better sample comes in, so two readings of
    :meth:`now` may run backwards by as much; measure durations with the monotonic clock.
    """

    def __init__(self) -> None:
        self._offset = time.time_ns() - time.monotonic_ns()
        self._samples: deque[tuple[int, int, int]] = deque(maxlen=WINDOW)  # half round trip, offset, when
        self._uncertainty: int | None = None

    @classmethod
    def origin(cls) -> ClusterClock:
        """The broker's own clock: by definition exact."""
        clock = cls()
        clock._uncertainty = 0
        return clock

    @property
    def synced(self) -> bool:
        """Whether at least one sample of the present broker has been taken."""
        return self._uncertainty is not None

    @property
    def offset_ns(self) -> int:
        """Cluster time minus this process's ``time.monotonic_ns()``."""
        return self._offset

    @property
    def uncertainty_ns(self) -> int:
        """How far :meth:`now` may be off: half the round trip of the sample in use, and drift since."""
        uncertainty = self._uncertainty
        return UNKNOWN_NS if uncertainty is None else uncertainty

    def now(self) -> int:
        """Cluster time in nanoseconds."""
        return time.monotonic_ns() + self._offset

    def to_monotonic(self, cluster_ns: int) -> int:
        """The ``time.monotonic_ns()`` of this process at a moment of cluster time."""
        return cluster_ns - self._offset

    def to_cluster(self, monotonic_ns: int) -> int:
        """The cluster time at a ``time.monotonic_ns()`` of this process."""
        return monotonic_ns + self._offset

    def sample(self, sent_mono: int, cluster_now: int, received_mono: int) -> None:
        """Take in one ping-pong.

        Args:
            sent_mono: monotonic ns when the ping left.
            cluster_now: cluster time that the answer carries.
            received_mono: monotonic ns when the answer was read; before ``sent_mono`` it is ignored.
        """
        half = (received_mono - sent_mono) // 2
        if half < 0:
            return
        self._samples.append((half, cluster_now - (sent_mono + half), received_mono))
        self._uncertainty, self._offset = min(
            (half + (received_mono - when) * DRIFT_PPM // 1_000_000, offset)
            for half, offset, when in self._samples
        )

    def restart(self) -> None:
        """Forget the samples: another broker, another cluster time. The offset stays until the next one."""
        self._samples.clear()
        self._uncertainty = None


class PingPong:
    """When to ping the broker, and which answers count: a burst at first, then a few every so often.

    One ping is on its way at a time, so that none waits behind another. No I/O: the owner sends.
    """

    def __init__(self, clock: ClusterClock, now: int) -> None:
        self._clock = clock
        self._left = PINGS_FIRST
        self._outstanding: int | None = None
        self.next_at = now
        """Monotonic ns at which a ping is due."""

    def sent(self, sent_at: int, retry_at: int) -> None:
        """A ping left at ``sent_at``; without an answer another one is due at ``retry_at``."""
        self._outstanding, self.next_at = sent_at, retry_at

    def pong(self, sent_at: int, cluster_now: int, received: int) -> None:
        """An answer was read at ``received``; one to another ping than the last is ignored."""
        if sent_at != self._outstanding:
            return
        self._clock.sample(sent_at, cluster_now, received)
        self._outstanding = None
        self._left -= 1
        self.next_at = received
        if self._left <= 0:
            self.next_at, self._left = received + PING_EVERY_NS, PINGS_LATER

    def restart(self, now: int) -> None:
        """Another broker answers: measure anew."""
        self._clock.restart()
        self._left, self._outstanding, self.next_at = PINGS_FIRST, None, now
