"""Who may use the device: batches always, warm-up and measuring runs when no batch is there.

Loading runs beside serving. Its runs on the device (every batch size once, or a whole profile) would
slow down a batch that runs at the same time, and be slowed down by it, which spoils the measurement. So
such a run waits until no batch is on the device or about to be, and a batch that comes meanwhile waits
for the rest of that one run: that, at most l(b) of the model that is being loaded, is what loading costs
those that serve.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

LOOK_S: Final = 0.05
"""How often a waiting background run looks whether it should stop."""


class Turns:
    """Batches come and go by :meth:`enter` and :meth:`leave`; background runs use :meth:`background`."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._batches = 0
        self._background = False
        self.longest_wait_ns = 0
        """The longest that a batch has waited for a background run."""

    def enter(self, clock: Callable[[], int]) -> None:
        """A batch is about to use the device; waits for the end of a background run."""
        with self._changed:
            self._batches += 1
            began = clock()
            self._changed.wait_for(lambda: not self._background)
            self.longest_wait_ns = max(self.longest_wait_ns, clock() - began)

    def leave(self) -> None:
        """The batch has left the device."""
        with self._changed:
            self._batches -= 1
            self._changed.notify_all()

    @contextmanager
    def background(self, stop: Callable[[], bool]) -> Iterator[bool]:
        """The device for one short run; False if ``stop`` said so while waiting for it."""
        with self._changed:
            while (self._batches or self._background) and not stop():
                self._changed.wait(LOOK_S)
            stopped = bool(self._batches or self._background)
            self._background = self._background or not stopped
        try:
            yield not stopped
        finally:
            if not stopped:
                with self._changed:
                    self._background = False
                    self._changed.notify_all()
