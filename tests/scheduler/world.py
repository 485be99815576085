"""A core told and read in ms, for cases small enough to work out by hand."""

from __future__ import annotations

from typing import Any

from reference import Dispatch, Drop
from rig import MS, columns, linear, read

from scheduler.core.machine import Core
from scheduler.core.validate import validate

Actions = tuple[list[Dispatch], list[Drop]]
NOTHING: Actions = ([], [])


class World:
    """One core, told and read in ms."""

    def __init__(self, core_type: type[Core], gpus: int = 1, largest: int = 8, **settings: Any) -> None:
        self.core = core_type(**settings)
        self.key = 0
        self.model(0, largest=largest)
        for gpu in range(gpus):
            self.core.add_gpu(0, gpu)

    def model(
        self, number: int, slo: float = 100, alpha: float = 1, beta: float = 5, largest: int = 8
    ) -> None:
        self.core.add_model(number, round(slo * MS), largest)
        self.core.set_profile(self.core.now, number, 0, linear(alpha, beta, largest))

    def submit(self, now: float, *deadlines: float, model: int = 0, priority: int = 0) -> Actions:
        n = len(deadlines)
        keys = list(range(self.key + 1, self.key + 1 + n))
        self.key += n
        m, d, k, p = columns(
            model=[model] * n,
            deadline=[round(at * MS) for at in deadlines],
            key=keys,
            priority=[priority] * n,
        )
        self.core.submit(round(now * MS), m, d, k, p)
        return self.read()

    def advance(self, now: float) -> Actions:
        self.core.advance(round(now * MS))
        return self.read()

    def complete(self, now: float, gpu: int, batch: int, finished: float) -> Actions:
        self.core.complete(
            round(now * MS), *columns(gpu=[gpu], batch=[batch], finished=[round(finished * MS)])
        )
        return self.read()

    def read(self) -> Actions:
        validate(self.core)
        return read(self.core)

    @property
    def wakeup(self) -> float:
        return self.core.next_wakeup() / MS


def brief(actions: Actions) -> list[tuple[int, float, float, tuple[int, ...]]]:
    """Of the dispatches: GPU, start and end in ms, keys; there must be no drops."""
    assert actions[1] == []
    return [(d[2], d[5] / MS, d[6] / MS, d[7]) for d in actions[0]]


def gone(actions: Actions) -> list[tuple[int, int]]:
    """Of the drops: key and reason; there must be no dispatches."""
    assert actions[0] == []
    return [(drop[0], drop[3]) for drop in actions[1]]


def far_apart(core_type: type[Core], **settings: Any) -> World:
    """GPU 0 needs 4b + 5, GPU 1 b + 5."""
    world = World(core_type, gpus=0, **settings)
    world.core.set_profile(0, 0, 1, linear(4, 5, 8))
    world.core.add_gpu(0, 0, 1)
    world.core.add_gpu(0, 1, 0)
    return world
