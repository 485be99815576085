"""A caller that keeps asking on a thread of its own, and knows what became of every request."""

from __future__ import annotations

import threading
import time
from collections import Counter
from types import TracebackType

from helpers import wait_until

from symphony.engine import Engine
from symphony.pending import Outcome, Request
from symphony.status import Status, SymphonyError

SLACK_S = 2.0
"""How much later than deadline and grace an outcome may come on a busy machine."""


class Caller:
    """Asks for ``model`` at a constant rate from construction until :meth:`stop`; a context manager.

    Args:
        registry, subscribe: the broker's endpoints.
        rate: requests per second.
        deadline_ms: of every request.
    """

    def __init__(
        self, registry: str, subscribe: str, model: str, rate: float = 60, deadline_ms: float = 3_000
    ) -> None:
        self.engine = Engine(registry, subscribe, grace_ms=500, connect_timeout_s=30)
        self.engine.start()
        self._model, self._pause, self._deadline_s = model, 1 / rate, deadline_ms / 1e3
        self._sent: list[float] = []
        self._outcomes: list[list[tuple[Status, float]]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="caller")
        try:
            self.engine.wait_for_model(model, 30)
        except SymphonyError:
            self.engine.close()
            raise
        self._thread.start()

    def __enter__(self) -> Caller:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self.engine.close()

    @property
    def sent(self) -> int:
        return len(self._sent)

    def statuses(self, since: int = 0) -> Counter[Status]:
        """Outcomes so far of the requests from number ``since`` on."""
        return Counter(outcomes[0][0] for outcomes in self._outcomes[since:] if outcomes)

    def wait_for(self, status: Status, count: int = 1, since: int = 0, timeout: float = 30) -> None:
        """Until so many requests, counted from number ``since``, have ended so."""
        what = f"{count} requests to end as {status.name}"
        wait_until(lambda: self.statuses(since)[status] >= count, timeout, what)

    def stop(self) -> None:
        """Ask no more."""
        self._stop.set()
        self._thread.join()

    def finish(self) -> Counter[Status]:
        """Stop, wait for every outcome, and check that each request had one, in time."""
        self.stop()
        bound = self._deadline_s + self.engine.grace_ns / 1e9 + SLACK_S
        wait_until(lambda: all(self._outcomes), bound + 5, "every request to have an outcome")
        for sent, outcomes in zip(self._sent, self._outcomes, strict=True):
            assert len(outcomes) == 1, f"{len(outcomes)} outcomes"
            status, at = outcomes[0]
            assert at - sent <= bound, f"{status.name} after {at - sent:.3f} s"
        return self.statuses()

    def _ask(self) -> None:
        due = time.monotonic()
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            due += self._pause
            number = len(self._sent)
            self._outcomes.append([])
            self._sent.append(time.monotonic())
            deadline = self.engine.clock.now() + int(self._deadline_s * 1e9)
            try:
                self.engine.submit_raw(self._model, None, deadline, on_done=self._done, tag=number)
            except SymphonyError as error:
                status = error.status or Status.UNAVAILABLE
                self._outcomes[number].append((status, time.monotonic()))

    def _done(self, request: Request, outcome: Outcome) -> None:
        self._outcomes[request.tag].append((outcome.status, time.monotonic()))
