"""What an experiment gave: per model and in total, as JSON knows it.

Requests that arrive in the warm-up are simulated and not counted. A request is *good* if its result is
at the frontend by its deadline, *late* if it comes later, *dropped* if the scheduler or a worker gave
it up; bad = late + dropped. Latency is that of requests that got a result, late ones included.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrivals import START_NS, Arrivals
from .engine import Ints, Record
from .experiment import Experiment
from .scaling_results import summarize_scaling
from .system import NEVER, Cluster

SECOND = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Per request, in order of arrival. ``latency``: ns, -1 without a result. ``counted``: not warm-up."""

    latency: Ints
    good: npt.NDArray[np.bool_]
    counted: npt.NDArray[np.bool_]


def outcomes(experiment: Experiment, arrivals: Arrivals, record: Record) -> Outcomes:
    """Match the batches with the arrivals; a request that ran twice has its first result."""
    answered = np.full(len(arrivals.at), NEVER, dtype=np.int64)
    ends = np.repeat(record.answered, record.size)
    answered[record.request] = ends
    if (answered[record.request] != ends).any():  # some request was in two batches
        answered[:] = NEVER
        np.minimum.at(answered, record.request, ends)
    has = answered < NEVER
    latency = np.where(has, answered - arrivals.at, -1)
    counted = arrivals.at >= START_NS + int(experiment.warmup * SECOND)
    return Outcomes(latency, has & (answered <= arrivals.deadline), counted)


