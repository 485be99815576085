# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: annotation_typing=False, infer_types=True
"""Models, profiles, margins and GPUs come, change and go."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from .columns import widen
from .limits import (
    ABSENT,
    HANDED_BACK,
    LARGEST_BATCH,
    LIVE,
    LONGEST,
    MOST_GPUS,
    MOST_MODELS,
    PRIORITIES,
    SLOTS,
    TYPES,
)
from .window import Window


class Fleet(Window):
    """What serves the lanes: models, their latencies, and the GPUs that hold them.

    The arguments are those of :class:`~scheduler.core.machine.Core`.
    """

    def add_model(self, model: int, slo_ns: int, max_batch: int) -> None:
        """Make a model known by its number (0 ≤ model < 2^20).

        Raises:
            ValueError: a number or size out of range, or the model is known already.
        """
        if not 0 <= model < MOST_MODELS or not 0 < slo_ns < LONGEST or not 1 <= max_batch <= LARGEST_BATCH:
            raise ValueError(f"model {model}: number, SLO or largest batch out of range")
        if self.has_model(model):
            raise ValueError(f"model {model} is known already")
        self.models.add(model, slo_ns, max_batch)
        more = self.models.capacity - len(self.fast)
        if more > 0:
            self.fast = widen("q", self.fast, more, -1)
            self.fast_at = widen("q", self.fast_at, more, -1)
            self.steady = widen("b", self.steady, more)
            self.lane_of = widen("q", self.lane_of, PRIORITIES * more, -1)
            self.gpus.reserve_models(self.models.capacity)
            self._serve_all()

    def has_model(self, model: int) -> bool:
        """Whether the model is known."""
        return 0 <= model < self.models.capacity and self.models.known[model] != 0

    def set_profile(self, now: int, model: int, gpu_type: int, latency_ns: Sequence[int]) -> None:
        """Set or replace l(1) … l(max_batch) in ns of a model on a GPU type (0 ≤ type < 64).

        Raises:
            ValueError: unknown model or type, wrong length, or times that are negative, absurd or
                falling.
        """
        if not self.has_model(model) or not 0 <= gpu_type < TYPES:
            raise ValueError(f"model {model} or GPU type {gpu_type} is unknown")
        table = [int(x) for x in latency_ns]
        if len(table) != self.models.max_batch[model]:
            raise ValueError(
                f"model {model}: {len(table)} latencies for a largest batch of {self.models.max_batch[model]}"
            )
        if not table[0] >= 0 or table[len(table) - 1] >= LONGEST or any(b < a for a, b in pairwise(table)):
            raise ValueError(f"model {model}: latencies must not be negative, must not fall, nor last 3 days")
        now = self._clock(now)
        self.models.set_table(model, gpu_type, table)
        self._serve_one(model)
        for priority in range(PRIORITIES):
            lane = self.lane_of[model * PRIORITIES + priority]
            if lane >= 0:
                self.lane_target_sample[lane] = -1
                if self.queues.count(lane) > 0:
                    self._reform(lane, now)
        self._run(now)

    def drain_model(self, model: int) -> None:
        """Refuse further requests as unserved; those that are queued are still served."""
        if self.has_model(model):
            self.models.draining[model] = 1
            self._serve_one(model)
            for priority in range(PRIORITIES):
                lane = self.lane_of[model * PRIORITIES + priority]
                if lane >= 0:
                    self._firm(lane)

    def remove_model(self, now: int, model: int) -> None:
        """Forget the model; its queued requests are handed back."""
        if not self.has_model(model):
            return
        now = self._clock(now)
        for priority in range(PRIORITIES):
            lane = self.lane_of[model * PRIORITIES + priority]
            if lane >= 0:
                self._drop(lane, self.queues.count(lane), HANDED_BACK)
                self._rest(lane)
                self.meter.clear(lane)
        self.models.known[model] = 0
        self._serve_one(model)
        self._run(now)

    def add_gpu(self, now: int, gpu: int, gpu_type: int = 0, models: Sequence[int] | None = None) -> None:
        """Add an idle GPU by its number (0 ≤ gpu < 2^20); ``models``: those it holds, None for all.

        Raises:
            ValueError: number or type out of range, or the GPU is there already.
        """
        if not 0 <= gpu < MOST_GPUS or not 0 <= gpu_type < TYPES:
            raise ValueError(f"GPU {gpu} of type {gpu_type}: out of range")
        if self.has_gpu(gpu):
            raise ValueError(f"GPU {gpu} is there already")
        now = self._clock(now)
        if gpu >= self.gpus.capacity:
            self.gpus.reserve_gpus(max(gpu + 1, 2 * self.gpus.capacity))
            self.ended = widen("q", self.ended, self.gpus.capacity - len(self.ended))
        c = self.gpus.class_of(gpu_type, _frozen(models))
        self.gpus.join(gpu, c, now)
        self._changed(now, self.gpus.class_live[c] == 1)

    def has_gpu(self, gpu: int) -> bool:
        """Whether the GPU is there (draining ones are)."""
        return 0 <= gpu < self.gpus.capacity and self.gpus.state[gpu] != ABSENT

    def set_gpu_models(self, now: int, gpu: int, models: Sequence[int] | None) -> None:
        """The GPU holds these models from now on (None: all); nothing changes on one that drains.

        Raises:
            ValueError: no such GPU.
        """
        if not self.has_gpu(gpu):
            raise ValueError(f"no GPU {gpu}")
        if self.gpus.state[gpu] != LIVE:
            return
        now = self._clock(now)
        kind = self.gpus.class_type[self.gpus.cls[gpu]]
        self.gpus.move(gpu, self.gpus.class_of(kind, _frozen(models)), now)
        self._changed(now, True)

    def drain_gpu(self, now: int, gpu: int) -> None:
        """Dispatch nothing more to the GPU; it stays until :meth:`remove_gpu`."""
        if self.has_gpu(gpu) and self.gpus.state[gpu] == LIVE:
            now = self._clock(now)
            self.gpus.drain(gpu)
            self._changed(now, self.gpus.class_live[self.gpus.cls[gpu]] == 0)

    def outstanding(self, gpu: int) -> int:
        """Batches that are out on the GPU."""
        return self.gpus.out_count[gpu] if self.has_gpu(gpu) else 0

    def remove_gpu(self, now: int, gpu: int) -> None:
        """Forget the GPU; whoever drives the core gives again what was out on it, if that is wanted."""
        if self.has_gpu(gpu):
            now = self._clock(now)
            live = self.gpus.state[gpu] == LIVE
            self.gpus.leave(gpu)
            self._changed(now, live and self.gpus.class_live[self.gpus.cls[gpu]] == 0)

    def set_margin(self, margin_ns: int) -> None:
        """The margin before every deadline, from now on."""
        margin_ns = _span(margin_ns)
        if self.margin != margin_ns:
            self._firm_all()
            self.margin = margin_ns

    def set_control(self, now: int, control_ns: int) -> None:
        """The time from a decision to its arrival at the worker, from now on; candidates are formed anew."""
        control_ns = _span(control_ns)
        if self.control != control_ns:
            now = self._clock(now)
            self.control = control_ns
            self._changed(now, True)

    def set_result(self, now: int, result_ns: int) -> None:
        """The time from a batch's end to its results' arrival, from now on; candidates are formed anew."""
        result_ns = _span(result_ns)
        if self.result != result_ns:
            now = self._clock(now)
            self.result = result_ns
            self._changed(now, True)

    def set_type_margin(self, gpu_type: int, margin_ns: int) -> None:
        """A further margin for windows that are formed against GPUs of that type.

        Raises:
            ValueError: no such type.
        """
        if not 0 <= gpu_type < TYPES:
            raise ValueError(f"GPU type {gpu_type}: out of range")
        margin_ns = _span(margin_ns)
        if self.type_margin[gpu_type] != margin_ns:
            self._firm_all()
            self.type_margin[gpu_type] = margin_ns
            if self.gpus.classes > 1:
                self._serve_all()

    def set_gpu_margin(self, gpu: int, margin_ns: int) -> None:
        """A further margin for batches that go to that GPU."""
        if self.has_gpu(gpu):
            self.gpus.margin[gpu] = _span(margin_ns)

    def forget_slot(self, slot: int) -> None:
        """The frontend of that slot has gone: its successor's keys start anew.

        Raises:
            ValueError: no such slot.
        """
        if not 0 <= slot < SLOTS:
            raise ValueError(f"slot {slot}: out of range")
        self.last_key[slot] = 0

    def _serve_all(self) -> None:
        """Find anew which class of GPUs serves which model."""
        for model in range(self.models.capacity):
            self._serve_one(model)

    def _serve_one(self, model: int) -> None:
        """Which classes serve the model (they hold it and have its table), and its fastest type.

        That is the type on which one request would be done first; the smallest number among equals.
        """
        gpus = self.gpus
        models = self.models
        best = -1
        least = 0
        alike = True
        for c in range(gpus.classes):
            held = gpus.class_models[c]
            kind = gpus.class_type[c]
            at = models.table[model * TYPES + kind] if models.known[model] else -1
            serves = at >= 0 and gpus.class_live[c] > 0 and (held is None or model in held)
            gpus.holds[c * gpus.models + model] = serves
            if serves:
                alone = models.latency[at + 1] + self.type_margin[kind]
                alike = alike and (best < 0 or kind == best)
                if best < 0 or alone < least or (alone == least and kind < best):
                    best = kind
                    least = alone
        self.fast[model] = best
        # With GPUs of several types a candidate depends on which of them is free: a look at each arrival.
        self.steady[model] = best >= 0 and alike and models.draining[model] == 0
        self.fast_at[model] = models.table[model * TYPES + best] if best >= 0 else -1

    def _changed(self, now: int, everything: bool) -> None:
        """What can serve the lanes has changed: form them anew if a class of GPUs came or went."""
        if everything:
            self._serve_all()
            for lane in range(self.queues.lanes):
                if self.queues.count(lane) > 0:
                    self._reform(lane, now)
        self._run(now)


def _span(ns: int) -> int:
    return min(max(0, ns), LONGEST)


def _frozen(models: Sequence[int] | None) -> frozenset[int] | None:
    return None if models is None else frozenset(models)
