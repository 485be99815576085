"""What the reference scheduler keeps of requests, models, GPUs and lanes."""

from __future__ import annotations

from dataclasses import dataclass, field

from scheduler.core.limits import NEVER

Dispatch = tuple[int, int, int, int, int, int, int, tuple[int, ...], tuple[int, ...]]
"""model, priority, gpu, size, batch, exec_at, finish_at, keys, deadlines."""
Drop = tuple[int, int, int, int]
"""key, model, deadline, reason."""


@dataclass
class Request:
    finish_by: int
    deadline: int
    key: int


@dataclass
class Model:
    slo: int
    max_batch: int
    draining: bool = False
    tables: dict[int, list[int]] = field(default_factory=dict)  # type → [l(1), …]


@dataclass
class Gpu:
    number: int
    kind: int
    models: frozenset[int] | None
    free_at: int
    idle: bool = True
    live: bool = True
    margin: int = 0
    out: list[tuple[int, int, int]] = field(default_factory=list)  # batch, exec_at, length
    ended: int = 0  # when the last batch did that came back in its turn

    def runs(self) -> tuple[int, frozenset[int] | None]:
        return self.kind, self.models


@dataclass
class Lane:
    number: int
    model: int
    priority: int
    queue: list[Request] = field(default_factory=list)
    state: str = "empty"
    due: int = 0  # opening of a pending lane, latest of a ready one
    opens: int = 0
    size: int = 0
    early: int = NEVER  # the queue from which it may start before its window opens
    guard: int = 0  # GPUs that it must then leave free
    linger: int = NEVER  # ns after its head's arrival at which its window opens in any case
    cushion: int = 0  # ns by which its window opens, and its batches should end, early
    waits: bool = False  # it was ready at the end of an event, and no GPU had taken it
    planned: bool = False  # its target comes from the plan
    target: int = 1
    aimed: int = -1  # the sample in which the target was worked out
    looked: int = -1  # the last sample in which the lane's rate was looked at
    first: int = -1  # the first sample of its history
    arrivals: list[int] = field(default_factory=list)  # the sample of each
