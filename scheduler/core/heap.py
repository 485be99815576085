# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: annotation_typing=False, infer_types=True
"""An indexed binary min-heap: re-key or remove any entry in O(log n), smallest id first among equals."""

from __future__ import annotations

from array import array

from .columns import widen


class Heap:
    """Holds small non-negative ids, each with a 64-bit key; every id stands at most once.

    ``ids[0]`` and ``keys[0]`` are the smallest entry where ``size`` > 0. Ids must be below the
    capacity that :meth:`reserve` was last given. Memory: 24 bytes per unit of capacity.
    """

    def __init__(self, capacity: int = 16) -> None:
        self.size = 0
        self.ids = array("q", bytes(8 * capacity))
        self.keys = array("q", bytes(8 * capacity))
        self.place = array("q", [-1]) * capacity

    def reserve(self, capacity: int) -> None:
        """Allow ids below ``capacity``; never shrinks."""
        more = capacity - len(self.place)
        if more > 0:
            self.ids = widen("q", self.ids, more)
            self.keys = widen("q", self.keys, more)
            self.place = widen("q", self.place, more, -1)

    def has(self, ident: int) -> bool:
        """Whether the id is in the heap."""
        return self.place[ident] >= 0

    def put(self, ident: int, key: int) -> None:
        """Insert the id, or change its key."""
        i = self.place[ident]
        if i < 0:
            i = self.size
            self.size = i + 1
        elif self.keys[i] < key:
            self._down(i, ident, key)
            return
        while i > 0:
            up = (i - 1) >> 1
            above = self.keys[up]
            other = self.ids[up]
            if above < key or (above == key and other < ident):
                break
            self.ids[i] = other
            self.keys[i] = above
            self.place[other] = i
            i = up
        self.ids[i] = ident
        self.keys[i] = key
        self.place[ident] = i

    def discard(self, ident: int) -> None:
        """Remove the id if it is there."""
        i = self.place[ident]
        if i < 0:
            return
        self.place[ident] = -1
        last = self.size - 1
        self.size = last
        if i == last:
            return
        moved = self.ids[last]
        key = self.keys[last]
        if key < self.keys[i] or (key == self.keys[i] and moved < ident):
            # Bubble up: give the moved entry the hole's place first, so that put() finds it there.
            self.ids[i] = moved
            self.keys[i] = key
            self.place[moved] = i
            self.put(moved, key)
        else:
            self._down(i, moved, key)

    def _down(self, i: int, ident: int, key: int) -> None:
        while True:
            child = 2 * i + 1
            if child >= self.size:
                break
            right = child + 1
            if right < self.size and (
                self.keys[right] < self.keys[child]
                or (self.keys[right] == self.keys[child] and self.ids[right] < self.ids[child])
            ):
                child = right
            below = self.keys[child]
            other = self.ids[child]
            if key < below or (key == below and ident < other):
                break
            self.ids[i] = other
            self.keys[i] = below
            self.place[other] = i
            i = child
        self.ids[i] = ident
        self.keys[i] = key
        self.place[ident] = i

    def validate(self) -> None:
        """Raise AssertionError if the heap order or the index is broken."""
        seen = 0
        for ident in range(len(self.place)):
            i = self.place[ident]
            if i >= 0:
                seen += 1
                assert i < self.size
                assert self.ids[i] == ident
                up = (i - 1) >> 1
                if i:
                    assert (self.keys[up], self.ids[up]) < (self.keys[i], ident)
        assert seen == self.size
