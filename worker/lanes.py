"""Three lanes of work on a device: copies in, computing, copies out; and their twin on the CPU.

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

Lane = Literal["in", "compute", "out"]
LANES: Final[tuple[Lane, ...]] = ("in", "compute", "out")


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
        """For that event only."""
        mark.synchronize()

    def reached(self, mark: torch.cuda.Event) -> bool:
        """Asks the driver."""
        return bool(mark.query())  # type: ignore[no-untyped-call]

    def between_ns(self, first: torch.cuda.Event, second: torch.cuda.Event) -> int:
        """By the device's own clock."""
        return int(first.elapsed_time(second) * 1e6)

    def to_device(self, host: Tensor) -> Tensor:
        """Asynchronous, since ``host`` is page-locked."""
        return host.to(self._device, non_blocking=True)

    def used_on(self, tensor: Tensor, lane: Lane) -> None:
        """Tells the caching allocator."""
        tensor.record_stream(self._streams[lane])

    def buffer(self, size: int) -> Tensor:
        """Page-locked."""
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
