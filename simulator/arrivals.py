"""When requests arrive: all models' processes as one column, all from one seed.

The same seed gives the same pattern at every rate: two rates, or two policies, are compared on the same
arrivals. Each copy of a model has a process and a generator of its own, unless they are Poisson
processes: those of one group are drawn as one process, and each arrival is given to a copy by chance,
which is the same in law and an order of magnitude faster with thousands of copies.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .experiment import Experiment, ExperimentError, ModelGroup
from .processes import BLOCK, NS, Choice, Ints, moving_rate, renewal, replay
from .traces import Floats, Trace, load_trace, trace_path

Numbers = npt.NDArray[np.uint32]
START_NS = NS
"""Virtual time at which an experiment begins; the core knows no time before 0."""


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Columns over all requests in order of arrival.

    at: int64 ns. model: uint32, the number of the copy over all groups. deadline: int64 ns.
    """

    at: npt.NDArray[np.int64]
    model: Numbers
    deadline: npt.NDArray[np.int64]

    def pieces(self) -> Iterator[Arrivals]:
        """The same in consecutive pieces."""
        for i in range(0, len(self.at), BLOCK):
            piece = slice(i, i + BLOCK)
            yield Arrivals(self.at[piece], self.model[piece], self.deadline[piece])


def copy_rates(group: ModelGroup, rate: float) -> list[float]:
    """Requests/s of each copy, ``rate`` being their mean: equal, or falling as rank^-S."""
    kind, _, rest = group.popularity.partition(":")
    skew = float(rest) if kind == "zipf" else 0.0
    weights: Floats = np.arange(1, group.count + 1, dtype=np.float64) ** -skew
    return [float(x) for x in rate * group.count * weights / weights.sum()]


def group_rate(experiment: Experiment, group: ModelGroup) -> float:
    """Mean requests/s per copy before modulation; a trace without a rate has its own."""
    if group.rate is not None:
        return group.rate
    trace = _trace(experiment, group)
    return trace.requests / trace.seconds * group.trace_speed


def check_arrivals(experiment: Experiment) -> None:
    """Read every trace and refuse an experiment in which nothing can arrive.

    Raises:
        ExperimentError: see :func:`make_arrivals`.
    """
    if sum(group_rate(experiment, group) for group in experiment.models) <= 0:
        raise ExperimentError("nothing arrives: every rate is 0")
    for group in experiment.models:
        if group.arrivals.startswith("trace:"):
            _trace(experiment, group)


def make_arrivals(experiment: Experiment, scale: float = 1.0) -> Arrivals:
    """All arrivals of the experiment with every rate multiplied by ``scale``.

    Raises:
        ExperimentError: a trace cannot be read, or nothing arrives at all.
    """
    parts = list(arrival_blocks(experiment, scale))
    at = np.concatenate([part.at for part in parts])
    model = np.concatenate([part.model for part in parts])
    return Arrivals(at, model, np.concatenate([part.deadline for part in parts]))


def arrival_blocks(experiment: Experiment, scale: float = 1.0) -> Iterator[Arrivals]:
    """The same in consecutive pieces, none of them empty.

    A single Poisson stream is made piece by piece, so that memory does not grow with it; all others are
    merged first.
    """
    streams: list[Iterator[tuple[Ints, Numbers]]] = []
    slos: list[int] = []
    for group in experiment.models:
        streams += _streams(experiment, group, scale, len(slos))
        slos += [round(group.slo_ms * 1e6)] * group.count
    slo: Any = slos[0] if len(set(slos)) == 1 else np.array(slos)
    found = False
    for at, model in streams[0] if len(streams) == 1 else _merged(streams):
        if len(at):
            found = True
            at += START_NS
            yield Arrivals(at, model, at + (slo if isinstance(slo, int) else slo[model]))
    if not found:
        raise ExperimentError(f"nothing arrives within {experiment.seconds:g} s: raise rate or seconds")


def _merged(streams: list[Iterator[tuple[Ints, Numbers]]]) -> Iterator[tuple[Ints, Numbers]]:
    parts = [part for stream in streams for part in stream]
    at = np.concatenate([part[0] for part in parts])
    model = np.concatenate([part[1] for part in parts])
    order = np.argsort(at, kind="stable")  # merges what is sorted already
    for i in range(0, len(at), BLOCK):
        which = order[i : i + BLOCK]
        yield at[which], model[which]


def _streams(
    experiment: Experiment, group: ModelGroup, scale: float, number: int
) -> Iterator[Iterator[tuple[Ints, Numbers]]]:
    """Times in ns from 0 and copies' numbers, from ``number`` on: one stream, or one per copy."""
    seconds, speed = experiment.seconds, group.trace_speed
    trace = _trace(experiment, group) if group.arrivals.startswith("trace:") else None
    per_minute = None if trace is None else trace.per_minute
    mean = group_rate(experiment, group) * scale
    rates = copy_rates(group, mean)
    kind, _, rest = group.arrivals.partition(":")
    shape = float(rest) if kind == "gamma" else 1.0
    replayed = trace is not None and trace.times is not None and group.modulation is None
    if not replayed and kind not in ("constant", "gamma"):
        if mean > 0:
            rng = np.random.default_rng([experiment.seed, number])
            rate = moving_rate(mean * group.count, seconds, group.modulation, per_minute, speed)
            choice = Choice(np.random.default_rng([experiment.seed, number, 1]), np.array(rates))
            yield _given(renewal(rng, kind, shape, rate, seconds), number, choice)
        return
    for copy, mine in enumerate(rates, number):
        rng = np.random.default_rng([experiment.seed, copy])
        if mine > 0 and replayed and trace is not None:
            yield _given(iter([replay(rng, trace, mine, speed, seconds)]), copy, None)
        elif mine > 0:
            rate = moving_rate(mine, seconds, group.modulation, per_minute, speed)
            yield _given(renewal(rng, kind, shape, rate, seconds), copy, None)


def _given(times: Iterator[Ints], number: int, choice: Choice | None) -> Iterator[tuple[Ints, Numbers]]:
    """The blocks of a stream with the copies that they go to."""
    for at in times:
        model = np.zeros(len(at), np.uint32) if choice is None else choice.draw(len(at))
        model += np.uint32(number)
        yield at, model


def _trace(experiment: Experiment, group: ModelGroup) -> Trace:
    path = trace_path(experiment.base, group.arrivals.partition(":")[2])
    return _load_once(path, path.stat().st_mtime_ns if path.exists() else 0)


@functools.lru_cache(maxsize=16)
def _load_once(path: Path, _changed_ns: int) -> Trace:
    return load_trace(path)
