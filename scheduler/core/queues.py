# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: annotation_typing=False, infer_types=True
"""Deadline-ordered queues of requests, all in one slab, one ring buffer per lane.

A lane is a model at one priority. Requests come nearly in deadline order, so a new one is put in
from the tail: O(1) if it is the latest, one move per request that it overtakes otherwise. Equal
deadlines keep their order of arrival.

What an arrival at the tail reads and writes of a lane is one cache line, its *record*, and the 16
bytes of the slot: with thousands of lanes in turn, the time goes into waiting for memory.
"""

from __future__ import annotations

from array import array
from typing import Any

from . import plain
from .columns import widen
from .limits import (
    APART,
    BASE,
    FIELDS,
    FIRST,
    HEAD,
    LARGE_RING,
    LAST,
    MASK,
    MOST_FETCHED,
    SMALLEST_RING,
    STOP,
    TAIL,
    UNTIL,
)
from .plain import PLAIN


class Queues:
    """Rings of (deadline in ns, request key), 16 bytes per slot, and a record of 64 bytes per lane.

    Field F of a lane's record is ``record[lane * FIELDS + F]``:

    - ``TAIL``, ``HEAD``: the numbers of the next request that is put in and of the next one that is taken
      out; their difference are queued.
    - ``BASE``, ``MASK``: the ring; request number i is in slot ``BASE + (i & MASK)``, which is entries 2·slot
      (deadline) and 2·slot + 1 (key) of ``slab``. ``MASK`` is -1 while a lane has no ring.
    - ``FIRST``, ``LAST``: deadlines of the first and the last request, if there is one.
    - ``UNTIL``, ``STOP``: until that moment, and while ``TAIL`` is below ``STOP``, a request behind the last
      changes nothing but the queue itself; set by :class:`~scheduler.core.lanes.Lanes`.

    A queue that is empty starts again at the same place of its ring: what it touches is then no more than
    what it holds, and in the cache as often as can be. The places of two lanes differ, or their rings,
    which lie at powers of two, would share few of the cache's sets. ``before[lane]`` is what makes TAIL
    the number of requests that ever came (:meth:`ever`).

    Rings double when they are full. Large ones shrink when they are nearly empty; rings that are left are
    used again by other lanes. ``moves`` counts how often the columns were replaced by longer ones.
    """

    def __init__(self) -> None:
        self.lanes = 0
        self.moves = 0
        self.record = array("q")
        self.before = array("q")
        self.slab = array("Q", bytes(16 * 1024))
        self._used = 0
        self._spare: dict[int, list[int]] = {}

    def add_lane(self) -> int:
        """A new empty lane's number."""
        lane = self.lanes
        if lane * FIELDS == len(self.record):
            self.record = widen("q", self.record, FIELDS * max(8, lane))
            self.before = widen("q", self.before, max(8, lane))
            self.moves += 1
        self.lanes = lane + 1
        row = lane * FIELDS
        for field in range(FIELDS):
            self.record[row + field] = 0
        self.record[row + MASK] = -1
        self.record[row + UNTIL] = -1
        return lane

    def count(self, lane: int) -> int:
        """Requests that are queued."""
        row = lane * FIELDS
        return self.record[row + TAIL] - self.record[row + HEAD]

    def ever(self, lane: int) -> int:
        """Requests that ever came."""
        return self.before[lane] + self.record[lane * FIELDS + TAIL]

    def push(self, lane: int, deadline: int, key: int) -> None:
        """Add a request in its place."""
        row = lane * FIELDS
        tail = self.record[row + TAIL]
        head = self.record[row + HEAD]
        if tail - head > self.record[row + MASK]:
            self._move(lane, max(SMALLEST_RING, 2 * (self.record[row + MASK] + 1)))
        base = self.record[row + BASE]
        mask = self.record[row + MASK]
        self.record[row + TAIL] = tail + 1
        i = tail
        if i == head or self.record[row + LAST] <= deadline:
            self.record[row + LAST] = deadline
        else:
            while i > head:
                before = 2 * (base + ((i - 1) & mask))
                other = self.slab[before]
                if other <= deadline:
                    break
                to = 2 * (base + (i & mask))
                self.slab[to] = other
                self.slab[to + 1] = self.slab[before + 1]
                i -= 1
        if i == head:
            self.record[row + FIRST] = deadline
        to = 2 * (base + (i & mask))
        self.slab[to] = deadline
        self.slab[to + 1] = key

    def pop(self, lane: int, n: int) -> None:
        """Forget the first ``n`` requests; the next one that comes must be looked at."""
        row = lane * FIELDS
        head = self.record[row + HEAD] + n
        tail = self.record[row + TAIL]
        mask = self.record[row + MASK]
        self.record[row + UNTIL] = -1
        if head == tail:
            head = lane * APART & mask
            self.before[lane] += tail - head
            self.record[row + TAIL] = head
            self.record[row + STOP] = head
            tail = head
        else:
            self.record[row + FIRST] = self.slab[2 * (self.record[row + BASE] + (head & mask))]
        self.record[row + HEAD] = head
        if mask >= LARGE_RING and 16 * (tail - head) <= mask:
            self._move(lane, (mask + 1) // 4)

    def at(self, lane: int, i: int) -> int:
        """Deadline of request i; 0 is the head."""
        row = lane * FIELDS
        slot = self.record[row + BASE] + ((self.record[row + HEAD] + i) & self.record[row + MASK])
        return self.slab[2 * slot]

    def fetch(self, lane: int) -> None:
        """The first requests will be copied soon."""
        row = lane * FIELDS
        base = self.record[row + BASE]
        mask = self.record[row + MASK]
        head = self.record[row + HEAD]
        end = self.record[row + TAIL]
        if end > head + MOST_FETCHED:
            end = head + MOST_FETCHED
        if not PLAIN:
            for i in range(head, end, 4):
                plain.fetch(self.slab, 2 * (base + (i & mask)))

    def copy(self, lane: int, n: int, key: Any, deadline: Any, to: int) -> None:
        """Write the first ``n`` requests into two columns of unsigned numbers, from entry ``to`` on."""
        row = lane * FIELDS
        base = self.record[row + BASE]
        mask = self.record[row + MASK]
        head = self.record[row + HEAD]
        slab = self.slab
        while n > 0:
            # At most twice: up to the end of the ring, and on from its start.
            first = head & mask
            some = mask + 1 - first
            if some > n:
                some = n
            slot = 2 * (base + first)
            if PLAIN:
                deadline[to : to + some] = slab[slot : slot + 2 * some : 2]
                key[to : to + some] = slab[slot + 1 : slot + 2 * some + 1 : 2]
            else:
                for i in range(some):
                    deadline[to + i] = slab[slot + 2 * i]
                    key[to + i] = slab[slot + 2 * i + 1]
            head += some
            to += some
            n -= some

    def _move(self, lane: int, size: int) -> None:
        """Move the lane into a ring of ``size`` slots; the old ring is kept for another lane."""
        row = lane * FIELDS
        spare = self._spare.get(size)
        if spare:
            start = spare.pop()
        else:
            start = self._used
            self._used += size
            more = 2 * self._used - len(self.slab)
            if more > 0:
                self.slab = widen("Q", self.slab, max(more, len(self.slab)))
                self.moves += 1
        slab = self.slab
        base = self.record[row + BASE]
        mask = self.record[row + MASK]
        for i in range(self.record[row + HEAD], self.record[row + TAIL]):
            at = 2 * (base + (i & mask))
            to = 2 * (start + (i & (size - 1)))
            slab[to] = slab[at]
            slab[to + 1] = slab[at + 1]
        if mask >= 0:
            self._spare.setdefault(mask + 1, []).append(base)
        self.record[row + BASE] = start
        self.record[row + MASK] = size - 1
        self.record[row + STOP] = 0

    def slots(self) -> int:
        """Slots that the slab holds, used or spare."""
        return len(self.slab) // 2
