"""An open-loop load generator: requests leave at the times drawn in advance, whatever comes back.

A closed loop, which waits for answers before it asks again, would offer less exactly when the cluster
is slow. Here latency counts from the intended time, so that a request which the generator itself sent
late is not flattered either; if that happens often, the report says so.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from frontend.arrivals import POISSON, Arrivals
from frontend.inputs import Provider, find_provider, make_pool
from frontend.recorder import Recorder
from frontend.report import LoadReport, summarize
from symphony.control import ModelSpec
from symphony.engine import DEFAULT_REGISTRY, DEFAULT_SUBSCRIBE, Engine
from symphony.pending import Request
from symphony.status import Status, SymphonyError
from symphony.tensors import Encoded
from symphony.wire import I64

_log = logging.getLogger(__name__)

LEAD_NS: Final = 50_000_000
"""From the end of the preparations to the load's start."""
TICK_S: Final = 250e-6
"""Least pause between two hand-overs: requests that are due meanwhile go together."""
MOST: Final = 256
"""Requests handed over at once."""
PROGRESS_NS: Final = 100_000_000
PATIENCE_S: Final = 5.0
"""How much longer than deadline and grace the last outcomes are waited for."""


class LoadError(SymphonyError, ValueError):
    """A load that makes no sense."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLoad:
    """What one model is offered.

    Attributes:
        model: its name.
        rate: mean requests per second, above 0.
        deadline_ms: from the intended time; None: the model's SLO.
        arrivals: the arrival process.
        inputs: ``random``, ``module:function``, or a function; see :mod:`frontend.inputs`.
        priority: 0 (normal) to 3 (highest).
    """

    model: str
    rate: float
    deadline_ms: float | None = None
    arrivals: Arrivals = POISSON
    inputs: str | Provider = "random"
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """A load.

    Attributes:
        models: what is offered; each model once.
        seconds: for how long.
        seed: of arrivals and inputs; the same seed offers the same.
        registry, subscribe: the broker's endpoints.
        host, insecure, grace_ms: as for :class:`~symphony.engine.Engine`.
        wait_s: how long to wait for the broker, and for each model to be served.
    """

    models: list[ModelLoad]
    seconds: float
    seed: int = 0
    registry: str = DEFAULT_REGISTRY
    subscribe: str = DEFAULT_SUBSCRIBE
    host: str = "127.0.0.1"
    insecure: bool = False
    grace_ms: float = 250.0
    wait_s: float = 5.0

    def check(self) -> None:
        """Raises :class:`LoadError` if the load makes no sense."""
        if not self.models:
            raise LoadError("a load needs at least one model")
        if self.seed < 0:
            raise LoadError(f"the seed must not be negative, not {self.seed}")
        if not 0 < self.seconds <= 1e6:
            raise LoadError(f"a load must take more than 0 and at most 1e6 seconds, not {self.seconds:g}")
        seen = set()
        for load in self.models:
            if not 0 < load.rate <= 1e7:
                raise LoadError(
                    f"the rate of {load.model!r} must be above 0 and at most 1e7 requests/s, not "
                    f"{load.rate:g}"
                )
            if load.deadline_ms is not None and not 0 < load.deadline_ms <= 86_400_000:
                raise LoadError(
                    f"the deadline of {load.model!r} must be above 0 ms and at most a day, not "
                    f"{load.deadline_ms:g} ms"
                )
            if load.model in seen:
                raise LoadError(f"{load.model!r} is there twice")
            seen.add(load.model)


@dataclass(slots=True)
class Progress:
    """How far a load is."""

    elapsed_s: float
    seconds: float
    sent: int
    answered: int
    good: int


@dataclass(slots=True)
class _Schedule:
    """Every request of the load in order of time: whose it is, when, and until when."""

    model: I64
    intended: I64
    deadline: I64
    pools: list[list[Encoded | None]] = field(default_factory=list)


def run_load(plan: LoadPlan, progress: Callable[[Progress], None] | None = None) -> LoadReport:
    """Offer a load and report what came back.

    Ctrl-C stops offering; what is in flight is still waited for and reported.

    Args:
        plan: the load.
        progress: called about ten times a second; it must be quick.

    Raises:
        LoadError: the plan makes no sense.
        InputError: inputs cannot be made.
        UnknownModel, Unavailable: a model is not served, or no broker answers.
    """
    plan.check()
    providers = [
        find_provider(m.inputs) if isinstance(m.inputs, str) and m.inputs != "random" else m.inputs
        for m in plan.models
    ]
    engine = Engine(
        plan.registry,
        plan.subscribe,
        host=plan.host,
        insecure=plan.insecure,
        grace_ms=plan.grace_ms,
        connect_timeout_s=plan.wait_s,
        max_pending=10_000_000,
        name="load",
    )
    engine.start()
    try:
        specs = [engine.wait_for_model(load.model, plan.wait_s) for load in plan.models]
        schedule = _draw(plan, specs, [None if isinstance(p, str) else p for p in providers])
        return _offer(plan, engine, schedule, progress)
    finally:
        engine.close()


def _draw(plan: LoadPlan, specs: list[ModelSpec], providers: list[Provider | None]) -> _Schedule:
    model, intended, deadline, pools = [], [], [], []
    for i, (load, spec, provider) in enumerate(zip(plan.models, specs, providers, strict=True)):
        # A stream of chance per model: adding a model changes nothing for the others.
        arrivals_rng, inputs_rng = np.random.default_rng([plan.seed, *load.model.encode()]).spawn(2)
        times = load.arrivals.times(load.rate, plan.seconds, arrivals_rng)
        limit = spec.slo_ms if load.deadline_ms is None else load.deadline_ms
        model.append(np.full(times.size, i, np.int64))
        intended.append(times)
        deadline.append(times + int(limit * 1e6))
        pools.append(make_pool(spec, provider, inputs_rng))
    at = np.concatenate(intended)
    order = np.argsort(at, kind="stable")
    return _Schedule(np.concatenate(model)[order], at[order], np.concatenate(deadline)[order], pools)


def _offer(
    plan: LoadPlan, engine: Engine, schedule: _Schedule, progress: Callable[[Progress], None] | None
) -> LoadReport:
    names = [load.model for load in plan.models]
    holding, all_gpus = [_gpus(engine, {name}) for name in names], _gpus(engine, set(names))
    start = engine.clock.now() + LEAD_NS
    recorder = Recorder(names, schedule.model, schedule.intended, schedule.deadline, start)
    generator = _Generator(plan, engine, schedule, recorder, start, progress)
    with _first_interrupt(generator.stop):
        generator.run()
        generator.wait()
    seconds, stopped_at = plan.seconds, generator.stopped_at
    if stopped_at is not None:
        seconds = min(seconds, max(1e-3, (stopped_at - start) / 1e9))
    return summarize(
        names,
        recorder.columns(generator.offered),
        seconds,
        gpus=holding,
        all_gpus=all_gpus,
        reasons=recorder.reasons,
        interrupted=stopped_at is not None,
        duplicate_answers=engine.faults.counts["duplicate-answer"],
    )


def _gpus(engine: Engine, names: set[str]) -> int:
    """How many GPUs hold any of the models."""
    workers = [m for m in engine.members.values() if m.role == "worker" and names & set(m.models)]
    return sum(len(worker.gpus) for worker in workers)


@contextmanager
def _first_interrupt(stop: Callable[[], None]) -> Iterator[None]:
    """The first Ctrl-C calls ``stop``, the next one raises.

    Raised in the middle of a hand-over, it would lose requests that are counted as offered.
    """
    mine = threading.current_thread() is threading.main_thread()
    if not mine or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def first(_number: int, _frame: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop()

    signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class _Generator:
    """Hands requests to the engine when they are due."""

    def __init__(
        self,
        plan: LoadPlan,
        engine: Engine,
        schedule: _Schedule,
        recorder: Recorder,
        start: int,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self.offered = 0
        self.stopped_at: int | None = None
        """Cluster ns at which :meth:`stop` was called."""
        self._due: list[Request] = []
        self._plan = plan
        self._engine = engine
        self._recorder = recorder
        self._start = start
        self._progress = progress
        self._progress_at = 0
        self._names = [load.model for load in plan.models]
        self._priorities = [load.priority for load in plan.models]
        self._pools = schedule.pools
        self._last_deadline = int(schedule.deadline.max(initial=0))
        self._columns = zip(
            range(schedule.intended.size),
            schedule.model.tolist(),
            (schedule.intended + start).tolist(),
            (schedule.deadline + start).tolist(),
            strict=True,
        )

    def run(self) -> None:
        """Until the last request is handed over, or :meth:`stop`."""
        for index, model, intended, deadline in self._columns:
            now = self._engine.clock.now()
            while now < intended and self.stopped_at is None:
                self._hand_over()
                self._tell(now)
                time.sleep(min(max(TICK_S, (intended - now) / 1e9), PROGRESS_NS / 1e9))
                now = self._engine.clock.now()
            if self.stopped_at is not None:
                _log.warning("interrupted: waiting for the requests in flight")
                break
            self._prepare(index, model, deadline, now)
            self.offered = index + 1
            if len(self._due) >= MOST:
                self._hand_over()
        self._hand_over()

    def stop(self) -> None:
        """Offer nothing more; safe in a signal handler."""
        self.stopped_at = self._engine.clock.now()

    def _prepare(self, index: int, model: int, deadline: int, now: int) -> None:
        pool = self._pools[model]
        name, inputs = self._names[model], pool[index % len(pool)]
        self._recorder.sent(index, now)
        try:
            request = self._engine.make_request(
                name, inputs, deadline, self._priorities[model], self._recorder.done, index
            )
        except SymphonyError as error:
            self._refused(index, name, error)
        else:
            self._due.append(request)

    def wait(self) -> None:
        """Until every request has its outcome."""
        self._hand_over()
        bound = self._start + self._last_deadline + int((self._plan.grace_ms / 1e3 + PATIENCE_S) * 1e9)
        while self._recorder.answered < self.offered and self._engine.clock.now() < bound:
            self._tell(self._engine.clock.now())
            time.sleep(0.005)
        self._progress_at = 0
        self._tell(self._engine.clock.now())

    def _hand_over(self) -> None:
        due, self._due = self._due, []
        if not due:
            return
        try:
            self._engine.submit_many(due)
        except SymphonyError as error:
            for request in due:
                self._refused(request.tag, request.model, error)

    def _refused(self, index: int, model: str, error: SymphonyError) -> None:
        status = error.status or Status.UNAVAILABLE
        self._recorder.refused(index, model, status, self._engine.clock.now(), str(error))

    def _tell(self, now: int) -> None:
        if self._progress is None or now < self._progress_at:
            return
        self._progress_at = now + PROGRESS_NS
        elapsed = min(max(0.0, (now - self._start) / 1e9), self._plan.seconds)
        seen = self._recorder
        self._progress(Progress(elapsed, self._plan.seconds, self.offered, seen.answered, seen.good))
