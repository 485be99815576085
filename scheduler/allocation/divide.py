"""GPUs for given placements: how many of which type each shard gets, and what then remains unserved.

With one GPU type and enough of it this is a division with rounding up. Otherwise it is a small program:
fractions f[m, s, t] of a model's load that a shard runs on a type, whole GPUs n[s, t]; and where the solver
gives no answer, a division by hand.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from .program import Clock, Program
from .work import EPSILON, NOWHERE, Placement, Problem, gpus_for

PEAK_TOO: Final = 25
"""Times the relative distance at which GPUs are well enough divided that balance may stay from its best."""


@dataclass(slots=True)
class Division:
    """Placements with their GPUs.

    gpus: shard → type → count. flows: (model, shard, type) → served fraction of the model's rate.
    load: shard → busy GPUs. unserved: model → requests/s.
    """

    placement: Placement
    gpus: list[list[int]]
    flows: dict[tuple[int, int, int], float]
    load: list[float]
    unserved: dict[int, float] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """All GPUs."""
        return sum(map(sum, self.gpus))

    @property
    def peak(self) -> float:
        """The largest load of a shard."""
        return max(self.load, default=0.0)

    @property
    def missed(self) -> float:
        """The first objective: requests/s unserved, and :data:`NOWHERE` per model without a place."""
        return sum(self.unserved.values()) + NOWHERE * sum(
            1 for m in self.unserved if m not in self.placement
        )

    def better(self, other: Division, slack: int = 0) -> bool:
        """Whether this one comes before the other in the order of the objectives (without moves).

        A difference of up to ``slack`` GPUs is none.
        """
        if abs(self.total - other.total) <= slack and abs(self.missed - other.missed) <= EPSILON:
            return self.peak < other.peak
        for mine, theirs in (
            (self.missed, other.missed),
            (float(self.total), float(other.total)),
            (self.peak, other.peak),
        ):
            if abs(mine - theirs) > EPSILON * max(1.0, abs(theirs)):
                return mine < theirs
        return False


def types_of(problem: Problem, models: list[int]) -> list[int]:
    """GPU types that may hold all of these models together."""
    need = float(sum(problem.memory[m] for m in models))
    return [
        t
        for t in range(problem.types)
        if need <= problem.room[t] + EPSILON and all(problem.fits[m][t] for m in models)
    ]


def members(problem: Problem, placement: Placement) -> list[list[int]]:
    """Shard → models that it holds."""
    held: list[list[int]] = [[] for _ in range(problem.shards)]
    for m, where in placement.items():
        for s in where:
            held[s].append(m)
    return held


def divide(
    problem: Problem,
    placement: Placement,
    clock: Clock,
    now: Division | None = None,
    fixed: bool = False,
    headroom: float | None = None,
) -> Division:
    """Serve as much as possible of that placement, on as few GPUs as possible, evenly.

    Args:
        problem: the instance.
        placement: which shares are where.
        clock: what time is left.
        now: GPUs that are there: among equals as few as possible are added to them.
        fixed: take exactly ``now``'s GPUs.
        headroom: instead of the problem's.
    """
    headroom = problem.headroom if headroom is None else headroom
    if not fixed:
        simple = _divide_one_type(problem, placement, headroom)
        if simple is not None:
            return simple
    division = _divide(problem, placement, clock, now, fixed, headroom)
    kept = division.placement
    if fixed or (
        kept.keys() == placement.keys() and all(kept[m].keys() == placement[m].keys() for m in kept)
    ):
        return division
    # A shard without GPUs holds nothing: what it was to serve goes to the model's other shards.
    return divide(problem, kept, clock, now, fixed, headroom)


def _divide_one_type(problem: Problem, placement: Placement, headroom: float) -> Division | None:
    """The closed form; None where types differ or GPUs are short."""
    if problem.types != 1:
        return None
    load = [0.0] * problem.shards
    memory = [0.0] * problem.shards
    flows = {}
    for m, where in placement.items():
        for s, share in where.items():
            load[s] += problem.work(m, 0, share)
            memory[s] += float(problem.memory[m])
            flows[m, s, 0] = share
    held = members(problem, placement)
    gpus = [[gpus_for(load[s], headroom) if held[s] else 0] for s in range(problem.shards)]
    if sum(map(sum, gpus)) > problem.count[0] or max(memory) > problem.room[0] + EPSILON:
        return None
    lost = {m: float(rate) for m, rate in enumerate(problem.rate) if m not in placement}
    return Division(placement, gpus, flows, load, lost)


def _divide(
    problem: Problem,
    placement: Placement,
    clock: Clock,
    now: Division | None,
    fixed: bool,
    headroom: float,
) -> Division:
    """First as if all that is placed could be served; if not, what can be; by hand when time is up."""
    if not placement:
        return _nothing(problem)
    if clock.left > 0:
        found = _program(problem, placement, clock, now, fixed, headroom, serve_all=True)
        if found is not None:
            return found
        found = _program(problem, placement, clock, now, fixed, headroom, serve_all=False)
        if found is not None and fixed:
            return found
    else:
        found = None
    # A solver that was cut short may have come no further than to serve nothing.
    division = by_hand(problem, placement, headroom)
    return division if found is None or division.better(found) else found


def by_hand(problem: Problem, placement: Placement, headroom: float) -> Division:
    """Without a solver: each shard takes GPUs of one type, the shards with most load choosing first."""
    held = members(problem, placement)
    left = list(problem.count)
    result = _nothing(problem)
    need: dict[tuple[int, int], float] = {}
    for s, models in enumerate(held):
        for t in types_of(problem, models) if models else ():
            need[s, t] = sum(problem.work(m, t, placement[m][s]) for m in models)
    least = {s: min((work for (at, _), work in need.items() if at == s), default=0.0) for s, _ in need}
    served = [0.0] * len(problem.models)
    kept: Placement = {}
    for s in sorted(least, key=lambda s: (-least[s], s)):
        there = [(gpus_for(need[s, t], headroom), t) for t in range(problem.types) if (s, t) in need]
        enough = [(count, t) for count, t in there if count <= left[t]]
        count, t = min(enough) if enough else max((left[t], t) for _, t in there)
        if not count:
            continue
        left[t] -= count
        result.gpus[s][t] = count
        part = min(1.0, headroom * count / need[s, t]) if need[s, t] > 0 else 1.0
        result.load[s] = part * need[s, t]
        for m in held[s]:
            share = placement[m][s]
            kept.setdefault(m, {})[s] = share
            result.flows[m, s, t] = part * share
            served[m] += part * share
    result.placement = {m: _whole(where) for m, where in sorted(kept.items())}
    result.unserved = {
        m: float(rate) * max(0.0, 1 - served[m])
        for m, rate in enumerate(problem.rate)
        if m not in kept or served[m] < 1 - EPSILON
    }
    return result


def _program(
    problem: Problem,
    placement: Placement,
    clock: Clock,
    now: Division | None,
    fixed: bool,
    headroom: float,
    serve_all: bool,
) -> Division | None:
    program = Program()
    held = members(problem, placement)
    count: dict[tuple[int, int], int] = {}
    for s, models in enumerate(held):
        for t in types_of(problem, models) if models else ():
            there = now.gpus[s][t] if now and fixed else 0
            high = there if fixed else problem.count[t]
            count[s, t] = program.column(there, high, integer=not fixed)
    flow: dict[tuple[int, int, int], int] = {}
    lost: dict[int, float] = {}  # column → what a unit of it is worth
    for m, where in placement.items():
        for s, share in where.items():
            for t in range(problem.types):
                if (s, t) in count:
                    flow[m, s, t] = program.column(0, share)
                    lost[flow[m, s, t]] = -float(problem.rate[m])
            columns = [flow[m, s, t] for t in range(problem.types) if (m, s, t) in flow]
            program.row([(column, 1.0) for column in columns], share if serve_all else 0.0, share)
    peak = program.column()
    for s, models in enumerate(held):
        load: list[tuple[int, float]] = []
        for t in range(problem.types):
            if (s, t) in count:
                terms = [
                    (flow[m, s, t], problem.work(m, t, placement[m][s]) / placement[m][s]) for m in models
                ]
                program.row([*terms, (count[s, t], -headroom)], high=0.0)
                load += terms
        program.row([*load, (peak, -1.0)], high=0.0)
    for t in range(problem.types):
        program.row([(n, 1.0) for (_, kind), n in count.items() if kind == t], high=problem.count[t])
    for where in placement.values():
        here = program.column(1 if serve_all else 0, 1, integer=not fixed)  # has a GPU somewhere
        terms = [(count[s, t], 1.0) for s in where for t in range(problem.types) if (s, t) in count]
        program.row([(here, -1.0), *terms], low=0.0)
        lost[here] = -NOWHERE
    stages: list[dict[int, float]] = [] if serve_all else [lost]
    values = _staged(problem, program, [*stages, dict.fromkeys(count.values(), 1.0)], count, peak, now, clock)
    return None if values is None else _read(problem, placement, count, flow, values)


def _staged(
    problem: Problem,
    program: Program,
    stages: list[dict[int, float]],
    count: dict[tuple[int, int], int],
    peak: int,
    now: Division | None,
    clock: Clock,
) -> list[float] | None:
    """Those stages, the smallest peak where types differ, the fewest GPUs that are added to ``now``'s."""
    if problem.types > 1:
        stages.append({peak: 1.0})
    if now is not None:
        added = {}
        for (s, t), n in count.items():
            column = program.column()
            program.row([(n, 1.0), (column, -1.0)], high=float(now.gpus[s][t]))
            added[column] = 1.0
        stages.append(added)
    values: list[float] | None = None
    for objective in stages:
        near = problem.near * (PEAK_TOO if objective == {peak: 1.0} else 1)
        answer = program.minimize(objective, max(0.1, clock.left / 2), values, near)
        if answer.values is None:
            break
        values = answer.values
        program.row(objective.items(), high=answer.value + EPSILON * max(1.0, abs(answer.value)))
    return values


