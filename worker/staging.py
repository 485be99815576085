"""Host buffers that the device copies from and to, used again and again.

Page-locking memory takes longer than most copies, so buffers are kept: sizes are powers of two, a buffer
is taken by one batch at a time and given back with the mark after which the device does not touch it any
more. How many there are follows from how many batches are under way; nothing is freed before the end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final

from torch import Tensor, dtype

LEAST_BYTES: Final = 4096


class Staging:
    """Thread-safe.

    Args:
        make: makes a buffer of so many bytes, ``uint8``.
        reached: whether a mark has been reached.
    """

    def __init__(self, make: Callable[[int], Tensor], reached: Callable[[Any], bool]) -> None:
        self._make = make
        self._reached = reached
        self._lock = threading.Lock()
        self._free: dict[int, list[Tensor]] = {}
        self._returned: list[tuple[Any, Tensor]] = []
        self.made = 0
        """Buffers so far."""

    def take(self, shape: tuple[int, ...], kind: dtype) -> tuple[Tensor, Tensor]:
        """``(buffer, view)``: the view has that shape and type; give the buffer back."""
        count = 1
        for length in shape:
            count *= length
        needed = count * kind.itemsize
        size = max(LEAST_BYTES, 1 << (needed - 1).bit_length() if needed else 0)
        with self._lock:
            self._collect()
            held = self._free.get(size)
            buffer = held.pop() if held else None
            self.made += buffer is None
        if buffer is None:
            buffer = self._make(size)
        return buffer, buffer[:needed].view(kind).view(shape)

    def give(self, buffer: Tensor, mark: Any) -> None:
        """It may be taken again once ``mark`` has been reached."""
        with self._lock:
            self._returned.append((mark, buffer))

    def _collect(self) -> None:
        waiting = []
        for mark, buffer in self._returned:
            if self._reached(mark):
                self._free.setdefault(buffer.numel(), []).append(buffer)
            else:
                waiting.append((mark, buffer))
        self._returned = waiting
