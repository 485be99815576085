"""What a caller of ``submit`` gets: the outputs of one request and what became known on its way."""

from __future__ import annotations

from symphony.answers import Batch
from symphony.pending import Outcome, Request
from symphony.status import Status, SymphonyError, exception_for
from symphony.tensors import Array


class InferResult:
    """An answer that is OK.

    Attributes:
        late: whether it came after the deadline.
        latency_ns: from the submission to the arrival here.
    """

    __slots__ = ("_batch", "_outputs", "_row", "late", "latency_ns")

    def __init__(self, request: Request, outcome: Outcome) -> None:
        self.late: bool = outcome.at > request.deadline
        self.latency_ns: int = outcome.at - request.submitted
        self._batch: Batch = outcome.batch
        self._row = outcome.row
        self._outputs: dict[str, Array] | None = None

    @property
    def outputs(self) -> dict[str, Array]:
        """Arrays by output name, without a batch dimension; they are the caller's own."""
        if self._outputs is None:
            self._outputs = self._batch.row(self._row)
        return self._outputs

    @property
    def batch_size(self) -> int:
        """Requests in the batch that it was part of."""
        return self._batch.size

    @property
    def worker(self) -> str:
        """Id of the worker that ran it."""
        return self._batch.worker

    @property
    def gpu(self) -> int:
        """Cluster-wide number of the GPU."""
        return self._batch.gpu

    @property
    def started(self) -> int:
        """Start of the batch's execution, cluster time in ns."""
        return self._batch.started

    @property
    def finished(self) -> int:
        """End of the batch's execution, cluster time in ns."""
        return self._batch.finished

    def __repr__(self) -> str:
        return f"InferResult({', '.join(self.outputs)}: {self.latency_ns / 1e6:.3f} ms, late={self.late})"


def result_or_error(request: Request, outcome: Outcome) -> InferResult | SymphonyError:
    """The result for OK, else the exception of the outcome's status."""
    if outcome.status is Status.OK:
        return InferResult(request, outcome)
    return exception_for(outcome.status, outcome.detail)
