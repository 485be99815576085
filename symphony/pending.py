"""Requests in flight, and the one rule that matters about them: each gets exactly one outcome.

A :class:`PendingTable` is told what happens (a request is admitted, sent, answered, its time runs
out, the client closes) and calls each request's ``on_done`` once, whichever of these comes first;
whatever comes second finds nothing and is reported to the caller of :meth:`PendingTable.answer` as
such. It reads no clock: ``now`` is an argument, in any nanoseconds that only rise.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable
from typing import Any, Final

from symphony.faults import Faults
from symphony.status import Status
from symphony.tensors import Encoded

_log = logging.getLogger(__name__)

SLACK: Final = 4_096
"""Ended requests that the expiry heap may hold beyond as many as there are live ones."""


class Line:
    """One stretch of an unbroken connection to a shard; what was sent on it shares its fate.

    ``lost`` is why it ended, None while it stands.
    """

    __slots__ = ("lost",)

    def __init__(self) -> None:
        self.lost: str | None = None


class Outcome:
    """What became of a request.

    Attributes:
        status: the outcome's :class:`Status`.
        at: cluster time in ns when it was known here.
        detail: a sentence for a person; empty for OK.
        batch: the batch that the request was part of (a :class:`symphony.answers.Batch`), or None if
            it never was in one.
        row: the request's place among the batch's outputs, for OK.
    """

    __slots__ = ("at", "batch", "detail", "row", "status")

    def __init__(self, status: Status, at: int, detail: str = "", batch: Any = None, row: int = -1) -> None:
        self.status = status
        self.at = at
        self.detail = detail
        self.batch = batch
        self.row = row

    def __repr__(self) -> str:
        return f"Outcome({self.status.name}, {self.detail!r})"


class Request:
    """One request, from its caller to its outcome.

    Attributes:
        model: the model's name.
        inputs: the tensors that the worker fetches; None for a model that takes none.
        raw: inputs that could not be encoded yet, because the model was not known yet.
        deadline: cluster time in ns by which the answer is wanted; 0 means the model's own SLO
            from ``submitted`` on, where the model was not known yet.
        priority: 0 (normal) to 3 (highest).
        on_done: called once with this request and its :class:`Outcome`, on the engine's thread.
        tag: whatever the caller wants to find again in ``on_done``.
        submitted: cluster time in ns when the engine was given it.
        expires: when the table gives it up, in the table's clock.
        key: the request key on the wire, -1 before it is sent.
        line: the connection on which it was sent.
        done: whether it has its outcome.
    """

    __slots__ = (
        "deadline",
        "done",
        "expires",
        "inputs",
        "key",
        "line",
        "model",
        "on_done",
        "priority",
        "raw",
        "submitted",
        "tag",
    )

    def __init__(
        self,
        model: str,
        inputs: Encoded | None,
        deadline: int,
        priority: int,
        on_done: OnDone,
        tag: Any = None,
    ) -> None:
        self.model = model
        self.inputs = inputs
        self.raw: Any = None
        self.deadline = deadline
        self.priority = priority
        self.on_done = on_done
        self.tag = tag
        self.submitted = 0
        self.expires = 0
        self.key = -1
        self.line: Line | None = None
        self.done = False


OnDone = Callable[[Request, Outcome], None]


class PendingTable:
    """See the module's text.

    Args:
        faults: counts callbacks that raised (``callback-raised``).
    """

    def __init__(self, faults: Faults | None = None) -> None:
        self.faults = faults if faults is not None else Faults(_log)
        self.live = 0
        """Requests without an outcome so far."""
        self._sent: dict[int, Request] = {}
        self._expiry: list[tuple[int, int, Request]] = []
        self._admitted = 0

    def admit(self, request: Request, expires: int) -> None:
        """From here on the request gets an outcome: by ``expires`` at the latest."""
        self.live += 1
        self.reschedule(request, expires)

    def reschedule(self, request: Request, expires: int) -> None:
        """Move the moment at which an admitted request is given up."""
        request.expires = expires
        self._admitted += 1
        heapq.heappush(self._expiry, (expires, self._admitted, request))

    def assign(self, request: Request, key: int, line: Line) -> None:
        """The request is about to be sent as ``key`` on ``line``; answers name that key."""
        request.key = key
        request.line = line
        self._sent[key] = request

    def get(self, key: int) -> Request | None:
        """The request behind a key that still waits for its outcome."""
        return self._sent.get(key)

    def answer(self, key: int, outcome: Outcome) -> bool:
        """Deliver an answer; False if nobody waits for it (any more)."""
        request = self._sent.get(key)
        if request is None:
            return False
        self.finish(request, outcome)
        return True

    def finish(self, request: Request, outcome: Outcome) -> None:
        """Give an admitted request its outcome, unless it has one."""
        if request.done:
            return
        request.done = True
        self.live -= 1
        if request.key >= 0:
            del self._sent[request.key]
        # A caller may keep the request as its tag for long; the tensors are not wanted any more.
        request.inputs = request.raw = None
        try:
            request.on_done(request, outcome)
        except Exception as error:  # noqa: BLE001 - a caller's callback must not end the engine
            self.faults.count("callback-raised", repr(error))

    def next_expiry(self) -> int | None:
        """When :meth:`expire` next has something to do; None if nothing is in flight."""
        heap = self._expiry
        while heap and (heap[0][2].done or heap[0][0] != heap[0][2].expires):
            heapq.heappop(heap)
        if len(heap) > 2 * self.live + SLACK:
            self._expiry = heap = [entry for entry in heap if not entry[2].done]
            heapq.heapify(heap)
        return heap[0][0] if heap else None

    def expire(self, now: int, at: int) -> int:
        """Give up what has waited long enough; returns how many.

        Args:
            now: in the table's clock.
            at: the same moment in cluster time, for the outcomes.
        """
        count = 0
        while (moment := self.next_expiry()) is not None and moment <= now:
            request = heapq.heappop(self._expiry)[2]
            self.finish(request, _given_up(request, at))
            count += 1
        return count

    def close(self, at: int, detail: str) -> int:
        """Every request in flight ends as UNAVAILABLE; returns how many."""
        count = 0
        while self.next_expiry() is not None:
            request = heapq.heappop(self._expiry)[2]
            self.finish(request, Outcome(Status.UNAVAILABLE, at, detail))
            count += 1
        return count

    def validate(self) -> None:
        """Raises AssertionError if the table's parts contradict each other; for tests."""
        waiting = {id(r): r for moment, _, r in self._expiry if not r.done and moment == r.expires}
        assert len(waiting) == self.live
        assert all(not r.done and r.key == key and id(r) in waiting for key, r in self._sent.items())
        assert all(r.key < 0 or self._sent[r.key] is r for r in waiting.values())


def _given_up(request: Request, at: int) -> Outcome:
    if request.line is None:
        return Outcome(Status.UNAVAILABLE, at, f"no shard could be reached in time for {request.model!r}")
    if request.line.lost is not None:
        return Outcome(Status.UNAVAILABLE, at, request.line.lost)
    return Outcome(Status.TIMEOUT, at, "nobody answered by the deadline and the grace period after it")
