"""The blocking client."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from symphony.engine import DEFAULT_REGISTRY, DEFAULT_SUBSCRIBE, LONGEST_NS, Engine
from symphony.pending import Outcome, Request
from symphony.result import InferResult, result_or_error
from symphony.status import InvalidRequest, SymphonyError
from symphony.tensors import Array


class Client:
    """Calls models of a Symphony cluster; one client serves any number of threads.

    ::

        with Client() as client:
            outputs = client.infer("minilm", {"text": "a sentence"})

    It connects when it is made. Every request has exactly one outcome, at the latest a grace period
    after its deadline: its outputs, or an exception of :mod:`symphony.status`.

    Args:
        registry: the broker's registry endpoint.
        subscribe: the broker's control channel.
        drain_s: how long :meth:`close` waits for requests in flight.
        options: ``host``, ``insecure``, ``connect_timeout_s``, ``grace_ms``, ``max_pending``,
            ``name``, see :class:`~symphony.engine.Engine`.

    Raises:
        Unavailable: no broker answered within the connect time-out.
        BusError: an endpoint is malformed.
    """

    def __init__(
        self,
        registry: str = DEFAULT_REGISTRY,
        subscribe: str = DEFAULT_SUBSCRIBE,
        *,
        drain_s: float = 1.0,
        **options: Any,
    ) -> None:
        self.engine = Engine(registry, subscribe, **options)
        self._drain_s = drain_s
        self.engine.start()

    def infer(
        self,
        model: str,
        inputs: Mapping[str, Any] | None = None,
        deadline_ms: float | None = None,
        priority: int = 0,
    ) -> dict[str, Array]:
        """Run a model on one item and wait for its outputs.

        Args:
            model: the model's name.
            inputs: per tensor name an array without batch dimension, or text, bytes, a number, a
                list. Arrays must have the model's type and must not change meanwhile.
            deadline_ms: how long the answer may take, from now on; default: the model's SLO.
            priority: 0 (normal) to 3 (highest).

        Returns:
            Arrays by output name, without a batch dimension. An answer that came late, but before
            the request was given up, is returned, too; :meth:`submit` tells which.

        Raises:
            SymphonyError: one of its kinds for each way a request can end without outputs, see
                :class:`~symphony.status.Status`.
        """
        return self.submit(model, inputs, deadline_ms, priority).result().outputs

    def submit(
        self,
        model: str,
        inputs: Mapping[str, Any] | None = None,
        deadline_ms: float | None = None,
        priority: int = 0,
    ) -> Future[InferResult]:
        """As :meth:`infer`, without waiting: the future has the result or the exception.

        A future that is cancelled before its outcome came ignores it. Callbacks of the future run
        on the engine's thread and must be quick.
        """
        future: Future[InferResult] = Future()
        try:
            deadline = deadline_from_now(self.engine, deadline_ms)
            self.engine.submit_raw(model, inputs, deadline, priority, on_done=_settle, tag=future)
        except SymphonyError as error:
            future.set_exception(error)
        return future

    def close(self) -> None:
        """Wait ``drain_s`` for requests in flight; those left then end as ``Unavailable``."""
        self.engine.close(self._drain_s)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def deadline_from_now(engine: Engine, deadline_ms: float | None) -> int | None:
    """The absolute deadline in cluster ns; None stays None.

    Raises:
        InvalidRequest: not a positive number of milliseconds, or more than a day.
    """
    if deadline_ms is None:
        return None
    given: Any = deadline_ms
    if not isinstance(given, numbers.Real) or not math.isfinite(given):  # NumPy's numbers are Real, too
        raise InvalidRequest(f"deadline_ms must be a number of milliseconds, not {given!r:.80}")
    deadline_ms = float(given)
    if not 0 < deadline_ms <= LONGEST_NS / 1e6:
        past = "the deadline would lie in the past: " if deadline_ms <= 0 else ""
        raise InvalidRequest(f"{past}deadline_ms must be above 0 and at most a day, not {deadline_ms:g}")
    return engine.clock.now() + max(1, int(deadline_ms * 1e6))


def _settle(request: Request, outcome: Outcome) -> None:
    future: Future[InferResult] = request.tag
    if not future.set_running_or_notify_cancel():
        return
    result = result_or_error(request, outcome)
    if isinstance(result, InferResult):
        future.set_result(result)
    else:
        future.set_exception(result)
