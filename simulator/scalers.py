"""Autoscalers under one interface: ours, and what Ray Serve and the Kubernetes HPA do.

``symphony`` is :func:`scheduler.autoscale.decide`, as the leading shard calls it. The others are written
from their sources, each with the settings that suit it best: where its source does not say which GPUs go,
those with the highest numbers do, and they drain.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from scheduler.autoscale import State, adopt, decide
from scheduler.evidence import SECOND, Sample

from .autoscaling import Autoscaling


@dataclass(frozen=True, slots=True)
class Wish:
    """Have ``counts`` GPUs by type; ``drain``: those that go (None: the highest-numbered, new ones first)."""

    kind: str
    counts: dict[str, int]
    reason: str = ""
    drain: list[int] | None = None
    numbers: dict[str, float] = field(default_factory=dict)


class Scaler(Protocol):
    """Called once a second."""

    def step(self, sample: Sample, ongoing: int) -> Wish | None:
        """What to change now; ``ongoing``: requests that are queued or on a GPU."""

    def adopt(self, counts: Mapping[str, int], now: int) -> None:
        """Somebody else, a plan, has given the sub-cluster so many GPUs by type; ``now``: ns."""


class Static:
    """`none`: the GPUs of the experiment, always."""

    def step(self, sample: Sample, ongoing: int) -> Wish | None:
        """Nothing."""
        return None

    def adopt(self, counts: Mapping[str, int], now: int) -> None:
        """Nothing to adopt."""


class Symphony:
    """`symphony`: the rules of docs/autoscaling.md."""

    def __init__(self, settings: Autoscaling) -> None:
        self._settings = settings
        self._window: deque[Sample] = deque()
        self._state = State()

    def step(self, sample: Sample, ongoing: int) -> Wish | None:
        """One decision; None to hold."""
        self._window.append(sample)
        while sample.at - self._window[0].at >= self._settings.window_s * SECOND:
            self._window.popleft()
        decision, self._state = decide(self._window, self._state, self._settings)
        if decision.kind == "hold":
            return None
        return Wish(decision.kind, decision.requested, decision.reason, decision.drain, decision.numbers)

    def adopt(self, counts: Mapping[str, int], now: int) -> None:
        """As :mod:`scheduler.subclusters` does for a live shard."""
        self._state = adopt(self._state, counts, now)
        self._window.clear()


class Queue:
    """`queue`: Ray Serve's default, on ongoing requests per replica.

    desired = running · (ongoing / (target · running)), the ongoing requests averaged over
    ``look_back_s``; rounded up; within the bounds; carried out when every look of ``upscale_delay_s`` or
    ``downscale_delay_s`` wanted more, or fewer, than was asked for last. Source: Ray,
    python/ray/serve/autoscaling_policy.py (commit 00590c456b9a); its defaults are 30 s of look-back, 30 s
    and 600 s of delay, a look each 0.1 s. Here it looks once a second.
    """

    def __init__(self, settings: Autoscaling) -> None:
        self._settings = settings
        self._history: deque[int] = deque(maxlen=max(1, round(settings.look_back_s)))
        self._target: int | None = None
        self._counter = 0

    def step(self, sample: Sample, ongoing: int) -> Wish | None:
        """Ray's ``_core_replica_queue_length_policy``, bounds, then its delay logic."""
        s = self._settings
        self._history.append(ongoing)
        running = len(sample.busy)
        if self._target is None:
            self._target = running + len(sample.starting)
        mean = sum(self._history) / len(self._history)
        desired = min(s.max, max(s.min, math.ceil(mean / s.target_ongoing)))
        if desired > self._target:
            self._counter = max(self._counter, 0) + 1
            if self._counter <= s.upscale_delay_s:
                return None
        elif desired < self._target:
            self._counter = min(self._counter, 0) - 1
            if -self._counter <= s.downscale_delay_s:
                return None
        else:
            self._counter = 0
            return None
        self._counter = 0
        kind = "up" if desired > self._target else "down"
        self._target = desired
        reason = f"{mean:.0f} ongoing requests at {s.target_ongoing:g} per GPU"
        return Wish(kind, {only_type(sample): desired}, reason)

    def adopt(self, counts: Mapping[str, int], now: int) -> None:
        """The replicas that there are now."""
        self._target, self._counter = sum(counts.values()), 0


class Utilization:
    """`utilization`: the Kubernetes Horizontal Pod Autoscaler on the share of time that GPUs are busy.

    Each ``sync_s``: desired = ceil(ready · mean busy / target), unless the ratio is within ``tolerance`` of
    1; pods that are not ready count as idle when that would add pods, and then nothing is done if the ratio
    falls below 1 with them. Up: at most doubled or 4 more per sync; down: the highest recommendation of the
    last ``stabilization_s``. Source: kubernetes pkg/controller/podautoscaler/replica_calculator.go (commit
    00067268967e), and the defaults of its API's HPAScalingRules (15 s, 0.1, 300 s).
    """

    def __init__(self, settings: Autoscaling) -> None:
        self._settings = settings
        self._busy: deque[float] = deque(maxlen=max(1, round(settings.sync_s)))
        self._wanted: deque[tuple[int, int]] = deque()
        self._next = 0

    def step(self, sample: Sample, ongoing: int) -> Wish | None:
        """A look each ``sync_s`` seconds."""
        s = self._settings
        ready, starting = len(sample.busy), len(sample.starting)
        self._busy.append(sum(sample.busy.values()) / ready if ready else 0.0)
        if sample.at < self._next or not ready or len(self._busy) < (self._busy.maxlen or 0):
            return None
        self._next = sample.at + round(s.sync_s * SECOND)
        busy = sum(self._busy) / len(self._busy)
        current = ready + starting
        desired = self._desired(busy / s.target_utilization, ready, starting)
        self._wanted.append((sample.at, desired))
        while sample.at - self._wanted[0][0] > s.stabilization_s * SECOND:
            self._wanted.popleft()
        if desired <= current:
            desired = min(current, max(wanted for _, wanted in self._wanted))
        desired = min(desired, max(2 * current, current + 4))
        desired = min(s.max, max(s.min, desired))
        if desired == current:
            return None
        reason = f"{busy:.0%} busy, target {s.target_utilization:.0%}"
        return Wish("up" if desired > current else "down", {only_type(sample): desired}, reason)

    def adopt(self, counts: Mapping[str, int], now: int) -> None:
        """It goes by the GPUs that it sees."""

    def _desired(self, ratio: float, ready: int, starting: int) -> int:
        tolerance = self._settings.tolerance
        if ratio > 1 and starting:
            ratio = ratio * ready / (ready + starting)
            if ratio <= 1 + tolerance:
                return ready + starting
            return math.ceil(ratio * (ready + starting))
        if abs(1 - ratio) <= tolerance:
            return ready + starting
        return math.ceil(ratio * ready)


def only_type(sample: Sample) -> str:
    """The type of the sub-cluster's GPUs."""
    return next(iter(sample.need))


def make_scaler(settings: Autoscaling) -> Scaler:
    """By the experiment's ``autoscale.policy``."""
    if settings.policy == "symphony":
        return Symphony(settings)
    if settings.policy == "queue":
        return Queue(settings)
    if settings.policy == "utilization":
        return Utilization(settings)
    return Static()
