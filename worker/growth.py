"""Memory that only ever grows: a model that leaks, told before it runs the device out of memory."""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from typing import Final

SAMPLES: Final = 30
"""Samples per window; of each window the least counts, since what is used and freed again is no leak."""
WINDOWS: Final = 4
LEAST_BYTES: Final = 64 << 20


class Growth:
    """Feed it what is used, at even intervals.

    Args:
        samples: per window.
        windows: in a row in which the least must have grown.
        least_bytes: growth over all of them that is worth a word.
    """

    def __init__(
        self, samples: int = SAMPLES, windows: int = WINDOWS, least_bytes: int = LEAST_BYTES
    ) -> None:
        self._samples = samples
        self._least = least_bytes
        self._window: list[int] = []
        self._floors: deque[int] = deque(maxlen=windows + 1)

    def observe(self, used_bytes: int) -> int | None:
        """Bytes by which the floor has grown over the last windows, at the end of the last of them; None if
        it has not grown in each, or not by much. A model that comes or goes: :meth:`restart`."""
        self._window.append(used_bytes)
        if len(self._window) < self._samples:
            return None
        self._floors.append(min(self._window))
        self._window.clear()
        floors = list(self._floors)
        if len(floors) < (self._floors.maxlen or 0):
            return None
        rising = all(a < b for a, b in pairwise(floors))
        grown = floors[-1] - floors[0]
        if not rising or grown < self._least:
            return None
        self._floors.clear()
        return grown

    def restart(self) -> None:
        """What is used has changed for a reason."""
        self._window.clear()
        self._floors.clear()
