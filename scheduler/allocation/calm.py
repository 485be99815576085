"""Planning from a plan in force: what may stay, what has to move, and what that costs.

A plan that is within a band around the best one is kept, and its GPUs too while their shards' load is
below the keeping headroom, a little above the planned one. So small drifts move nothing, and what leaves
the band is mended before it is planned anew.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, replace
from typing import Final

from .bound import Bound
from .divide import Division, divide, members, types_of
from .program import Clock
from .work import EPSILON, Placement, Problem, gpus_for

PER_SHARD: Final = 10.0
"""GPUs beside the tolerance's share that each shard in use may add, times the tolerance: rounding up to
whole GPUs costs half a GPU per shard on average, and small clusters should not be torn down for it."""
PEAK: Final = 4.0
"""Times the tolerance: by how much the largest load of a shard may exceed the best plan's."""
LITTLE: Final = 4.0
"""Times the tolerance: the share of a shard's GPUs that its load may take without any need to be relieved."""
KEEP: Final = 2.0
"""Times the tolerance: by how much of it a shard's load may exceed the planned headroom."""


@dataclass(frozen=True, slots=True)
class Band:
    """What a plan may reach at most to count as good as the best."""

    missed: float
    gpus: int
    peak: float

    @classmethod
    def of_bound(cls, problem: Problem, bound: Bound, now: Division) -> Band:
        """Around what no plan can beat; where shards have many GPUs for their load, balance is no matter."""
        band = cls._around(problem, bound.unserved, bound.gpus, bound.peak, now)
        least = min((sum(held) for held in now.gpus if sum(held)), default=0)
        return replace(band, peak=max(band.peak, LITTLE * problem.cluster.tolerance * least))

    @classmethod
    def of_plan(cls, problem: Problem, best: Division) -> Band:
        """Around the best plan that was found."""
        return cls._around(problem, best.missed, best.total, best.peak, best)

    @classmethod
    def _around(cls, problem: Problem, missed: float, gpus: int, peak: float, like: Division) -> Band:
        tolerance = problem.cluster.tolerance
        used = sum(1 for held in like.gpus if sum(held))
        return cls(
            missed * (1 + tolerance) + EPSILON * max(1.0, missed),
            gpus + math.floor(tolerance * (gpus + PER_SHARD * used) + EPSILON),
            peak * (1 + PEAK * tolerance) + EPSILON * max(1.0, peak),
        )

    def holds(self, division: Division) -> bool:
        """Whether that plan is within."""
        return division.missed <= self.missed and division.total <= self.gpus and division.peak <= self.peak


def keeping(problem: Problem) -> float:
    """The headroom up to which GPUs are kept."""
    return min(1.0, problem.headroom * (1 + KEEP * problem.cluster.tolerance))


def current(problem: Problem) -> Division | None:
    """The plan in force by positions; None if there is none. Loads are those of the present rates."""
    cluster = problem.cluster
    if not cluster.current.placements:
        return None
    at = {shard: s for s, shard in enumerate(cluster.shards)}
    names = {model.name: m for m, model in enumerate(cluster.models)}
    placement: Placement = {}
    for name, where in sorted(cluster.current.placements.items(), key=lambda item: names[item[0]]):
        total = sum(where.values())
        if total > 0:
            total = 1.0 if abs(total - 1) < EPSILON else total  # what stays is to be the same to the bit
            placement[names[name]] = {at[s]: weight / total for s, weight in where.items() if weight > 0}
    gpus = [
        [int(cluster.current.gpus.get(shard, {}).get(group.type, 0)) for group in cluster.gpus]
        for shard in cluster.shards
    ]
    return Division(placement, gpus, {}, [0.0] * problem.shards)


def loading(problem: Problem, division: Division, now: Division) -> float:
    """The fourth objective: seconds that GPUs spend loading models.

    A new placement is loaded on the GPUs that the shard has now (at least one), an added GPU loads what
    the shard holds now.
    """
    held = members(problem, now.placement)
    cost = 0.0
    for m, where in division.placement.items():
        for s in where:
            if s not in now.placement.get(m, {}):
                cost += problem.models[m].load_ms / 1e3 * max(1, sum(now.gpus[s]))
    for s, models in enumerate(held):
        added = sum(max(0, n - there) for n, there in zip(division.gpus[s], now.gpus[s], strict=True))
        cost += added * sum(problem.models[m].load_ms for m in models) / 1e3
    return cost


