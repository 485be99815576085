"""What a shard tells of itself once a second: per model, of its GPUs, of its own timers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from scheduler.core.machine import Core
from scheduler.fleet import Back
from scheduler.table import ModelTable

LATENESS_KEPT: Final = 4_096
LONGEST_BATCH_NS: Final = 60_000_000_000


Measured = Callable[[int], tuple[float, float] | None]


def _rounded(values: tuple[float, float]) -> list[float]:
    return [round(value, 4) for value in values]


class Stats:
    """Counters since the start of the shard; ``docs/wire-protocol.md`` lists the published fields."""

    def __init__(self) -> None:
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

    def submitted(self, model: np.ndarray[Any, Any], models: int) -> None:
        """Requests came in: a column of model numbers, those of unknown models among them."""
        self._grow(models)
        counts = np.bincount(model[model < models], minlength=models)
        self._offered[: len(counts)] += counts

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
        self, now: int, core: Core, table: ModelTable, gpus: int, measured: Measured = lambda model: None
    ) -> dict[str, Any]:
        """The message that is published, and put on the heartbeat.

        ``measured(model)``: p50 and p99 of measured / profiled batch time.
        """
        self._grow(len(table.names))
        queued = core.queued_by_model(len(table.names))
        models = {}
        for number, name in enumerate(table.names):
            served, batches = int(self._served[number]), int(self._batches[number])
            models[name] = {
                "offered": int(self._offered[number]),
                "good": int(self._good[number]),
                "late": served - int(self._good[number]),
                "dropped": int(self._dropped[number]),
                "queued": queued[number],
                "batches": batches,
                "mean_batch": round(served / batches, 2) if batches else None,
                "measured_over_profiled": None if (seen := measured(number)) is None else _rounded(seen),
            }
        then, busy_then = self._busy_told
        busy = self._busy
        elapsed = now - then
        share = (busy - busy_then) / (elapsed * gpus) if then and gpus and elapsed > 0 else None
        self._busy_told = (now, busy)
        p50, p99 = self.lateness_us()
        longest, self._longest_ns = self._longest_ns, 0
        return {
            "v": 1,
            "at": now,
            "models": models,
            "gpus": gpus,
            "busy_share": None if share is None else round(max(0.0, share), 4),
            "lateness_p50_us": round(p50, 1),
            "lateness_p99_us": round(p99, 1),
            "longest_turn_us": round(longest / 1e3, 1),
        }
