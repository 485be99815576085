"""Test doubles around a worker: a broker, a shard and frontends, with the real wire and real sockets.

Nothing here has a thread: the test pumps. The registry is the broker's own state machine.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import zmq

from broker.registry import Registry
from symphony import control, tensors, wire
from symphony.bus import Bus, drain, send
from symphony.clock import ClusterClock
from symphony.control import Member
from symphony.membership import describe
from symphony.status import Status
from symphony.wire import Done, Plan, Result
from worker.definition import Definition
from worker.process import Settings, Worker
from worker.runners import Runner

CLOCK = ClusterClock()
"""Never sampled: the wall clock of this machine, which the fake broker hands out."""


class FakeFrontend:
    """Serves inputs and keeps results; :attr:`answers` maps key → (status, outputs, error) lists."""

    def __init__(self, peers: FakePeers, name: str) -> None:
        self._peers = peers
        self._fetch, fetch = peers.bus.bind(zmq.ROUTER, "tcp://127.0.0.1:*")
        self._reply, reply = peers.bus.bind(zmq.PULL, "tcp://127.0.0.1:*")
        joined = peers.join(describe(name, "frontend", endpoints={"fetch": fetch, "reply": reply}))
        assert joined.slot is not None
        self.member, self.slot = joined, joined.slot
        self.inputs: dict[int, dict[str, Any]] = {}
        self.answers: dict[int, list[tuple[Status, dict[str, Any], str | None]]] = {}
        self.results: list[Result] = []
        self.fetched: list[list[int]] = []
        self.silent = False
        self.respond: Callable[[int, list[int]], list[list[bytes]]] | None = None
        """Replaces the true answer to a fetch: every list of frames is sent."""
        self._next = 1

    def request(self, inputs: dict[str, Any] | None) -> int:
        """A new key; its inputs will be served. None: the key is gone by the time it is fetched."""
        key = (self.slot << 48) | self._next
        self._next += 1
        if inputs is not None:
            self.inputs[key] = inputs
        return key

    def pump(self) -> None:
        for identity, frame in drain(self._fetch):
            fetch, keys = wire.decode_fetch(frame)
            self.fetched.append(keys.tolist())
            if self.silent:
                continue
            answers = (
                self.respond(fetch, keys.tolist()) if self.respond else [self.serve(fetch, keys.tolist())]
            )
            for frames in answers:
                send(self._fetch, [identity, *frames])
        for header, *frames in drain(self._reply):
            self._take(header, frames)

    def serve(self, fetch: int, keys: list[int]) -> list[Any]:
        """The true answer to a fetch."""
        here = [key for key in keys if key in self.inputs]
        names = list(self.inputs[here[0]]) if here else []
        specs, frames = [], []
        for key in here:
            for name in names:
                dtype, shape, frame = tensors.encode(np.asarray(self.inputs[key][name]))
                specs.append([dtype, shape])
                frames.append(bytes(frame))
        header = wire.Tensors(fetch, np.array(here, dtype=np.uint64), names, specs)
        return [wire.encode_tensors(header), *frames]

    def _take(self, header: bytes, frames: list[bytes]) -> None:
        if wire.kind_of(header) == wire.RESULTS:
            for result in separate(wire.decode_results(header)):
                self._take_result(result, [])
        else:
            self._take_result(wire.decode_result(header, len(frames)), frames)

    def _take_result(self, result: Result, frames: list[bytes]) -> None:
        self.results.append(result)
        served = int((result.status == Status.OK).sum())
        rows = {
            name: tensors.Rows(dtype, shape, frame, served)
            for (name, dtype, shape), frame in zip(result.outputs, frames, strict=True)
        }
        row = 0
        for key, status in zip(result.key.tolist(), result.status.tolist(), strict=True):
            outputs = {}
            if status == Status.OK:
                outputs = {name: stacked.row(row) for name, stacked in rows.items()}
                row += 1
            error = None if status == Status.OK else result.error
            self.answers.setdefault(key, []).append((Status(status), outputs, error))

    def die(self) -> None:
        """As the registry would tell it."""
        self._peers.registry.dead(self.member.id, self.member.incarnation)


def separate(results: wire.Results) -> Iterator[Result]:
    """The RESULT messages that would have said the same."""
    ends = np.cumsum(results.count).tolist()
    for i, end in enumerate(ends):
        rows = slice(end - int(results.count[i]), end)
        model = results.models[int(results.model[i])]
        numbers = (int(column[i]) for column in (results.batch, results.gpu, results.size, results.started))
        finished = int(results.finished[i])
        yield Result(results.worker, model, *numbers, finished, results.key[rows], results.status[rows], [])


class FakePeers:
    """A broker, the shard ``shard-0`` and frontends."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.registry = Registry(77, time.monotonic_ns(), lease_ms=60_000, fresh=True)
        self._router, self.registry_at = bus.bind(zmq.ROUTER, "tcp://127.0.0.1:*")
        self._xsub, self.publish_at = bus.bind(zmq.XSUB, "tcp://127.0.0.1:*")
        self._xpub, self.subscribe_at = bus.bind(zmq.XPUB, "tcp://127.0.0.1:*")
        self._done, done = bus.bind(zmq.SUB, "tcp://127.0.0.1:*")
        self._done.setsockopt(zmq.SUBSCRIBE, b"done.")
        self._xsub.send(b"\x01done.")
        self.shard = self.join(describe("shard-0", "scheduler", endpoints={"done": done}))
        self.frontends: list[FakeFrontend] = []
        self.done: list[Done] = []
        self.telemetry: list[Done] = []
        self._dispatch: dict[str, Any] = {}
        self._batch = 0

    def frontend(self, name: str = "front") -> FakeFrontend:
        frontend = FakeFrontend(self, f"{name}-{len(self.frontends)}")
        self.frontends.append(frontend)
        return frontend

    def join(self, member: Member) -> Member:
        answer = self.registry.handle(time.monotonic_ns(), CLOCK.now(), control.Join(member=member))
        assert isinstance(answer, control.Joined), answer
        return answer.member

    def pump(self) -> None:
        """Everything that is due, without waiting."""
        for identity, frame in drain(self._router):
            answer = self.registry.handle(time.monotonic_ns(), CLOCK.now(), control.decode_control(frame))
            send(self._router, [identity, control.encode_control(answer)])
        list(drain(self._xpub))  # subscriptions
        while self.registry.events:
            number, event = self.registry.events.popleft()
            stamp = control.encode_stamp(self.registry.incarnation, number)
            send(self._xpub, [event.type.encode(), stamp, control.encode_control(event)])
        self.done += [wire.decode_done(body) for _, body in drain(self._done)]
        self.telemetry += [wire.decode_done(body) for _, body in drain(self._xsub)]
        for frontend in self.frontends:
            frontend.pump()

    def until(self, condition: Callable[[], Any], timeout: float = 15.0, what: str = "the condition") -> Any:
        """Pump until ``condition`` is true; fail after ``timeout`` seconds."""
        poller = zmq.Poller()
        for sock in self.bus._sockets:
            if sock.type != zmq.PUSH:
                poller.register(sock, zmq.POLLIN)
        deadline = time.monotonic() + timeout
        while True:
            self.pump()
            value = condition()
            if value:
                return value
            assert time.monotonic() < deadline, f"{what} did not come true within {timeout:g} s: {value!r}"
            poller.poll(5)

    def member(self, name: str) -> Member | None:
        return self.registry.members.get(name)

    def ready(self, name: str = "worker-0", timeout: float = 60.0) -> Member:
        """Wait until a worker is ready to be planned for."""

        def is_ready() -> Member | None:
            member = self.member(name)
            return member if member is not None and member.state == "ready" else None

        worker: Member = self.until(is_ready, timeout, f"{name} ready")
        return worker

    def dispatch(self, frames: list[bytes], worker: str = "worker-0") -> None:
        """Raw frames to a worker's dispatch socket."""
        member = self.member(worker)
        assert member is not None
        endpoint = member.endpoints["dispatch"]
        if endpoint not in self._dispatch:
            self._dispatch[endpoint] = self.bus.connect(zmq.PUSH, endpoint)
        assert send(self._dispatch[endpoint], frames)

    def plan(
        self, model: str, keys: list[int], *, deadline_ms: float = 10_000, gpu: int = 0, exec_in_ms: float = 0
    ) -> int:
        """Plan one batch; returns its id."""
        self._batch += 1
        now = CLOCK.now()
        plan = Plan(
            "shard-0",
            [model],
            np.array([self._batch], dtype=np.uint64),
            np.array([gpu], dtype=np.uint32),
            np.array([0], dtype=np.uint32),
            np.array([now + int(exec_in_ms * 1e6)], dtype=np.int64),
            np.array([len(keys)], dtype=np.uint32),
            np.array(keys, dtype=np.uint64),
            np.full(len(keys), now + int(deadline_ms * 1e6), dtype=np.int64),
        )
        self.dispatch([wire.encode_plan(plan)])
        return self._batch

    def batches_done(self) -> dict[int, tuple[int, int]]:
        """Batch id → (size, failed), from the shard's SUB."""
        return {
            int(b): (int(s), int(f))
            for done in self.done
            for b, s, f in zip(done.batch, done.size, done.failed, strict=True)
        }


