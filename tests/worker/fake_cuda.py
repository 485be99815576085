"""As much of ``torch.cuda`` as :class:`worker.lanes.CudaLanes` uses, on the CPU, with CUDA's rules.

Work happens at once, but an event counts as reached only when somebody has waited for it, or for a later one
in its stream, or for one in a stream that was told to wait for it. Elapsed time between events that are not
reached is an error, as on a GPU. Everything is written down in :attr:`FakeCuda.log`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch


class Stream:
    """Events in order; ``behind``: events of others that what follows waits for."""

    def __init__(self, cuda: FakeCuda, number: int) -> None:
        self.cuda, self.number = cuda, number
        self.events: list[Event] = []
        self.behind: list[Event] = []

    def __repr__(self) -> str:
        return f"stream {self.number}"

    def wait_event(self, event: Event) -> None:
        self.cuda.log.append((self, "waits", event))
        self.behind.append(event)

    def wait_stream(self, other: Stream) -> None:
        event = Event(self.cuda)
        event.record(other)
        self.wait_event(event)


class Event:
    """A point in a stream at a time of the fake device's clock, which advances with every event."""

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda
        self.done = False
        self.before: list[Event] = []
        self.at = 0.0

    def record(self, stream: Stream) -> None:
        self.cuda.now_ms += 0.5
        self.at = self.cuda.now_ms
        self.before = [*stream.events[-1:], *stream.behind]
        stream.events.append(self)
        self.cuda.log.append((stream, "records", self))

    def query(self) -> bool:
        return self.done

    def synchronize(self) -> None:
        self.cuda.log.append((None, "host waits", self))
        waiting = [self]
        while waiting:
            event = waiting.pop()
            if not event.done:
                event.done = True
                waiting += event.before

    def elapsed_time(self, other: Event) -> float:
        assert self.done, "elapsed_time of an event that has not happened"
        assert other.done, "elapsed_time until an event that has not happened"
        return other.at - self.at


class FakeCuda:
    """Install with :func:`installed`."""

    def __init__(self) -> None:
        self.log: list[tuple[Any, str, Any]] = []
        self.now_ms = 0.0
        self.streams: list[Stream] = []
        self.default = Stream(self, -1)
        self.current = self.default
        self.graphs: list[Any] = []
        self.pinned = 0

    def stream(self, device: Any) -> Stream:
        self.streams.append(Stream(self, len(self.streams)))
        return self.streams[-1]

    @contextmanager
    def use(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def graph(self) -> Any:
        cuda = self

        class Graph:
            captured_on: Stream | None = None

            def pool(self) -> str:
                return f"pool of {self.captured_on}"

            def replay(self) -> None:
                cuda.log.append((cuda.current, "replays", self))

        return Graph()

    @contextmanager
    def capture(self, graph: Any, *, pool: Any, stream: Stream, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local"
        ran = [entry for entry in self.log if entry[0] is stream and entry[1] == "runs"]
        assert len(ran) >= 2, "a model must have run on the stream that it is captured on"
        graph.captured_on = stream
        self.graphs.append((graph, pool))
        with self.use(stream):
            yield

    def moved(self, tensor: torch.Tensor, stream: Stream) -> None:
        self.log.append((stream, "keeps", tensor.data_ptr()))

    def empty(self, *args: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        self.pinned += pin_memory
        return torch.zeros(*args, **options)


@contextmanager
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    cuda = FakeCuda()
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "Stream", cuda.stream)
        patch.setattr(torch.cuda, "Event", lambda enable_timing: Event(cuda))
        patch.setattr(torch.cuda, "stream", cuda.use)
        patch.setattr(torch.cuda, "device", lambda device: cuda.use(cuda.current))
        patch.setattr(torch.cuda, "CUDAGraph", cuda.graph)
        patch.setattr(torch.cuda, "graph", cuda.capture)
        patch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: cuda.moved(tensor, stream))
        patch.setattr("worker.lanes.torch.empty", cuda.empty)
        yield cuda
