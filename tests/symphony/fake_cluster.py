"""A cluster for the client's tests: the real broker, and one thread that plays a shard and its worker.

It speaks the real wire over loopback sockets. What it does with a request is in the model's name, so
a test reads as what it asks for; see :data:`MODELS`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np
import zmq

from broker.server import Broker
from symphony import wire
from symphony.bus import Bus, Sock, drain, send
from symphony.clock import ClusterClock
from symphony.control import Member, ModelSpec, TensorSpec
from symphony.membership import Membership, describe
from symphony.status import Status
from symphony.tensors import decode, encode
from symphony.waiter import Waiter

SLO_MS = 5_000.0
SHORT_SLO_MS = 200.0
"""Of the models whose deadline is meant to pass."""
GRACE_MS = 1_000.0
"""For clients in tests: a busy machine may be late, and is then not to be taken for a silent one."""
_X = [TensorSpec(name="x", dtype="FP32", shape=[-1])]
_TEXT = [TensorSpec(name="text", dtype="BYTES")]

MODELS = {
    "double": (_X, "fetches x, answers y = 2 x"),
    "upper": (_TEXT, "fetches text, answers it in capitals"),
    "plain": ([], "answers OK, no tensors"),
    "drops": ([], "the shard drops it"),
    "full": ([], "the shard refuses it: OVERLOADED"),
    "fails": (_X, "the worker answers FAILED with the model's text"),
    "refuses": (_X, "the worker answers INVALID"),
    "silent": ([], "nobody answers"),
    "twice": ([], "answers OK twice, then drops it"),
    "late": ([], "answers OK after the deadline, within the grace"),
    "very-late": ([], "answers OK long after the grace"),
    "holds": (_X, "fetches x, and answers when told by release()"),
}


def specs(names: list[str]) -> list[ModelSpec]:
    return [
        ModelSpec(
            name=name,
            slo_ms=SHORT_SLO_MS if name in ("silent", "late", "very-late") else SLO_MS,
            max_batch=8,
            inputs=MODELS[name][0],
        )
        for name in names
    ]


class FakeShard:
    """One shard with a worker inside; see the module's text."""

    def __init__(
        self, registry: str, subscribe: str, number: int = 0, models: list[str] | None = None
    ) -> None:
        self.id = f"shard-{number}"
        self.submitted: list[wire.Submit] = []
        self.fetched: list[int] = []
        self.stalled = False
        self._models = list(MODELS) if models is None else models
        self._endpoints = (registry, subscribe)
        self._stop: str | None = None
        self._calls: list[Callable[[], None]] = []
        self._batch = 0
        self._waiting: dict[int, tuple[str, Member, list[int]]] = {}
        self._delayed: list[tuple[int, Callable[[], object]]] = []
        self._held: list[Callable[[], object]] = []
        self._unknown: list[wire.Submit] = []
        self._fetch: dict[str, Sock] = {}
        self._reply: dict[str, Sock] = {}
        self._thread = threading.Thread(target=self._run, name=self.id, daemon=True)
        self._ready = threading.Event()

    def start(self) -> FakeShard:
        self._thread.start()
        assert self._ready.wait(10), "the fake shard has not joined"
        return self

    def kill(self) -> None:
        """Vanish without a word."""
        self._end("kill")

    def leave(self) -> None:
        """Go, and say so."""
        self._end("leave")

    def _end(self, how: str) -> None:
        self._stop = self._stop or how
        self._thread.join(10)
        assert not self._thread.is_alive()

    def call(self, function: Callable[[], None]) -> None:
        """Run something on this shard's thread."""
        self._calls.append(function)

    def release(self) -> None:
        """Answer what the model ``holds`` has held."""

        def answer_all() -> None:
            held, self._held = self._held, []
            for answer in held:
                answer()

        self.call(answer_all)

    def announce(self, models: list[str]) -> None:
        """Replace the model table."""
        self._models = models
        self.call(
            lambda: self._membership.update(
                self._membership.me.model_copy(update={"models": models}), specs([m for m in models if m])
            )
        )

    # -- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        bus = Bus()
        waiter = Waiter()
        try:
            self._bus = bus
            self._submit, endpoint = bus.bind(zmq.PULL, "tcp://127.0.0.1:*")
            me = describe(
                self.id, "scheduler", endpoints={"submit": endpoint}, models=self._models, state="ready"
            )
            self._clock = ClusterClock()
            known = specs([name for name in self._models if name])
            self._membership = Membership(bus, *self._endpoints, me, known, clock=self._clock)
            for sock in (*self._membership.sockets, self._submit):
                waiter.register(sock)
            while self._stop is None:
                waiter.wait(time.monotonic_ns() + 3_000_000)
                self._turn()
            if self._stop == "leave":
                self._membership.leave()
        finally:
            bus.close(50)
            waiter.close()

    def _turn(self) -> None:
        self._membership.step(time.monotonic_ns())
        if self._membership.joined and self._membership.synced and self._clock.synced:
            self._ready.set()
        calls, self._calls = self._calls, []
        for call in calls:
            call()
        if self.stalled:
            return
        unknown, self._unknown = self._unknown, []
        for message in unknown:
            self._schedule(message)
        for frames in drain(self._submit):
            message = wire.decode_submit(frames[0])
            assert message.incarnation == self._membership.me.incarnation
            self.submitted.append(message)
            self._schedule(message)
        for sock in list(self._fetch.values()):
            for frames in drain(sock):
                self._run_batch(frames)
        now = time.monotonic_ns()
        due = [answer for moment, answer in self._delayed if moment <= now]
        self._delayed = [entry for entry in self._delayed if entry[0] > now]
        for answer in due:
            answer()

    def _schedule(self, message: wire.Submit) -> None:
        frontend = next((m for m in self._membership.members.values() if m.slot == message.slot), None)
        if frontend is None:
            self._unknown.append(message)
            return
        for index in np.unique(message.model):
            name = self._models[index]
            chosen = message.model == index
            keys = message.key[chosen].tolist()
            if MODELS[name][0]:
                self._batch += 1
                self._waiting[self._batch] = (name, frontend, keys)
                ask = wire.encode_fetch(self._batch, np.array(keys, np.uint64))
                assert send(self._line(self._fetch, zmq.DEALER, frontend, "fetch"), ask)
            else:
                self._answer_plain(name, frontend, keys, int(message.deadline[chosen].max()))

    def _answer_plain(self, name: str, frontend: Member, keys: list[int], deadline: int) -> None:
        ok = partial(self.result, frontend, name, keys, Status.OK)
        margin = {"late": 30_000_000, "very-late": 1_500_000_000}.get(name)
        if margin is not None:
            self._delayed.append((self._clock.to_monotonic(deadline) + margin, ok))
        elif name == "drops":
            self.refuse(frontend, keys, Status.DROPPED)
        elif name == "full":
            self.refuse(frontend, keys, Status.OVERLOADED, "the shard's queue is full")
        elif name in ("plain", "twice"):
            ok()
            if name == "twice":
                ok()
                self.refuse(frontend, keys, Status.DROPPED)

    def _run_batch(self, frames: list[bytes]) -> None:
        tensors = wire.decode_tensors(frames[0], len(frames) - 1)
        name, frontend, _ = self._waiting.pop(tensors.fetch)
        keys = tensors.key.tolist()
        self.fetched += keys
        values = [decode(d, s, f) for (d, s), f in zip(tensors.specs, frames[1:], strict=True)]
        if name == "fails":
            self.result(frontend, name, keys, Status.FAILED, error="ValueError: the model's own text")
        elif name == "refuses":
            self.result(frontend, name, keys, Status.INVALID, error="x is not what it should be")
        elif name == "upper":
            upper = np.empty(len(values), dtype=object)
            upper[:] = [value.item().decode().upper() for value in values]
            self.result(frontend, name, keys, Status.OK, {"upper": upper})
        else:
            # Items may differ in length: one batch per item then.
            answers = [
                partial(self.result, frontend, name, [key], Status.OK, {"y": 2 * value[None]})
                for key, value in zip(keys, values, strict=True)
            ]
            if name == "holds":
                self._held += answers
            else:
                for answer in answers:
                    answer()

    def result(
        self,
        frontend: Member,
        model: str,
        keys: list[int],
        status: Status,
        outputs: dict[str, Any] | None = None,
        error: str | None = None,
    ) -> None:
        """A RESULT message; ``outputs`` are stacked."""
        self._batch += 1
        now = self._clock.now()
        columns, payload = [], []
        for name, stacked in (outputs or {}).items():
            dtype, shape, frame = encode(stacked)
            columns.append([name, dtype, shape[1:]])
            payload.append(frame)
        key, codes = np.array(keys, np.uint64), np.full(len(keys), status, np.uint8)
        head = wire.Result(
            "worker-0", model, self._batch, 3, len(keys), now - 1_000_000, now, key, codes, columns, error
        )
        assert send(
            self._line(self._reply, zmq.PUSH, frontend, "reply"), [wire.encode_result(head), *payload]
        )

    def refuse(self, frontend: Member, keys: list[int], status: Status, detail: str | None = None) -> None:
        """An ANSWER message."""
        codes = np.full(len(keys), status, np.uint8)
        message = wire.encode_answer(wire.Answer(self.id, np.array(keys, np.uint64), codes, detail))
        assert send(self._line(self._reply, zmq.PUSH, frontend, "reply"), message)

    def _line(self, lines: dict[str, Sock], kind: int, frontend: Member, link: str) -> Sock:
        endpoint = frontend.endpoints[link]
        if endpoint not in lines:
            lines[endpoint] = self._bus.connect(kind, endpoint)
        return lines[endpoint]


