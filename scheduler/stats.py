"""What a shard tells of itself once a second: per model, of its GPUs, of its own timers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from scheduler.core.machine import Core
from scheduler.observed import Column, Observed
from scheduler.table import ModelTable
from scheduler.workers import Back

LATENESS_KEPT: Final = 4_096
LONGEST_BATCH_NS: Final = 60_000_000_000
MOST_TOLD: Final = 100
"""Models on a heartbeat, which every snapshot carries; those with the most requests."""


Measured = Callable[[int], tuple[float, float] | None]


def _rounded(values: tuple[float, float]) -> list[float]:
    return [round(value, 4) for value in values]


class Stats:
    """Counters since the start of the shard; ``docs/wire-protocol.md`` lists the published fields."""

    def __init__(self) -> None:
        self._observed = Observed()
        self._offered = np.zeros(0, np.int64)
        self._served = np.zeros(0, np.int64)
        self._good = np.zeros(0, np.int64)
        self._batches = np.zeros(0, np.int64)
        self._dropped = np.zeros(0, np.int64)
        self._busy = 0
        self._busy_told: tuple[int, int] = (0, 0)
        self._lateness = np.zeros(LATENESS_KEPT, np.int64)
        self._wakeups = 0
        self._longest_ns = 0

    def _grow(self, models: int) -> None:
        more = models - len(self._offered)
        if more > 0:
            for name in ("_offered", "_served", "_good", "_batches", "_dropped"):
                setattr(self, name, np.concatenate([getattr(self, name), np.zeros(more, np.int64)]))

    def offered(self, models: int) -> npt.NDArray[np.int64]:
        """The counters of requests that have come in, of the first ``models`` models, to be added to."""
        self._grow(models)
        return self._offered[:models]

    def refused(self, models: int) -> npt.NDArray[np.int64]:
        """The counters of requests that were dropped, of the first ``models`` models, to be added to."""
        self._grow(models)
        return self._dropped[:models]

    def dropped(self, model: np.ndarray[Any, Any], models: int) -> None:
        """Requests were dropped: a column of model numbers."""
        self._grow(models)
        counts = np.bincount(model[model < models], minlength=models)
        self._dropped[: len(counts)] += counts

    def completed(self, back: Back, models: int) -> None:
        """Batches came back; their requests are good if the results can be there by their deadlines."""
        self._grow(models)
        n = len(self._served)
        self._served += np.bincount(back.model, back.size, n).astype(np.int64)
        good = np.maximum(0, back.good - back.failed)
        self._good += np.bincount(back.model, good, n).astype(np.int64)
        self._batches += np.bincount(back.model, minlength=n)
        # A worker may say anything of its times; nothing that it says makes the sum absurd.
        self._busy += int(np.clip(back.finished - back.started, 0, LONGEST_BATCH_NS).sum())
        self._observed.completed(back)

    def woke(self, late_ns: int) -> None:
        """A timer fired that much after its time."""
        self._lateness[self._wakeups % LATENESS_KEPT] = late_ns
        self._wakeups += 1

    def iterated(self, busy_ns: int) -> None:
        """One turn of the loop took that long from its wake-up to its next wait."""
        self._longest_ns = max(self._longest_ns, busy_ns)

    def lateness_us(self) -> tuple[float, float]:
        """p50 and p99 of the timers' lateness over the last few thousand wake-ups."""
        seen = self._lateness[: min(self._wakeups, LATENESS_KEPT)]
        if not len(seen):
            return 0.0, 0.0
        p50, p99 = np.percentile(seen, (50, 99)) / 1e3
        return float(p50), float(p99)

    def report(
        self,
        now: int,
        core: Core,
        table: ModelTable,
        gpus: Column,
        out: Column,
        measured: Measured = lambda model: None,
    ) -> dict[str, Any]:
        """The message that is published.

        Args:
            now: cluster time, ns.
            core: has the queues.
            table: has the models.
            gpus: numbers of those that the shard uses, rising.
            out: numbers of those that a batch is out on.
            measured: model → p50 and p99 of measured / profiled batch time.
        """
        self._grow(len(table.names))
        queued = core.queued_by_model(len(table.names))
        observed = self._observed.models(now, core, table, self._offered)
        n = len(table.names)
        columns = (self._offered, self._good, self._served, self._dropped, self._batches)
        rows = zip(*(column[:n].tolist() for column in columns), queued, observed, strict=True)
        models = {}
        for number, (name, row) in enumerate(zip(table.names, rows, strict=True)):
            offered, good, served, dropped, batches, waiting, more = row
            seen = measured(number)
            models[name] = {
                "offered": offered,
                "good": good,
                "late": served - good,
                "dropped": dropped,
                "queued": waiting,
                "batches": batches,
                "mean_batch": round(served / batches, 2) if batches else None,
                "measured_over_profiled": None if seen is None else _rounded(seen),
                **more,
            }
        then, busy_then = self._busy_told
        busy = self._busy
        elapsed = now - then
        share = (busy - busy_then) / (elapsed * gpus.size) if then and gpus.size and elapsed > 0 else None
        self._busy_told = (now, busy)
        p50, p99 = self.lateness_us()
        longest, self._longest_ns = self._longest_ns, 0
        return {
            "v": 1,
            "at": now,
            "models": models,
            "gpus": gpus.size,
            "gpu": self._observed.gpus(now, gpus, out),
            "busy_share": None if share is None else round(max(0.0, share), 4),
            "lateness_p50_us": round(p50, 1),
            "lateness_p99_us": round(p99, 1),
            "longest_turn_us": round(longest / 1e3, 1),
        }


def summary(report: dict[str, Any]) -> dict[str, Any]:
    """The report as heartbeats carry it: without columns by GPU, and of the busiest models only."""
    models = report["models"]
    busiest = sorted(models, key=lambda name: -models[name]["offered"])[:MOST_TOLD]
    kept = {
        name: {key: value for key, value in models[name].items() if key != "batch_sizes"}
        for name in sorted(busiest)
    }
    return {key: value for key, value in report.items() if key != "gpu"} | {"models": kept}
