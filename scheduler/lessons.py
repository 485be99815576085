"""What completions teach the core: how long batches really take, and how late they really are."""

from __future__ import annotations

import logging
from typing import Final, NamedTuple

import numpy as np

from scheduler.core.machine import Core
from scheduler.corrections import Corrections
from scheduler.dispatching import Dispatching
from scheduler.margins import Margins
from scheduler.recent import Ids
from scheduler.returning import Returning
from scheduler.slow import SlowGpus
from scheduler.table import ModelTable
from symphony.faults import Faults

_log = logging.getLogger(__name__)

MOST: Final = 256
"""Batches that are learned from at a time; of more that have come back, every second, third …"""


class Ran(NamedTuple):
    """Columns over batches that came back: GPU and its type, model, requests executed, cluster times in ns.

    ``finish_at`` and ``exec_at`` are as predicted, ``started`` and ``finished`` as measured.
    """

    gpu: Ids
    kind: Ids
    model: Ids
    ran: Ids
    finish_at: Ids
    exec_at: Ids
    started: Ids
    finished: Ids


class Lessons:
    """See the module's text.

    Args:
        core: is told the latencies and margins that are learned.
        table: has the profiles, and passes corrected ones on.
        faults: counts GPUs that turn slow.
    """

    def __init__(self, core: Core, table: ModelTable, faults: Faults) -> None:
        self.margins = Margins()
        self.corrections = Corrections()
        self.slow = SlowGpus()
        self.dispatching = Dispatching(core.control)
        self.returning = Returning(core.result)
        self._core = core
        self._table = table
        self._faults = faults
        self._relearned = 0

    def observe(self, ran: Ran) -> None:
        """Batches came back from GPUs that are there."""
        self.dispatching.observe(ran.gpu, ran.exec_at, ran.started, ran.finished)
        every = -(-ran.gpu.size // MOST)
        if every > 1:
            ran = Ran._make(column[self._relearned % every :: every] for column in ran)
        self.margins.observe(ran.gpu, ran.finished - ran.finish_at)
        profiled = self._table.profiled_ns(ran.model, ran.kind, ran.ran)
        took = ran.finished - ran.started
        self.slow.observe(ran.gpu, took, profiled)
        typical = ~self.slow.are_slow(ran.gpu)
        self.corrections.observe(ran.model[typical], ran.kind[typical], took[typical], profiled[typical])

    @property
    def slices(self) -> int:
        """How many calls of :meth:`relearn` cover every GPU and model."""
        return max(self.margins.slices, self.corrections.slices)

    def relearn(self, now: int, cap_ns: int) -> None:
        """Give the core the latencies and margins that completions call for, a slice of them at a time."""
        self._relearned += 1
        several = max(1, self.slices // self.corrections.slices)
        for model, gpu_type, factor in self.corrections.changes() if self._relearned % several == 0 else ():
            _log.info("%s takes %.2f times as long as profiled", self._table.names[model], factor)
            self._table.correct(now, model, gpu_type, factor)
        self.slow.sweep()
        for gpu, margin in self.margins.changes(cap_ns, self.slow):
            self._core.set_gpu_margin(gpu, margin)

    def relearn_types(self, now: int, gpus: Ids, kinds: Ids, cap_ns: int, result_cap_ns: int) -> None:
        """Give the core the latencies and the median margin of each type's GPUs; see which are slow.

        Args:
            now: cluster time.
            gpus: all that are there.
            kinds: their types.
            cap_ns: the most that a learned control latency may be.
            result_cap_ns: the same for the result latency.
        """
        self._core.set_result(now, self.returning.learn(result_cap_ns))
        self._core.set_control(now, self.dispatching.learn(cap_ns))
        for gpu, factor in self.slow.judge(gpus, kinds):
            if factor is None:
                _log.info("GPU %d is as fast as the others of its type again", gpu)
            else:
                self._faults.count("slow-gpu", f"GPU {gpu} takes {factor:.2f} times as long as its type's")
        margins = self.margins.of(gpus)
        for kind in np.flatnonzero(np.bincount(kinds)).tolist():
            mine = margins[kinds == kind]
            self._core.set_type_margin(kind, int(np.partition(mine, mine.size // 2)[mine.size // 2]))

    def forget(self, gpu: int) -> None:
        """The GPU has gone."""
        self.margins.forget(gpu)
        self.slow.forget(gpu)
