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
        self._mark = np.zeros(room, np.int64)

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
        number = np.arange(self.next, self.next + n)
        at = number & self._mask
        lost = self._state[at] == WAITING
        if lost.any():
            self.unanswered += int((number[lost] - self._mask - 1 >= self.counted_from).sum())
        self._deadline[at] = deadline
        self._state[at] = WAITING
        self.next += n
        self.offered = self.next - self.counted_from
        return (number + self._first).astype(np.uint64)

    def answer(self, key: U64, status: U8, at: I64) -> None:
        """Answers have come: keys in any order, a status and the time of arrival (ns) for each."""
        number = (key & np.uint64(SEQUENCE_MASK)).astype(np.int64) - self._first
        known = (number < self.next) & (number >= self.next - self._mask - 1) & (number >= 0)
        place = number & self._mask
        order = np.arange(key.size)
        self._mark[place[::-1]] = order[::-1]  # the first of several answers in one column counts
        fresh = known & (self._state[place] == WAITING) & (self._mark[place] == order)
        self._state[place[fresh]] = ANSWERED
        counted = number >= self.counted_from
        self.duplicates += int(key.size - np.count_nonzero(fresh))
        fresh &= counted
        ok = fresh & (status == Status.OK)
        in_time = at <= self._deadline[place]
        good = int(np.count_nonzero(ok & in_time))
        self.good += good
        self.late += int(np.count_nonzero(ok)) - good
        dropped = int(np.count_nonzero(fresh & (status == Status.DROPPED)))
        self.dropped += dropped
        self.failed += int(np.count_nonzero(fresh)) - int(np.count_nonzero(ok)) - dropped

    def close(self) -> None:
        """What has no answer by now is unanswered."""
        newest = (self.next - 1) & self._mask
        age = (newest - np.arange(self._mask + 1)) & self._mask
        number = self.next - 1 - age
        waiting = self._state == WAITING
        self.unanswered += int(np.count_nonzero(waiting & (number >= self.counted_from)))
        self._state[waiting] = ANSWERED
