"""What a shard's report says beyond counters: rates and how they vary, batch sizes, waits, and GPU by GPU.

All by columns, once a second, since the shard's timers wait meanwhile.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from scheduler.core.limits import FIELDS, FIRST, HEAD, TAIL
from scheduler.core.machine import Core
from scheduler.table import ModelTable
from scheduler.workers import Back

SECONDS: Final = 10
"""Reports behind a rate and its variation."""
LONGEST_NS: Final = 60_000_000_000
"""What counts of one batch's time, at most."""
CLASSES: Final = 13
"""Batch sizes are counted by 1, 2, 3–4, 5–8 … up to 4,096."""

Column = npt.NDArray[np.int64]


class Observed:
    """Gathers from completions; :meth:`models` and :meth:`gpus` are asked once per report."""

    def __init__(self) -> None:
        self._sizes = np.zeros((0, CLASSES), np.int64)
        self._busy = np.zeros(0, np.int64)  # by GPU, ns since the start
        self._ended = np.zeros(0, np.int64)  # by GPU, the last end, cluster ns
        self._told = np.zeros(0, np.int64)  # by GPU, as of the last report
        self._told_at = 0
        self._offered: deque[tuple[int, Column]] = deque(maxlen=SECONDS + 1)

    def completed(self, back: Back) -> None:
        """Batches came back."""
        if not back.model.size:
            return
        most = int(back.model.max()) + 1
        if most > len(self._sizes):
            more = np.zeros((most - len(self._sizes), CLASSES), np.int64)
            self._sizes = np.concatenate((self._sizes, more))
        bins = np.ceil(np.log2(np.maximum(1, back.size))).astype(np.int64)
        np.add.at(self._sizes, (back.model, np.minimum(bins, CLASSES - 1)), 1)
        self._reserve(int(back.gpu.max()) + 1)
        # A worker may say anything of its times.
        np.add.at(self._busy, back.gpu, np.clip(back.finished - back.started, 0, LONGEST_NS))
        np.maximum.at(self._ended, back.gpu, back.finished)

    def _reserve(self, gpus: int) -> None:
        more = gpus - self._busy.size
        if more > 0:
            for name in ("_busy", "_ended", "_told"):
                setattr(self, name, np.concatenate((getattr(self, name), np.zeros(more, np.int64))))

    def models(self, now: int, core: Core, table: ModelTable, offered: Column) -> list[dict[str, Any]]:
        """By model number: ``rate`` (requests/s), ``rate_cv``, ``oldest_wait_ms``, ``batch_sizes``.

        Args:
            now: cluster time, ns.
            core: has the queues.
            table: has the objectives.
            offered: requests by model since the start.
        """
        n = len(table.names)
        while self._offered and self._offered[-1][0] >= now:  # the cluster's clock was set back
            self._offered.pop()
        self._offered.append((now, offered[:n].copy()))
        rate, variation = self._rates(n)
        wait = self._waits(now, core, table)
        sizes = np.zeros((n, CLASSES), np.int64)
        known = self._sizes[:n]
        sizes[: len(known)] = known
        used = np.where(sizes.any(axis=1), CLASSES - np.argmax(sizes[:, ::-1] > 0, axis=1), 0)
        columns = (np.round(rate, 3), np.round(variation, 3), np.round(wait / 1e6, 3), sizes, used)
        return [
            {"rate": r, "rate_cv": cv, "oldest_wait_ms": w, "batch_sizes": counts[:last]}
            for r, cv, w, counts, last in zip(*(column.tolist() for column in columns), strict=True)
        ]

    def _rates(self, n: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        at = np.array([moment for moment, _ in self._offered], np.float64)
        if at.size < 2:
            return np.zeros(n), np.zeros(n)
        counts = np.zeros((at.size, n))
        for row, (_, column) in zip(counts, self._offered, strict=True):
            row[: column.size] = column
        rates = np.diff(counts, axis=0) / (np.diff(at) / 1e9)[:, None]
        mean = rates.mean(axis=0)
        return mean, np.divide(rates.std(axis=0), mean, out=np.zeros(n), where=mean > 0)

    def _waits(self, now: int, core: Core, table: ModelTable) -> npt.NDArray[np.float64]:
        """ns that the first request in each queue has waited, if its deadline is its model's objective."""
        wait = np.zeros(len(table.names))
        lanes = core.queues.lanes
        record = np.asarray(core.queues.record, np.int64)[: lanes * FIELDS].reshape(lanes, FIELDS)
        model = np.asarray(core.lane_model, np.int64)[:lanes]
        some = (record[:, TAIL] > record[:, HEAD]) & (model < wait.size)
        slo = table.slo_ns.astype(np.float64)
        age = slo[model[some]] - (record[some, FIRST] + core.result - now)
        np.maximum.at(wait, model[some], np.maximum(0.0, age))
        return wait

    def gpus(self, now: int, gpus: Column, out: Column) -> dict[str, list[Any]]:
        """Columns: ``number``, ``busy`` (share since the last report), ``idle_ms`` (since its last batch).

        How long a batch took is known when it has ended: what does not fit between two reports is told with
        the next ones, so that shares are late by as much as batches are long, and right on average.

        Args:
            now: cluster time, ns.
            gpus: numbers of those that the shard uses, rising.
            out: GPUs with a batch out now; they are idle for 0 ms.
        """
        if not gpus.size:
            return {"number": [], "busy": [], "idle_ms": []}
        self._reserve(int(gpus[-1]) + 1)
        elapsed = max(1, now - self._told_at) if self._told_at else 0
        told = np.clip(self._busy - self._told, 0, elapsed)
        self._told = np.maximum(self._told + told, self._busy - LONGEST_NS) if elapsed else self._busy.copy()
        self._told_at = now
        share = told / max(1, elapsed)
        idle = np.where(self._ended > 0, (now - self._ended) // 1_000_000, -1)
        idle[out[out < idle.size]] = 0
        return {
            "number": gpus.tolist(),
            "busy": np.round(share[gpus], 3).tolist(),
            "idle_ms": np.maximum(idle[gpus], -1).tolist(),
        }
