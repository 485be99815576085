"""A peer for benchmarks of the client: the real broker, and a shard that answers OK at once.

It stands in a process of its own, so that what the client costs can be told from what it costs.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

import numpy as np
import zmq

from broker.server import Broker
from symphony import wire
from symphony.bus import Bus, drain, send
from symphony.clock import ClusterClock
from symphony.control import ModelSpec
from symphony.membership import Membership, describe
from symphony.waiter import Waiter

MODEL = "echo"


@contextmanager
def echo_cluster(batch_ms: float) -> Iterator[tuple[str, str]]:
    """The registry's and the control channel's endpoints of a cluster in a child process.

    Args:
        batch_ms: requests gather for that long and are then answered by one RESULT, as by a worker
            that runs batches; 0 answers each submit message at once.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    child = context.Process(target=_child, args=(there, batch_ms), daemon=True)
    child.start()
    try:
        if not here.poll(20):
            raise TimeoutError("the echo cluster has not come up within 20 s")
        yield here.recv()
    finally:
        here.send("stop")
        child.join(10)


def _child(pipe: Connection, batch_ms: float) -> None:
    any_port = "tcp://127.0.0.1:*"
    broker = Broker(any_port, any_port, any_port, fresh=True)
    broker.start()
    thread = threading.Thread(target=broker.run)
    thread.start()
    try:
        _serve(broker.registry, broker.subscribe, pipe, int(batch_ms * 1e6))
    finally:
        broker.stop()
        thread.join()
        broker.close()


def _serve(registry: str, subscribe: str, pipe: Connection, every_ns: int) -> None:
    waiter = Waiter()
    with Bus() as bus:
        submit, endpoint = bus.bind(zmq.PULL, "tcp://127.0.0.1:*")
        me = describe("shard-0", "scheduler", endpoints={"submit": endpoint}, models=[MODEL], state="ready")
        clock = ClusterClock()
        spec = ModelSpec(name=MODEL, slo_ms=1_000, max_batch=4096)
        members = Membership(bus, registry, subscribe, me, [spec], clock=clock)
        for source in (*members.sockets, submit, pipe.fileno()):
            waiter.register(source)
        told, batch, due = False, 0, 0
        gathered: dict[int, list[wire.U64]] = {}
        replies: dict[int, zmq.Socket[bytes]] = {}
        while not pipe.poll():
            now = time.monotonic_ns()
            waiter.wait(max(due, now) if gathered else members.next_wakeup())
            members.step(time.monotonic_ns())
            if not told and members.joined and members.synced and clock.synced:
                told = True
                pipe.send((registry, subscribe))
            for frames in drain(submit):
                message = wire.decode_submit(frames[0])
                if not gathered:
                    due = time.monotonic_ns() + every_ns
                gathered.setdefault(message.slot, []).append(message.key)
            if time.monotonic_ns() < due:
                continue
            now = clock.now()
            for slot in list(gathered):
                if slot not in replies:
                    frontend = next((m for m in members.members.values() if m.slot == slot), None)
                    if frontend is None:
                        continue
                    replies[slot] = bus.connect(zmq.PUSH, frontend.endpoints["reply"])
                keys = np.concatenate(gathered.pop(slot))
                batch += 1
                head = wire.Result(
                    "worker-0", MODEL, batch, 0, min(keys.size, 4096), now - every_ns, now, keys,
                    np.zeros(keys.size, np.uint8), [],
                )  # fmt: skip
                send(replies[slot], wire.encode_result(head))
    waiter.close()
