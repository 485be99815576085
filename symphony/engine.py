"""The client's engine: one background thread that carries the requests of many callers.

It owns every socket: it follows the membership, sends requests to the shards, hands their inputs to
the workers that fetch them, takes results and refusals, and gives up what nobody answered (all that
is in :mod:`symphony.loop`). Callers on other threads hand requests over through
:mod:`symphony.intake`. :class:`~symphony.client.Client` and
:class:`~symphony.async_client.AsyncClient` are thin layers on it; load generators and gateways use it
directly.
"""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import threading
import time
from collections.abc import Mapping
from typing import Any, Final

from symphony.bus import Bus
from symphony.clock import ClusterClock
from symphony.control import MAX_SLO_MS, Member, ModelSpec
from symphony.faults import Faults
from symphony.intake import Intake
from symphony.loop import Loop, slo_ns
from symphony.membership import Refusal, describe
from symphony.pending import OnDone, PendingTable, Request
from symphony.status import InvalidRequest, SymphonyError, Unavailable, UnknownModel
from symphony.tensors import Encoded, encode_inputs

_log = logging.getLogger(__name__)

DEFAULT_REGISTRY: Final = "tcp://127.0.0.1:5550"
DEFAULT_SUBSCRIBE: Final = "tcp://127.0.0.1:5552"
LONGEST_NS: Final = MAX_SLO_MS * 1_000_000
"""How far ahead a deadline may lie: further ones are taken for an error of units."""
FAREWELL_MS: Final = 200
"""How long closing waits for queued messages to leave."""

Inputs = Mapping[str, Any] | Encoded | None