class FakeCluster:
    """A broker in a thread and fake shards; a context manager."""

    def __init__(self, shards: int = 1, models: list[str] | None = None, lease_ms: int = 2_000) -> None:
        any_port = "tcp://127.0.0.1:*"
        self._lease_ms = lease_ms
        self._start_broker(any_port, any_port, any_port)
        self.registry, self.subscribe = self.broker.registry, self.broker.subscribe
        self.shards: list[FakeShard] = []
        try:
            for number in range(shards):
                self.add_shard(number, models)
        except BaseException:
            self.close()
            raise

    def _start_broker(self, *endpoints: str) -> None:
        self.broker = Broker(*endpoints, heartbeat_ms=100, lease_ms=self._lease_ms, fresh=True)
        self.broker.start()
        self._thread = threading.Thread(target=self.broker.run, name="broker", daemon=True)
        self._thread.start()

    def stop_broker(self) -> None:
        self.broker.stop()
        self._thread.join(10)
        self.broker.close()

    def restart_broker(self) -> None:
        """Another broker on the same ports, which knows nobody."""
        self.stop_broker()
        self._start_broker(self.registry, self.broker.publish, self.subscribe)

    def add_shard(self, number: int, models: list[str] | None = None) -> FakeShard:
        shard = FakeShard(self.registry, self.subscribe, number, models)
        self.shards.append(shard)
        return shard.start()

    def close(self) -> None:
        for shard in self.shards:
            shard.leave()
        self.stop_broker()

    def __enter__(self) -> FakeCluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
