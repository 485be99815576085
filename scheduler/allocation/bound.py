"""What no plan can beat: the relaxation without shards, memory and whole GPUs.

Every model may be served by fractions on every type that can run it, at the least work per request that
any split into parts allows. Its optimum bounds the load that can be served from above and the number of
GPUs from below; its fractions say which type suits which model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

from .program import Clock, Program
from .work import EPSILON, NOWHERE, Problem

LEAST_S: Final = 5.0
"""The relaxation may take that long even where the time limit is shorter: without it nothing is known."""


@dataclass(frozen=True, slots=True)
class Bound:
    """unserved: requests/s at least, and what models that nothing can run count for. gpus: at least.

    peak: the largest load of a shard, at least. work: busy GPUs in all, at least; 0 where load stays
    unserved, as gpus and peak are then. flows: model → type → fraction of its rate, in its optimum.
    """

    unserved: float
    gpus: int
    peak: float
    work: float
    flows: list[dict[int, float]]

    def raised(self, stage: str, value: float) -> Bound:
        """With what a solver has proven of ``missed``, ``gpus`` or ``peak``, if that is more."""
        if stage == "missed":
            return replace(self, unserved=max(self.unserved, value))
        if stage == "gpus":
            return replace(self, gpus=max(self.gpus, math.ceil(value - EPSILON) if value > 0 else 0))
        return replace(self, peak=max(self.peak, value))


def relax(problem: Problem, clock: Clock) -> Bound:
    """Solve the relaxation; closed where there is one GPU type and enough of it."""
    if problem.types == 1:
        units = [problem.unit(m, 0) for m in range(len(problem.models))]
        total = sum(units)
        if total <= problem.headroom * problem.count[0]:
            return _bound(problem, 0.0, total / problem.headroom, total, [{0: 1.0} for _ in units])
    program = Program()
    flows: dict[tuple[int, int], int] = {}
    lost: dict[int, float] = {}
    work: dict[int, float] = {}
    for m in range(len(problem.models)):
        for t in range(problem.types):
            if problem.fits[m][t]:
                column = flows[m, t] = program.column(0, 1)
                lost[column] = -float(problem.rate[m])
                work[column] = problem.unit(m, t)
        program.row([(flows[m, t], 1.0) for t in range(problem.types) if (m, t) in flows], high=1.0)
    for t in range(problem.types):
        terms = [(column, work[column]) for (_, kind), column in flows.items() if kind == t]
        program.row(terms, high=problem.headroom * problem.count[t])
    rate = float(problem.rate.sum())
    most = program.minimize(lost, max(LEAST_S, clock.left))
    if not most.solved or most.values is None:
        return Bound(0.0, 0, 0.0, 0.0, _best(problem))
    program.row(lost.items(), high=most.value + EPSILON * max(1.0, rate))
    least = program.minimize(work, max(LEAST_S, clock.left))
    values = least.values if least.solved and least.values is not None else most.values
    parts: list[dict[int, float]] = [{} for _ in problem.models]
    for (m, t), column in flows.items():
        if values[column] > 1e-9:
            parts[m][t] = values[column]
    total = least.value if least.solved else 0.0
    nowhere = NOWHERE * sum(1 for fits in problem.fits if not any(fits))
    missed = max(0.0, rate + most.value) + nowhere
    return _bound(
        problem, missed if missed > EPSILON * max(1.0, rate) else 0.0, total / problem.headroom, total, parts
    )


def _best(problem: Problem) -> list[dict[int, float]]:
    """Every model whole on the type on which it takes the least work."""
    flows: list[dict[int, float]] = []
    for m, fits in enumerate(problem.fits):
        there = [(problem.work(m, t), t) for t, fit in enumerate(fits) if fit]
        flows.append({min(there)[1]: 1.0} if there else {})
    return flows


def _bound(
    problem: Problem, unserved: float, gpus: float, total: float, flows: list[dict[int, float]]
) -> Bound:
    """Whole GPUs; and a shard that carries an even share of the work, or the largest part of a model."""
    part = 0.0
    if unserved == 0:
        for m, parts in enumerate(problem.parts):
            shares = [k / parts for k in range(1, parts + 1)]
            least = [problem.work(m, t, share) for t in range(problem.types) for share in shares]
            part = max(part, min(least, default=0.0))
    even = total / problem.shards
    fewest = max(math.ceil(gpus - EPSILON), 1 if problem.models and any(map(any, problem.fits)) else 0)
    if unserved > 0:
        return Bound(unserved, 0, 0.0, 0.0, flows)
    return Bound(unserved, fewest, max(even, part), total, flows)