class Engine:
    """See the module's text. Make it, :meth:`start` it, :meth:`close` it; it starts once.

    Args:
        registry: the broker's registry endpoint.
        subscribe: the broker's control channel.
        host: address to bind for workers' fetches and replies; they must be able to reach it.
        insecure: allow a ``host`` that other machines can reach although nothing authenticates them.
        connect_timeout_s: how long to wait for the broker at the start, and for a shard at first use.
        grace_ms: how long after its deadline a request is given up.
        max_pending: requests in flight; beyond it :class:`~symphony.status.Overloaded` is raised.
        name: start of this process's member id; letters, digits and ``._-``.

    Attributes:
        clock: cluster time, valid after :meth:`start`.
        faults: counts what came in malformed, twice, or too late.
    """

    def __init__(
        self,
        registry: str = DEFAULT_REGISTRY,
        subscribe: str = DEFAULT_SUBSCRIBE,
        *,
        host: str = "127.0.0.1",
        insecure: bool = False,
        connect_timeout_s: float = 5.0,
        grace_ms: float = 250.0,
        max_pending: int = 200_000,
        name: str = "client",
    ) -> None:
        self.registry = registry
        self.subscribe = subscribe
        self.clock = ClusterClock()
        self.faults = Faults(_log)
        self.grace_ns = int(grace_ms * 1e6)
        self.connect_timeout_s = connect_timeout_s
        self._host = host
        self._insecure = insecure
        self._name = name
        self._table = PendingTable(self.faults)
        self._intake = Intake(self._table, max_pending)
        self._decided = threading.Event()
        self._news = threading.Condition()
        self._refusal = ""
        self._failure: SymphonyError | None = None
        self._thread: threading.Thread | None = None
        self._loop: Loop | None = None

    # -- life ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Connect; returns when requests can be submitted.

        Raises:
            Unavailable: no broker answered within the connect time-out, or it refused this client.
            BusError: an endpoint is malformed, or ``host`` cannot be bound.
        """
        if self._thread is not None:
            raise RuntimeError("an engine starts once")
        if self._intake.refusing is not None and self._intake.closes_at is not None:
            raise Unavailable(self._intake.refusing)
        self._thread = threading.Thread(target=self._run, name=f"symphony-{self._name}", daemon=True)
        self._thread.start()
        self._decided.wait(self.connect_timeout_s)
        if self._intake.refusing is None:
            atexit.register(self.close)
            return
        failure = self._failure or Unavailable(
            f"no broker answered at {self.registry} within {self.connect_timeout_s:g} s"
            + (f" ({self._refusal})" if self._refusal else "")
            + ": is the cluster running (symphony up), and is this the registry's address?"
        )
        self.close()
        raise failure

    def close(self, drain_s: float = 0.0) -> None:
        """Refuse new requests, wait for those in flight, then end the rest as UNAVAILABLE.

        Args:
            drain_s: how long to wait for requests in flight.
        """
        self._intake.close(drain_s)
        thread = self._thread
        if thread is threading.current_thread():
            return  # called by a callback: the thread ends by itself
        if thread is not None:
            thread.join()
        atexit.unregister(self.close)
        self._intake.close_sockets()

    def _run(self) -> None:
        why = "the client's engine failed; its log says why"
        bus = Bus(self._insecure)
        try:
            self._loop = self._try_loop(bus)
            if self._loop is not None:
                self._loop.run()
            why = "the client was closed before the answer came"
        finally:
            for request in self._intake.end(why):
                self._table.admit(request, 0)
            self._table.close(self.clock.now(), why)
            if self._loop is not None:
                self._loop.close()
            bus.close(FAREWELL_MS)
            self._decided.set()
            self.changed()

    def _try_loop(self, bus: Bus) -> Loop | None:
        try:
            return self._make_loop(bus)
        except SymphonyError as error:
            self._failure = error
            return None

    def _make_loop(self, bus: Bus) -> Loop:
        return Loop(
            self,
            bus,
            self._intake,
            self._table,
            self.clock,
            self.faults,
            describe(f"{self._name}-{os.getpid()}-{secrets.token_hex(4)}", "frontend", state="ready"),
            registry=self.registry,
            subscribe=self.subscribe,
            host=self._host,
            grace_ns=self.grace_ns,
            patience_ns=int(self.connect_timeout_s * 1e9),
        )

    # -- what the loop tells ---------------------------------------------------------------------

    def opened(self) -> None:
        """Called by the loop: requests can be submitted."""
        self._intake.open()
        self._decided.set()

    def refused(self, refusal: Refusal) -> None:
        """Called by the loop: the broker does not take this client in."""
        self._refusal = refusal.reason
        if refusal.final and not self._decided.is_set():
            self._failure = Unavailable(
                f"the broker at {self.registry} refused this client: {refusal.reason}"
            )
            self._decided.set()

    def changed(self) -> None:
        """Called by the loop: which models can be reached may have changed."""
        with self._news:
            self._news.notify_all()

    # -- what the cluster has --------------------------------------------------------------------

    @property
    def models(self) -> dict[str, ModelSpec]:
        """The catalogue by name, as of now."""
        return {} if self._loop is None else self._loop.membership.models.copy()

    @property
    def members(self) -> dict[str, Member]:
        """The live members by id, as of now."""
        return {} if self._loop is None else self._loop.membership.members.copy()

    @property
    def in_flight(self) -> int:
        """Requests without an outcome."""
        return len(self._intake) + self._table.live

    def wait_for_model(self, model: str, timeout_s: float | None = None) -> ModelSpec:
        """The specification of a model that can be served now; waits until it can be.

        Args:
            model: the model's name.
            timeout_s: default: the connect time-out.

        Raises:
            UnknownModel: nobody has announced it in time.
            Unavailable: it is known, but no connected shard serves it; or the client is closed.
        """
        deadline = time.monotonic() + (self.connect_timeout_s if timeout_s is None else timeout_s)
        with self._news:
            while True:
                if self._intake.refusing is not None or self._loop is None:
                    raise Unavailable(self._intake.refusing or "the client is not connected")
                spec = self._loop.membership.models.get(model)
                if spec is not None and model in self._loop.reachable:
                    return spec
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                self._news.wait(left)
        if spec is None:
            names = ", ".join(sorted(self.models)) or "none"
            raise UnknownModel(f"unknown model {model[:128]!r}; the cluster has: {names}")
        raise Unavailable(f"{model!r} is known, but no connected shard serves it now")

    # -- requests --------------------------------------------------------------------------------

    def submit_raw(
        self,
        model: str,
        inputs: Inputs,
        deadline_ns: int | None = None,
        priority: int = 0,
        *,
        on_done: OnDone,
        tag: Any = None,
    ) -> Request:
        """Submit one request; either this raises, or ``on_done(request, outcome)`` is called once.

        Args:
            model: the model's name.
            inputs: tensors by name (their memory must not change until the request is done), or
                already encoded by :func:`symphony.tensors.encode_inputs`, or None for a model
                that takes none.
            deadline_ns: absolute cluster time; default: the model's SLO from now on.
            priority: 0 (normal) to 3 (highest).
            on_done: called on the engine's thread; it must be quick, and may submit and close.
            tag: for the caller to find again as ``request.tag``.

        Raises:
            InvalidRequest: wrong tensors, a deadline that has passed or is absurd.
            Overloaded: too many requests in flight.
            Unavailable: the client is closed or not connected.
        """
        request = self.make_request(model, inputs, deadline_ns, priority, on_done, tag)
        self._intake.put([request])
        return request

    def submit_many(self, requests: list[Request]) -> None:
        """Submit what :meth:`make_request` made, all or none, at the price of little more than one.

        Raises:
            Overloaded: too many requests in flight.
            Unavailable: the client is closed or not connected.
        """
        self._intake.put(requests)

    def make_request(
        self,
        model: str,
        inputs: Inputs,
        deadline_ns: int | None,
        priority: int,
        on_done: OnDone,
        tag: Any = None,
    ) -> Request:
        """A checked request, not submitted yet; arguments and errors as in :meth:`submit_raw`."""
        now = self.clock.now()
        if not isinstance(model, str) or not model:
            raise InvalidRequest(f"a model is named by a string, not {model!r:.80}")
        if type(priority) is not int or not 0 <= priority <= 3:
            raise InvalidRequest(f"priority must be 0 (normal) to 3 (highest), not {priority!r:.80}")
        spec = None if self._loop is None else self._loop.membership.models.get(model)
        if deadline_ns is None:
            deadline_ns = 0 if spec is None else now + slo_ns(spec)
        elif deadline_ns <= now:
            raise InvalidRequest(f"the deadline has passed {(now - deadline_ns) / 1e6:.3f} ms ago")
        elif deadline_ns - now > LONGEST_NS:
            raise InvalidRequest("the deadline is more than a day ahead; deadlines are cluster time in ns")
        request = Request(model, None, deadline_ns, priority, on_done, tag)
        request.submitted = now
        if isinstance(inputs, Encoded):
            request.inputs = inputs
        elif spec is not None:
            request.inputs = encode_inputs(spec.inputs, {} if inputs is None else inputs)
        else:
            request.raw = {} if inputs is None else inputs
        return request
