"""The scheduling core behind the baselines' interface, and a short way to write experiments."""

from __future__ import annotations

from array import array
from typing import Any

from scheduler.core.machine import Core
from simulator.experiment import Experiment, parse_experiment
from simulator.system import Decisions, Sent


class CoreSystem:
    """So that both engines can run the same scheduler."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self.decisions = Decisions()

    def submit(self, now: int, model: int, deadline: int, key: int) -> None:
        self.core.submit(now, array("I", [model]), array("q", [deadline]), array("Q", [key]))
        self._collect()

    def complete(self, now: int, gpu: int, number: int, finished: int) -> None:
        self.core.complete(now, array("I", [gpu]), array("Q", [number]), array("q", [finished]))
        self._collect()

    def advance(self, now: int) -> None:
        self.core.advance(now)
        self._collect()

    def next_wakeup(self) -> int:
        return self.core.next_wakeup()

    def _collect(self) -> None:
        out = self.core.actions.dispatches()
        first = 0
        for i in range(len(out.model)):
            keys = list(out.key[first : first + out.size[i]])
            first += out.size[i]
            self.decisions.sent.append(Sent(out.batch[i], out.model[i], out.gpu[i], keys))
        self.decisions.dropped += list(self.core.actions.drops().key)
        self.core.clear_actions()


def make_experiment(rate: float = 4000, *, count: int = 1, **changes: Any) -> Experiment:
    """ResNet-50 of the Symphony paper on 8 GPUs, SLO 50 ms, ``rate`` in total."""
    model = {"name": "r50", "alpha_ms": 1.082, "beta_ms": 5.204, "slo_ms": 50, "rate": rate / count}
    model |= {"count": count} | changes.pop("model", {})
    return parse_experiment({"gpus": 8, "seconds": 2, "models": [model]} | changes, "test")
