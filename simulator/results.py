"""What an experiment gave: per model and in total, as JSON knows it.

Requests that arrive in the warm-up are simulated and not counted. A request is *good* if its result is
at the frontend by its deadline, *late* if it comes later, *dropped* if the scheduler or a worker gave
it up; bad = late + dropped. Latency is that of requests that got a result, late ones included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .arrivals import START_NS, Arrivals
from .engine import Ints, Record
from .experiment import Experiment
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
    np.minimum.at(answered, record.request, np.repeat(record.answered, record.size))
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
    gpus = len(cluster.gpu_type)
    total = _part(out, slice(None), span)
    total |= _batches(record, slice(None), begin, finish, arrivals, inside, gpus, span)
    total["fluid_ideal_rps"] = fluid_rps
    total["gpus_used_mean"], used = _in_use(record, begin, finish)
    busy = _over_time(record, begin, finish)
    models: dict[str, Any] = {}
    for number, spec in enumerate(cluster.models):
        part = _part(out, arrivals.model == number, span)
        mine = record.model == number
        part |= _batches(record, mine, begin, finish, arrivals, inside, gpus, span)
        part["gpus_used_mean"] = _in_use(record, begin, finish, mine)[0]
        models[spec.name] = part
    total |= {
        "seconds_simulated": experiment.seconds,
        "wall_s": record.wall_s,
        "requests_per_wall_s": len(arrivals.at) / record.wall_s,
        "events": record.events,
        "events_per_wall_s": record.events / record.wall_s,
    }
    head = {"policy": policy, "seed": experiment.seed, "gpus": gpus}
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
    found = np.percentile(values, list(which.values()), method="higher")
    return {name: float(x) / 1e6 for name, x in zip(which, found, strict=True)}


def _batches(
    record: Record,
    which: Any,
    begin: int,
    finish: int,
    arrivals: Arrivals,
    inside: Ints,
    gpus: int,
    span: float,
) -> dict[str, Any]:
    """Sizes, waits and GPU time of some of the batches; a wait is from the batch's first arrival."""
    start, size = record.start[which], record.size[which]
    ran = record.answered[which] < NEVER
    during = (start >= begin) & (start < finish)
    sizes = size[during & ran]
    first = np.cumsum(record.size) - record.size
    oldest = (
        np.minimum.reduceat(arrivals.at[record.request], first)[which]
        if len(first)
        else np.empty(0, np.int64)
    )
    waits = (start - oldest)[during & ran]
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


def _in_use(record: Record, begin: int, finish: int, which: Any = None) -> tuple[float, list[int]]:
    """GPUs that started a batch, per whole second (the last one may be shorter), and their mean."""
    start, gpu = record.start, record.gpu
    if which is not None:
        start, gpu = start[which], gpu[which]
    during = (start >= begin) & (start < finish)
    seconds = (start[during] - begin) // SECOND
    n = max(1, -(-(finish - begin) // SECOND))
    pairs = np.unique(seconds << 32 | gpu[during])
    counts = np.bincount(pairs >> 32, minlength=n)
    return float(counts.mean()), [int(x) for x in counts]
