"""The exact model on HiGHS, for instances of moderate size: one program, minimized stage by stage.

Variables, for model m, shard s, GPU type t and a number k of the model's K equal parts:

    y[m,s,k]  1 if exactly k parts of m are at s            n[s,t]  GPUs of s, whole
    x[m,s,t,k]  fraction of m's load that s serves on t     u[s,t]  1 if s has GPUs of t
    P  the largest load of a shard

Rows: Σ_s,k k·y ≤ K; Σ_k y ≤ 1; Σ_t x ≤ (k/K)·y; per (s, t) Σ work·x ≤ headroom·n and n ≤ count·u;
Σ_m memory·y ≤ the memory of every type with u = 1; y + u ≤ 1 where t cannot run m; y ≤ Σ_t n;
Σ_s n ≤ count of t. With one type and all load served x is (k/K)·y, and u is not needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .divide import Division, divide, members
from .program import Answer, Clock, Program
from .work import EPSILON, NOWHERE, Placement, Problem


@dataclass(slots=True)
class Columns:
    """Where the variables of one program stand."""

    program: Program
    y: dict[tuple[int, int, int], int] = field(default_factory=dict)
    x: dict[tuple[int, int, int, int], int] = field(default_factory=dict)
    n: dict[tuple[int, int], int] = field(default_factory=dict)
    u: dict[tuple[int, int], int] = field(default_factory=dict)
    nowhere: dict[int, int] = field(default_factory=dict)
    added: dict[tuple[int, int], int] = field(default_factory=dict)
    peak: int = -1
    serve_all: bool = True


def size(problem: Problem) -> int:
    """About how many variables the program would have."""
    types = problem.types if problem.types > 1 else 0
    return sum(problem.parts) * problem.shards * (1 + types) + problem.shards * problem.types


def build(problem: Problem, serve_all: bool, symmetric: bool) -> Columns:
    """The program.

    Args:
        problem: the instance.
        serve_all: every request has to be served; otherwise what is not is counted.
        symmetric: shards are alike, so models are barred from the higher ones: the i-th largest from
            those beyond the i-th. Only where no model is split.
    """
    program = Program()
    columns = Columns(program, serve_all=serve_all)
    shards, types = range(problem.shards), range(problem.types)
    columns.n = {(s, t): program.column(0, problem.count[t], integer=True) for s in shards for t in types}
    columns.peak = program.column()
    flows = problem.types > 1 or not serve_all
    barred = symmetric and max(problem.parts, default=1) == 1
    if flows:
        columns.u = {key: program.column(0, 1, integer=True) for key in columns.n}
        for key, u in columns.u.items():
            program.row([(columns.n[key], 1.0), (u, -float(problem.count[key[1]]))], high=0.0)
    load: dict[tuple[int, int], list[tuple[int, float]]] = {key: [] for key in columns.n}
    for rank, m in enumerate(problem.order):
        for s in shards:
            for k in range(1, problem.parts[m] + 1):
                open_ = any(problem.fits[m]) and not (barred and s > rank)
                y = columns.y[m, s, k] = program.column(0, 1 if open_ else 0, integer=True)
                if flows:
                    _serve(problem, columns, load, (m, s, k))
                else:
                    load[s, 0].append((y, problem.work(m, 0, k / problem.parts[m])))
        _place(problem, columns, m)
    for (s, t), terms in load.items():
        program.row([*terms, (columns.n[s, t], -problem.headroom)], high=0.0)
    for s in shards:
        whole = [term for t in types for term in load[s, t]]
        program.row([*whole, (columns.peak, -1.0)], high=0.0)
        _memory(problem, columns, s)
    for t in types:
        program.row([(columns.n[s, t], 1.0) for s in shards], high=float(problem.count[t]))
    return columns


def _serve(
    problem: Problem,
    columns: Columns,
    load: dict[tuple[int, int], list[tuple[int, float]]],
    key: tuple[int, int, int],
) -> None:
    """What a shard serves of the parts that are there, by type."""
    m, s, k = key
    share = k / problem.parts[m]
    terms = [(columns.y[key], -share)]
    for t in range(problem.types):
        if problem.fits[m][t]:
            x = columns.x[m, s, t, k] = columns.program.column(0, share)
            load[s, t].append((x, problem.work(m, t, share) / share))
            terms.append((x, 1.0))
    columns.program.row(terms, 0.0 if columns.serve_all else -share, 0.0)


def _place(problem: Problem, columns: Columns, m: int) -> None:
    """All parts of a model, or none; only where GPUs are."""
    program, parts = columns.program, problem.parts[m]
    everywhere = []
    for s in range(problem.shards):
        here = [columns.y[m, s, k] for k in range(1, parts + 1)]
        everywhere += [(column, float(k)) for k, column in enumerate(here, 1)]
        if parts > 1:
            program.row([(column, 1.0) for column in here], high=1.0)
        program.row(
            [*((column, 1.0) for column in here), *((columns.n[s, t], -1.0) for t in range(problem.types))],
            high=0.0,
        )
        for t in range(problem.types):
            if not problem.fits[m][t] and columns.u:
                program.row([*((column, 1.0) for column in here), (columns.u[s, t], 1.0)], high=1.0)
    if columns.serve_all:
        program.row(everywhere, float(parts), float(parts))
    else:
        columns.nowhere[m] = program.column(0, 1, integer=True)
        program.row([*everywhere, (columns.nowhere[m], float(parts))], float(parts), float(parts))


def _memory(problem: Problem, columns: Columns, s: int) -> None:
    terms = [(y, float(problem.memory[m])) for (m, at, _), y in columns.y.items() if at == s]
    most = max(problem.room)
    for t in range(problem.types):
        if columns.u:
            program_terms = [*terms, (columns.u[s, t], most - problem.room[t])]
            columns.program.row(program_terms, high=most)
        else:
            columns.program.row(terms, high=problem.room[t])


def start(
    problem: Problem, columns: Columns, division: Division, now: Division | None = None
) -> list[float] | None:
    """That division as values of the columns; None where its shares are no whole parts."""
    values = [0.0] * columns.program.columns
    for (s, t), n in columns.n.items():
        values[n] = float(division.gpus[s][t])
        if columns.u:
            values[columns.u[s, t]] = 1.0 if division.gpus[s][t] else 0.0
    for m, where in division.placement.items():
        for s, share in where.items():
            k = round(share * problem.parts[m])
            if (m, s, k) not in columns.y or abs(k / problem.parts[m] - share) > EPSILON:
                return None
            values[columns.y[m, s, k]] = 1.0
            for t in range(problem.types):
                if (m, s, t, k) in columns.x:
                    values[columns.x[m, s, t, k]] = division.flows.get((m, s, t), 0.0)
    for m, column in columns.nowhere.items():
        values[column] = 0.0 if m in division.placement else 1.0
    for (s, t), column in columns.added.items():
        values[column] = max(0.0, division.gpus[s][t] - (now.gpus[s][t] if now else 0))
    values[columns.peak] = division.peak
    return values


def read(problem: Problem, columns: Columns, answer: Answer, clock: Clock) -> Division | None:
    """The answer's placements, divided anew; None if there is none."""
    if answer.values is None:
        return None
    placement: Placement = {}
    for (m, s, k), y in columns.y.items():
        if answer.values[y] > 0.5:
            placement.setdefault(m, {})[s] = k / problem.parts[m]
    return divide(problem, placement, clock)