def _read(
    problem: Problem,
    placement: Placement,
    count: dict[tuple[int, int], int],
    flow: dict[tuple[int, int, int], int],
    values: list[float],
) -> Division:
    gpus = [[0] * problem.types for _ in range(problem.shards)]
    for (s, t), n in count.items():
        gpus[s][t] = round(values[n])
    kept = {m: {s: share for s, share in where.items() if sum(gpus[s])} for m, where in placement.items()}
    kept = {m: _whole(where) for m, where in kept.items() if where}
    flows = {key: values[column] for key, column in flow.items() if values[column] > 1e-9}
    load = [0.0] * problem.shards
    unserved = dict.fromkeys(range(len(problem.models)), 1.0)
    for (m, s, t), part in flows.items():
        load[s] += part * problem.work(m, t, placement[m][s]) / placement[m][s]
        unserved[m] -= part
    lost = {
        m: max(0.0, part) * float(problem.rate[m])
        for m, part in unserved.items()
        if m not in kept or part * problem.rate[m] > EPSILON * max(1.0, float(problem.rate[m]))
    }
    return Division(kept, gpus, flows, load, lost)


def _whole(where: dict[int, float]) -> dict[int, float]:
    total = sum(where.values())
    if abs(total - 1) < EPSILON:
        return dict(where)
    return {s: share / total for s, share in where.items()}


def _nothing(problem: Problem) -> Division:
    """No shard has a GPU."""
    return Division(
        {},
        [[0] * problem.types for _ in range(problem.shards)],
        {},
        [0.0] * problem.shards,
        {m: float(rate) for m, rate in enumerate(problem.rate)},
    )