def summarize(
    experiment: Experiment,
    cluster: Cluster,
    policy: str,
    arrivals: Arrivals,
    record: Record,
    fluid_rps: float | None,
) -> dict[str, Any]:
    """All results as one JSON object; the keys are documented in docs/evaluation.md and kept stable."""
    out = outcomes(experiment, arrivals, record)
    begin = START_NS + int(experiment.warmup * SECOND)
    finish = START_NS + int(experiment.seconds * SECOND)
    span = (finish - begin) / SECOND
    inside = np.clip(record.end, begin, finish) - np.clip(record.start, begin, finish)
    scaling = None if record.scaling is None else summarize_scaling(experiment, arrivals, out, record.scaling)
    gpus = len(cluster.gpu_type) if scaling is None else scaling["gpus_mean"]
    oldest = _oldest(record, arrivals)
    begins = (record.start >= begin) & (record.start < finish)
    used_in = _pairs(record, begin, begins)
    seconds = max(1, -(-(finish - begin) // SECOND))

    def part(requests: Any, batches: Any, pairs: Ints) -> dict[str, Any]:
        used = np.bincount(pairs, minlength=seconds)
        return (
            _part(out, requests, span)
            | _batches(record, batches, begins, oldest, inside, gpus, span)
            | {"gpus_used_mean": float(used.mean())}
        )

    total = part(slice(None), slice(None), np.unique(used_in) >> 32)
    total["fluid_ideal_rps"] = fluid_rps
    used = [int(x) for x in np.bincount(np.unique(used_in) >> 32, minlength=seconds)]
    busy = _over_time(record, begin, finish)
    models: dict[str, Any] = {}
    place = np.cumsum(begins)  # of a batch among those that begin in time, from 1
    number = len(cluster.models)
    by_request, by_batch = _groups(arrivals.model, number), _groups(record.model, number)
    for i, spec in enumerate(cluster.models):
        mine = by_batch[i]
        pairs = np.unique(used_in[place[mine[begins[mine]]] - 1]) >> 32
        models[spec.name] = part(by_request[i], mine, pairs)
    total |= {
        "seconds_simulated": experiment.seconds,
        "wall_s": record.wall_s,
        "requests_per_wall_s": len(arrivals.at) / record.wall_s,
        "events": record.events,
        "events_per_wall_s": record.events / record.wall_s,
    }
    head = {"policy": policy, "seed": experiment.seed, "gpus": gpus}
    if scaling is not None:
        total |= {"fluid_ideal_rps": None, "scaling": scaling}
    if record.epochs is not None:
        total["epochs"] = record.epochs
    return head | total | {"over_time": {"gpus_busy": busy, "gpus_used": used}, "models": models}


def _part(out: Outcomes, which: Any, span: float) -> dict[str, Any]:
    """Counts and latencies of some of the requests."""
    counted = out.counted[which]
    good = int((out.good[which] & counted).sum())
    latency = out.latency[which]
    served = latency[counted & (latency >= 0)]
    offered = int(counted.sum())
    late = len(served) - good
    return {
        "offered": offered,
        "good": good,
        "late": late,
        "dropped": offered - good - late,
        "bad_share": (offered - good) / offered if offered else 0.0,
        "offered_rps": offered / span,
        "goodput_rps": good / span,
    } | _percentiles(served, {"p50_ms": 50, "p90_ms": 90, "p99_ms": 99, "p999_ms": 99.9})


def _percentiles(values: Ints, which: dict[str, float]) -> dict[str, float | None]:
    """In ms; None without values."""
    if not len(values):
        return dict.fromkeys(which)
    places = [math.ceil(share / 100 * (len(values) - 1)) for share in which.values()]
    found = np.partition(values, places)
    return {name: float(found[place]) / 1e6 for name, place in zip(which, places, strict=True)}


def _groups(model: npt.NDArray[Any], number: int) -> list[Ints]:
    """Per model the positions at which it stands, rising."""
    small = model.astype(np.uint16) if number <= 1 << 16 else model  # 16 bits are sorted by radix
    order = np.argsort(small, kind="stable")
    return np.split(order, np.searchsorted(small[order], np.arange(1, number)))


def _oldest(record: Record, arrivals: Arrivals) -> Ints:
    """When the first request of each batch had arrived."""
    if not len(record.size):
        return np.empty(0, np.int64)
    first = np.cumsum(record.size) - record.size
    return np.asarray(np.minimum.reduceat(arrivals.at[record.request], first))


def _batches(
    record: Record, which: Any, begins: Any, oldest: Ints, inside: Ints, gpus: float, span: float
) -> dict[str, Any]:
    """Sizes, waits and GPU time of some of the batches; a wait is from the batch's first arrival.

    begins: batches that start in the time that counts. inside: ns of each in that time.
    """
    ran, during = record.answered[which] < NEVER, begins[which]
    sizes = record.size[which][during & ran]
    waits = (record.start[which] - oldest[which])[during & ran]
    values, counts = np.unique(sizes, return_counts=True)
    return {
        "batches": len(sizes),
        "lost_batches": int((during & ~ran).sum()),
        "mean_batch": float(sizes.mean()) if len(sizes) else None,
        "batch_histogram": {str(v): int(c) for v, c in zip(values, counts, strict=True)},
        "batch_wait_mean_ms": float(waits.mean()) / 1e6 if len(waits) else None,
        "batch_wait_p99_ms": _percentiles(waits, {"p": 99})["p"],
        "busy_share": float(inside[which].sum()) / (span * SECOND * gpus),
    }


def _over_time(record: Record, begin: int, finish: int) -> list[float]:
    """Mean number of busy GPUs in each second of the measured span."""
    edges = np.arange(begin, finish + SECOND, SECOND).clip(max=finish)
    edges = np.unique(edges)
    start, end = np.sort(record.start), np.sort(record.end)
    # Busy time up to x is Σ min(x, end) − min(x, start).
    reached = _sum_below(end, edges) - _sum_below(start, edges)
    return [float(x) for x in np.diff(reached) / np.diff(edges)]


def _sum_below(times: Ints, edges: Ints) -> Ints:
    """Σ min(x, t) over the sorted times, for every edge x."""
    base = edges[0]
    total = np.concatenate([[0], np.cumsum(np.maximum(times, base) - base)])
    n = np.searchsorted(times, edges, side="right")
    return np.asarray(total[n] + (len(times) - n) * (edges - base))


def _pairs(record: Record, begin: int, begins: Any) -> Ints:
    """Per batch that starts in the time that counts: its whole second (the last one may be shorter)
    in the upper half, its GPU in the lower."""
    return np.asarray((record.start[begins] - begin) // SECOND << 32 | record.gpu[begins])
