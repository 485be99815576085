"""Keeps what became of every request of a load, cheaply: one slot per request in flat arrays."""

from __future__ import annotations

import threading
from array import array
from typing import Any

import numpy as np

from frontend.report import NO_OUTCOME, BatchColumns, Columns
from symphony.pending import Outcome, Request
from symphony.status import Status
from symphony.wire import I64

_MOST_REASONS = 100


class Recorder:
    """:meth:`done` is the callback of every request, whose tag is its index.

    Args:
        names: the models.
        model: per request an index into ``names``.
        intended: per request, when it is meant to be sent; ns from the load's start.
        deadline: per request; ns from the load's start.
        start: the load's start in cluster ns.
    """

    def __init__(self, names: list[str], model: I64, intended: I64, deadline: I64, start: int) -> None:
        count = intended.size
        self.good = 0
        self._done = self._refused = 0  # two threads count: each its own
        self._lock = threading.Lock()
        self.reasons: list[dict[str, int]] = [{} for _ in names]
        self._index = {name: i for i, name in enumerate(names)}
        self._model, self._intended, self._deadline = model, intended, deadline
        self._start = start
        self._sent = array("q", bytes(8 * count))
        self._at = array("q", bytes(8 * count))
        self._status = bytearray([NO_OUTCOME]) * count
        self._outcomes = bytearray(count)
        self._batch: Any = None
        self._batches: dict[tuple[str, int, int, int], tuple[int, int, int, int]] = {}

    @property
    def answered(self) -> int:
        """Requests that have their outcome."""
        return self._done + self._refused

    def sent(self, index: int, at: int) -> None:
        """A request is handed to the engine now; ``at`` in cluster ns."""
        self._sent[index] = at - self._start

    def done(self, request: Request, outcome: Outcome) -> None:
        """A request has its outcome; on the engine's thread."""
        self._note(request.tag, request.model, outcome.status, outcome.at, outcome.detail)
        if outcome.status is Status.OK and outcome.at <= request.deadline:
            self.good += 1
        batch = outcome.batch
        if batch is not None and batch is not self._batch:
            self._batch = batch
            key = (batch.worker, batch.gpu, batch.batch, batch.started)
            model = self._index.get(batch.model, self._index[request.model])
            self._batches[key] = (model, batch.size, batch.started, batch.finished)
        self._done += 1

    def refused(self, index: int, model: str, status: Status, at: int, detail: str) -> None:
        """A request was refused at the door; ``at`` in cluster ns. On the generator's thread."""
        self._note(index, model, status, at, detail)
        self._refused += 1

    def _note(self, index: int, model: str, status: Status, at: int, detail: str) -> None:
        self._status[index] = status
        self._at[index] = at - self._start
        self._outcomes[index] = min(255, self._outcomes[index] + 1)
        if status is not Status.OK:
            reasons = self.reasons[self._index[model]]
            text = f"{status.name}: {detail}"
            with self._lock:
                if text in reasons or len(reasons) < _MOST_REASONS:
                    reasons[text] = reasons.get(text, 0) + 1

    def columns(self, offered: int) -> Columns:
        """What was recorded of the first ``offered`` requests."""
        batches = np.array(list(self._batches.values()), np.int64).reshape(-1, 4).T
        return Columns(
            model=self._model[:offered],
            intended=self._intended[:offered],
            sent=np.array(self._sent, np.int64)[:offered],
            deadline=self._deadline[:offered],
            status=np.array(self._status, np.uint8)[:offered],
            answered=np.array(self._at, np.int64)[:offered],
            outcomes=np.array(self._outcomes, np.uint8)[:offered],
            batches=BatchColumns(batches[0], batches[1], batches[2] - self._start, batches[3] - self._start),
        )
