"""A small deterministic cluster around a core: virtual time, GPUs that keep their profile, nothing else."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from reference import Dispatch, Drop
from rig import columns, read

from scheduler.core.limits import NEVER
from scheduler.core.machine import Core

Arrival = tuple[int, int, int, int]
"""time, model, deadline, key."""


@dataclass
class Outcome:
    """What became of the requests."""

    offered: int = 0
    good: int = 0
    late: int = 0
    dispatches: list[Dispatch] = field(default_factory=list)
    drops: list[Drop] = field(default_factory=list)

    @property
    def bad_share(self) -> float:
        return 1 - self.good / self.offered

    @property
    def mean_batch(self) -> float:
        return sum(d[3] for d in self.dispatches) / len(self.dispatches)


def constant(rate: float, seconds: float, slo_ns: int, model: int = 0, slot: int = 0) -> list[Arrival]:
    """Arrivals at equal distances."""
    times = (round(i / rate * 1e9) for i in range(int(rate * seconds)))
    return [(t, model, t + slo_ns, (slot << 48) + i + 1) for i, t in enumerate(times)]


def drive(
    core: Core,
    arrivals: Iterable[Arrival],
    runs: Callable[[int, int], int] = lambda predicted, batch: predicted,
    late_ns: int = 0,
    result_ns: int = 0,
) -> Outcome:
    """Serve all arrivals to the end.

    Args:
        core: with its models and GPUs.
        arrivals: in the order of their times.
        runs: how long a batch really takes, from its prediction and number.
        late_ns: every timer is so late.
        result_ns: from a batch's end to the news of it.
    """
    outcome = Outcome()
    waiting = sorted(arrivals)[::-1]
    outcome.offered = len(waiting)
    running: list[tuple[int, int, int, int]] = []  # news at, gpu, batch, ended
    free: dict[int, int] = {}
    while True:
        due = core.next_wakeup()
        wake = NEVER if due == NEVER else due + late_ns
        news = running[0][0] if running else NEVER
        comes = waiting[-1][0] if waiting else NEVER
        now = min(wake, news, comes)
        if now == NEVER:
            return outcome
        if news == now:
            ended = []
            while running and running[0][0] == now:
                ended.append(heapq.heappop(running))
            core.complete(
                now,
                *columns(
                    gpu=[e[1] for e in ended], batch=[e[2] for e in ended], finished=[e[3] for e in ended]
                ),
            )
        elif comes == now:
            new = []
            while waiting and waiting[-1][0] == now:
                new.append(waiting.pop())
            core.submit(
                now,
                *columns(model=[n[1] for n in new], deadline=[n[2] for n in new], key=[n[3] for n in new]),
            )
        else:
            core.advance(now)
        dispatches, drops = read(core)
        outcome.dispatches += dispatches
        outcome.drops += drops
        for dispatch in dispatches:
            _, _, gpu, _, batch, exec_at, finish_at, _, deadlines = dispatch
            end = max(exec_at, free.get(gpu, 0)) + runs(finish_at - exec_at, batch)
            free[gpu] = end
            heapq.heappush(running, (end + result_ns, gpu, batch, end))
            good = sum(end + result_ns <= deadline for deadline in deadlines)
            outcome.good += good
            outcome.late += len(deadlines) - good