def keep(problem: Problem, now: Division, band: Band, clock: Clock) -> Division | None:
    """The present placements with as many of their GPUs as they may keep; None if outside the band."""
    held = members(problem, now.placement)
    if any(models and not types_of(problem, models) for models in held):
        return None
    same = divide(problem, now.placement, clock, now, fixed=problem.types > 1, headroom=keeping(problem))
    if problem.types > 1:
        choices = [same, divide(problem, now.placement, clock, now)]
    elif same.missed <= EPSILON:
        choices = [settle(problem, same, now, band)]
    else:
        choices = [divide(problem, now.placement, clock, now)]
    for choice in choices:
        if choice.placement == now.placement and band.holds(choice):
            return choice
    return None


def settle(problem: Problem, division: Division, now: Division, band: Band) -> Division:
    """Leave shards the GPUs that they have where that is neither too few nor many too many."""
    if problem.types != 1 or division.missed > EPSILON:
        return division
    tolerance, upper = problem.cluster.tolerance, keeping(problem)
    held = members(problem, division.placement)
    count: list[int] = []
    need: list[int] = []
    for s, load in enumerate(division.load):
        there = now.gpus[s][0]
        least = gpus_for(load, upper) if held[s] else 0
        planned = gpus_for(load, problem.headroom) if held[s] else 0
        extra = max(1, math.floor(KEEP * tolerance * there)) if tolerance else 0
        need.append(least)
        count.append(there if held[s] and least <= there <= planned + extra else planned)
    while sum(count) > min(problem.count[0], band.gpus):
        most = max(range(len(count)), key=lambda s: (count[s] - need[s], s))
        if count[most] <= need[most]:
            return division
        count[most] -= 1
    return replace(division, gpus=[[n] for n in count])


def relabel(problem: Problem, best: Division, now: Division) -> Division:
    """The same plan with its shards named so that they keep most of what they hold."""
    mine, theirs = members(problem, best.placement), members(problem, now.placement)
    pairs = []
    for i, new in enumerate(mine):
        for j, old in enumerate(theirs):
            common = sum(problem.models[m].load_ms + EPSILON for m in set(new) & set(old))
            alike = sum(min(a, b) for a, b in zip(best.gpus[i], now.gpus[j], strict=True))
            pairs.append((-common * max(1, sum(now.gpus[j])), -alike, i, j))
    name: dict[int, int] = {}
    for _, _, i, j in sorted(pairs):
        if i not in name and j not in name.values():
            name[i] = j
    return rename(best, name)


def rename(division: Division, name: dict[int, int]) -> Division:
    """That plan with shard i called ``name[i]``."""
    place = {j: i for i, j in name.items()}
    order = [place[j] for j in range(len(division.gpus))]
    return replace(
        division,
        placement={
            m: {name[s]: share for s, share in where.items()} for m, where in division.placement.items()
        },
        gpus=[division.gpus[i] for i in order],
        flows={(m, name[s], t): part for (m, s, t), part in division.flows.items()},
        load=[division.load[i] for i in order],
    )


def repair(problem: Problem, now: Division, band: Band, clock: Clock) -> Division | None:
    """The present plan with what has to move moved, one model at a time; None if that leads nowhere."""
    state = _State(problem, now)
    state.evict()
    if not state.settle_strays():
        return None
    settled: Division | None = None
    for _ in range(2 * len(problem.models)):
        division = divide(problem, state.placement, clock, now)
        settled = settle(problem, division, now, band)
        if band.holds(settled) or clock.left <= 0 or settled.missed > band.missed:
            break
        fewer = settled.total > band.gpus
        if not state.relieve(settled, fewer) and (fewer or not state.share_out(settled)):
            break
    if settled is None or band.holds(settled):
        return settled
    # Balance alone, if no single move mends it, is no reason to plan everything anew.
    fine = settled.missed <= band.missed and settled.total <= band.gpus
    return settled if fine and problem.cluster.tolerance else None


