"""A real shard on a thread, with a worker and a frontend that the test plays over loopback sockets."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import zmq
from cluster_parts import ANY_PORT, Node, Nodes, nodes_of, running_broker

from broker.server import Broker
from scheduler.core.machine import Core
from scheduler.shard import Settings, Shard
from scheduler.table import ModelTable
from symphony import wire
from symphony.bus import Bus, Sock, drain, send
from symphony.control import ModelSpec
from symphony.faults import Faults
from symphony.status import Status

MS = 1_000_000
S = 1_000 * MS


def spec(name: str, slo_ms: float = 10_000, max_batch: int = 8, ms: float = 1.0) -> ModelSpec:
    """A model whose batches of any size take ``ms`` on GPUs of type ``t``."""
    return ModelSpec(
        name=name, slo_ms=slo_ms, max_batch=max_batch, profiles={"t": [round(ms * MS)] * max_batch}
    )


def make_table(*names: str) -> tuple[Core, ModelTable]:
    """A core and its table with these models."""
    core = Core("eager")
    table = ModelTable(core, Faults(logging.getLogger(__name__)))
    for name in names:
        table.learn(0, spec(name))
    return core, table


class RunningShard:
    """A shard on a thread of its own; settings default to a policy that waits for nothing."""

    def __init__(self, broker: Broker, **settings: Any) -> None:
        values = {"id": "shard-0", "policy": "eager", "drain_s": 0.1, **settings}
        self.shard = Shard(
            Settings(registry=broker.registry, publish=broker.publish, subscribe=broker.subscribe, **values)
        )
        self.error: BaseException | None = None
        self._bound = threading.Event()
        self._thread = threading.Thread(target=self._run, name=values["id"])

    def start(self) -> RunningShard:
        self._thread.start()
        assert self._bound.wait(10), "the shard has not bound its sockets"
        return self

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def counts(self) -> dict[str, int]:
        """Its faults by reason."""
        return dict(self.shard.faults.counts)

    def stop(self) -> None:
        self.shard.stop()
        self._thread.join(20)
        assert not self._thread.is_alive(), "the shard does not stop"

    def _run(self) -> None:
        try:
            self.shard.start()
            self._bound.set()
            self.shard.run()
        except BaseException as error:
            self.error = error
            raise
        finally:
            self._bound.set()
            self.shard.close()


class FakeWorker:
    """Takes plans; the test says when which batch ends."""

    def __init__(
        self, nodes: Nodes, name: str, models: Sequence[ModelSpec], gpus: int = 1, shard: str = "shard-0"
    ) -> None:
        self.bus = Bus()
        self.dispatch, endpoint = self.bus.bind(zmq.PULL, ANY_PORT)
        self.node: Node = nodes.add(
            name,
            "worker",
            {"gpus_wanted": gpus, "gpu_type": "t", "models": list(models)},
            endpoints={"dispatch": endpoint},
            shard=shard,
            models=[model.name for model in models],
            state="ready",
        )
        self.plans: list[wire.Plan] = []
        self._done: Sock | None = None
        self._heard = False
        self._unsent: list[bytes] = []
        self._sequence = 0

    @property
    def gpus(self) -> list[int]:
        return [gpu.number for gpu in self.node.membership.me.gpus]

    @property
    def keys(self) -> list[int]:
        """Of all plans, in order."""
        return [key for plan in self.plans for key in plan.key.tolist()]

    @property
    def batches(self) -> list[tuple[int, int]]:
        """(batch, GPU) of all plans, in order."""
        return [pair for p in self.plans for pair in zip(p.batch.tolist(), p.gpu.tolist(), strict=True)]

    def pump(self) -> None:
        """Read plans; send completions once the shard listens."""
        if not self.bus_open:
            return
        self.plans += [wire.decode_plan(frames[0]) for frames in drain(self.dispatch)]
        shard = self.node.membership.members.get(self.node.membership.me.shard or "")
        if self._done is None and shard is not None:
            self._done = self.bus.connect(zmq.XPUB, shard.endpoints["done"])
        if self._done is not None:
            self._heard = bool(list(drain(self._done))) or self._heard
        if self._done is not None and self._heard:
            topic = f"done.{self.node.membership.me.id}".encode()
            while self._unsent:
                assert send(self._done, [topic, self._unsent.pop(0)])

    def complete(self, *batches: tuple[int, int], model: str = "m", size: int = 1, ran_ns: int = MS) -> None:
        """(batch, GPU) pairs end now, in one message."""
        n, now = len(batches), self.node.clock.now()
        self._sequence += 1
        sizes = np.full(n, size, np.uint32)
        times = np.full(n, now, np.int64)
        message = wire.Done(
            self.node.membership.me.id,
            self._sequence,
            [model],
            np.array([batch for batch, _ in batches], np.uint64),
            np.array([gpu for _, gpu in batches], np.uint32),
            np.zeros(n, np.uint32),
            sizes,
            np.zeros(n, np.uint32),
            times - 2 * ran_ns,
            times - ran_ns,
            times - ran_ns,
            times,
        )
        self._unsent.append(wire.encode_done(message))

    @property
    def bus_open(self) -> bool:
        return not self.dispatch.closed

    def cut(self) -> None:
        """Lose every link of the data plane; the membership goes on."""
        self.bus.close()

    def set_state(self, state: str) -> None:
        me = self.node.membership.me
        self.node.membership.update(me.model_copy(update={"state": state}))


class FakeFrontend:
    """Submits requests of a slot and collects answers."""

    def __init__(self, nodes: Nodes, name: str, slot: int | None = None, join: bool = True) -> None:
        self.bus = Bus()
        self.reply, endpoint = self.bus.bind(zmq.PULL, ANY_PORT)
        self._nodes, self._name, self._endpoint, self._slot = nodes, name, endpoint, slot
        self.node: Node | None = None
        self.answers: list[wire.Answer] = []
        self._submit: Sock | None = None
        self._sequence = 0
        if join:
            self.join()

    def join(self) -> None:
        self.node = self._nodes.add(
            self._name, "frontend", endpoints={"reply": self._endpoint}, slot=self._slot, state="ready"
        )

    @property
    def slot(self) -> int:
        granted = self.node.membership.me.slot if self.node is not None else None
        found = self._slot if granted is None else granted
        assert found is not None, "no slot yet"
        return found

    @property
    def told(self) -> dict[int, Status]:
        """What became known of each key; a key that is told of twice fails."""
        found: dict[int, Status] = {}
        for answer in self.answers:
            for key, status in zip(answer.key.tolist(), answer.status.tolist(), strict=True):
                assert key not in found, f"two answers for {key}"
                found[key] = Status(status)
        return found

    def pump(self) -> None:
        self.answers += [wire.decode_answer(frames[0]) for frames in drain(self.reply)]

    def keys(self, n: int) -> list[int]:
        """The next ``n`` keys."""
        first = (self.slot << wire.SLOT_SHIFT) + self._sequence + 1
        self._sequence += n
        return list(range(first, first + n))

    def submit(
        self,
        shard: RunningShard,
        models: Sequence[int],
        due_ns: int = 10 * S,
        keys: Sequence[int] | None = None,
        incarnation: int | None = None,
        priority: Sequence[int] | None = None,
    ) -> list[int]:
        """Requests for these model numbers, due in ``due_ns``, in one message; their keys."""
        member = shard.shard.membership.me
        if self._submit is None:
            self._submit = self.bus.connect(zmq.PUSH, member.endpoints["submit"])
        keys = self.keys(len(models)) if keys is None else list(keys)
        n = len(keys)
        due = shard.shard.clock.now() + due_ns
        frame = wire.encode_submit(
            wire.Submit(
                member.incarnation if incarnation is None else incarnation,
                self.slot,
                np.array(models, np.uint32),
                np.full(n, due, np.int64),
                np.array(keys, np.uint64),
                None if priority is None else np.array(priority, np.uint8),
            )
        )
        assert send(self._submit, frame)
        return keys


class World:
    """A broker, a shard, and what the test adds to them; :meth:`until` drives all."""

    def __init__(self, broker: Broker, nodes: Nodes, **settings: Any) -> None:
        self.broker = broker
        self.nodes = nodes
        self.shard = RunningShard(broker, **settings)
        self.workers: list[FakeWorker] = []
        self.frontends: list[FakeFrontend] = []

    def worker(self, name: str, models: Sequence[ModelSpec], gpus: int = 1, **options: Any) -> FakeWorker:
        """A worker whose GPUs the shard has taken in."""
        worker = FakeWorker(self.nodes, name, models, gpus, **options)
        self.workers.append(worker)
        if options.get("shard", "shard-0") == "shard-0":
            self.until(lambda: self.has(worker), what=f"{name} to be taken in")
        return worker

    def has(self, worker: FakeWorker) -> bool:
        """Whether every GPU of the worker is in the shard's core."""
        core = self.shard.shard.core
        return bool(worker.gpus) and all(core.has_gpu(number) for number in worker.gpus)

    def frontend(self, name: str = "front", **options: Any) -> FakeFrontend:
        """A frontend that has its slot, and knows the shard's models by number."""
        frontend = FakeFrontend(self.nodes, name, **options)
        self.frontends.append(frontend)
        node = frontend.node
        if node is not None:
            self.until(lambda: node.membership.joined)
        return frontend

    def number(self, model: str) -> int:
        """The model's number in the shard's table."""
        found = self.shard.shard.table.number(model)
        assert found is not None
        return found

    def until(self, condition: Callable[[], Any], timeout: float = 20.0, what: str = "the condition") -> None:
        """Drive everybody until ``condition``."""

        def check() -> Any:
            self.pump()
            return condition()

        self.nodes.until(check, timeout, what)

    def pump(self) -> None:
        assert self.shard.alive or self.shard.shard.stopping.is_set(), f"the loop ended: {self.shard.error}"
        for party in (*self.workers, *self.frontends):
            party.pump()

    def close(self) -> None:
        if self.shard.alive:
            self.shard.stop()
        for party in (*self.workers, *self.frontends):
            party.bus.close()


@contextlib.contextmanager
def world(broker_options: dict[str, Any] | None = None, **settings: Any) -> Iterator[World]:
    """A broker and a shard with these settings, all closed at the end."""
    options = {"lease_ms": 2_000, **(broker_options or {})}
    with running_broker(**options) as broker, nodes_of(broker) as nodes:
        parts = World(broker, nodes, **settings)
        try:
            parts.shard.start()
            yield parts
        finally:
            parts.close()
