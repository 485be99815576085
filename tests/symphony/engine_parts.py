"""An engine's caller: submits to the fake cluster and collects the outcomes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from helpers import wait_until

from symphony.engine import Engine
from symphony.pending import Outcome, Request
from symphony.status import Status

X = {"x": np.ones(2, dtype=np.float32)}


class Outcomes:
    """Collects what ``on_done`` is called with, and fails on a second call for one request."""

    def __init__(self) -> None:
        self.by_tag: dict[Any, Outcome] = {}
        self.calls = 0

    def __call__(self, request: Request, outcome: Outcome) -> None:
        self.calls += 1
        self.by_tag[request.tag] = outcome

    def wait(self, count: int, timeout: float = 20.0) -> Counter[Status]:
        wait_until(lambda: self.calls >= count, timeout, f"{count} outcomes")
        assert self.calls == len(self.by_tag) == count
        return Counter(outcome.status for outcome in self.by_tag.values())


def submit(engine: Engine, model: str, done: Outcomes, tag: Any = 0, **options: Any) -> Request:
    inputs = X if model in ("double", "fails", "refuses", "holds") else None
    return engine.submit_raw(model, inputs, on_done=done, tag=tag, **options)
