"""Lanes of work on a device: copies in, computing, copies out, loading; and their twin on the CPU.

On CUDA each lane is a stream of its own, so that the inputs of batch k + 1 and the outputs of batch k - 1
travel while batch k computes; nothing ever waits on the default stream. A *mark* is a point in a lane (a
CUDA event). On the CPU work happens when it is called and a mark is the time at which it was set: the same
code runs over both, and tests see its order.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

Lane = Literal["in", "compute", "out", "load"]
LANES: Final[tuple[Lane, ...]] = ("in", "compute", "out", "load")
COMPARE_NS: Final = 1_000_000_000
"""How old a comparison of the device's clock with this machine's may be."""
COMPARISONS: Final = 4


class Lanes(Protocol):
    """Everything that differs between a CPU and a CUDA device for one batch's way."""

    staged: bool
    """Whether tensors travel through page-locked buffers; else they are used where they are."""

    def use(self, lane: Lane) -> AbstractContextManager[Any]:
        """What is called inside goes to that lane."""

    def mark(self, lane: Lane) -> Any:
        """The point that the lane has been given work up to."""

    def after(self, lane: Lane, mark: Any) -> None:
        """The lane goes on only when ``mark`` has been reached."""

    def wait(self, mark: Any) -> None:
        """Block this thread until ``mark`` has been reached."""

    def reached(self, mark: Any) -> bool:
        """Whether it has been."""

    def between_ns(self, first: Any, second: Any) -> int:
        """Time from one mark to another, both reached."""

    def time_of(self, mark: Any) -> int:
        """When it was reached, monotonic ns; after a :meth:`wait` for it or a later one."""

    def to_device(self, host: Tensor) -> Tensor:
        """Start a copy on the lane in use."""

    def used_on(self, tensor: Tensor, lane: Lane) -> None:
        """Another lane than the one it was made on reads it: its memory is not to be given away sooner."""

    def buffer(self, size: int) -> Tensor:
        """``size`` bytes of host memory that the device can copy from and to by itself."""

    def capture(self, call: Callable[[], Any], held: Any) -> tuple[Callable[[], Any], Any]:
        """Record what ``call`` does, after it has run twice, which sets up what must not be recorded.

        Returns what repeats it on the lane in use, and what further recordings of the same copy of a model
        are to be given as ``held`` (None at first). What ``call`` returned is overwritten each time.
        """


class HostLanes:
    """The CPU: no lanes, only order. ``staged`` True sends tensors through buffers all the same."""

    def __init__(self, staged: bool = False) -> None:
        self.staged = staged

    def use(self, lane: Lane) -> AbstractContextManager[Any]:
        """Nothing to change."""
        return nullcontext()

    def mark(self, lane: Lane) -> int:
        """Now."""
        return time.monotonic_ns()

    def after(self, lane: Lane, mark: Any) -> None:
        """It has been reached."""

    def wait(self, mark: Any) -> None:
        """It has been reached."""

    def reached(self, mark: Any) -> bool:
        """It has been."""
        return True

    def between_ns(self, first: int, second: int) -> int:
        """Of the two times."""
        return second - first

    def time_of(self, mark: int) -> int:
        """It is one."""
        return mark

    def to_device(self, host: Tensor) -> Tensor:
        """A copy, since the buffer is used again."""
        return host.clone() if self.staged else host

    def used_on(self, tensor: Tensor, lane: Lane) -> None:
        """Memory is freed when nobody has it any more."""

    def buffer(self, size: int) -> Tensor:
        """Ordinary memory."""
        return torch.empty(size, dtype=torch.uint8)

    def capture(self, call: Callable[[], Any], held: Any) -> tuple[Callable[[], Any], Any]:
        """Calls it again."""
        return call, held


class Reference(NamedTuple):
    """An event of the device's clock, and when it was by this machine's (monotonic ns)."""

    event: torch.cuda.Event
    when: int


class CudaLanes:
    """Streams of one CUDA device."""

    staged = True

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._reference: Reference | None = None
        self._streams = {lane: self._stream() for lane in LANES}
        self._clock = self._stream()
        """Never has anything to do: an event in it happens at once."""

    def _stream(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    def _record(self, stream: torch.cuda.Stream) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(stream)
        return event

    def use(self, lane: Lane) -> AbstractContextManager[Any]:
        """Its stream is the current one."""
        return torch.cuda.stream(self._streams[lane])

    def mark(self, lane: Lane) -> torch.cuda.Event:
        """An event that keeps the time."""
        return self._record(self._streams[lane])

    def after(self, lane: Lane, mark: torch.cuda.Event) -> None:
        """The stream waits, this thread does not."""
        self._streams[lane].wait_event(mark)

    def wait(self, mark: torch.cuda.Event) -> None:
        """For that event only."""
        mark.synchronize()

    def reached(self, mark: torch.cuda.Event) -> bool:
        """Asks the driver."""
        return bool(mark.query())  # type: ignore[no-untyped-call]

    def between_ns(self, first: torch.cuda.Event, second: torch.cuda.Event) -> int:
        """By the device's own clock."""
        return int(first.elapsed_time(second) * 1e6)

    def time_of(self, mark: torch.cuda.Event) -> int:
        """By how far it lies from an event whose time is known: this thread may look much later. The clocks
        are compared again every second: they drift, and the distance is a float of 24 bits."""
        now = time.monotonic_ns()
        if self._reference is None or now - self._reference.when > COMPARE_NS:
            self._reference = self._compare()
        return self._reference.when + self.between_ns(self._reference.event, mark)

    def _compare(self) -> Reference:
        """The event that a thread waited for the shortest of a few times; it was in the middle of that."""
        best: Reference | None = None
        shortest = 0
        for _ in range(COMPARISONS):
            before = time.monotonic_ns()
            event = self._record(self._clock)
            event.synchronize()
            took = time.monotonic_ns() - before
            if best is None or took < shortest:
                best, shortest = Reference(event, before + took // 2), took
        assert best is not None
        return best

    def to_device(self, host: Tensor) -> Tensor:
        """Asynchronous, since ``host`` is page-locked."""
        return host.to(self._device, non_blocking=True)

    def used_on(self, tensor: Tensor, lane: Lane) -> None:
        """Tells the caching allocator."""
        tensor.record_stream(self._streams[lane])

    def buffer(self, size: int) -> Tensor:
        """Page-locked."""
        with torch.cuda.device(self._device):  # or the first GPU would get a context of this process, too
            return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def capture(self, call: Callable[[], Any], held: Any) -> tuple[Callable[[], Any], Any]:
        """A CUDA graph. Other threads may use the device meanwhile, hence ``thread_local``.

        Graphs of one copy share a pool of memory: they are replayed one after the other, and none needs what
        another has left there. They are captured on a stream of the copy's own, on which the runs before
        have set up cuBLAS: its workspace belongs to the stream, and a graph that goes takes that of the
        stream it was captured on away from all others (pytorch/pytorch#193402).
        """
        stream, pool = held or (self._stream(), None)
        stream.wait_stream(self._streams["compute"])
        with torch.cuda.stream(stream):
            for _ in range(2):
                call()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            result = call()
        self._streams["compute"].wait_stream(stream)

        def again() -> Any:
            graph.replay()
            return result

        return again, (stream, graph.pool() if pool is None else pool)
