"""A division as a plan with names, numbers and reasons."""

from __future__ import annotations

import math

from .bound import Bound
from .calm import keeping, loading
from .divide import Division, members
from .plan import Plan, Status
from .work import EPSILON, Problem, gpus_for


def report(
    problem: Problem,
    bound: Bound,
    best: Division,
    handed: Division,
    now: Division | None,
    solve_s: float,
    mip_gap: float,
) -> Plan:
    """The plan.

    Args:
        problem: the instance.
        bound: what no plan can beat.
        best: placements with the GPUs that they need or keep.
        handed: the same with the GPUs that are handed out.
        now: the plan in force, if there is one.
        solve_s: seconds since planning began.
        mip_gap: distance from the bound that counts as optimal.
    """
    cluster = problem.cluster
    shards, names = cluster.shards, [model.name for model in cluster.models]
    needed = gpus_needed(problem, best)
    gaps = _gaps(problem, bound, best, needed)
    gap = max(gaps.values())
    status: Status = "optimal" if gap <= mip_gap else "feasible"
    if best.unserved:
        status = "infeasible"
    moved = _moved(best, now)
    held = members(problem, best.placement)
    reasons = [
        _headline(problem, best, needed, bound, gaps),
        *(_unserved(problem, best, m) for m in sorted(best.unserved, key=lambda m: (-best.unserved[m], m))),
        *_keeping(problem, best, now, moved),
        *(_shard(problem, handed, s, models) for s, models in enumerate(held)),
        *(_model(problem, best, m) for m in best.placement),
        *(_move(problem, now, m, s) for m, s in moved if now is not None),
        *_added(problem, handed, now, held),
    ]
    return Plan(
        status=status,
        gap=gap,
        solve_s=solve_s,
        gpus_needed=needed,
        placements={
            names[m]: {shards[s]: share for s, share in sorted(where.items())}
            for m, where in sorted(best.placement.items())
        },
        gpus={
            shards[s]: {group.type: n for group, n in zip(cluster.gpus, row, strict=True) if n}
            for s, row in enumerate(handed.gpus)
        },
        utilization={
            shards[s]: handed.load[s] / sum(row) if sum(row) else 0.0 for s, row in enumerate(handed.gpus)
        },
        memory_mb={shards[s]: float(sum(problem.memory[m] for m in models)) for s, models in enumerate(held)},
        moved=len(moved),
        unserved={names[m]: rate for m, rate in sorted(best.unserved.items())},
        reasons=tuple(reasons),
    )


def gpus_needed(problem: Problem, best: Division) -> int:
    """GPUs for the whole load at the planned headroom, also for what finds no room."""
    short = 0.0
    for m, rate in best.unserved.items():
        if problem.rate[m] > 0:
            short += float(problem.least[m]) * rate / float(problem.rate[m])
    if problem.types == 1 and not best.unserved:
        held = members(problem, best.placement)
        return sum(
            gpus_for(load, problem.headroom) for load, models in zip(best.load, held, strict=True) if models
        )
    return best.total + math.ceil(short / problem.headroom - EPSILON)


def _gaps(problem: Problem, bound: Bound, best: Division, needed: int) -> dict[str, float]:
    """Relative distance from the bound for each objective, in their order."""
    if best.missed > EPSILON:
        return {"unserved load": _gap(best.missed, bound.unserved)}
    used = min(problem.shards, sum(problem.count) if problem.slack else best.total)
    peak = max(bound.peak, bound.work / max(1, used))
    gpus = float(max(bound.gpus, needed - problem.slack))
    return {"GPUs": _gap(gpus, float(bound.gpus)), "balance": _gap(best.peak, peak)}


def _gap(value: float, floor: float) -> float:
    return max(0.0, (value - floor) / value) if value > EPSILON else 0.0


def _moved(best: Division, now: Division | None) -> list[tuple[int, int]]:
    if now is None:
        return []
    return [
        (m, s)
        for m, where in sorted(best.placement.items())
        if m in now.placement
        for s in sorted(where)
        if s not in now.placement[m]
    ]


def _headline(problem: Problem, best: Division, needed: int, bound: Bound, gaps: dict[str, float]) -> str:
    there = sum(problem.count)
    far = ", ".join(f"{name} {gap:.2%}" for name, gap in gaps.items())
    if not best.unserved:
        return (
            f"all load is served: {needed} of {there} GPUs are needed, no plan needs fewer than "
            f"{bound.gpus}; at most so far from the best: {far}"
        )
    lost = sum(best.unserved.values())
    share = lost / max(EPSILON, float(problem.rate.sum()))
    more = f"about {needed} GPUs would serve it, there are {there}; " if needed > there else ""
    return (
        f"not all load can be served: {lost:,.1f} requests/s ({share:.1%}) find no room; {more}"
        f"at most so far from the best: {far}"
    )


