"""One planned batch on its way through the worker, and its results as each frontend gets them.

A batch mixes requests of several frontends. Inside, it is rows in plan order; on the way out it is
split: each frontend gets a RESULT with its own keys, a status for each, and the output rows of those
that are OK, stacked in that order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from symphony import tensors, wire
from symphony.status import Status
from symphony.wire import I64, SLOT_SHIFT, U8, U64

PENDING: Final = 254
"""Status inside the worker: the inputs are not there yet, or the batch has not run."""
GONE: Final = 255
"""Status inside the worker: nobody wants the answer any more; none is sent."""

MAX_ERROR: Final = 500
"""Characters of a model's text that travel to the caller."""

Index = npt.NDArray[np.intp]


class Payload(NamedTuple):
    """One request's inputs as they came: per name ``[dtype, shape]`` and a frame."""

    names: list[str]
    specs: list[list[Any]]
    frames: list[Any]


@dataclass(slots=True, eq=False)
class Batch:
    """A planned batch. Rows are in plan order; times ending in ``_ns`` are this process's monotonic ns.

    ``exec_at`` and ``deadline`` are cluster time as in the plan. ``expected_ns`` is l(size). ``shard``
    has planned it.
    ``outputs``: by name, one row for each request whose status is OK, in plan order. ``ran``: how many
    requests were in the batch that the device executed.
    """

    id: int
    gpu: int
    model: str
    key: U64
    deadline: I64
    exec_at: int
    received_ns: int
    expected_ns: int = 0
    shard: str = ""
    status: U8 = field(init=False)
    inputs: list[Payload | None] = field(init=False)
    errors: dict[int, str] = field(default_factory=dict)
    outputs: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    ran: int = 0
    started_ns: int = 0
    finished_ns: int = 0

    def __post_init__(self) -> None:
        self.status = np.full(self.key.size, PENDING, dtype=np.uint8)
        self.inputs = [None] * int(self.key.size)
        self.started_ns = self.finished_ns = self.received_ns

    def pending(self) -> list[int]:
        """Rows that no status has settled yet."""
        return [int(i) for i in np.flatnonzero(self.status == PENDING)]

    def has_work(self) -> bool:
        """Whether any row is left for the device."""
        return bool((self.status == PENDING).any())

    def settle(self, row: int, status: int, error: str | None = None) -> None:
        """Give one row its status; its inputs are not needed any more."""
        self.status[row] = status
        self.inputs[row] = None
        if error is not None:
            self.errors[row] = one_line(error)

    def settle_pending(self, status: int, error: str | None = None) -> None:
        """Give every unsettled row the same status."""
        for row in self.pending():
            self.settle(row, status, error)

    def succeed(self) -> None:
        """Every unsettled row is OK: the device has executed it."""
        self.status[self.status == PENDING] = Status.OK
        self.inputs = []

    def not_ok(self) -> int:
        """How many planned requests did not end as OK."""
        return int(self.key.size - np.count_nonzero(self.status == Status.OK))


def given_up(batch: Batch) -> Batch:
    """A copy of a batch whose requests are all ``UNAVAILABLE``; the device may still hold the original."""
    copy = Batch(
        batch.id,
        batch.gpu,
        batch.model,
        batch.key,
        batch.deadline,
        batch.exec_at,
        batch.received_ns,
        shard=batch.shard,
    )
    copy.settle_pending(Status.UNAVAILABLE, "the worker stops")
    return copy


def one_line(text: object) -> str:
    """An error's text on one line, cut to what may travel."""
    return " ".join(str(text).split())[:MAX_ERROR]


def shares(key: U64) -> list[tuple[int, Index]]:
    """``(slot, rows)`` for each frontend in the batch; rows ascend."""
    if not key.size:
        return []
    slots = key >> np.uint64(SLOT_SHIFT)
    first = int(slots[0])
    if (slots == first).all():  # by far the most frequent case
        return [(first, np.arange(key.size))]
    return [(int(slot), np.flatnonzero(slots == slot)) for slot in np.unique(slots)]


def results(worker: str, batch: Batch, to_cluster: Callable[[int], int]) -> list[tuple[int, list[Any]]]:
    """The RESULT messages of a settled batch as ``(slot, frames)``.

    A frontend gets one, and one more for each further error text, since a RESULT carries one text.
    Keys that are :data:`GONE` get none.
    """
    messages: list[tuple[int, list[Any]]] = []
    ok = batch.status == Status.OK
    position = np.cumsum(ok) - 1
    for slot, rows in shares(batch.key):
        rows = rows[batch.status[rows] != GONE]
        by_error: dict[str | None, list[int]] = {}
        for row in rows[~ok[rows]].tolist():
            by_error.setdefault(batch.errors.get(row), []).append(row)
        main = next(iter(by_error), None)
        failed_along = by_error.pop(main, [])
        served = rows[ok[rows]]
        along = np.sort(np.concatenate((served, np.array(failed_along, dtype=np.intp))))
        if along.size:
            messages.append((slot, _result(worker, batch, to_cluster, along, position[served], main)))
        for error, others in by_error.items():
            messages.append((slot, _result(worker, batch, to_cluster, np.array(others), position[:0], error)))
    return messages


def _result(
    worker: str, batch: Batch, to_cluster: Callable[[int], int], rows: Index, served: Index, error: str | None
) -> list[Any]:
    outputs: list[list[Any]] = []
    frames: list[Any] = []
    for name, stacked in batch.outputs.items() if served.size else ():
        mine = stacked if served.size == len(stacked) else stacked[served]
        dtype, shape, frame = tensors.encode(mine)
        outputs.append([name, dtype, shape[1:]])
        frames.append(frame)
    header = wire.encode_result(
        wire.Result(
            worker,
            batch.model,
            batch.id,
            batch.gpu,
            batch.ran,
            to_cluster(batch.started_ns),
            to_cluster(batch.finished_ns),
            batch.key[rows],
            batch.status[rows],
            outputs,
            error,
        )
    )
    return [header, *frames]
