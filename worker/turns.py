"""Who may use the device: batches always, warm-up and measuring runs when no batch is there.

Loading runs beside serving. Its runs on the device (every batch size once, or a whole profile) would
slow down a batch that runs at the same time, and be slowed down by it, which spoils the measurement. So
such a run waits until no batch is on the device or about to be, and a batch that comes meanwhile waits
for the rest of that one run: at most l(b) of the model that is being loaded. And where batches come, the
next such run waits for :data:`PACE` times as long as the last one took, but no longer than a second. That
is what loading costs those that serve.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

PACE: Final = 4
"""With batches about, background runs get one part in 1 + PACE of the time; more if they are long."""
LONGEST_REST_S: Final = 1.0
LOOK_S: Final = 0.05
"""How often a waiting background run looks whether it should stop."""


class Turns:
    """Batches come and go by :meth:`enter` and :meth:`leave`; background runs use :meth:`background`."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._batches = 0
        self._background: object | None = None
        self._batches_came = False
        self._rest_until = 0.0
        self._waiting: dict[object, int] = {}
        self.longest_wait_ns = 0
        """The longest that a batch has waited for a background run."""

    def enter(self, clock: Callable[[], int]) -> None:
        """A batch is about to use the device; waits for the end of a background run."""
        with self._changed:
            self._batches += 1
            self._batches_came = True
            began = clock()
            if self._background is not None:
                me = object()
                self._waiting[me] = began
                self._changed.wait_for(lambda: self._background is None)
                del self._waiting[me]
            self.longest_wait_ns = max(self.longest_wait_ns, clock() - began)

    def waiting_since(self) -> int | None:
        """By that clock, since when a batch has waited for the background run; None if none does."""
        with self._changed:
            return min(self._waiting.values(), default=None)

    def leave(self) -> None:
        """The batch has left the device."""
        with self._changed:
            self._batches -= 1
            self._changed.notify_all()

    @contextmanager
    def background(self, stop: Callable[[], bool]) -> Iterator[bool]:
        """The device for one short run; False if ``stop`` said so while waiting for it."""
        mine = object()
        with self._changed:
            while (blocked := self._blocked()) and not stop():
                self._changed.wait(LOOK_S)
            if not blocked:
                self._background, self._batches_came = mine, False
        began = time.monotonic()
        try:
            yield not blocked
        finally:
            if not blocked:
                with self._changed:
                    if self._background is mine:
                        self._background = None
                        now = time.monotonic()
                        self._rest_until = now + min(PACE * (now - began), LONGEST_REST_S)
                    self._changed.notify_all()

    def take_back(self) -> None:
        """Whoever has the device for a background run has it no longer: that run does not end."""
        with self._changed:
            self._background = None
            self._changed.notify_all()

    def _blocked(self) -> bool:
        resting = self._batches_came and time.monotonic() < self._rest_until
        return bool(self._batches) or self._background is not None or resting