def _keeping(
    problem: Problem, best: Division, now: Division | None, moved: list[tuple[int, int]]
) -> list[str]:
    if now is None:
        return []
    if not moved and best.placement == now.placement:
        return [
            f"the current placements are kept: they are within the tolerance of "
            f"{problem.cluster.tolerance:.0%} around the best plan"
        ]
    cost = loading(problem, best, now)
    return [
        f"{len(moved)} of {sum(map(len, best.placement.values()))} placements move; loading what is new "
        f"takes {cost:.4g} GPU-seconds"
    ]


def _shard(problem: Problem, handed: Division, s: int, models: list[int]) -> str:
    name = problem.cluster.shards[s]
    row = handed.gpus[s]
    if not models:
        return f"{name}: no model, no GPU: more shards would take more GPUs, or nothing is left to place"
    gpus = " + ".join(f"{n} {group.type}" for n, group in zip(row, problem.cluster.gpus, strict=True) if n)
    load, count = handed.load[s], sum(row)
    room = min((problem.room[t] for t, n in enumerate(row) if n), default=0.0)
    memory = float(sum(problem.memory[m] for m in models))
    why = f"{load:.4g} busy GPUs at headroom {problem.headroom:g} take {gpus_for(load, problem.headroom)}"
    if load > problem.headroom * count + EPSILON:
        why += f", kept up to a headroom of {keeping(problem):g}"
    noun = "model" if len(models) == 1 else "models"
    return (
        f"{name}: {gpus or 'no GPU'} for {len(models)} {noun}: {why}; utilization "
        f"{load / count if count else 0:.1%}; memory {memory:,.0f} of {room:,.0f} MB"
    )


def _model(problem: Problem, best: Division, m: int) -> str:
    model, where = problem.models[m], best.placement[m]
    places = []
    for s, share in sorted(where.items()):
        runs = [
            f"batches of {problem.batch(m, t, share)} on {group.type}, "
            f"{best.flows[m, s, t] * problem.work(m, t, share) / share:.3g} busy GPUs"
            for t, group in enumerate(problem.cluster.gpus)
            if best.flows.get((m, s, t), 0.0) > 0
        ]
        places.append(f"{share:.0%} on {problem.cluster.shards[s]} ({'; '.join(runs) or 'no GPU time'})")
    text = f"{model.name}: {model.rate:g} requests/s: {', '.join(places)}"
    if len(where) > 1:
        text += "; split, since it is more than an even share of a shard, or no one place has room for it"
    return text


def _move(problem: Problem, now: Division, m: int, s: int) -> str:
    model = problem.models[m]
    count = max(1, sum(now.gpus[s]))
    return (
        f"{model.name} moves to {problem.cluster.shards[s]}: {model.load_ms:g} ms of loading on each of "
        f"{count} GPUs"
    )


def _added(problem: Problem, handed: Division, now: Division | None, held: list[list[int]]) -> list[str]:
    """GPUs that change hands."""
    if now is None:
        return []
    texts = []
    for s, name in enumerate(problem.cluster.shards):
        for t, group in enumerate(problem.cluster.gpus):
            change = handed.gpus[s][t] - now.gpus[s][t]
            if change > 0:
                load = sum(problem.models[m].load_ms for m in held[s])
                texts.append(f"{name} gets {change} more {group.type}, each loads its models in {load:g} ms")
            elif change < 0:
                texts.append(f"{name} gives up {-change} {group.type}")
    return texts


def _unserved(problem: Problem, best: Division, m: int) -> str:
    """What is short, and by how much."""
    model, rate = problem.models[m], best.unserved[m]
    text = f"{model.name}: {rate:,.1f} of {model.rate:,g} requests/s unserved: "
    if not any(problem.fits[m]):
        if not problem.cluster.gpus:
            return text + "there are no GPUs"
        reasons = [f"{group.type}: {problem.why_not[m, t]}" for t, group in enumerate(problem.cluster.gpus)]
        return text + "no GPU type can run it (" + "; ".join(reasons) + ")"
    share = rate / model.rate if model.rate > 0 else 1.0
    more = float(problem.least[m]) * share / problem.headroom
    if m in best.placement:
        return text + f"GPUs are short, by {more:.3g} for this model"
    free = []
    held = members(problem, best.placement)
    for s, models in enumerate(held):
        room = max((problem.room[t] for t, n in enumerate(best.gpus[s]) if n), default=0.0)
        free.append(room - float(sum(problem.memory[k] for k in models)))
    most = max(free, default=0.0)
    if most < model.memory_mb and any(map(sum, best.gpus)):
        return text + (
            f"memory is short: it needs {model.memory_mb:g} MB, and the most that a shard with GPUs has "
            f"left is {most:,.0f} MB"
        )
    return text + f"GPUs are short, by {more:.3g} for this model"
