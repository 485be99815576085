"""The order of things: bound, current plan, packing, exact program, least moves."""

from __future__ import annotations

import math
from typing import Final

from . import mip
from .bound import Bound, relax
from .calm import Band, current, keep, loading, relabel, rename, repair, settle, spread
from .cluster import Cluster
from .divide import Division
from .explain import report
from .greedy import greedy
from .plan import Plan
from .program import Clock
from .work import EPSILON, Problem

MIP_GAP: Final = 1e-4
NEAR: Final = 0.002
"""Relative distance from the best at which GPUs are well enough divided, beyond :data:`LARGEST`."""
LARGEST: Final = 12_000
"""Variables up to which the exact program is tried; beyond, packing and bound are the answer."""
EXACT: Final = 100
BALANCE_GAP: Final = 0.005
"""Balance is worth no more time beyond :data:`EXACT` variables once it is this near to its bound."""


def allocate(cluster: Cluster, *, time_limit_s: float = 10.0, mip_gap: float = MIP_GAP) -> Plan:
    """Which model goes where, and how many GPUs each shard gets.

    Args:
        cluster: what there is, and what is in force.
        time_limit_s: seconds for the solver; packing comes first and takes what it takes.
        mip_gap: relative distance from a proven bound that counts as optimal.

    Raises:
        AllocationError: the description makes no sense (:meth:`Cluster.check`).
    """
    cluster.check()
    clock = Clock(time_limit_s)
    problem = Problem(cluster)
    exact = bool(problem.types) and mip.size(problem) <= LARGEST
    if not exact:
        problem.near = NEAR
        problem.ease = max(problem.slack, problem.shards // 2)  # what rounding up takes on average
    bound = relax(problem, clock)
    now = current(problem)
    if now is not None:
        kept = keep(problem, now, Band.of_bound(problem, bound, now), clock)
        if kept is not None:
            return _finish(problem, bound, kept, now, clock, mip_gap)
    best = greedy(problem, bound, clock)
    if exact:
        best, bound = improve(problem, bound, best, clock, mip_gap, now is not None)
    if now is not None:
        best = _calmest(problem, best, now, clock, exact)
    return _finish(problem, bound, best, now, clock, mip_gap)


def improve(
    problem: Problem, bound: Bound, best: Division, clock: Clock, gap: float, calm: bool = False
) -> tuple[Division, Bound]:
    """Minimize one objective after the other from ``best``; the bounds rise to what is proven.

    ``calm``: the plan in force may stay within a band around the best one, so how even the best one could be
    need not be known better than to a part of that band.
    """
    serve_all = best.missed <= EPSILON
    best = canonical(problem, best)
    columns = mip.build(problem, serve_all, symmetric=True)
    total_rate = float(problem.rate.sum())
    stages = ("missed", "gpus", "peak") if not serve_all else ("gpus", "peak")
    for i, stage in enumerate(stages):
        if stage == "peak":  # no more shards than GPUs carry load
            most = sum(problem.count) if problem.slack else best.total
            bound = bound.raised(stage, bound.work / max(1, min(problem.shards, most)))
        value, floor = _value(best, bound, stage)
        share = clock.left / (len(stages) - i)
        enough = gap
        if stage == "peak" and mip.size(problem) > EXACT:
            enough = max(BALANCE_GAP, problem.cluster.tolerance if calm else 0.0)
        slack = problem.slack if stage == "gpus" else 0
        proven = value <= floor * (1 + enough) + slack + EPSILON
        terms = {
            "missed": lambda: mip.missed(problem, columns),
            "gpus": lambda: mip.gpus(columns),
            "peak": lambda: {columns.peak: 1.0},
        }[stage]()
        offset = total_rate if stage == "missed" else 0.0
        if not proven and share > 0.02:
            answer = columns.program.minimize(terms, share, mip.start(problem, columns, best), enough)
            found = mip.read(problem, columns, answer, clock)
            if found is not None and found.better(best, problem.slack):
                best = canonical(problem, found)
            if answer.bound == math.inf:
                # A packing may split a model in other shares than equal parts, and no plan in equal
                # parts is as good: the program has nothing to add.
                break
            bound = bound.raised(stage, answer.bound + offset)
            value, _ = _value(best, bound, stage)
        value = max(value, floor + slack)
        mip.limit(columns, terms, value - offset + EPSILON * max(1.0, abs(value)))
    return best, bound


def canonical(problem: Problem, division: Division) -> Division:
    """Shards in the order in which the models, the largest first, come to them: see :func:`mip.build`."""
    name: dict[int, int] = {}
    for m in problem.order:
        for s in sorted(division.placement.get(m, {})):
            name.setdefault(s, len(name))
    for s in range(problem.shards):
        name.setdefault(s, len(name))
    return rename(division, name)


def _value(best: Division, bound: Bound, stage: str) -> tuple[float, float]:
    """What the plan reaches and what none can beat."""
    if stage == "missed":
        return best.missed, bound.unserved
    if stage == "gpus":
        return float(best.total), float(bound.gpus)
    return best.peak, bound.peak


def _calmest(problem: Problem, best: Division, now: Division, clock: Clock, exact: bool) -> Division:
    """Among what is as good as ``best`` within the tolerance, what moves least."""
    band = Band.of_plan(problem, best)
    kept = keep(problem, now, band, clock)
    if kept is not None:
        return kept
    choices = [settle(problem, relabel(problem, best, now), now, band)]
    mended = repair(problem, now, band, clock)
    if mended is not None:
        choices.append(mended)
    choice = min(choices, key=lambda division: loading(problem, division, now))
    if not exact or clock.left < 0.02 or loading(problem, choice, now) <= EPSILON:
        return choice
    columns = mip.build(problem, best.missed <= EPSILON, symmetric=False)
    if not columns.serve_all:
        rate = float(problem.rate.sum())
        mip.limit(columns, mip.missed(problem, columns), band.missed - rate)
    mip.limit(columns, mip.gpus(columns), band.gpus)
    mip.limit(columns, {columns.peak: 1.0}, band.peak)
    terms = mip.moves(problem, columns, now)
    answer = columns.program.minimize(terms, clock.left, mip.start(problem, columns, choice, now))
    found = mip.read(problem, columns, answer, clock)
    if found is not None:
        found = settle(problem, found, now, band)
    if found is not None and band.holds(found):
        return min(choice, found, key=lambda division: loading(problem, division, now))
    return choice


def _finish(
    problem: Problem, bound: Bound, best: Division, now: Division | None, clock: Clock, gap: float
) -> Plan:
    return report(problem, bound, best, spread(problem, best, now), now, clock.spent, gap)
