"""The client for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Mapping
from typing import Any

from symphony.client import deadline_from_now
from symphony.engine import DEFAULT_REGISTRY, DEFAULT_SUBSCRIBE, Engine
from symphony.pending import Outcome, Request
from symphony.result import InferResult, result_or_error
from symphony.status import SymphonyError
from symphony.tensors import Array

_Arrival = tuple[Request, Outcome]


class _Mailbox:
    """Carries outcomes into an event loop: however many come at once, the loop is woken once."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._lock = threading.Lock()
        self._arrivals: list[_Arrival] = []

    def put(self, request: Request, outcome: Outcome) -> None:
        """On the engine's thread."""
        with self._lock:
            self._arrivals.append((request, outcome))
            first = len(self._arrivals) == 1
        if first:
            with contextlib.suppress(RuntimeError):  # the loop has ended; nobody waits any more
                self.loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        with self._lock:
            arrivals, self._arrivals = self._arrivals, []
        for request, outcome in arrivals:
            future: asyncio.Future[InferResult] = request.tag
            if future.done():
                continue  # cancelled
            result = result_or_error(request, outcome)
            if isinstance(result, InferResult):
                future.set_result(result)
            else:
                future.set_exception(result)


class AsyncClient:
    """Calls models of a Symphony cluster from one event loop; thousands of requests at once are fine.

    ::

        async with AsyncClient() as client:
            outputs = await client.infer("minilm", {"text": "a sentence"})

    It connects in ``async with``, by :meth:`connect`, or at the first request, and belongs to the
    event loop in which that happened. Arguments and guarantees are those of
    :class:`~symphony.client.Client`.
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
        self._connecting: asyncio.Task[None] | None = None
        self._mailbox: _Mailbox | None = None

    async def connect(self) -> None:
        """Connect, if that has not been done.

        Raises:
            Unavailable: no broker answered within the connect time-out.
            BusError: an endpoint is malformed.
            RuntimeError: the client belongs to another event loop.
        """
        loop = asyncio.get_running_loop()
        if self._mailbox is None:
            self._mailbox = _Mailbox(loop)
            self._connecting = loop.create_task(asyncio.to_thread(self.engine.start))
        elif self._mailbox.loop is not loop:
            raise RuntimeError("an AsyncClient belongs to the event loop that has connected it")
        assert self._connecting is not None
        # One caller that is cancelled must not take the connection from the others.
        await asyncio.shield(self._connecting)

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Any] | None = None,
        deadline_ms: float | None = None,
        priority: int = 0,
    ) -> dict[str, Array]:
        """Run a model on one item; see :meth:`symphony.client.Client.infer`."""
        return (await self.submit(model, inputs, deadline_ms, priority)).outputs

    async def submit(
        self,
        model: str,
        inputs: Mapping[str, Any] | None = None,
        deadline_ms: float | None = None,
        priority: int = 0,
    ) -> InferResult:
        """As :meth:`infer`, with all that is known of the answer."""
        if self._mailbox is None or self._connecting is None or not self._connecting.done():
            await self.connect()
        assert self._mailbox is not None
        if self._mailbox.loop is not asyncio.get_running_loop():
            raise RuntimeError("an AsyncClient belongs to the event loop that has connected it")
        future: asyncio.Future[InferResult] = self._mailbox.loop.create_future()
        deadline = deadline_from_now(self.engine, deadline_ms)
        self.engine.submit_raw(model, inputs, deadline, priority, on_done=self._mailbox.put, tag=future)
        return await future

    async def close(self) -> None:
        """Wait ``drain_s`` for requests in flight; those left then end as ``Unavailable``."""
        if self._connecting is not None:
            with contextlib.suppress(SymphonyError):  # told to whoever has asked to connect
                await asyncio.shield(self._connecting)
        await asyncio.to_thread(self.engine.close, self._drain_s)

    async def __aenter__(self) -> AsyncClient:
        try:
            await self.connect()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