def missed(problem: Problem, columns: Columns) -> dict[int, float]:
    """The first objective, less the sum of all rates."""
    terms = {x: -float(problem.rate[m]) for (m, _, _, _), x in columns.x.items()}
    return {**terms, **dict.fromkeys(columns.nowhere.values(), NOWHERE)}


def gpus(columns: Columns) -> dict[int, float]:
    """The second objective."""
    return dict.fromkeys(columns.n.values(), 1.0)


def moves(problem: Problem, columns: Columns, now: Division) -> dict[int, float]:
    """The fourth: seconds of loading, for every placement that is new and every GPU that is added.

    A new placement is loaded on the GPUs that the shard has now (at least one), an added GPU loads what
    the shard holds now.
    """
    program = columns.program
    held = members(problem, now.placement)
    cost: dict[int, float] = {}
    for (m, s, _), y in columns.y.items():
        if m not in held[s]:
            cost[y] = problem.models[m].load_ms / 1e3 * max(1, sum(now.gpus[s]))
    for (s, t), n in columns.n.items():
        added = columns.added[s, t] = program.column()
        program.row([(n, 1.0), (added, -1.0)], high=float(now.gpus[s][t]))
        cost[added] = sum(problem.models[m].load_ms for m in held[s]) / 1e3
    return cost


def limit(columns: Columns, terms: Mapping[int, float], high: float) -> None:
    """Hold a stage to what earlier ones reached."""
    columns.program.row(terms.items(), high=high)
