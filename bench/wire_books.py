"""Every request of a load generator accounted for exactly once, in columns."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from symphony import native
from symphony.status import Status
from symphony.wire import I64, SEQUENCE_MASK, U8, U64

OK: Final = int(Status.OK)
DROPPED: Final = int(Status.DROPPED)
DONE: Final = -1
"""In a request's place instead of its deadline: it has been answered, or there has been none."""


class Books:
    """What became of the requests numbered 0, 1, 2, … in the order in which they were offered.

    Their deadlines are kept in a ring. A request whose place is needed again while it still waits is
    unanswered: the ring is meant to hold more than a deadline and a grace period of offers.

    Args:
        first: key of request 0.
        room: requests that the ring holds; a power of two.
        compiled: whether to use the compiled loops where the build has them.

    Attributes:
        counted_from: the number of the first request that counts in the sums (a warm-up ends there).
        offered, good, late, dropped, failed: sums. Late: a result after the deadline. Dropped: refused
            by the scheduler with status DROPPED. Failed: any other status.
        unanswered: requests that had no answer when they were given up.
        duplicates: answers for requests that had theirs, or that nobody has offered.
    """

    def __init__(self, first: int, room: int, compiled: bool = True) -> None:
        self._loops: Any = native.compiled("keys") if compiled and not native.pure() else None
        assert room & (room - 1) == 0
        self.next = 0
        self.counted_from = 0
        self.offered = self.good = self.late = self.dropped = self.failed = 0
        self.unanswered = self.duplicates = 0
        self._first = first
        self._mask = room - 1
        self._deadline = np.full(room, DONE, np.int64)
        self._sums = np.zeros(5, np.int64)  # of the loops

    @property
    def waiting(self) -> int:
        """Requests without an answer so far, those of the warm-up among them."""
        return int(np.count_nonzero(self._deadline >= 0))

    def count_from_here(self) -> None:
        """The warm-up is over: what is offered from now on counts."""
        self.counted_from = self.next
        self.offered = self.good = self.late = self.dropped = self.failed = 0
        self.unanswered = self.duplicates = 0

    def offer(self, deadline: I64) -> U64:
        """Requests are sent, with deadlines (ns) not below 0; returns their keys."""
        n = deadline.size
        at = self.next & self._mask
        first = min(n, self._mask + 1 - at)  # the ring may go round within
        for ring, column in (
            (slice(at, at + first), slice(0, first)),
            (slice(0, n - first), slice(first, n)),
        ):
            if self._deadline[ring].max(initial=DONE) >= 0:
                lost = self._deadline[ring] >= 0
                number = self.next + np.arange(column.start, column.stop) - self._mask - 1
                self.unanswered += int(np.count_nonzero(lost & (number >= self.counted_from)))
            self._deadline[ring] = deadline[column]
        start = self._first + self.next
        self.next += n
        self.offered = self.next - self.counted_from
        return np.arange(start, start + n, dtype=np.uint64)

    def answer(self, key: U64, status: U8, at: int) -> None:
        """Answers have come at ``at`` (ns): keys in any order, a status for each."""
        n = key.size
        if n != status.size:
            raise ValueError(f"{n} keys and {status.size} statuses")
        if not n:
            return
        if self._loops is not None:
            self._answer_in_loops(key, status, at)
            return
        number = (key & np.uint64(SEQUENCE_MASK)).view(np.int64)
        number -= self._first & SEQUENCE_MASK
        oldest = max(0, self.next - self._mask - 1)
        if number.min() < oldest or number.max() >= self.next:  # never where the shards keep to the protocol
            known = (number >= oldest) & (number < self.next)
            self.duplicates += n - int(np.count_nonzero(known))
            number, status = number[known], status[known]
            n = number.size
        place = number & self._mask
        deadline = self._deadline[place]
        # Every place gets the number of its answer, below 0 for "answered". Where it is another's in the
        # end, the column answers a request more than once, and the first counts.
        mark = np.arange(DONE - n, DONE)
        self._deadline[place[::-1]] = mark[::-1]
        fresh = self._deadline[place] == mark
        fresh &= deadline >= 0
        self.duplicates += n - int(np.count_nonzero(fresh))
        if self.counted_from > oldest:
            fresh &= number >= self.counted_from
        taken = int(np.count_nonzero(fresh))
        ok = status == OK
        ok &= fresh
        served = int(np.count_nonzero(ok))
        ok &= deadline >= at
        good = int(np.count_nonzero(ok))
        dropped = int(np.count_nonzero(fresh & (status == DROPPED))) if served < taken else 0
        self.good += good
        self.late += served - good
        self.dropped += dropped
        self.failed += taken - served - dropped

    def _answer_in_loops(self, key: U64, status: U8, at: int) -> None:
        span = (SEQUENCE_MASK, self._first & SEQUENCE_MASK, self.next, self.counted_from, at, OK, DROPPED)
        self._sums[:] = 0
        self._loops.settle(key.view(np.uint8), status, self._deadline, span, self._sums)
        good, late, dropped, failed, duplicates = self._sums.tolist()
        self.good += good
        self.late += late
        self.dropped += dropped
        self.failed += failed
        self.duplicates += duplicates

    def close(self) -> None:
        """What has no answer by now is unanswered."""
        newest = (self.next - 1) & self._mask
        age = (newest - np.arange(self._mask + 1)) & self._mask
        number = self.next - 1 - age
        waiting = self._deadline >= 0
        self.unanswered += int(np.count_nonzero(waiting & (number >= self.counted_from)))
        self._deadline[waiting] = DONE
