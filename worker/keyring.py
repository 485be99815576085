"""Request keys of many batches, one after another in a ring: those of a plan are copied in one piece."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from symphony import native
from symphony.wire import I64, U64


class KeyRing:
    """Keys by their position in the order in which they came; room doubles when more than half is in use.

    Memory: 8 bytes per key, at most four times as many as were ever between the oldest that was still needed
    and the newest.

    Args:
        room: keys to begin with, a power of two.
        compiled: whether to use the compiled loops where the build has them.
    """

    def __init__(self, room: int = 1 << 12, compiled: bool = True) -> None:
        self._loops = native.compiled("keys") if compiled and not native.pure() else None
        self._keys = np.zeros(room, np.uint64)
        self._head = 0
        self._tail = 0
        self._upto = np.arange(room)

    @property
    def room(self) -> int:
        """Keys that there is memory for."""
        return self._keys.size

    def append(self, keys: U64, needed: Callable[[], int | None]) -> int:
        """Take in keys; returns the position of the first.

        Args:
            keys: in order.
            needed: gives the position of the first that is still needed, None if none is; asked only when the
                ring is full.
        """
        if self._head + keys.size - self._tail > self._keys.size:
            first = needed()
            self._tail = self._head if first is None else first
            self._widen(self._head + keys.size - self._tail)
        start = self._head
        at = start & (self._keys.size - 1)
        n = min(keys.size, self._keys.size - at)
        self._keys[at : at + n] = keys[:n]
        self._keys[: keys.size - n] = keys[n:]
        self._head += keys.size
        return start

    def latest(self, count: int) -> tuple[U64, U64]:
        """The last so many keys that came, in two pieces; the second may be empty."""
        at = (self._head - count) & (self._keys.size - 1)
        n = min(count, self._keys.size - at)
        return self._keys[at : at + n], self._keys[: count - n]

    def _widen(self, used: int) -> None:
        """Room for twice as many as are used; positions stay."""
        room = self._keys.size
        while room < 2 * used:
            room *= 2
        if room > self._keys.size:
            places = np.arange(self._tail, self._head)
            wider = np.zeros(room, np.uint64)
            wider[places & (room - 1)] = self._keys[places & (self._keys.size - 1)]
            self._keys = wider

    def take(self, start: I64, size: I64) -> U64:
        """The keys of batches that begin at these positions, batch after batch."""
        end = size.cumsum()
        total = int(end[-1]) if end.size else 0
        if self._loops is not None:
            gathered: U64 = np.empty(total, np.uint64)
            self._loops.gather(self._keys, start, size, gathered)
            return gathered
        if total > self._upto.size:
            self._upto = np.arange(2 * total)
        mask = self._keys.size - 1
        places = ((start & mask) - end + size).repeat(size)
        places += self._upto[:total]
        found: U64 = self._keys.take(places, mode="wrap")
        return found
