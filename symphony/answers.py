"""What comes back: RESULT, RESULTS and ANSWER messages, taken apart into one outcome per request."""

from __future__ import annotations

from typing import Final

from symphony import wire
from symphony.faults import Faults
from symphony.pending import Outcome, PendingTable
from symphony.status import InvalidRequest, Status
from symphony.tensors import Array, Rows
from symphony.wire import WireError

_STATUS: Final = list(Status)
_OK: Final = int(Status.OK)


class Batch:
    """One executed batch, shared by the outcomes of those of its requests that are this client's.

    Attributes:
        worker: id of the worker that ran it.
        model: the model's name.
        gpu: cluster-wide number of the GPU.
        batch: the scheduler's number of the batch; unique together with ``worker`` and ``gpu``.
        size: requests in the whole batch, other clients' included.
        started, finished: cluster time in ns.
        outputs: per output name the stacked rows, checked.
    """

    __slots__ = ("batch", "finished", "gpu", "model", "outputs", "size", "started", "worker")

    def __init__(
        self,
        worker: str,
        model: str,
        gpu: int,
        batch: int,
        size: int,
        started: int,
        finished: int,
        outputs: dict[str, Rows],
    ) -> None:
        self.worker = worker
        self.model = model
        self.gpu = gpu
        self.batch = batch
        self.size = size
        self.started = started
        self.finished = finished
        self.outputs = outputs

    def row(self, index: int) -> dict[str, Array]:
        """The outputs of one request, in arrays of their own."""
        return {name: rows.row(index) for name, rows in self.outputs.items()}


def take(frames: list[bytes], table: PendingTable, at: int, faults: Faults) -> None:
    """Deliver one message of the reply socket; whatever is wrong with it is counted, never raised.

    Args:
        frames: as received; anybody who knows the port can have sent them.
        table: the requests that wait.
        at: cluster time in ns of the arrival.
        faults: counts ``reply-<reason>`` and ``duplicate-answer``.
    """
    try:
        kind = wire.kind_of(frames[0])
        if kind == wire.RESULT:
            _take_result(frames, table, at, faults)
        elif kind == wire.ANSWER and len(frames) == 1:
            _take_answer(frames[0], table, at, faults)
        elif kind == wire.RESULTS and len(frames) == 1:
            _take_results(frames[0], table, at, faults)
        else:
            raise WireError("unexpected-kind", f"kind {kind} in {len(frames)} frames")
    except WireError as error:
        faults.count(f"reply-{error.reason}", error)
    except InvalidRequest as error:
        faults.count("reply-malformed", error)


def _check_status(status: wire.U8) -> None:
    if status.size and int(status.max()) >= len(_STATUS):
        raise WireError("malformed", f"status {int(status.max())}")


def _take_result(frames: list[bytes], table: PendingTable, at: int, faults: Faults) -> None:
    result = wire.decode_result(frames[0], len(frames) - 1)
    _check_status(result.status)
    rows = int((result.status == _OK).sum())
    outputs = {
        name: Rows(dtype, shape, frame, rows)
        for (name, dtype, shape), frame in zip(result.outputs, frames[1:], strict=True)
    }
    if len(outputs) != len(result.outputs):
        raise WireError("malformed", "an output is there twice")
    r = result
    batch = Batch(r.worker, r.model, r.gpu, r.batch, r.size, r.started, r.finished, outputs)
    unknown = _deliver(batch, r.key.tolist(), r.status.tolist(), r.error or "", table, at)
    if unknown:
        faults.count("duplicate-answer", f"from worker {r.worker}", unknown)


def _take_results(frame: bytes, table: PendingTable, at: int, faults: Faults) -> None:
    results = wire.decode_results(frame)
    _check_status(results.status)
    keys, statuses = results.key.tolist(), results.status.tolist()
    columns = (results.model, results.gpu, results.batch, results.size, results.started, results.finished)
    end = unknown = 0
    for *fields, count in zip(*(c.tolist() for c in columns), results.count.tolist(), strict=True):
        model, gpu, number, size, started, finished = fields
        batch = Batch(results.worker, results.models[model], gpu, number, size, started, finished, {})
        rows = slice(end, end + count)
        end += count
        unknown += _deliver(batch, keys[rows], statuses[rows], "", table, at)
    if unknown:
        faults.count("duplicate-answer", f"from worker {results.worker}", unknown)


def _deliver(
    batch: Batch, keys: list[int], statuses: list[int], error: str, table: PendingTable, at: int
) -> int:
    """One outcome per key; returns how many nobody waits for."""
    row = unknown = 0
    for key, status in zip(keys, statuses, strict=True):
        if status == _OK:
            outcome = Outcome(Status.OK, at, "", batch, row)
            row += 1
        else:
            outcome = Outcome(_STATUS[status], at, error or _no_text(status, batch.worker), batch)
        unknown += not table.answer(key, outcome)
    return unknown


def _take_answer(frame: bytes, table: PendingTable, at: int, faults: Faults) -> None:
    answer = wire.decode_answer(frame)
    _check_status(answer.status)
    if (answer.status == _OK).any():
        raise WireError("malformed", "an ANSWER that says OK")
    unknown = 0
    for key, status in zip(answer.key.tolist(), answer.status.tolist(), strict=True):
        text = answer.detail or _no_text(status, answer.source)
        unknown += not table.answer(key, Outcome(_STATUS[status], at, text))
    if unknown:
        faults.count("duplicate-answer", f"from {answer.source}", unknown)


_TEXTS: Final = {
    Status.DROPPED: "the deadline could not be met any more",
    Status.OVERLOADED: "a queue was full; retry later",
    Status.UNAVAILABLE: "nobody could serve the model",
}


def _no_text(status: int, source: str) -> str:
    name = _STATUS[status]
    return f"{source}: {_TEXTS.get(name, name.name)}"
