"""Measuring l(b) at start-up, for a real model whose definition brings no profile."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

import numpy as np

from symphony.profile import Profile
from symphony.status import SymphonyError
from worker.definition import Definition, DefinitionError
from worker.device import Device, OutOfMemory
from worker.loading import sampler
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
    given = definition.given_profile()
    sample = sampler(definition)
    if sample is None:
        if given is None:
            raise DefinitionError(
                f"model {definition.name!r}: give it a profile, or samples (a function that makes one "
                "request's inputs): inputs of any length cannot be made up to measure it with"
            )
        return given
    rng = np.random.default_rng(0)

    def run(size: int) -> int:
        try:
            prepared = device.prepare(key, [sample(rng) for _ in range(size)])
            with turns.background(stop) as mine:
                if not mine:
                    raise Stopped("stopped while measuring latencies")
                executed = device.collect(device.launch(key, prepared, size))
        except (Stopped, OutOfMemory):
            raise
        except Exception as error:
            raise DefinitionError(
                f"model {definition.name!r}: a batch of {size} of its samples raised "
                f"{type(error).__name__}: {error}"
            ) from error
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
