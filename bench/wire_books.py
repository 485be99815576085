"""Every request of a load generator accounted for exactly once, in columns."""

from __future__ import annotations

from typing import Final

import numpy as np

from symphony.status import Status
from symphony.wire import I64, SEQUENCE_MASK, U8, U64

FREE: Final = 0
WAITING: Final = 1
ANSWERED: Final = 2


class Books:
    """What became of the requests numbered 0, 1, 2, … in the order in which they were offered.

    They are kept in rings. A request whose place is needed again while it still waits is unanswered: the
    rings are meant to hold more than a deadline and a grace period of offers.

    Args:
        first: sequence number of request 0.
        room: requests that the rings hold; a power of two.
        counted_from: the number of the first request that counts in the sums (a warm-up ends there).

    Attributes:
        offered, good, late, dropped, failed: sums. Late: a result after the deadline. Dropped: refused
            by the scheduler with status DROPPED. Failed: any other status.
        unanswered: requests that had no answer when they were given up.
        duplicates: answers for requests that had theirs, or that nobody has offered.
    """

    def __init__(self, first: int, room: int) -> None:
        assert room & (room - 1) == 0
        self.next = 0
        self.counted_from = 0
        self.offered = self.good = self.late = self.dropped = self.failed = 0
        self.unanswered = self.duplicates = 0
        self._first = first
        self._mask = room - 1
        self._deadline = np.zeros(room, np.int64)
        self._state = np.zeros(room, np.uint8)
        self._mark = np.zeros(room, np.int32)

    @property
    def waiting(self) -> int:
        """Requests without an answer so far, those of the warm-up among them."""
        return int(np.count_nonzero(self._state == WAITING))

    def count_from_here(self) -> None:
        """The warm-up is over: what is offered from now on counts."""
        self.counted_from = self.next
        self.offered = self.good = self.late = self.dropped = self.failed = 0
        self.unanswered = self.duplicates = 0

    def offer(self, deadline: I64) -> U64:
        """Requests are sent; returns their sequence numbers."""
        n = deadline.size
        at = self.next & self._mask
        first = min(n, self._mask + 1 - at)  # the ring may go round within
        for ring, column in (
            (slice(at, at + first), slice(0, first)),
            (slice(0, n - first), slice(first, n)),
        ):
            lost = self._state[ring] == WAITING
            if np.count_nonzero(lost):
                number = self.next + np.arange(column.start, column.stop) - self._mask - 1
                self.unanswered += int(np.count_nonzero(lost & (number >= self.counted_from)))
            self._deadline[ring] = deadline[column]
            self._state[ring] = WAITING
        start = self._first + self.next
        self.next += n
        self.offered = self.next - self.counted_from
        return np.arange(start, start + n, dtype=np.uint64)

    def answer(self, key: U64, status: U8, at: int) -> None:
        """Answers have come at ``at`` (ns): keys in any order, a status for each."""
        if not key.size:
            return
        number = (key & np.uint64(SEQUENCE_MASK)).view(np.int64) - self._first
        oldest = max(0, self.next - self._mask - 1)
        if number.min() < oldest or number.max() >= self.next:  # never where the shards keep to the protocol
            known = (number >= oldest) & (number < self.next)
            self.duplicates += number.size - int(np.count_nonzero(known))
            number, key, status = number[known], key[known], status[known]
        place = number & self._mask
        order = np.arange(key.size, dtype=np.int32)
        self._mark[place[::-1]] = order[::-1]  # the first of several answers in one column counts
        fresh = self._state[place] == WAITING
        fresh &= self._mark[place] == order
        self.duplicates += key.size - int(np.count_nonzero(fresh))
        self._state[place if fresh.all() else place[fresh]] = ANSWERED
        if self.counted_from > oldest:
            fresh &= number >= self.counted_from
        taken = int(np.count_nonzero(fresh))
        ok = status == Status.OK
        ok &= fresh
        served = int(np.count_nonzero(ok))
        ok &= self._deadline[place] >= at
        good = int(np.count_nonzero(ok))
        dropped = int(np.count_nonzero(fresh & (status == Status.DROPPED))) if served < taken else 0
        self.good += good
        self.late += served - good
        self.dropped += dropped
        self.failed += taken - served - dropped

    def close(self) -> None:
        """What has no answer by now is unanswered."""
        newest = (self.next - 1) & self._mask
        age = (newest - np.arange(self._mask + 1)) & self._mask
        number = self.next - 1 - age
        waiting = self._state == WAITING
        self.unanswered += int(np.count_nonzero(waiting & (number >= self.counted_from)))
        self._state[waiting] = ANSWERED
