"""A slow and obviously right scheduling core: lists, sorting, and no bookkeeping that could go stale.

It takes the events of ``scheduler.core.machine.Core`` and gives the same actions, or one of the two is
wrong. It is written from the rules (docs/algorithm.md), not from the core: what the core keeps in
heaps, rings and counters is searched for anew here, and every "largest such that" is a loop.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from reference_rules import Rules
from reference_state import Dispatch, Drop, Gpu, Lane, Model, Request

from scheduler.core.limits import (
    DUPLICATE,
    FULL,
    HANDED_BACK,
    OUT_OF_RANGE,
    SAMPLE_NS,
    UNKNOWN,
    UNSERVED,
)


class Reference(Rules):
    """Constructed, driven and read as the core is, but for actions as lists of tuples."""

    def actions(self) -> tuple[list[Dispatch], list[Drop]]:
        """What has come out since the last call."""
        out = self.dispatches, self.drops
        self.dispatches, self.drops = [], []
        return out

    # --- models and GPUs ---------------------------------------------------------------------

    def add_model(self, model: int, slo_ns: int, max_batch: int) -> None:
        self.models[model] = Model(slo_ns, max_batch)

    def set_profile(self, now: int, model: int, gpu_type: int, latency_ns: Sequence[int]) -> None:
        self.clock(now)
        self.models[model].tables[gpu_type] = list(latency_ns)
        for lane in self.lanes_of(model):
            lane.aimed, lane.planned = -1, False
            if lane.queue:
                self.form(lane)
        self.run()

    def drain_model(self, model: int) -> None:
        if model in self.models:
            self.models[model].draining = True

    def remove_model(self, now: int, model: int) -> None:
        if model not in self.models:
            return
        self.clock(now)
        for lane in self.lanes_of(model):
            self.drop(lane, len(lane.queue), HANDED_BACK)
            lane.state, lane.size, lane.waits = "empty", 0, False
            lane.looked, lane.first, lane.arrivals = -1, -1, []
        del self.models[model]
        self.run()

    def lanes_of(self, model: int) -> list[Lane]:
        return [self.lanes[model, p] for p in range(4) if (model, p) in self.lanes]

    def add_gpu(self, now: int, gpu: int, gpu_type: int = 0, models: Iterable[int] | None = None) -> None:
        self.clock(now)
        new = Gpu(gpu, gpu_type, None if models is None else frozenset(models), self.now)
        first = new.runs() not in self.kinds()
        self.gpus[gpu] = new
        self.changed(first)

    def set_gpu_models(self, now: int, gpu: int, models: Iterable[int] | None) -> None:
        if self.gpus[gpu].live:
            self.clock(now)
            self.gpus[gpu].models = None if models is None else frozenset(models)
            self.changed(True)

    def drain_gpu(self, now: int, gpu: int) -> None:
        if gpu in self.gpus and self.gpus[gpu].live:
            self.clock(now)
            self.gpus[gpu].live = False
            self.changed(self.gpus[gpu].runs() not in self.kinds())

    def remove_gpu(self, now: int, gpu: int) -> None:
        if gpu in self.gpus:
            self.clock(now)
            gone = self.gpus.pop(gpu)
            self.changed(gone.live and gone.runs() not in self.kinds())

    def kinds(self) -> set[tuple[int, frozenset[int] | None]]:
        return {gpu.runs() for gpu in self.gpus.values() if gpu.live}

    def changed(self, everything: bool) -> None:
        """Candidates are formed anew when the first GPU of its kind comes or the last one goes."""
        if everything:
            for lane in self.lanes.values():
                if lane.queue:
                    self.form(lane)
        self.run()

    def set_margin(self, margin_ns: int) -> None:
        self.margin = margin_ns

    def set_control(self, now: int, control_ns: int) -> None:
        if self.control != control_ns:
            self.clock(now)
            self.control = control_ns
            self.changed(True)

    def set_result(self, now: int, result_ns: int) -> None:
        if self.result != result_ns:
            self.clock(now)
            for lane in self.lanes.values():
                lane.queue = [Request(r.deadline - result_ns, r.deadline, r.key) for r in lane.queue]
            self.result = result_ns
            self.changed(True)

    def set_type_margin(self, gpu_type: int, margin_ns: int) -> None:
        self.type_margin[gpu_type] = margin_ns

    def set_gpu_margin(self, gpu: int, margin_ns: int) -> None:
        if gpu in self.gpus:
            self.gpus[gpu].margin = margin_ns

    def forget_slot(self, slot: int) -> None:
        self.last_key.pop(slot, None)

    # --- events ------------------------------------------------------------------------------

    def submit(
        self,
        now: int,
        model: Sequence[int],
        deadline: Sequence[int],
        key: Sequence[int],
        priority: Sequence[int] | None = None,
        again: bool = False,
    ) -> None:
        self.clock(now)
        self.submitted += len(model)
        if self.tuner and not again:
            self.tape += [(self.now, m, d) for m, d in zip(model, deadline, strict=True)]
            del self.tape[self.tape_room :]
        ranks = [0] * len(model) if priority is None else [min(p, 3) for p in priority]
        touched: list[Lane] = []
        for m, d, k, p in zip(model, deadline, key, ranks, strict=True):
            reason = self.refusal(m, d, k, again)
            if not reason:
                lane = self.lanes.setdefault((m, p), Lane(len(self.lanes), m, p))
                if self.tuner and not lane.planned:
                    lane.early = 1  # until there is a plan
                if len(lane.queue) >= self.max_queue:
                    reason = FULL
            if reason:
                self.drops.append((k, m, d, reason))
                continue
            self.look(lane)
            lane.arrivals.append(self.now // SAMPLE_NS)
            lane.queue.append(Request(d - self.result, d, k))
            lane.queue.sort(key=lambda request: request.finish_by)  # stable: equals in order of arrival
            if lane not in touched:
                touched.append(lane)
        for lane in sorted(touched, key=lambda lane: lane.number):
            self.form(lane)
        self.run()

    def refusal(self, model: int, deadline: int, key: int, again: bool) -> int:
        if model not in self.models:
            return UNKNOWN
        if not again:
            if key <= self.last_key.get(key >> 48, 0):
                return DUPLICATE
            self.last_key[key >> 48] = key
        if not 0 <= deadline <= self.now + self.horizon:
            return OUT_OF_RANGE
        if self.models[model].draining or not self.serving(model):
            return UNSERVED
        return 0

    def complete(self, now: int, gpu: Sequence[int], batch: Sequence[int], finished: Sequence[int]) -> None:
        self.clock(now)
        for g, b, f in zip(gpu, batch, finished, strict=True):
            ended = f if 0 <= f <= self.now else self.now
            there = self.gpus.get(g)
            if there is None or b not in [out[0] for out in there.out]:
                self.strange_completions += 1
                continue
            first, start, length = there.out[0]
            if first == b and length and self.tuner:
                took = min(max(0, ended - max(start, there.ended)), 2 * length)
                self.over.append(took * 2**20 // length - 2**20)
            if first == b:
                there.ended = ended
            while there.out.pop(0)[0] != b:
                pass
            there.free_at = ended
            for _, exec_at, length in there.out:
                there.free_at = max(there.free_at, exec_at) + length
            there.idle = there.free_at <= self.now
        self.run()

    def advance(self, now: int) -> None:
        self.clock(now)
        self.run()
