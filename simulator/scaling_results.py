"""What an autoscaler cost and how well it served, from one run, as JSON knows it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np

from .arrivals import START_NS, Arrivals
from .autoscaling import Scaling
from .experiment import Experiment

if TYPE_CHECKING:
    from .results import Outcomes

SECOND = 1_000_000_000


def summarize_scaling(
    experiment: Experiment, arrivals: Arrivals, out: Outcomes, scaling: Scaling
) -> dict[str, Any]:
    """All of ``scaling`` in the results; the keys are documented in docs/evaluation.md and kept stable.

    gpu_seconds: of GPUs that start, serve or drain. need_gpu_seconds: the fluid need of each second's
    arrivals, in GPUs of the first type. *outside*: of requests that arrive while no GPU is starting that was
    asked for; *inside*: the others. reversals: changes between up and down of a shard. reversals_need: what
    the load itself makes, see :func:`reversals_of`.
    """
    settings = experiment.autoscale
    assert settings is not None
    begin = round(experiment.warmup)
    samples, paid = scaling.samples[begin:], scaling.paid[begin:]
    need = [next(iter(sample.need.values())) for sample in samples]
    seconds = len(samples)
    starting = np.zeros(len(arrivals.at), dtype=bool)
    for since, until in scaling.windows:
        starting[np.searchsorted(arrivals.at, since) : np.searchsorted(arrivals.at, until, side="right")] = (
            True
        )
    kinds = [decision["kind"] for decision in scaling.decisions]
    settled = [decision for decision in scaling.decisions if decision["at_s"] > settings.settle_s]
    spent, needed = float(sum(paid)), float(sum(need))
    return {
        "policy": settings.policy,
        "gpu_seconds": spent,
        "need_gpu_seconds": needed,
        "gpu_seconds_ratio": spent / needed if needed else None,
        "gpus_mean": spent / seconds if seconds else 0.0,
        "ups": kinds.count("up"),
        "downs": kinds.count("down"),
        "reversals": _reversals(scaling.decisions),
        "reversals_need": reversals_of(need, settings.up, settings.target, settings.down, settings.window_s),
        "decisions_settled": len(settled),
        "bad_share": _bad(out, out.counted),
        "bad_share_outside": _bad(out, out.counted & ~starting),
        "bad_share_inside": _bad(out, out.counted & starting),
        "requests_inside": float((starting & out.counted).sum() / max(1, out.counted.sum())),
        "decisions": scaling.decisions,
        "over_time": {
            "seconds": [(sample.at - START_NS) / SECOND for sample in samples],
            "need": need,
            "gpus_paid": paid,
            "gpus_ready": [len(sample.busy) for sample in samples],
            "gpus_busy": [sum(sample.busy.values()) for sample in samples],
            "offered": [sample.offered for sample in samples],
            "bad": [sample.late + sample.dropped for sample in samples],
        },
    }


def _reversals(decisions: list[dict[str, Any]]) -> int:
    by_shard: dict[str, list[str]] = {}
    for decision in decisions:
        by_shard.setdefault(decision.get("shard", ""), []).append(decision["kind"])
    return sum(a != b for kinds in by_shard.values() for a, b in pairwise(kinds))


def reversals_of(need: Sequence[float], up: float, target: float, down: float, window_s: float) -> int:
    """How often a number of GPUs turns that follows the need at those thresholds, without noise or delay.

    As :mod:`scheduler.autoscale`: above ``up`` to ``target``; to ``down`` once one GPU fewer is not above it.

    Args:
        need: the fluid need in GPUs, second by second.
        up, target, down: utilizations.
        window_s: seconds over which the need is averaged.
    """
    width = max(1, min(round(window_s), len(need)))
    kinds: list[str] = []
    gpus = 0
    for mean in np.convolve(need, np.ones(width) / width, "valid").tolist() if len(need) else ():
        if not gpus:
            gpus = max(1, ceil(mean / target))
        elif mean > up * gpus:
            gpus = ceil(mean / target)
            kinds.append("up")
        elif gpus > 1 and mean <= down * (gpus - 1):
            gpus = max(1, ceil(mean / down))
            kinds.append("down")
    return sum(a != b for a, b in pairwise(kinds))


def _bad(out: Outcomes, which: Any) -> float:
    total = int(which.sum())
    return 1 - int((out.good & which).sum()) / total if total else 0.0
