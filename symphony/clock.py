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
"""Samples kept; at four every two seconds they span a quarter of a minute."""
DRIFT_PPM: Final = 50
"""Assumed worst drift between two monotonic clocks, in parts per million."""
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
        self._best: tuple[int, int, int] | None = None

    @classmethod
    def origin(cls) -> ClusterClock:
        """The broker's own clock: by definition exact."""
        clock = cls()
        clock._best = (0, clock._offset, time.monotonic_ns())
        return clock

    @property
    def synced(self) -> bool:
        """Whether at least one sample of the present broker has been taken."""
        return self._best is not None

    @property
    def offset_ns(self) -> int:
        """Cluster time minus this process's ``time.monotonic_ns()``."""
        return self._offset

    @property
    def uncertainty_ns(self) -> int:
        """How far :meth:`now` may be off: half the round trip of the sample in use."""
        best = self._best
        return UNKNOWN_NS if best is None else best[0]

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
        best = min(self._samples, key=lambda s: s[0] + (received_mono - s[2]) * DRIFT_PPM // 1_000_000)
        self._best = best
        self._offset = best[1]

    def restart(self) -> None:
        """Forget the samples: another broker, another cluster time. The offset stays until the next one."""
        self._samples.clear()
        self._best = None
