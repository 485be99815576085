"""What the engine drives: a scheduler that is told of arrivals and completions and decides.

The scheduling core has its own fast way in (:mod:`simulator.engine`); the baselines of
:mod:`simulator.baselines` are written against this interface.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

NEVER = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model as a scheduler knows it.

    slo: ns. latency: per GPU type, l(1) … l(max_batch) in ns. rate: requests/s that the experiment
    offers on average, for plans that are made in advance.
    """

    name: str
    slo: int
    latency: tuple[tuple[int, ...], ...]
    rate: float

    @property
    def max_batch(self) -> int:
        """Largest batch."""
        return len(self.latency[0])


@dataclass(frozen=True, slots=True)
class Cluster:
    """What a scheduler knows when it starts: times in ns; ``gpu_type[g]`` indexes ``ModelSpec.latency``."""

    models: Sequence[ModelSpec]
    gpu_type: Sequence[int]
    control: int = 0
    data: int = 0
    result: int = 0
    margin: int = 0


@dataclass(frozen=True, slots=True)
class Sent:
    """A batch for a GPU, decided now.

    ``number`` is unique. ``latest``: the worker discards the batch, unexecuted, if it could not start
    by then (ns; NEVER: it runs whenever its turn comes).
    """

    number: int
    model: int
    gpu: int
    keys: Sequence[int]
    latest: int = NEVER


@dataclass(slots=True)
class Decisions:
    """What a system decided since the engine last looked; the engine empties the lists.

    sent: batches. dropped: keys that will not be served. preempted: numbers of batches that are to be
    killed on their GPU, running or not; the system itself puts their requests back where it wants them.
    """

    sent: list[Sent] = field(default_factory=list)
    dropped: list[int] = field(default_factory=list)
    preempted: list[int] = field(default_factory=list)

    def clear(self) -> None:
        """Forget everything."""
        self.sent.clear()
        self.dropped.clear()
        self.preempted.clear()


class System(Protocol):
    """A scheduler. ``now`` never falls; all times are int ns."""

    decisions: Decisions

    def submit(self, now: int, model: int, deadline: int, key: int) -> None:
        """A request arrives; its result must be at the frontend by ``deadline``."""

    def complete(self, now: int, gpu: int, number: int, finished: int) -> None:
        """A batch has ended at ``finished``, or was discarded by the worker then."""

    def advance(self, now: int) -> None:
        """The time that :meth:`next_wakeup` named has come."""

    def next_wakeup(self) -> int:
        """When :meth:`advance` is due, NEVER if it is not."""
