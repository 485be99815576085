"""Placement of a zoo on sub-clusters: the allocator beside round-robin and first fit, while rates drift.

The models are those of the Clockwork paper's zoo (Gujarati et al., OSDI 2020) as measured on a V100:
weights, load time and latency at batch sizes 1 to 16 stand in ``clockwork_zoo.csv`` beside this file. More
models than the zoo has are further copies of it, as variants of one architecture. Rates follow Zipf's law
in a random order and change every epoch, each by its own factor. All ways of placing get the same rates
and are judged by the same formulas: busy GPUs of every shard, rounded up at the planned headroom.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from scheduler.allocation import ANY_TYPE, Cluster, Current, GpuGroup, Model, allocate
from scheduler.allocation.calm import loading
from scheduler.allocation.divide import Division, divide
from scheduler.allocation.program import Clock
from scheduler.allocation.work import Placement, Problem
from symphony.profile import Profile

QUICK: Final = ["--models", "64", "--shards", "4", "--rate", "5000", "--epochs", "5", "--time-limit", "2"]
SIZES: Final = (1, 2, 4, 8, 16)
KIND: Final = "v100"
PLENTY: Final = 10_000_000
"""GPUs that there are: enough for every way of placing, so that needs can be compared."""

Way = Callable[[Cluster, "Epoch | None"], "Epoch"]


@dataclass(slots=True)
class Epoch:
    """One way's placement in one epoch, by positions, and what it takes."""

    problem: Problem
    division: Division
    needed: int
    seconds: float


@dataclass(slots=True)
class Row:
    """One way of placing over all epochs; ``moves`` and ``gpu_moves`` are shares of what there was."""

    name: str
    gpus: list[int] = field(default_factory=list)
    imbalance: list[float] = field(default_factory=list)
    moves: list[float] = field(default_factory=list)
    loading_s: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """What is printed, as JSON knows it."""
        return {
            "name": self.name,
            "gpus_first": self.gpus[0],
            "gpus_mean": _mean(self.gpus),
            "imbalance_first": self.imbalance[0],
            "imbalance_mean": _mean(self.imbalance),
            "moved_share_mean": _mean(self.moves),
            "moved_share_max": max(self.moves, default=0.0),
            "loading_gpu_s": sum(self.loading_s),
            "cpu_s_mean": _mean(self.seconds),
        }


def zoo() -> list[tuple[str, Profile, float, float]]:
    """Name, l(b), weights in MB and load time in ms of the published models."""
    text = files("bench").joinpath("clockwork_zoo.csv").read_text(encoding="utf-8")
    models = []
    for line in csv.DictReader(text.splitlines()):
        points = {b: float(line[f"b{b}_ms"]) for b in SIZES}
        profile = Profile.points(points, SIZES[-1])
        models.append((line["model"], profile, float(line["weights_mb"]), float(line["load_ms"])))
    return models


def cluster(args: argparse.Namespace, rng: random.Random) -> Cluster:
    """The first epoch's cluster."""
    rows = zoo()
    ranks = list(range(1, args.models + 1))
    rng.shuffle(ranks)
    weights = [rank**-args.zipf for rank in ranks]
    models = []
    for i, weight in enumerate(weights):
        name, profile, memory, load = rows[i % len(rows)]
        rate = args.rate * weight / sum(weights)
        copy = f"{name}-{i // len(rows)}"
        models.append(Model(copy, rate, args.slo_ms, {ANY_TYPE: profile}, memory, load))
    shards = tuple(f"shard-{s}" for s in range(args.shards))
    return Cluster(shards, (GpuGroup(KIND, PLENTY, args.memory_mb),), tuple(models))


def drifted(what: Cluster, drift: float, rng: random.Random) -> Cluster:
    """The next epoch's rates: each times its own factor in 1 ± drift."""
    models = (replace(model, rate=model.rate * (1 + rng.uniform(-drift, drift))) for model in what.models)
    return replace(what, models=tuple(models))


def round_robin(what: Cluster, _before: Epoch | None) -> Epoch:
    """Model i on shard i, i + 1, … where memory has room; it never looks at rates."""
    return _place(what, lambda m, s, load, even: (s - m) % len(load))


def first_fit(what: Cluster, _before: Epoch | None) -> Epoch:
    """Each model on the first shard below its even share of the load and with room in memory."""
    return _place(what, lambda m, s, load, even: s if load[s] < even else len(load) + load[s])


def _place(what: Cluster, key: Callable[[int, int, list[float], float], float]) -> Epoch:
    began = time.process_time()
    problem = Problem(what)
    load, memory = [0.0] * problem.shards, [0.0] * problem.shards
    even = float(problem.least.sum()) / problem.shards
    placement: Placement = {}
    for m in range(len(problem.models)):
        size = float(problem.memory[m])
        fits = [s for s in range(problem.shards) if memory[s] + size <= problem.room[0]]
        s = min(fits, key=lambda s, m=m: key(m, s, load, even))  # type: ignore[misc]
        load[s] += problem.work(m, 0)
        memory[s] += size
        placement[m] = {s: 1.0}
    division = divide(problem, placement, Clock(10))
    return Epoch(problem, division, division.total, time.process_time() - began)