class _State:
    """Placements while they are mended."""

    def __init__(self, problem: Problem, now: Division) -> None:
        self.problem = problem
        self.placement: Placement = {m: dict(where) for m, where in now.placement.items()}
        self.strays: list[tuple[int, float]] = []
        self.kinds = [[t for t, n in enumerate(held) if n] for held in now.gpus]

    def work(self, m: int, s: int, share: float) -> float:
        """On the best type that the shard has, or could get."""
        return min(self.problem.work(m, t, share) for t in self.kinds[s] or range(self.problem.types))

    def fits(self, s: int, models: list[int]) -> bool:
        """Whether a type that the shard has, or could get, may hold these."""
        there = types_of(self.problem, models)
        return any(t in there for t in self.kinds[s]) or (not self.kinds[s] and bool(there))

    def evict(self) -> None:
        """Take away what a shard cannot hold: what no GPU of it runs, then the most memory for the time."""
        problem = self.problem
        for s, models in enumerate(members(problem, self.placement)):
            kinds = self.kinds[s] or range(problem.types)
            stay = [m for m in models if any(problem.fits[m][t] for t in kinds)]
            out = [m for m in models if m not in stay]
            while stay and not self.fits(s, stay):
                worst = max(stay, key=lambda m: (problem.memory[m] / (1 + problem.models[m].load_ms), m))
                stay.remove(worst)
                out.append(worst)
            for m in out:
                self.strays.append((m, self.placement[m].pop(s)))
        for m in range(len(problem.models)):
            if m not in self.placement and any(problem.fits[m]):
                self.placement[m] = {}
                self.strays.append((m, 1.0))

    def settle_strays(self) -> bool:
        """Place what has no place, the largest first, where it adds the fewest GPUs; False if it cannot."""
        problem = self.problem
        held = members(problem, self.placement)
        load = [sum(self.work(m, s, self.placement[m][s]) for m in models) for s, models in enumerate(held)]
        for m, share in sorted(self.strays, key=lambda stray: (-problem.least[stray[0]] * stray[1], stray)):
            best: tuple[float, float, int] | None = None
            for s in range(problem.shards):
                if m not in held[s] and self.fits(s, [*held[s], m]):
                    after = load[s] + self.work(m, s, share)
                    before = gpus_for(load[s], problem.headroom) if held[s] else 0
                    choice = (gpus_for(after, problem.headroom) - before, after, s)
                    best = choice if best is None or choice < best else best
            if best is None:
                return False
            _, load[best[2]], s = best
            self.placement[m][s] = share
            held[s].append(m)
        return True

    def relieve(self, division: Division, fewer: bool) -> bool:
        """The move that saves GPUs (or else load of the fullest shard) for the least loading; False: none."""
        problem, load = self.problem, division.load
        held = members(problem, self.placement)
        full = max(range(problem.shards), key=lambda s: load[s])
        whole = [gpus_for(load[s], problem.headroom) if held[s] else 0 for s in range(problem.shards)]
        best: tuple[float, int, int, int] | None = None
        for s in range(problem.shards) if fewer else [full]:
            for m in held[s]:
                share = self.placement[m][s]
                left = load[s] - self.work(m, s, share)
                here = gpus_for(left, problem.headroom) if len(held[s]) > 1 else 0
                for p in range(problem.shards):
                    if p == s or m in held[p] or not self.fits(p, [*held[p], m]):
                        continue
                    there = load[p] + self.work(m, p, share)
                    saved = whole[s] + whole[p] - here - gpus_for(there, problem.headroom)
                    gain = float(saved) if fewer else load[s] - max(there, left)
                    if gain <= EPSILON or saved < 0:
                        continue
                    cost = problem.models[m].load_ms * max(1, whole[p]) + 1.0
                    choice = (-gain / cost, m, s, p)
                    best = choice if best is None or choice < best else best
        if best is None:
            return False
        _, m, s, p = best
        self.placement[m][p] = self.placement[m].pop(s)
        return True

    def share_out(self, division: Division) -> bool:
        """Give a part of the fullest shard's largest model to the emptiest shard; False if none can."""
        problem, load = self.problem, division.load
        held = members(problem, self.placement)
        full = max(range(problem.shards), key=lambda s: load[s])
        m = max(held[full], key=lambda m: (self.work(m, full, self.placement[m][full]), m))
        share = self.placement[m][full]
        mine = self.work(m, full, share)
        for p in sorted(range(problem.shards), key=lambda s: (m not in held[s], load[s], s)):
            gap = load[full] - load[p]
            here = held[p] if m in held[p] else [*held[p], m]
            if p == full or mine <= EPSILON or gap <= 0.1 * load[full] or not self.fits(p, here):
                continue
            part = share * min(0.5, gap / (2 * mine))
            self.placement[m][full] = share - part
            self.placement[m][p] = self.placement[m].get(p, 0.0) + part
            return True
        return False


def spread(problem: Problem, best: Division, now: Division | None) -> Division:
    """Hand out the GPUs beyond the needed ones, if that is wanted: back to where they are, then evenly."""
    if not problem.cluster.spares:
        return best
    gpus = [list(held) for held in best.gpus]
    kinds = [types_of(problem, models) if models else [] for models in members(problem, best.placement)]
    for t in range(problem.types):
        left = problem.count[t] - sum(held[t] for held in gpus)
        for back in (True, False):
            heap = [(-_busy(best, gpus, s), s) for s in range(problem.shards) if t in kinds[s]]
            heapq.heapify(heap)
            while left and heap:
                _, s = heapq.heappop(heap)
                if back and (now is None or gpus[s][t] >= now.gpus[s][t]):
                    continue
                gpus[s][t] += 1
                left -= 1
                heapq.heappush(heap, (-_busy(best, gpus, s), s))
    return replace(best, gpus=gpus)


def _busy(best: Division, gpus: list[list[int]], s: int) -> float:
    return best.load[s] / max(1, sum(gpus[s]))
