# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: annotation_typing=False, infer_types=True
"""What the core knows of its models: objectives, and one latency table per GPU type."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from .columns import widen
from .limits import TYPES


class Models:
    """Memory: 530 bytes per model, and 8 per entry of a table that differs from all others.

    ``table[model * TYPES + type]`` is where that table starts in ``latency``, -1 without one;
    ``latency[start + b]`` is l(b) in ns for 1 ≤ b ≤ ``max_batch[model]``.
    """

    def __init__(self) -> None:
        self.capacity = 0
        self.known = array("b")
        self.draining = array("b")
        self.slo = array("q")
        self.max_batch = array("q")
        self.table = array("q")
        self.latency = array("q")
        self._place: dict[tuple[int, ...], int] = {}
        self._content: dict[int, tuple[int, ...]] = {}
        self._users: dict[int, int] = {}
        self._spare: dict[int, list[int]] = {}

    def add(self, model: int, slo_ns: int, max_batch: int) -> None:
        """A new model, or a known one with another objective (its tables go)."""
        more = model + 1 - self.capacity
        if more > 0:
            more = max(more, self.capacity, 8)
            self.known = widen("b", self.known, more)
            self.draining = widen("b", self.draining, more)
            self.slo = widen("q", self.slo, more)
            self.max_batch = widen("q", self.max_batch, more)
            self.table = widen("q", self.table, TYPES * more, -1)
            self.capacity += more
        for kind in range(TYPES):
            self._release(model * TYPES + kind)
        self.known[model] = 1
        self.draining[model] = 0
        self.slo[model] = slo_ns
        self.max_batch[model] = max_batch

    def set_table(self, model: int, gpu_type: int, latency_ns: Sequence[int]) -> None:
        """Set l(1) … l(max_batch); the caller has checked that they are in range and monotone.

        Models with the same latencies share one table: a thousand replicas of one model then need
        no more cache than one.
        """
        content = tuple(latency_ns)
        at = self._place.get(content, -1)
        if at < 0:
            spare = self._spare.get(len(content))
            if spare:
                at = spare.pop()
            else:
                at = len(self.latency)
                self.latency = widen("q", self.latency, 1 + len(content))
            for b in range(len(content)):
                self.latency[at + 1 + b] = content[b]
            self._place[content] = at
            self._content[at] = content
            self._users[at] = 0
        self._users[at] += 1
        self._release(model * TYPES + gpu_type)
        self.table[model * TYPES + gpu_type] = at

    def _release(self, entry: int) -> None:
        """The entry of ``table`` no longer uses what it points at."""
        at = self.table[entry]
        self.table[entry] = -1
        if at >= 0:
            self._users[at] -= 1
            if self._users[at] == 0:
                content = self._content.pop(at)
                del self._users[at]
                del self._place[content]
                self._spare.setdefault(len(content), []).append(at)

    def fit(self, at: int, most: int, per_request: int, budget: int, hard: int) -> int:
        """Largest b ≤ most with l(b) + b·per_request ≤ budget and l(b) ≤ hard; 0 if there is none."""
        low = 0
        while low < most:
            mid = (low + most + 1) >> 1
            length = self.latency[at + mid]
            if length <= hard and length + mid * per_request <= budget:
                low = mid
            else:
                most = mid - 1
        return low

    def target(self, model: int, at: int, per_request: int, budget: int, count: int, window: int) -> int:
        """The batch size that a load of ``count`` arrivals per ``window`` ns calls for, at least 1.

        The largest b with l(b) + b·per_request + b/rate ≤ budget. With n = rate·l(b)/b GPUs in use
        this is l(b)·(1 + 1/n), for n < 1 the time that b requests take to gather, in one formula.
        Without a rate: the largest b with l(b) ≤ SLO/2.
        """
        low = 1
        most = self.max_batch[model]
        if count <= 0 or window <= 0:
            b = self.fit(at, most, 0, self.slo[model] // 2, self.slo[model] // 2)
            return b if b > 1 else 1
        while low < most:
            mid = (low + most + 1) >> 1
            if self.latency[at + mid] + mid * per_request + mid * window // count <= budget:
                low = mid
            else:
                most = mid - 1
        return low
