# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: annotation_typing=False, infer_types=True
"""Deadline-ordered queues of requests, all in one arena, one ring buffer per lane.

A lane is a model at one priority. Requests come nearly in deadline order, so a new one is put in
from the tail: O(1) if it is the latest, one move per request that it overtakes otherwise. Equal
deadlines keep their order of arrival.
"""

from __future__ import annotations

from array import array

from .columns import widen
from .limits import SMALLEST_RING


class Queues:
    """Rings of (finish-by in ns, request key). Memory: 16 bytes per slot; rings double, never shrink.

    ``first`` and ``last`` repeat the finish-by of a lane's head and tail, so that the common arrival,
    behind the tail, reads nothing of a ring that is seldom in the cache.

    Request i of a lane (0 = head) is at ``base[lane] + ((head[lane] + i) & mask[lane])`` of
    ``finish`` and ``key``; ``mask`` is -1 while a lane has no ring.
    """

    def __init__(self) -> None:
        self.lanes = 0
        self.base = array("q")
        self.mask = array("q")
        self.head = array("q")
        self.count = array("q")
        self.first = array("q")
        self.last = array("q")
        self.finish = array("q", bytes(8 * 1024))
        self.key = array("Q", bytes(8 * 1024))
        self._used = 0
        self._spare: dict[int, list[int]] = {}

    def add_lane(self) -> int:
        """A new empty lane's number."""
        if self.lanes == len(self.base):
            more = max(8, self.lanes)
            self.base = widen("q", self.base, more)
            self.mask = widen("q", self.mask, more, -1)
            self.head = widen("q", self.head, more)
            self.count = widen("q", self.count, more)
            self.first = widen("q", self.first, more)
            self.last = widen("q", self.last, more)
        self.lanes += 1
        return self.lanes - 1

    def push(self, lane: int, finish: int, key: int) -> None:
        """Add a request in its place."""
        n = self.count[lane]
        if n > self.mask[lane]:
            self.grow(lane)
        base = self.base[lane]
        mask = self.mask[lane]
        i = self.head[lane] + n
        self.count[lane] = n + 1
        if n == 0 or self.last[lane] <= finish:
            self.last[lane] = finish
            if n == 0:
                self.first[lane] = finish
        else:
            while n > 0:
                before = base + ((i - 1) & mask)
                if self.finish[before] <= finish:
                    break
                self.finish[base + (i & mask)] = self.finish[before]
                self.key[base + (i & mask)] = self.key[before]
                i -= 1
                n -= 1
            if n == 0:
                self.first[lane] = finish
        self.finish[base + (i & mask)] = finish
        self.key[base + (i & mask)] = key

    def pop(self, lane: int, n: int) -> None:
        """Forget the first ``n`` requests."""
        head = (self.head[lane] + n) & self.mask[lane]
        self.head[lane] = head
        self.count[lane] -= n
        self.first[lane] = self.finish[self.base[lane] + head]

    def at(self, lane: int, i: int) -> int:
        """Finish-by of request i."""
        return self.finish[self.base[lane] + ((self.head[lane] + i) & self.mask[lane])]

    def grow(self, lane: int) -> None:
        """Move the lane into a ring of twice the size; the old ring is kept for another lane."""
        old = self.mask[lane] + 1
        size = max(SMALLEST_RING, 2 * old)
        spare = self._spare.get(size)
        if spare:
            start = spare.pop()
        else:
            start = self._used
            self._used += size
            more = self._used - len(self.finish)
            if more > 0:
                more = max(more, len(self.finish))
                self.finish = widen("q", self.finish, more)
                self.key = widen("Q", self.key, more)
        base = self.base[lane]
        for i in range(self.count[lane]):
            at = base + ((self.head[lane] + i) & (old - 1))
            self.finish[start + i] = self.finish[at]
            self.key[start + i] = self.key[at]
        if old:
            self._spare.setdefault(old, []).append(base)
        self.base[lane] = start
        self.mask[lane] = size - 1
        self.head[lane] = 0

    def slots(self) -> int:
        """Slots that the arena holds, used or spare."""
        return len(self.finish)
