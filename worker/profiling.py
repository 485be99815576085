"""Measuring l(b) at start-up, for a real model whose definition brings no profile."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np

from symphony.profile import Profile
from symphony.status import SymphonyError
from worker.definition import Definition, DefinitionError
from worker.device import Device, DeviceLost, Executed, OutOfMemory
from worker.loading import Inputs, sampler
from worker.turns import Turns

_log = logging.getLogger(__name__)

REPETITIONS: Final = 10
LEAST_REPETITIONS: Final = 3
SIZE_BUDGET_NS: Final = 1_000_000_000
"""One batch size takes no longer than that once it has its least number of repetitions."""
PERCENTILE: Final = 95


class Stopped(SymphonyError):
    """The process was told to stop before it was ready."""


def sizes(max_batch: int) -> list[int]:
    """1, 2, 4, 8 … and max_batch."""
    powers = [1 << i for i in range(max_batch.bit_length()) if 1 << i < max_batch]
    return [*powers, max_batch]


def measure(
    run: Callable[[int], int], max_batch: int, slo_ns: int, stop: Callable[[], bool] = lambda: False
) -> Profile:
    """The p95 of a few runs at each of :func:`sizes`, forced monotone, interpolated in between.

    Sizes above the first one that takes longer than the SLO are of no use to any schedule; they are
    not measured but continued along the last step.

    Args:
        run: executes one batch of that size and returns how many ns the device was busy.
        stop: asked between runs.

    Raises:
        Stopped: ``stop`` said so.
    """
    points: dict[int, float] = {}
    for size in sizes(max_batch):
        run(size)  # warm: memory pools, kernels chosen for this shape
        times: list[int] = []
        began = time.monotonic_ns()
        while len(times) < REPETITIONS:
            if stop():
                raise Stopped("stopped while measuring latencies")
            times.append(run(size))
            if len(times) >= LEAST_REPETITIONS and time.monotonic_ns() - began > SIZE_BUDGET_NS:
                break
        value = max(float(np.percentile(times, PERCENTILE)), 1.0)
        points[size] = max([value, *points.values()])  # noise may make a larger batch look faster
        if points[size] > slo_ns:
            break
    _continue(points, max_batch)
    return Profile.points({size: ns / 1e6 for size, ns in points.items()}, max_batch)


def _continue(points: dict[int, float], max_batch: int) -> None:
    last = max(points)
    if last == max_batch:
        return
    before = max((size for size in points if size < last), default=0)
    slope = (points[last] - points.get(before, 0.0)) / (last - before)
    points[max_batch] = points[last] + slope * (max_batch - last)


class Trial:
    """Runs batches of a model's samples on the device, in turns in which nothing else is there.

    Args:
        device, key, definition: the copy.
        sample: makes one request's inputs.
        turns: whose turn it is.
        stop: asked before every step, and while waiting for a turn.
    """

    def __init__(
        self,
        device: Device,
        key: str,
        definition: Definition,
        sample: Callable[[np.random.Generator], Inputs],
        turns: Turns,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._device = device
        self._key = key
        self._definition = definition
        self._sample = sample
        self._turns = turns
        self._stop = stop
        self._rng = np.random.default_rng(0)

    def items(self, size: int) -> list[Inputs]:
        """Inputs of that many requests. Raises Stopped."""
        if self._stop():
            raise Stopped("stopped while measuring latencies")
        return [self._sample(self._rng) for _ in range(size)]

    @contextmanager
    def turn(self) -> Iterator[None]:
        """The device for itself. Raises Stopped."""
        with self._turns.background(self._stop) as mine:
            if not mine or self._stop():
                raise Stopped("stopped while measuring latencies")
            yield

    def run(self, size: int) -> tuple[Executed, int]:
        """One batch, and how many ns its inputs took to prepare.

        Raises:
            DefinitionError: the model raised, or returned something else than it should.
            OutOfMemory, DeviceLost, Stopped: as the name says.
        """
        items = self.items(size)
        try:
            began = time.monotonic_ns()
            prepared = self._device.prepare(self._key, items)
            took = time.monotonic_ns() - began
            with self.turn():
                return self._device.collect(self._device.launch(self._key, prepared, size)), took
        except (Stopped, OutOfMemory, DeviceLost):
            raise
        except Exception as error:
            raise DefinitionError(
                f"model {self._definition.name!r}: a batch of {size} of its samples raised "
                f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            ) from error

    def first(self) -> None:
        """Batches of 1, 2 and 3, then whatever the device prepares per size.

        Raises:
            DefinitionError: also if a batch of one works and a larger one does not.
        """
        self.run(1)
        for size in range(2, min(3, self._definition.max_batch) + 1):
            try:
                self.run(size)
            except DefinitionError as error:
                raise DefinitionError(
                    f"{error} — a batch of 1 ran: its batch dimension is fixed. Export it with a dynamic "
                    "one (torch.export.export(…, dynamic_shapes=…)), or set max_batch: 1"
                ) from error
        self._device.tune(self._key, self.items, self.turn)


def profile_on(
    device: Device,
    key: str,
    definition: Definition,
    turns: Turns,
    stop: Callable[[], bool] = lambda: False,
) -> Profile:
    """The definition's profile, or one measured on the device; either way every size has run once.

    Args:
        key: the copy on the device.
        turns: asked before every run.

    Raises:
        DefinitionError: the model cannot execute its own samples, or has no profile and nobody can
            tell what its inputs look like.
        Stopped: ``stop`` said so.
    """
    given = definition.profile_for(device.gpu_type)
    sample = sampler(definition)
    if sample is None:
        if given is None:
            raise DefinitionError(
                f"model {definition.name!r}: give it a profile, or samples (a function that makes one "
                "request's inputs): inputs of any length cannot be made up to measure it with"
            )
        return given
    execute = Trial(device, key, definition, sample, turns, stop)
    execute.first()

    def run(size: int) -> int:
        executed, _ = execute.run(size)
        return executed.finished_ns - executed.started_ns

    if given is not None:
        for size in sizes(definition.max_batch):
            run(size)
        return given
    _log.info("%s: measuring latencies on %s", definition.name, device.gpu_type)
    profile = measure(run, definition.max_batch, round(definition.slo_ms * 1e6), stop)
    fit = profile.fit()
    _log.info(
        "%s on %s: l(1) = %.2f ms, l(%d) = %.2f ms, about %.3f b + %.2f ms",
        definition.name,
        device.gpu_type,
        profile.latency(1) / 1e6,
        profile.max_batch,
        profile.latency(profile.max_batch) / 1e6,
        fit.alpha_ms,
        fit.beta_ms,
    )
    if profile.latency(1) > definition.slo_ms * 1e6:
        _log.warning("%s cannot meet its SLO of %g ms on this device", definition.name, definition.slo_ms)
    return profile
