"""A load generator that speaks the wire in columns: Poisson arrivals out, answers back.

A process of ``symphony bench wire``, started as ``python -m bench.wire_load``. It joins as a frontend, waits
until the shards know every model, and then lives in ticks: draw the arrivals since the last tick, send
those that fill a message, read what has come back, account for it. It says ``measuring`` and ``measured`` on
standard error when its warm-up and its measured time end, and prints its books as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from typing import Any, Final

import msgpack
import numpy as np
import numpy.typing as npt
import zmq

from bench.wire_books import Books
from symphony import wire
from symphony.bus import SUBMIT_HWM, Bus, Sock, send
from symphony.clock import ClusterClock
from symphony.control import Member
from symphony.membership import Membership, describe
from symphony.pace import Pace
from symphony.status import Status
from symphony.urgency import be_prompt, keep_collector_out
from symphony.waiter import Waiter
from symphony.wire import WireError

TICK_NS: Final = 500_000
REST_NS: Final = 2_000_000
"""Longest pause of a busy generator, in which arrivals and answers gather."""
HOLD_NS: Final = 1_000_000
"""A request waits at most that long for its message to fill."""
GRACE_NS: Final = 1_000_000_000
"""How long after the last deadline answers are waited for."""
READY_S: Final = 60.0
TABLE: Final = 1 << 20
"""Gaps and models are drawn beforehand, so many of each; every tick enters the tables at random places."""
MANY: Final = 20_000
"""Answers read in one tick at most."""


class Stream:
    """The requests for one shard: arrivals, what waits for its message to fill, the socket.

    Args:
        sock: PUSH to the shard's submit.
        head: the first fields of every message.
        models: indexes of its models, which get equal shares.
        rate: requests per second.
        size: requests per message.
        slo_ns: from arrival to deadline.
    """

    def __init__(
        self, sock: Sock, head: tuple[int, ...], models: list[int], rate: float, size: int, slo_ns: int
    ) -> None:
        self.refused = 0
        self._sock = sock
        self._head = head
        self._slo_ns = slo_ns
        rng = np.random.default_rng(size)
        self._passed_ns = np.cumsum(rng.standard_exponential(TABLE) * (1e9 / rate)).astype(np.int64)
        self._drawn = np.array(models, np.uint32)[rng.integers(0, len(models), TABLE)]
        self._rate = rate / 1e9
        self._size = size
        self._next = 0
        self._held = 0
        self._deadline = np.zeros(size, np.int64)  # of those that wait, and room for more
        self._model = np.zeros(size, np.uint32)
        self._frames = Frames(head, size)

    def start(self, now: int) -> None:
        """Arrivals begin."""
        self._next = now

    def tick(self, now: int, books: Books, rng: np.random.Generator) -> None:
        """Draw what has arrived by ``now`` (cluster ns) and send it in messages of the stream's size."""
        lasted = max(0, now - self._next)
        want = lasted * self._rate
        most = min(int(want + 6 * want**0.5 + 16), TABLE // 2)
        at = int(rng.integers(0, TABLE - most))
        passed_ns = self._passed_ns[at + 1 : at + most]
        began = int(self._passed_ns[at])
        n = int(passed_ns.searchsorted(began + lasted, "right"))
        held, self._held = self._held, self._held + n
        if self._held > self._deadline.size:
            more = 2 * self._held - self._deadline.size
            self._deadline = np.concatenate((self._deadline, np.zeros(more, np.int64)))
            self._model = np.concatenate((self._model, np.zeros(more, np.uint32)))
        np.add(passed_ns[:n], self._next - began + self._slo_ns, out=self._deadline[held : self._held])
        # Exponential gaps have no memory: what is drawn beyond now may be drawn again.
        self._next = now
        at = int(rng.integers(0, TABLE - n))
        self._model[held : self._held] = self._drawn[at : at + n]
        take = self._held - self._held % self._size
        if self._held > take and now + self._slo_ns - self._deadline[take] > HOLD_NS:
            take = self._held
        if take:
            self._send(self._deadline[:take], self._model[:take], books)
            self._held -= take
            for column in (self._deadline, self._model):
                column[: self._held] = column[take : take + self._held]

    def _send(self, deadline: wire.I64, model: wire.U32, books: Books) -> None:
        keys = books.offer(deadline)
        for i, frame in enumerate(self._frames.of(model, deadline, keys)):
            if not send(self._sock, frame):  # what a client calls OVERLOADED
                refused = keys[i * self._size : (i + 1) * self._size]
                self.refused += refused.size
                books.answer(refused, np.full(refused.size, int(Status.OVERLOADED), np.uint8), 0)


class Frames:
    """SUBMIT messages of one size, written over and over into the same memory: only their columns differ.

    Args:
        head: the first fields of every message.
        size: requests per message.
    """

    def __init__(self, head: tuple[int, ...], size: int) -> None:
        self._head = head
        self._size = size
        frame = self._pack(np.zeros(size, np.uint32), np.zeros(size, np.int64), np.zeros(size, np.uint64))
        self._empty = np.frombuffer(frame, np.uint8)
        self._made = self._empty.reshape(1, -1).copy()

    def _pack(self, *columns: npt.NDArray[Any]) -> bytes:
        packed: bytes = msgpack.packb((*self._head, *(column.tobytes() for column in columns), None))
        return packed

    def of(self, model: wire.U32, deadline: wire.I64, key: wire.U64) -> Iterator[memoryview | bytes]:
        """The messages for these requests, the last one smaller where they are odd; until the next."""
        size = self._size
        n = key.size // size
        if n > len(self._made):
            self._made = np.tile(self._empty, (2 * n, 1))
        end = self._empty.size - 1  # before the priorities, of which there are none
        for column in (key, deadline, model):
            length = column.itemsize * size
            self._made[:n, end - length : end] = column[: n * size].view(np.uint8).reshape(n, length)
            end -= length + (2 if length < 1 << 8 else 3 if length < 1 << 16 else 5)
        whole, length = self._made.data.cast("B"), self._empty.size
        for at in range(0, n * length, length):
            yield whole[at : at + length]
        if n * size < key.size:
            yield self._pack(model[n * size :], deadline[n * size :], key[n * size :])


class Generator:
    """One frontend with its streams; see the module's text."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._slo_ns = round(options.slo_ms * 1e6)
        self._rng = np.random.default_rng(options.seed)
        self._clock = ClusterClock()
        self._waiter = Waiter()
        self._malformed = 0

    def run(self) -> dict[str, Any]:
        """Everything from joining to the books."""
        with Bus() as bus:
            try:
                self._join(bus)
                shards = self._await_shards()
                return self._load(bus, shards)
            finally:
                self._membership.leave()
                self._waiter.close()
                bus.close(200)

    def _join(self, bus: Bus) -> None:
        o = self._options
        self._reply, reply = bus.bind(zmq.PULL, "tcp://127.0.0.1:*", hwm=1_000_000)
        _, fetch = bus.bind(zmq.ROUTER, "tcp://127.0.0.1:*")
        me = describe(o.id, "frontend", endpoints={"fetch": fetch, "reply": reply}, state="ready")
        self._membership = Membership(bus, o.registry, o.subscribe, me, clock=self._clock)
        for sock in self._membership.sockets:
            self._waiter.register(sock)

    def _await_shards(self) -> list[Member]:
        """The shards, once each knows all its models and has GPUs."""
        o = self._options
        until = time.monotonic() + READY_S
        while time.monotonic() < until:
            self._membership.step(time.monotonic_ns())
            shards = [self._membership.members.get(f"shard-{i}") for i in range(o.shards)]
            found = [s for i, s in enumerate(shards) if s is not None and self._names(i) <= set(s.models)]
            if len(found) == o.shards and self._clock.synced and self._membership.joined:
                return found
            self._waiter.wait(min(self._membership.next_wakeup(), time.monotonic_ns() + 50_000_000))
        raise SystemExit(f"{o.id}: the shards do not know their models after {READY_S:g} s")

    def _names(self, shard: int) -> set[str]:
        return {f"m{i}" for i in range(shard, self._options.models, self._options.shards)}

    def _load(self, bus: Bus, shards: list[Member]) -> dict[str, Any]:
        o = self._options
        room = 1 << int(np.ceil(np.log2(max(1024.0, o.rate * (1.5 * self._slo_ns + GRACE_NS) / 1e9))))
        slot = self._membership.me.slot
        assert slot is not None
        books = Books(slot << wire.SLOT_SHIFT | time.time_ns() >> 14, room)
        streams = []
        for i, shard in enumerate(shards):
            sock = bus.connect(zmq.PUSH, shard.endpoints["submit"], hwm=SUBMIT_HWM)
            models = [shard.models.index(name) for name in sorted(self._names(i))]
            head = (wire.SUBMIT, wire.VERSION, shard.incarnation, slot)
            streams.append(Stream(sock, head, models, o.rate / len(shards), o.submit_size, self._slo_ns))
        self._waiter.wait(time.monotonic_ns() + 300_000_000)  # for the links to stand
        keep_collector_out()
        start = self._clock.now()
        for stream in streams:
            stream.start(start)
        measure_at = start + round(o.warm * 1e9)
        end = measure_at + round(o.seconds * 1e9)
        began = False
        worst_ns = 0
        pace = Pace()
        woke = due = time.monotonic_ns()
        while (now := self._clock.now()) < end:
            if not began and now >= measure_at:
                began, measure_at, worst_ns = True, now, 0
                books.count_from_here()
                print("measuring", file=sys.stderr, flush=True)
            for stream in streams:
                stream.tick(now, books, self._rng)
            self._read(books)
            self._membership.step(time.monotonic_ns())
            ended = time.monotonic_ns()
            worst_ns = max(worst_ns, ended - due)
            pace.worked(woke, ended, REST_NS)
            due = max(due + TICK_NS, pace.until)
            self._waiter.wait(due)
            woke = time.monotonic_ns()
        lasted = (now - measure_at) / 1e9
        print("measured", file=sys.stderr, flush=True)
        self._settle(books)
        books.close()
        names = ("offered", "good", "late", "dropped", "failed", "unanswered", "duplicates")
        return {
            **{name: getattr(books, name) for name in names},
            "seconds": lasted,
            "refused_by_pipe": sum(stream.refused for stream in streams),
            "malformed": self._malformed,
            "longest_tick_ms": worst_ns / 1e6,
        }

    def _settle(self, books: Books) -> None:
        """Wait for what is still out, no longer than the last deadline and the grace."""
        until = time.monotonic_ns() + self._slo_ns + GRACE_NS
        while books.waiting and time.monotonic_ns() < until:
            self._read(books)
            self._membership.step(time.monotonic_ns())
            self._waiter.wait(time.monotonic_ns() + 5_000_000)

    def _read(self, books: Books) -> None:
        """Account for what has come back."""
        found: list[wire.Results | wire.Result | wire.Answer] = []
        recv = self._reply.recv
        try:
            for _ in range(MANY):
                frame = recv(zmq.NOBLOCK, copy=False).buffer
                try:
                    found.append(_decoded(frame))
                except WireError:
                    self._malformed += 1
        except zmq.Again:
            pass
        if found:
            now = self._clock.now()
            if len(found) == 1:
                books.answer(found[0].key, found[0].status, now)
            else:
                key, status = (np.concatenate([getattr(f, n) for f in found]) for n in ("key", "status"))
                books.answer(key, status, now)


def _decoded(frame: memoryview) -> wire.Results | wire.Result | wire.Answer:
    """An answer.

    Raises:
        WireError: it is none.
    """
    kind = wire.kind_of(frame)
    if kind == wire.RESULTS:
        return wire.decode_results(frame)
    return wire.decode_result(frame, 0) if kind == wire.RESULT else wire.decode_answer(frame)


def generate() -> None:
    """Command line of the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, kind in (
        ("registry", str), ("subscribe", str), ("id", str), ("rate", float), ("seconds", float),
        ("warm", float), ("models", int), ("shards", int), ("slo-ms", float), ("submit-size", int),
        ("seed", int),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=kind, required=True)
    options = parser.parse_args()
    be_prompt()  # it stands for many frontends, none of which waits for this machine
    print(json.dumps(Generator(options).run()))


if __name__ == "__main__":
    generate()
