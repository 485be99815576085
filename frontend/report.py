"""What a load has shown: counts, latencies and batches, from the columns that it recorded.

``offered`` is the sum of the six that follow: every request is good (OK by its deadline), late (OK
after it), dropped (by the scheduler), rejected (INVALID, UNKNOWN_MODEL, OVERLOADED or UNAVAILABLE),
failed (the model raised) or unanswered (TIMEOUT: nobody answered by the deadline and the grace).
Latencies count from the moment at which the request was meant to be sent, over those answered OK.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from symphony.status import Status
from symphony.wire import I64, U8

NO_OUTCOME: Final = 255
BEHIND_MS: Final = 5.0
"""A generator whose 99th percentile of lateness exceeds this says that it fell behind."""


@dataclass(frozen=True, slots=True)
class ModelReport:
    """One model's figures, or all together. None where there is nothing to measure.

    Attributes:
        goodput_rps: good requests per second of the load's duration.
        p50_ms, p99_ms: latency of the requests answered OK, from the intended time.
        mean_batch: mean size of the batches that this load's requests were part of, each counted once.
        busy_share: how much of the time the GPUs that hold the model were busy with such batches.
        gpus: how many GPUs that is.
        reasons: what was said of requests that did not end as OK, and how often; the most frequent.
    """

    offered: int
    good: int
    late: int
    dropped: int
    rejected: int
    failed: int
    unanswered: int
    goodput_rps: float
    p50_ms: float | None
    p99_ms: float | None
    mean_batch: float | None
    busy_share: float | None = None
    gpus: int = 0
    reasons: dict[str, int] = field(default_factory=dict)

    @property
    def bad_share(self) -> float:
        """The share of offered requests that were not good; 0 if none was offered."""
        return 1 - self.good / self.offered if self.offered else 0.0


@dataclass(frozen=True, slots=True)
class LoadReport:
    """A whole load.

    Attributes:
        total: all models together.
        models: by name.
        seconds: the duration over which requests were offered.
        one_outcome_each: whether every request got exactly one outcome.
        interrupted: whether the load was stopped before its end.
        generator: how late it sent requests (``lag_p50_ms``, ``lag_p99_ms``, ``lag_max_ms``), and
            whether it fell behind (``behind``): the figures then say more of it than of the cluster.
        duplicate_answers: second answers, which are ignored.
    """

    total: ModelReport
    models: dict[str, ModelReport]
    seconds: float
    one_outcome_each: bool
    interrupted: bool
    generator: dict[str, Any]
    duplicate_answers: int = 0

    @property
    def ok(self) -> bool:
        """Whether the load ran to its end and every request got exactly one outcome."""
        return self.one_outcome_each and not self.interrupted

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(slots=True)
class BatchColumns:
    """One entry per batch, each batch once; times are cluster ns relative to the load's start."""

    model: npt.NDArray[np.int64]
    size: I64
    started: I64
    finished: I64


@dataclass(slots=True)
class Columns:
    """One entry per offered request; times are ns relative to the load's start.

    ``status`` is :data:`NO_OUTCOME` and ``outcomes`` 0 where none came.
    """

    model: npt.NDArray[np.int64]
    intended: I64
    sent: I64
    deadline: I64
    status: U8
    answered: I64
    outcomes: U8
    batches: BatchColumns


def summarize(
    names: list[str],
    columns: Columns,
    seconds: float,
    *,
    gpus: list[int],
    all_gpus: int,
    reasons: list[dict[str, int]] | None = None,
    interrupted: bool = False,
    duplicate_answers: int = 0,
) -> LoadReport:
    """The report of a load.

    Args:
        names: models; the columns' ``model`` is an index into it.
        columns: what was recorded.
        seconds: duration over which requests were offered.
        gpus: per model, how many GPUs hold it.
        all_gpus: how many GPUs hold any of the models.
        reasons: per model, what was said of requests that did not end as OK.
        interrupted: see :class:`LoadReport`.
        duplicate_answers: see :class:`LoadReport`.
    """
    said = reasons if reasons is not None else [{} for _ in names]
    models = {}
    for i, name in enumerate(names):
        chosen, ran = columns.model == i, columns.batches.model == i
        models[name] = _one(columns, chosen, ran, seconds, gpus[i], said[i])
    everything = np.ones(columns.model.size, bool), np.ones(columns.batches.model.size, bool)
    total = _one(columns, *everything, seconds, all_gpus, _merge(said))
    return LoadReport(
        total=total,
        models=models,
        seconds=seconds,
        one_outcome_each=bool((columns.outcomes == 1).all()),
        interrupted=interrupted,
        generator=_generator(columns),
        duplicate_answers=duplicate_answers,
    )


def _one(
    columns: Columns,
    chosen: npt.NDArray[np.bool_],
    ran: npt.NDArray[np.bool_],
    seconds: float,
    gpus: int,
    reasons: dict[str, int],
) -> ModelReport:
    status = columns.status[chosen]
    answered, intended = columns.answered[chosen], columns.intended[chosen]
    ok = status == Status.OK
    good = int((ok & (answered <= columns.deadline[chosen])).sum())
    latency_ms = (answered[ok] - intended[ok]) / 1e6
    p50, p99 = np.percentile(latency_ms, [50, 99]).tolist() if latency_ms.size else (None, None)
    size = columns.batches.size[ran]
    end = int(seconds * 1e9)
    started, finished = (np.clip(c[ran], 0, end) for c in (columns.batches.started, columns.batches.finished))
    busy = float((finished - started).sum()) / (end * gpus) if gpus and end else None

    def count(*kinds: int) -> int:
        return int(np.isin(status, kinds).sum())

    return ModelReport(
        offered=int(chosen.sum()),
        good=good,
        late=int(ok.sum()) - good,
        dropped=count(Status.DROPPED),
        rejected=count(Status.INVALID, Status.UNKNOWN_MODEL, Status.OVERLOADED, Status.UNAVAILABLE),
        failed=count(Status.FAILED),
        unanswered=count(Status.TIMEOUT, NO_OUTCOME),
        goodput_rps=good / seconds if seconds else 0.0,
        p50_ms=p50,
        p99_ms=p99,
        mean_batch=float(size.mean()) if size.size else None,
        busy_share=busy,
        gpus=gpus,
        reasons=dict(sorted(reasons.items(), key=lambda entry: (-entry[1], entry[0]))[:5]),
    )


def _merge(said: list[dict[str, int]]) -> dict[str, int]:
    merged: dict[str, int] = {}
    for reasons in said:
        for reason, count in reasons.items():
            merged[reason] = merged.get(reason, 0) + count
    return merged


def _generator(columns: Columns) -> dict[str, Any]:
    if not columns.sent.size:
        return {"lag_p50_ms": 0.0, "lag_p99_ms": 0.0, "lag_max_ms": 0.0, "behind": False}
    lag_ms = np.maximum(columns.sent - columns.intended, 0) / 1e6
    p50, p99, most = np.percentile(lag_ms, [50, 99, 100]).tolist()
    return {"lag_p50_ms": p50, "lag_p99_ms": p99, "lag_max_ms": most, "behind": p99 > BEHIND_MS}