@contextmanager
def fake_peers() -> Iterator[FakePeers]:
    with Bus() as bus:
        yield FakePeers(bus)


@contextmanager
def running(
    peers: FakePeers, runner: Runner, definitions: list[Definition], *, gpus: int = 1, drain_s: float = 4.0
) -> Iterator[Worker]:
    """A worker ``worker-0`` in a thread of this process; stopped and joined at the end."""
    settings = Settings(
        "worker-0",
        "shard-0",
        peers.registry_at,
        peers.publish_at,
        peers.subscribe_at,
        gpus=gpus,
        drain_s=drain_s,
    )
    worker = Worker(settings, runner)
    errors: list[BaseException] = []

    def run() -> None:
        try:
            worker.run()
        except BaseException as error:  # noqa: BLE001 - raised again in the test's thread
            errors.append(error)

    thread = threading.Thread(target=run, name="worker-0")
    thread.start()
    try:
        yield worker
    finally:
        worker.stop()
        peers.until(lambda: not thread.is_alive(), 30, "the worker's end")
        thread.join()
        worker.errors = errors  # type: ignore[attr-defined]


def answered(frontend: FakeFrontend, keys: list[int]) -> Any:
    """A condition: every one of these keys has its answer."""
    return lambda: all(key in frontend.answers for key in keys)
