"""The time for the core: timers that fell due are told before an event, and some ahead of their time."""

from __future__ import annotations

from typing import Final

from scheduler.core.machine import Core
from scheduler.stats import Stats
from symphony.clock import ClusterClock

CATCH_UP: Final = 64
"""Most timers that are told one by one before an event; what is left is told with the event."""
STEPS: Final = 16
"""A busy loop serves the timers of its next turn beforehand, in at most so many steps of time."""
FORGET: Final = 16
"""A turn may take as long as an earlier one did, less this part of it for every turn since."""


class Timers:
    """Tells the core the time; all times are cluster time in ns.

    Args:
        core: is told.
        clock: of the cluster.
        stats: learns how late timers are.
    """

    def __init__(self, core: Core, clock: ClusterClock, stats: Stats) -> None:
        self._core = core
        self._clock = clock
        self._stats = stats
        self._told = 0
        self._cycle_ns = 0
        self._lead_ns = 0
        self._led_at: int | None = None

    def now(self) -> int:
        """Cluster time, or what the core was told last where that was ahead of it."""
        return max(self._clock.now(), self._told)

    def fire(self) -> None:
        """Serve what is due."""
        due = self._core.next_wakeup()
        now = self.catch_up()
        if due <= now:
            self._stats.woke(now - due)

    def catch_up(self) -> int:
        """The time of the core's next event, after what fell due before it.

        A late timer is told as of the moment at which it was due, as far back as the margin reaches:
        lateness is what the margin is kept for. Told as of now, a batch whose window is narrower than
        the lateness (a latency that hardly grows with the batch) would be given up though it can
        still be in time.
        """
        now = self.now()
        for _ in range(CATCH_UP):
            due = self._core.next_wakeup()
            if due > now:
                break
            self._core.advance(max(due, now - self._core.margin))
        return now

    def lead(self) -> int:
        """As :meth:`catch_up`, for requests that a busy loop takes in: when it will have dealt with them.

        What they make due meanwhile would be late otherwise, and no plan leaves earlier.
        """
        now = self.catch_up()
        self._led_at = self._clock.now()
        self._told = max(now, self._led_at + self._lead_ns)
        return self._told

    def look_ahead(self, cycle_ns: int) -> None:
        """Serve the timers that fall due before the next turn of a busy loop is over.

        A decision is early by at most a cycle of the loop then, where it would have been late by as much:
        the same batches, less what arrives meanwhile, and none misses its window. Turns differ, so the
        longest cycle counts, and fades. A loop that has time to wait for its timers (``cycle_ns`` is 0)
        looks no further than now.
        """
        now = self._clock.now()
        took, self._led_at = now - (now if self._led_at is None else self._led_at), None
        if not cycle_ns:
            self._cycle_ns = self._lead_ns = 0
            return
        cycle_ns = self._cycle_ns = max(cycle_ns, self._cycle_ns - self._cycle_ns // FORGET)
        self._lead_ns = min(max(took, self._lead_ns - self._lead_ns // FORGET), cycle_ns)
        while (due := self._core.next_wakeup()) <= now + cycle_ns:
            self._stats.woke(max(0, now - due))
            self._told = max(due, self._told + cycle_ns // STEPS)
            self._core.advance(self._told)
