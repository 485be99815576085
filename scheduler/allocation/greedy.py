"""Placements by packing: quick at any size, the solver's first solution, and the plan where it gives none.

The relaxation says how many GPUs the load needs at least and on which type each model should run. Shards
are dealt out to types by load, every shard gets a quota of GPUs as even as the largest models permit, and
models are packed in decreasing order, each where most of the quota is left. If that fails, the number of
GPUs grows. What a packing leaves to wish for, moves and swaps off the fullest shard improve.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from .bound import Bound
from .divide import Division, divide, members, types_of
from .program import Clock
from .work import EPSILON, Floats, Placement, Problem

SHARES: Final = 1e-3
"""A fraction of a model on another type below this is not worth a place there."""
ENOUGH: Final = 0.02
"""Shards of one type each that are this near to the bound need no rival of mixed ones."""
ROUNDS: Final = 200
EVEN: Final = 0.002
"""The fullest shard is improved that often at most, and until it is this near to the mean. Packings that
differ by this share of the GPUs, a whole one at least, are ranked by their balance."""
SMALL: Final = ((False, False), (True, False))
"""Up to the size of the exact program: whether models are split, and whether loads are evened out first."""
SLACK: Final = 1.1
"""Times the memory that models take, for what packing wastes."""


@dataclass(frozen=True, slots=True)
class Item:
    """A share of a model that is packed as a whole."""

    model: int
    share: float
    load: float
    memory: float


def greedy(problem: Problem, bound: Bound, clock: Clock) -> Division:
    """The best of a few packings, divided among GPUs."""
    best: Division | None = None
    for pack_all in (_by_type, _mixed):
        for placement in pack_all(problem, bound, clock):
            division = divide(problem, placement, clock)
            if best is None or division.better(best, max(problem.ease, math.floor(EVEN * bound.gpus))):
                best = division
            near = best.peak <= bound.peak * (1 + ENOUGH)
            if best.missed <= bound.unserved + EPSILON and best.total <= bound.gpus + problem.ease and near:
                return best
            if clock.left <= 0:
                return best
        good = best is not None and best.missed <= bound.unserved * (1 + ENOUGH) + EPSILON
        if best is not None and good and best.total <= bound.gpus * (1 + ENOUGH) + problem.slack:
            break
    return best if best is not None else divide(problem, {}, clock)


def _by_type(problem: Problem, bound: Bound, clock: Clock) -> Iterator[Placement]:
    """Each shard with GPUs of one type."""
    loads = np.zeros(problem.types)
    for m, parts in enumerate(bound.flows):
        for t, part in parts.items():
            loads[t] += part * problem.work(m, t)
    homes = [_home(problem, bound, m) for m in range(len(problem.models))]
    used = sorted({t for home in homes for t in home})
    if not used or len(used) > problem.shards:
        return
    size = [sum(float(problem.memory[m]) for m, home in enumerate(homes) if t in home) for t in used]
    for slack in (SLACK, 1.0):
        least = [
            max(1, math.ceil(slack * mb / problem.room[t] - EPSILON)) if problem.room[t] else 1
            for t, mb in zip(used, size, strict=True)
        ]
        if sum(least) <= problem.shards:
            break
    else:
        return
    shards = _deal([float(loads[t]) for t in used], least, problem.shards)
    # Where GPUs of a type are short, whole ones for every shard leave shards empty: at size also even loads.
    large = problem.near > 0
    for split, even in ((True, True), (True, False), (False, True), (False, False)) if large else SMALL:
        if split and max(problem.parts, default=1) == 1:
            continue
        placement: Placement = {}
        first = 0
        for t, number in zip(used, shards, strict=True):
            items: list[Item] = []
            for m, home in enumerate(homes):
                if t in home:
                    whole = len(home) == 1
                    served = bound.flows[m].get(t, 0.0) if whole else 1.0
                    number_of = problem.parts[m] if split and (whole or large) else 1
                    number_of = math.ceil(home[t] * number_of - EPSILON)
                    items += _items(problem, m, t, home[t], number_of, served)
            pack(problem, items, list(range(first, first + number)), t, placement, clock, even=even)
            first += number
        _complete(problem, placement)
        yield placement


def _complete(problem: Problem, placement: Placement) -> None:
    """Models that found no memory go where a type remains that may hold all, the emptiest shard first."""
    held = members(problem, placement)
    for m in problem.order:
        if m in placement or not any(problem.fits[m]):
            continue
        for s in sorted(range(problem.shards), key=lambda s: (sum(problem.memory[held[s]]), s)):
            if types_of(problem, [*held[s], m]):
                placement[m] = {s: 1.0}
                held[s].append(m)
                break


def _home(problem: Problem, bound: Bound, m: int) -> dict[int, float]:
    """Types for a model with the shares that they should serve; they sum to 1, whatever can be served."""
    fits = [t for t in range(problem.types) if problem.fits[m][t]]
    if not fits:
        return {}
    parts = {t: part for t, part in bound.flows[m].items() if part > SHARES}
    total = sum(parts.values())
    if not parts:
        return {min(fits, key=lambda t: problem.work(m, t)): 1.0}
    return {t: part / total for t, part in parts.items()}


def _mixed(problem: Problem, bound: Bound, clock: Clock) -> Iterator[Placement]:
    """Every shard with whatever its models can use; only where types differ."""
    if problem.types == 1:
        return
    homes = [_home(problem, bound, m) for m in range(len(problem.models))]
    used = {t for home in homes for t in home}
    if not used:
        return
    rooms = {problem.room[t]: t for t in used}
    for kind in (rooms[room] for room in sorted(rooms)):
        for split in (False, True):
            if split and max(problem.parts, default=1) == 1:
                continue
            items: list[Item] = []
            for m, home in enumerate(homes):
                for t in sorted(home, key=lambda t, home=home: -home[t])[:1]:  # type: ignore[misc]
                    served = sum(bound.flows[m].values())
                    items += _items(problem, m, t, 1.0, problem.parts[m] if split else 1, served)
            placement: Placement = {}
            pack(problem, items, list(range(problem.shards)), kind, placement, clock, mixed=True)
            _complete(problem, placement)
            yield placement


def _items(problem: Problem, m: int, t: int, share: float, parts: int, served: float) -> list[Item]:
    part = share / parts
    load = problem.work(m, t, part) * min(1.0, served)
    return [Item(m, part, load, float(problem.memory[m]))] * parts


def _deal(loads: Sequence[float], least: Sequence[int], shards: int) -> list[int]:
    """So many shards to each, at least ``least``, and the next always where most load falls to one."""
    number = list(least)
    for _ in range(shards - sum(least)):
        number[max(range(len(loads)), key=lambda i: loads[i] / number[i])] += 1
    return number


def pack(
    problem: Problem,
    items: list[Item],
    shards: list[int],
    kind: int,
    placement: Placement,
    clock: Clock,
    mixed: bool = False,
    even: bool = False,
) -> None:
    """Add the items to ``placement`` on those shards: on few GPUs, evenly, within the type's memory.

    An item that finds no memory anywhere is left out. ``mixed``: on GPUs of any type, with the memory of that
    one.
    """
    if not items:
        return
    room = problem.room[kind]
    there = sum(problem.count) if mixed else problem.count[kind]
    load = sum(item.load for item in items)
    fewest = max(1, math.ceil(load / problem.headroom - EPSILON))
    orders = _orders(items, problem.headroom * fewest / len(shards), room)
    chosen: list[int] | None = None
    order = orders[0]
    boundless = np.full(len(shards), np.inf)
    if even:
        order, chosen = _most(problem, orders, len(shards), room)
    elif any(_fill(order, boundless, room) is not None for order in orders):
        free = max(0, min(len(shards) if problem.ease else 0, there - fewest))
        for extra in [free, 0, 1, 2, 3, *(2**k for k in range(2, 16))]:
            order, chosen = _packed(orders, len(shards), fewest + extra, room, problem.headroom)
            if chosen is not None or extra > len(shards) + len(items) or clock.left <= 0:
                break
    if chosen is None:
        order, chosen = _most(problem, [*orders, _worth(problem, items)], len(shards), room)
    chosen = smooth(order, chosen, len(shards), room, problem.headroom, clock)
    for item, place in zip(order, chosen, strict=True):
        if place >= 0:
            where = placement.setdefault(item.model, {})
            where[shards[place]] = where.get(shards[place], 0.0) + item.share
    wanted: dict[int, float] = {}
    for item in items:
        wanted[item.model] = wanted.get(item.model, 0.0) + item.share
    for m, share in wanted.items():  # a part that found no memory goes where the others are
        total = sum(placement.get(m, {}).values())
        if share > 1 - 1e-9 and 0 < total < 1 - 1e-9:
            placement[m] = {s: part / total for s, part in placement[m].items()}


def _packed(
    orders: list[list[Item]], shards: int, gpus: int, room: float, headroom: float
) -> tuple[list[Item], list[int] | None]:
    """An order that fits that many GPUs, on as many of the shards as possible, with its places."""
    for used in _numbers(shards, gpus, sum(item.memory for item in orders[0]), room):
        quotas = _quotas([item.load for item in orders[0]], gpus, used, headroom)
        for order in orders:
            chosen = _fill(order, quotas, room)
            if chosen is not None:
                return order, chosen
    return orders[0], None


def _worth(problem: Problem, items: list[Item]) -> list[Item]:
    """Decreasing requests/s per MB."""

    def worth(item: Item) -> float:
        return item.share * float(problem.rate[item.model]) / max(item.memory, EPSILON)

    return sorted(items, key=lambda item: (-worth(item), item.model))


def _most(
    problem: Problem, orders: list[list[Item]], shards: int, room: float
) -> tuple[list[Item], list[int]]:
    """Where not everything finds memory: the order that places the most load, then the most models."""
    best: tuple[tuple[float, int], list[Item], list[int]] | None = None
    for order in orders:
        chosen = _fill(order, np.zeros(shards), room, force=True) or []
        placed = [item for item, place in zip(order, chosen, strict=True) if place >= 0]
        value = (sum(item.share * float(problem.rate[item.model]) for item in placed), len(placed))
        if best is None or value > best[0]:
            best = value, order, chosen
    assert best is not None
    return best[1], best[2]


def _orders(items: list[Item], quota: float, room: float) -> list[list[Item]]:
    """Decreasing load, then decreasing share of whatever is scarcer."""

    def scarce(item: Item) -> float:
        return max(item.load / quota if quota else 0.0, item.memory / room if room else 0.0)

    by_load = sorted(items, key=lambda item: (-item.load, -item.memory, item.model))
    return [by_load, sorted(items, key=lambda item: (-scarce(item), item.model))]


def _numbers(shards: int, gpus: int, memory: float, room: float) -> list[int]:
    """How many shards to try, most first: none without a GPU, and enough for the memory."""
    most = min(shards, gpus)
    least = max(1, min(most, math.ceil(memory / room - EPSILON) if room else 1))
    if most - least <= 8:
        return list(range(most, least - 1, -1))
    return sorted({most, *(round(most - (most - least) * i / 4) for i in range(5))}, reverse=True)


def _quotas(loads: list[float], gpus: int, shards: int, headroom: float) -> Floats:
    """Even whole quotas in GPUs, times headroom; more for a shard whose one model needs more."""
    quotas: list[int] = []
    left = gpus
    for load in loads[: shards - 1]:
        need = math.ceil(load / headroom - EPSILON)
        if need <= math.ceil(left / (shards - len(quotas))):
            break
        quotas.append(need)
        left -= need
    rest = shards - len(quotas)
    left = max(left, rest)
    quotas += [left // rest + (1 if i < left % rest else 0) for i in range(rest)]
    return np.array(quotas) * headroom


def _fill(order: list[Item], quotas: Floats, room: float, force: bool = False) -> list[int] | None:
    """Each item where most of the quota is left; None if one does not fit, or -1 for it if forced."""
    left = quotas.copy()
    memory = np.full(len(quotas), room)
    held: dict[int, set[int]] = {}
    chosen = []
    for item in order:
        free = np.where(memory >= item.memory - EPSILON, left, -np.inf)
        for place in held.get(item.model, ()):
            free[place] = -np.inf
        place = int(np.argmax(free))
        if free[place] == -np.inf or (not force and free[place] < item.load - EPSILON * 0.5):
            if not force:
                return None
            place = -1
        else:
            left[place] -= item.load
            memory[place] -= item.memory
            held.setdefault(item.model, set()).add(place)
        chosen.append(place)
    return chosen


def smooth(
    order: list[Item], chosen: list[int], shards: int, room: float, headroom: float, clock: Clock
) -> list[int]:
    """Take items off the fullest shard, or swap them, as long as its load falls and no GPU is added."""
    load, memory = np.zeros(shards), np.zeros(shards)
    for item, place in zip(order, chosen, strict=True):
        if place >= 0:
            load[place] += item.load
            memory[place] += item.memory
    chosen = list(chosen)
    mean = float(load.sum()) / shards
    for _ in range(min(ROUNDS, 4 * len(order))):
        if float(load.max()) <= mean * (1 + EVEN) or clock.left <= 0:
            break
        change = _relief(order, chosen, load, memory, room, headroom)
        if change is None:
            break
        for i, place in change:
            load[chosen[i]] -= order[i].load
            memory[chosen[i]] -= order[i].memory
            load[place] += order[i].load
            memory[place] += order[i].memory
            chosen[i] = place
    return chosen


def _relief(
    order: list[Item], chosen: list[int], load: Floats, memory: Floats, room: float, headroom: float
) -> list[tuple[int, int]] | None:
    """The move or swap off the fullest shard that leaves the smaller larger load of both; None if none."""
    full = int(np.argmax(load))
    best, found = float(load[full]) - EPSILON, None
    whole = np.ceil(load / headroom - EPSILON)
    at = np.array(chosen)
    loads = np.array([item.load for item in order])
    sizes = np.array([item.memory for item in order])
    models = np.array([item.model for item in order])
    mine = np.flatnonzero(at == full)
    others = np.flatnonzero((at != full) & (at >= 0))
    for i in mine.tolist():
        if loads[i] <= 0:
            continue
        twin = np.unique(at[(models == models[i]) & (at >= 0)])
        # Move i to shard p, or swap it with item j there: what each shard carries then.
        there = load + loads[i]
        here = np.full(len(load), load[full] - loads[i])
        peak = np.maximum(there, here)
        gpus = np.ceil(there / headroom - EPSILON) + np.ceil(here / headroom - EPSILON)
        fine = (memory + sizes[i] <= room + EPSILON) & (gpus <= whole + whole[full])
        fine[twin] = False
        peak[~fine] = np.inf
        p = int(np.argmin(peak))
        if peak[p] < best:
            best, found = float(peak[p]), [(i, p)]
        pick = others[(loads[others] < loads[i]) & ~np.isin(at[others], twin)]
        if not len(pick):
            continue
        where = at[pick]
        there = load[where] + loads[i] - loads[pick]
        here = load[full] - loads[i] + loads[pick]
        peak = np.maximum(there, here)
        gpus = np.ceil(there / headroom - EPSILON) + np.ceil(here / headroom - EPSILON)
        fine = (memory[where] + sizes[i] - sizes[pick] <= room + EPSILON) & (
            memory[full] - sizes[i] + sizes[pick] <= room + EPSILON
        )
        fine &= gpus <= whole[where] + whole[full]
        for j in np.flatnonzero(fine & (peak < best)).tolist():
            if peak[j] < best and full not in at[models == models[pick[j]]]:
                best, found = float(peak[j]), [(i, int(where[j])), (int(pick[j]), full)]
    return found
