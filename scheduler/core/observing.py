"""What the slow loop of ``adaptive`` reads of its core: the load, a rehearsal's scene, what was recorded.

Whole columns at a time: with a thousand models each of these takes a few tenths of a millisecond.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .limits import FIELDS, LIVE, SAMPLE_NS, SAMPLES, TAIL, TYPES
from .plans import Floats, Ints, Load
from .recording import Columns
from .rehearsal import Scene
from .rules import live_gpus, view

if TYPE_CHECKING:
    from .window import Window


class Reading:
    """A core, as its slow loop reads it."""

    def __init__(self, core: Window) -> None:
        self.core = core

    def gpus(self) -> int:
        """GPUs that can be given work."""
        return live_gpus(self.core)

    def load(self, now: int) -> tuple[Draft, Ints] | None:
        """What came, and per model number its row in it (-1: none); None where there is nothing yet."""
        core = self.core
        lane, window = self._rated(now // SAMPLE_NS)
        gpus = self.gpus()
        if not len(lane) or gpus == 0:
            return None
        lane_rate = view(core.meter.total)[lane] * 1e9 / window
        of_lane = view(core.lane_model)[lane]
        found, first = np.unique(of_lane, return_index=True)
        model = found[np.argsort(first, kind="stable")]  # in the order of their first lanes
        row = np.full(core.models.capacity, -1, np.int64)
        row[model] = np.arange(len(model))
        rate = np.bincount(row[of_lane], weights=lane_rate, minlength=len(model))
        margin = core.margin + view(core.type_margin)[view(core.fast)[model]]
        budget = view(core.models.slo)[model] - core.result - core.control - margin
        return Draft(core, model, np.maximum(rate, 1e-3), budget / 1e9, margin / 1e9, gpus), row

    def _rated(self, sample: int) -> tuple[Ints, Ints]:
        """Lanes whose rate is known and whose model is served, and the ns over which it is; all brought
        up to date."""
        core = self.core
        meter, n = core.meter, core.queues.lanes
        looked = view(meter.sample)[:n]
        lane = np.flatnonzero(looked >= 0)
        lane = lane[view(core.fast)[view(core.lane_model)[lane]] >= 0]
        old = lane[looked[lane] != sample]
        ever = view(core.queues.before)[old] + view(core.queues.record).reshape(-1, FIELDS)[old, TAIL]
        for number, came in zip(old.tolist(), ever.tolist(), strict=True):
            meter.roll(number, sample, came)
        window = np.minimum(view(meter.sample)[lane] - view(meter.first)[lane], SAMPLES) * SAMPLE_NS
        return lane[window > 0], window[window > 0]

    def scene(self) -> Scene:
        """What there is to rehearse with."""
        core = self.core
        models, gpus = core.models, core.gpus
        known = np.flatnonzero(np.frombuffer(memoryview(models.known), np.int8)[: models.capacity])
        most = view(models.max_batch)[known]
        table = view(models.table).reshape(-1, TYPES)[known]
        row, kind = np.nonzero(table >= 0)
        live = np.frombuffer(memoryview(gpus.state), np.int8)[: gpus.capacity] == LIVE
        classes = view(gpus.cls)[: gpus.capacity][live].tolist()
        kinds_of = [(gpus.class_type[c], gpus.class_models[c]) for c in range(gpus.classes)]
        margins = view(core.type_margin)
        return Scene(
            np.column_stack([known, view(models.slo)[known], most]),
            np.column_stack([row, kind, table[row, kind] + 1]),
            view(models.latency).tobytes(),
            tuple(kinds_of[c] for c in classes),
            core.control,
            core.data,
            core.result,
            core.margin,
            tuple((k, int(margins[k])) for k in np.flatnonzero(margins).tolist()),
        )

    def tape(self) -> Columns:
        """What was recorded since the last look."""
        core = self.core
        n = core.taped
        model = np.frombuffer(memoryview(core.tape_model), np.uint32)[:n].copy()
        return view(core.tape_at)[:n].copy(), model, view(core.tape_deadline)[:n].copy()


class Draft:
    """A load whose latencies are still to be put together.

    Several GPU types: a model's l(b) is the mean over the types that serve it, weighted by their GPUs. Models
    with the same latencies share them.
    """

    def __init__(
        self, core: Window, model: Ints, rate: Floats, budget: Floats, margin: Floats, gpus: int
    ) -> None:
        self.models = len(model)
        self.rest = rate, budget, margin, core.data / 1e9, gpus
        self.most = view(core.models.max_batch)[model]
        self.latency = view(core.models.latency).copy()
        of = core.gpus
        kind = np.array([of.class_type[c] for c in range(of.classes)], np.int64)
        self.live = [of.class_live[c] for c in range(of.classes)]
        holds = np.frombuffer(memoryview(of.holds), np.int8).reshape(-1, of.models)[: of.classes, model]
        table = view(core.models.table).reshape(-1, TYPES)[model][:, kind]
        self.mix = np.where(holds.T != 0, table, -1)
        self.places: dict[tuple[int, ...], int] = {}
        self.parts: list[Floats] = []
        self.length = 0
        self.at: list[int] = []

    def extend(self, first: int, last: int) -> None:
        """Put together the latencies of the models in these rows."""
        most = self.most[first:last].tolist()
        for mix, largest in zip(map(tuple, self.mix[first:last].tolist()), most, strict=True):
            if mix not in self.places:
                self.places[mix] = self.length
                self.length += largest
                self.parts.append(self._mean(mix, largest))
            self.at.append(self.places[mix])

    def _mean(self, mix: tuple[int, ...], largest: int) -> Floats:
        """Mean over the classes, each with the place of its table, -1 where it does not serve; s."""
        weight = {table: 0 for table in sorted(mix) if table >= 0}
        for table, count in zip(mix, self.live, strict=True):
            if table >= 0:
                weight[table] += count
        total = np.zeros(largest)
        for table, count in weight.items():
            total += count * self.latency[table + 1 : table + 1 + largest]
        return np.asarray(total / (1e9 * sum(weight.values())))

    def load(self) -> Load:
        """The load, when all rows have their latencies."""
        rate, budget, margin, data, gpus = self.rest
        at, table = np.array(self.at, np.int64), np.concatenate(self.parts)
        return Load(rate, budget, at, self.most, table, data, gpus, 1.0, margin=margin)