def planned(time_limit_s: float, calm: bool) -> Way:
    """The allocator; ``calm``: each epoch from the plan before it."""

    def way(what: Cluster, before: Epoch | None) -> Epoch:
        began = time.process_time()
        current = _current(before) if before is not None and calm else Current()
        plan = allocate(replace(what, current=current), time_limit_s=time_limit_s)
        seconds = time.process_time() - began
        problem = Problem(what)
        at = {shard: s for s, shard in enumerate(what.shards)}
        placement = {
            m: {at[shard]: share for shard, share in plan.placements[model.name].items()}
            for m, model in enumerate(what.models)
        }
        division = divide(problem, placement, Clock(10))
        gpus = [[plan.gpus[shard].get(KIND, 0)] for shard in what.shards]
        return Epoch(problem, replace(division, gpus=gpus), division.total, seconds)

    return way


def _current(epoch: Epoch) -> Current:
    shards, models = epoch.problem.cluster.shards, epoch.problem.models
    return Current(
        {
            models[m].name: {shards[s]: share for s, share in where.items()}
            for m, where in epoch.division.placement.items()
        },
        {shard: {KIND: epoch.division.gpus[s][0]} for s, shard in enumerate(shards)},
    )


def compare(args: argparse.Namespace) -> list[Row]:
    """Every way over the same epochs."""
    ways: dict[str, Way] = {
        "round-robin": round_robin,
        "first fit, every epoch anew": first_fit,
        "allocator, every epoch anew": planned(args.time_limit, calm=False),
        "allocator, from the plan before": planned(args.time_limit, calm=True),
    }
    rows = []
    for name, way in ways.items():
        rng = random.Random(args.seed)
        what = cluster(args, rng)
        row, before = Row(name), None
        for _ in range(args.epochs + 1):
            epoch = way(what, before)
            _note(row, epoch, before)
            before = epoch
            what = drifted(what, args.drift, rng)
        rows.append(row)
    return rows


def _note(row: Row, epoch: Epoch, before: Epoch | None) -> None:
    division = epoch.division
    row.gpus.append(epoch.needed)
    row.imbalance.append(division.peak * len(division.load) / sum(division.load))
    row.seconds.append(epoch.seconds)
    if before is not None:
        there = before.division.placement
        pairs = [(m, s) for m, where in division.placement.items() for s in where]
        row.moves.append(sum(1 for m, s in pairs if s not in there[m]) / len(pairs))
        row.loading_s.append(loading(epoch.problem, division, before.division))


def _mean(values: list[Any]) -> float:
    return float(sum(values)) / len(values) if values else 0.0


def main(arguments: list[str] | None = None) -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(prog="symphony bench placement", description=__doc__)
    parser.add_argument("--models", type=int, default=256, help="models, copies of the zoo's 64 (256)")
    parser.add_argument("--shards", type=int, default=8, help="sub-clusters (8)")
    parser.add_argument("--rate", type=float, default=40_000, help="requests/s over all models (40000)")
    parser.add_argument("--zipf", type=float, default=0.9, help="exponent of the popularity (0.9)")
    parser.add_argument("--slo-ms", type=float, default=100, help="objective of every model, in ms (100)")
    parser.add_argument("--memory-mb", type=float, default=32_000, help="memory of a GPU, in MB (32000)")
    parser.add_argument("--epochs", type=int, default=20, help="epochs after the first (20)")
    parser.add_argument("--drift", type=float, default=0.05, help="each epoch, each rate: 1 ± DRIFT (0.05)")
    parser.add_argument("--time-limit", type=float, default=5.0, help="seconds for the solver (5)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", metavar="FILE", help="write JSON to a file, or - for standard output")
    args = parser.parse_args(arguments)
    rows = compare(args)
    if args.json == "-":
        print(json.dumps([row.as_dict() for row in rows]))
        return
    if args.json:
        text = json.dumps([row.as_dict() for row in rows], indent=1)
        Path(args.json).write_text(text + "\n", encoding="utf-8")
    print(
        f"{args.models} models, {args.shards} shards, {args.rate:g} requests/s, Zipf {args.zipf:g}, SLO "
        f"{args.slo_ms:g} ms, {args.memory_mb:g} MB per GPU, {args.epochs} epochs of ±{args.drift:.0%}"
    )
    head = ("placement", "GPUs", "mean", "imbalance", "mean", "moved/epoch", "worst", "loading s", "CPU s")
    print(f"{head[0]:<33}" + "".join(f"{text:>12}" for text in head[1:]))
    for row in rows:
        cells = row.as_dict()
        print(
            f"{row.name:<33}{cells['gpus_first']:>12}{cells['gpus_mean']:>12.1f}"
            f"{cells['imbalance_first']:>12.3f}{cells['imbalance_mean']:>12.3f}"
            f"{cells['moved_share_mean']:>12.2%}{cells['moved_share_max']:>12.2%}"
            f"{cells['loading_gpu_s']:>12.1f}{cells['cpu_s_mean']:>12.2f}"
        )


if __name__ == "__main__":
    main()
