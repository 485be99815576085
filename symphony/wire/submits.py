# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: annotation_typing=False, infer_types=True
"""SUBMIT messages read straight into columns: the bytes of a request are looked at once and copied once.

It knows the one form that MessagePack encoders give such a message, without priorities. Whatever looks
otherwise it leaves to the decoders that can tell what is wrong (:mod:`symphony.wire.joined`). Meant to be
compiled; run as Python it says the same, a thousand times slower.
"""

from __future__ import annotations

from array import array
from typing import Any, Final

import numpy as np

from . import loads

ROW = 0x98
"""Starts an array of eight fields."""
NIL = 0xC0
KIND = 1
FORM = 1
"""SUBMIT and VERSION of :mod:`symphony.wire.framing`, which the tests compare."""
MOST = 65_536
"""MAX_REQUESTS there."""
SMALLEST: Final = 4_096


class Submits:
    """Reads messages into columns that it keeps, and that grow to what the most requests needed so far.

    Memory: 28 bytes per request of the most that were read at once.
    """

    def __init__(self) -> None:
        self.at = 0
        self.odd = 0
        self.room = 0
        self.model: Any = array("I")
        self.deadline: Any = array("q")
        self.key: Any = array("Q")
        self.out: Any = array("Q")
        self._views: tuple[Any, ...] = ()
        self._grow(SMALLEST)

    def read(self, frames: list[bytes], incarnation: int, counts: Any) -> int:
        """Read all messages; how many requests they hold, or −1 if one of them is not of the usual form.

        Args:
            frames: the messages.
            incarnation: that of the shard; a message for another one is not usual.
            counts: int64 by model number; the requests of each model below its length are added.
        """
        n = 0
        model = self.model
        deadline = self.deadline
        key = self.key
        for each in frames:
            frame = each
            size = len(frame)
            if size < 8 or frame[0] != ROW or frame[1] != KIND or frame[2] != FORM:
                return -1
            self.at = 3
            self.odd = 0
            meant = self._number(frame, size)
            slot = self._number(frame, size)
            models = self._binary(frame, size)
            model_at = self.at - models
            deadlines = self._binary(frame, size)
            deadline_at = self.at - deadlines
            keys = self._binary(frame, size)
            key_at = self.at - keys
            some = models >> 2
            if self.odd != 0 or meant != incarnation or models != 4 * some or some > MOST:
                return -1
            if deadlines != 8 * some or keys != 8 * some or self.at + 1 != size or frame[self.at] != NIL:
                return -1
            if n + some > self.room:
                self._grow(n + some)
                model = self.model
                deadline = self.deadline
                key = self.key
            for i in range(some):
                model[n + i] = loads.load32(frame, model_at + 4 * i)
            for i in range(some):
                deadline[n + i] = loads.load64s(frame, deadline_at + 8 * i)
            foreign = slot >> 16
            for i in range(some):
                ident = loads.load64(frame, key_at + 8 * i)
                foreign |= (ident >> 48) ^ slot
                key[n + i] = ident
            if foreign != 0:
                return -1
            n += some
        known = len(counts)
        for i in range(n):
            which = model[i]
            if which < known:
                counts[which] += 1
        return n

    def split(self, n: int, due: Any, otherwise: int, counts: Any) -> int:
        """Take out what is too late: of the requests read last, those with a deadline before ``due[model]``.

        Args:
            n: how many were read.
            due: int64 ns by model number.
            otherwise: ns, for models beyond its length.
            counts: int64, as long; the requests taken out are added by model.

        Returns:
            How many are left: :meth:`columns` has them in their order, :meth:`taken_out` the others' keys.
        """
        model = self.model
        deadline = self.deadline
        key = self.key
        out = self.out
        known = len(due)
        left = 0
        gone = 0
        for i in range(n):
            which = model[i]
            limit = otherwise
            if which < known:
                limit = due[which]
            if deadline[i] < limit:
                out[gone] = key[i]
                gone += 1
                if which < known:
                    counts[which] += 1
            else:
                model[left] = which
                deadline[left] = deadline[i]
                key[left] = key[i]
                left += 1
        return left

    def taken_out(self, n: int) -> Any:
        """Keys (uint64) of the n requests that the last :meth:`split` has taken out."""
        return np.array(self.out[:n], np.uint64)

    def columns(self, n: int) -> tuple[Any, Any, Any]:
        """Models (uint32), deadlines (int64, ns) and keys (uint64) of the last n requests read; they hold
        until the next :meth:`read`."""
        model, deadline, key = self._views
        return model[:n], deadline[:n], key[:n]

    def _number(self, frame: Any, size: int) -> int:
        """An unsigned integer; ``odd`` is set if there is none."""
        at = self.at
        if at >= size:
            self.odd = 1
            return 0
        first = frame[at]
        if first < 0x80:
            self.at = at + 1
            return int(first)
        if first < 0xCC or first > 0xCF:
            self.odd = 1
            return 0
        return self._big_endian(frame, size, 1 << (first - 0xCC))

    def _binary(self, frame: Any, size: int) -> int:
        """The length of a byte string, behind which ``at`` is then; ``odd`` is set if there is none."""
        at = self.at
        if at >= size:
            self.odd = 1
            return 0
        first = frame[at]
        if first < 0xC4 or first > 0xC6:
            self.odd = 1
            return 0
        length = self._big_endian(frame, size, 1 << (first - 0xC4))
        if length > size - self.at:
            self.odd = 1
            return 0
        self.at += length
        return length

    def _big_endian(self, frame: Any, size: int, width: int) -> int:
        """The number in the ``width`` bytes after the next one."""
        at = self.at + 1
        if at + width > size:
            self.odd = 1
            return 0
        value = 0
        for i in range(width):
            value = value << 8 | frame[at + i]
        self.at = at + width
        return value

    def _grow(self, needed: int) -> None:
        """Room for so many requests, those that are there kept."""
        room = max(needed, 2 * self.room)
        self.room = room
        columns = []
        for typecode, old in (("I", self.model), ("q", self.deadline), ("Q", self.key)):
            column = array(typecode, bytes(array(typecode).itemsize * room))
            column[: len(old)] = array(typecode, memoryview(old).tobytes())
            columns.append(column)
        self._views = (
            np.frombuffer(columns[0], np.uint32),
            np.frombuffer(columns[1], np.int64),
            np.frombuffer(columns[2], np.uint64),
        )
        self.model = columns[0]
        self.deadline = columns[1]
        self.key = columns[2]
        self.out = array("Q", bytes(8 * room))
