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
from .batches import SECOND, BatchCounts, Batches
from .engine import Record
from .experiment import Experiment
from .processes import Ints
from .system import NEVER, Cluster
from .tally import Counter, Latencies, Tally, by_model

SHARES = {"p50_ms": 50, "p90_ms": 90, "p99_ms": 99, "p999_ms": 99.9}
"""Percentiles of the latencies."""


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
    counted = arrivals.at >= count_from(experiment)
    return Outcomes(latency, has & (answered <= arrivals.deadline), counted)


def count_from(experiment: Experiment) -> int:
    """The end of the warm-up, in ns."""
    return START_NS + int(experiment.warmup * SECOND)


def counter_of(experiment: Experiment, cluster: Cluster) -> Counter:
    """Counts a run of the experiment while it goes on."""
    expected = [model.rate * experiment.seconds for model in cluster.models]
    return Counter([model.slo for model in cluster.models], count_from(experiment), expected)


def tally_of(experiment: Experiment, cluster: Cluster, arrivals: Arrivals, record: Record) -> Tally:
    """What the counter would have counted, of any run that kept its requests."""
    number = len(cluster.models)
    out = outcomes(experiment, arrivals, record)
    answered = out.counted & (out.latency >= 0)
    offered, served, good = (
        np.bincount(arrivals.model[which], minlength=number)
        for which in (out.counted, answered, answered & out.good)
    )
    order = by_model(arrivals.model, number)
    order = order[answered[order]]
    oldest = np.empty(0, np.int64)
    if len(record.size):
        first = np.cumsum(record.size) - record.size
        oldest = np.minimum.reduceat(arrivals.at[record.request], first)
    latencies = Latencies.of(out.latency[order], served)
    return Tally(len(arrivals.at), offered, good, served - good, latencies, oldest)


def summarize(
    experiment: Experiment,
    cluster: Cluster,
    policy: str,
    tally: Tally,
    record: Record,
    fluid_rps: float | None,
    scaling: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """All results as one JSON object; the keys are documented in docs/evaluation.md and kept stable."""
    begin = count_from(experiment)
    finish = START_NS + int(experiment.seconds * SECOND)
    span = (finish - begin) / SECOND
    gpus = len(cluster.gpu_type) if scaling is None else scaling["gpus_mean"]
    batches = Batches(record, tally.oldest, len(cluster.models), begin, finish)
    of_all, of_models = tally.percentiles(list(SHARES.values()))

    def part(requests: Ints, latencies: list[int] | None, of: BatchCounts) -> dict[str, Any]:
        offered, good, late = requests.tolist()
        in_ms = [None] * len(SHARES) if latencies is None else [value / 1e6 for value in latencies]
        return {
            "offered": offered,
            "good": good,
            "late": late,
            "dropped": offered - good - late,
            "bad_share": (offered - good) / offered if offered else 0.0,
            "offered_rps": offered / span,
            "goodput_rps": good / span,
            **dict(zip(SHARES, in_ms, strict=True)),
            "batches": of.batches,
            "lost_batches": of.lost,
            "mean_batch": of.mean_size,
            "batch_histogram": of.histogram,
            "batch_wait_mean_ms": of.wait_mean_ms,
            "batch_wait_p99_ms": of.wait_p99_ms,
            "busy_share": of.busy_ns / (span * SECOND * gpus),
            "gpus_used_mean": of.gpus_used_mean,
        }

    requests = np.stack([tally.offered, tally.good, tally.late])
    total = part(requests.sum(axis=1), of_all, batches.total())
    whole = {
        "fluid_ideal_rps": fluid_rps,
        "seconds_simulated": experiment.seconds,
        "wall_s": record.wall_s,
        "requests_per_wall_s": tally.requests / record.wall_s,
    }
    rate = sum(spec.rate for spec in cluster.models)
    models = {
        spec.name: part(mine, latencies, counts)
        | whole
        | {"fluid_ideal_rps": fluid_rps * spec.rate / rate if fluid_rps and rate else None}
        for spec, mine, latencies, counts in zip(
            cluster.models, requests.T, of_models, batches.by_model(), strict=True
        )
    }
    total |= whole | {"events": record.events, "events_per_wall_s": record.events / record.wall_s}
    head = {"policy": policy, "seed": experiment.seed, "gpus": gpus}
    if scaling is not None:
        total |= {"fluid_ideal_rps": None, "scaling": scaling}
    if record.epochs is not None:
        total["epochs"] = record.epochs
    over_time = {"gpus_busy": batches.busy_by_second(), "gpus_used": batches.used_by_second()}
    return head | total | {"over_time": over_time, "models": models}
