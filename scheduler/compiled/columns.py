"""Growing columns, for the compiled modules beside this one: memory in huge pages instead of arrays'.

Queues are touched at thousands of places a millisecond: with small pages every other arrival would wait
for the page tables. NumPy asks for huge pages, too, but not at their boundaries, and only for 4 MiB.
"""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np

from scheduler.core.columns import packed as packed

HUGE = 1 << 21
"""Bytes of a huge page."""
SMALL = 1 << 14
"""Columns of fewer bytes are left to NumPy."""
LINE = 64
"""Columns begin at lines of the cache."""


class Arena:
    """Hands out zeroed memory, from one chunk of huge pages after the other.

    A chunk is given back to the system when the last column in it is gone.
    """

    def __init__(self) -> None:
        self.chunk: memoryview | None = None
        self.used = 0

    def take(self, size: int) -> memoryview:
        """``size`` bytes at a line of the cache."""
        if self.chunk is None or self.used + size > len(self.chunk):
            whole = -(-size // HUGE) * HUGE
            # Private, since only such memory gets huge pages; what is before the boundary is never touched.
            chunk = mmap.mmap(-1, whole + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            if hasattr(mmap, "MADV_HUGEPAGE"):
                chunk.madvise(mmap.MADV_HUGEPAGE)
            start = -np.frombuffer(chunk, np.uint8).__array_interface__["data"][0] % HUGE
            self.chunk = memoryview(chunk)[start : start + whole]
            self.used = 0
        found = self.chunk[self.used : self.used + size]
        self.used += -(-size // LINE) * LINE
        return found


ARENA = Arena()


def widen(typecode: str, column: Any, more: int, fill: int = 0) -> Any:
    """A copy of ``column`` with ``more`` entries of ``fill`` behind it."""
    old = np.asarray(column)
    kind = np.dtype(typecode)
    size = (len(old) + more) * kind.itemsize
    wide = np.empty(len(old) + more, kind) if size < SMALL else np.frombuffer(ARENA.take(size), kind)
    wide[: len(old)] = old
    if fill or size < SMALL:
        wide[len(old) :] = fill
    return wide
