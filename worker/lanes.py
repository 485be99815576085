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
from typing import Any, Final, Literal, Protocol

import torch
from torch import Tensor

Lane = Literal["in", "compute", "out", "load"]
LANES: Final[tuple[Lane, ...]] = ("in", "compute", "out", "load")


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

    def capture(self, call: Callable[[], Any], pool: Any) -> tuple[Callable[[], Any], Any]:
        """Record what ``call`` does on the compute lane; returns what repeats it, and the memory pool that
        further recordings of the same model should use. What ``call`` returned is overwritten each time."""


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

    def capture(self, call: Callable[[], Any], pool: Any) -> tuple[Callable[[], Any], Any]:
        """Calls it again."""
        return call, pool


class CudaLanes:
    """Streams of one CUDA device."""

    staged = True

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._reference: tuple[torch.cuda.Event, int] | None = None
        self._streams = {lane: torch.cuda.Stream(device) for lane in LANES}  # type: ignore[no-untyped-call]

    def use(self, lane: Lane) -> AbstractContextManager[Any]:
        """Its stream is the current one."""
        return torch.cuda.stream(self._streams[lane])

    def mark(self, lane: Lane) -> torch.cuda.Event:
        """An event that keeps the time."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(self._streams[lane])
        return event

    def after(self, lane: Lane, mark: torch.cuda.Event) -> None:
        """The stream waits, this thread does not."""
        self._streams[lane].wait_event(mark)

    def wait(self, mark: torch.cuda.Event) -> None:
        """For that event only. One that had not been reached before tells how the two clocks compare."""
        was = self.reached(mark)
        mark.synchronize()
        if not was or self._reference is None:
            self._reference = mark, time.monotonic_ns()

    def reached(self, mark: torch.cuda.Event) -> bool:
        """Asks the driver."""
        return bool(mark.query())  # type: ignore[no-untyped-call]

    def between_ns(self, first: torch.cuda.Event, second: torch.cuda.Event) -> int:
        """By the device's own clock."""
        return int(first.elapsed_time(second) * 1e6)

    def time_of(self, mark: torch.cuda.Event) -> int:
        """From the last event that a thread has woken up for: this thread may come much later."""
        if self._reference is None:
            return time.monotonic_ns()
        event, when = self._reference
        return when + self.between_ns(event, mark)

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

    def capture(self, call: Callable[[], Any], pool: Any) -> tuple[Callable[[], Any], Any]:
        """A CUDA graph. Other threads may use the device meanwhile, hence ``thread_local``."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(
            graph, pool=pool, stream=self._streams["compute"], capture_error_mode="thread_local"
        ):
            result = call()

        def again() -> Any:
            graph.replay()
            return result

        return again, graph.pool() if pool is None else pool
