"""What all hot messages have in common: kinds, limits, and how fields and columns are packed and checked."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Final

import msgpack
import numpy as np
import numpy.typing as npt

VERSION: Final = 1

SUBMIT: Final = 1
PLAN: Final = 2
FETCH: Final = 3
TENSORS: Final = 4
RESULT: Final = 5
ANSWER: Final = 6
DONE: Final = 7
RESULTS: Final = 8

MAX_REQUESTS: Final = 65_536
"""Most requests in one message; more is malformed."""

HEAD_BYTES: Final = 4_096
"""Of a message of columns, looked at first for the fields before them."""
SMALL_COLUMN: Final = 16_384
"""Bytes; larger columns are views of the message, smaller ones copies, whose entries are aligned."""
LONGEST_KEPT: Final = 65_536
"""Bytes of a message's beginning that are remembered for the next."""

MAX_NAME: Final = 256
"""Characters of a name."""

SLOT_SHIFT: Final = 48
SEQUENCE_MASK: Final = (1 << SLOT_SHIFT) - 1

MAX_U64: Final = (1 << 64) - 1
MAX_I64: Final = (1 << 63) - 1

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
U32 = npt.NDArray[np.uint32]
U8 = npt.NDArray[np.uint8]
Buffer = bytes | memoryview

U64_TYPE: Final = np.dtype("<u8")
I64_TYPE: Final = np.dtype("<i8")
U32_TYPE: Final = np.dtype("<u4")
U8_TYPE: Final = np.dtype("u1")


class WireError(ValueError):
    """A message that cannot be understood. ``reason`` is a short word to count by."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


def slot_of(key: int) -> int:
    """The frontend slot in a request key."""
    return key >> SLOT_SHIFT


def pack(fields: Sequence[Any]) -> bytes:
    """One frame."""
    packed: bytes = msgpack.packb(fields, use_bin_type=True)
    return packed


def column(values: npt.ArrayLike, dtype: np.dtype[Any]) -> bytes:
    """Entries as they travel."""
    return np.ascontiguousarray(values, dtype=dtype).tobytes()


def pack_columns(
    head: Sequence[Any], names: Sequence[str], columns: Sequence[tuple[npt.ArrayLike, np.dtype[Any]]]
) -> bytes:
    """One frame, the very bytes of :func:`pack` of the fields in ``head``, ``names`` and these columns.

    Every column is copied once, from where it is into the frame. There are at most 15 fields.
    """
    packed: bytes = msgpack.packb(head, use_bin_type=True)
    pieces: list[Any] = [bytes((packed[0] + 1 + len(columns),)), packed[1:], _packed_names(tuple(names))]
    for values, dtype in columns:
        entries = np.ascontiguousarray(values, dtype=dtype)
        pieces += (_bin_head(entries.nbytes), entries.data)
    return b"".join(pieces)


@functools.lru_cache(maxsize=8)
def _packed_names(names: tuple[str, ...]) -> bytes:
    """Most messages have the same names as the one before."""
    packed: bytes = msgpack.packb(names)
    return packed


def _bin_head(length: int) -> bytes:
    """What MessagePack puts before a binary of that length."""
    if length < 1 << 8:
        return b"\xc4" + length.to_bytes(1, "big")
    return b"\xc5" + length.to_bytes(2, "big") if length < 1 << 16 else b"\xc6" + length.to_bytes(4, "big")


def kind_of(frame: Buffer) -> int:
    """The kind of a hot message, read from its second byte without decoding the rest.

    Raises:
        WireError: ``malformed`` if the frame cannot start a hot message.
    """
    if len(frame) < 4 or not (0x90 <= frame[0] <= 0x9F or frame[0] == 0xDC):
        raise WireError("malformed", "not an array")
    return int(frame[1] if frame[0] != 0xDC else frame[3])


def shown(value: Any) -> str:
    """A decoded value for an error's text: short, and never an error itself.

    ``repr`` of lists that are nested a thousand deep, which a kilobyte suffices for, is one.
    """
    return repr(value)[:40] if isinstance(value, int | float | str | bytes | None) else type(value).__name__


def unpack(frame: Buffer, kind: int, length: int) -> list[Any]:
    """The fields of a message of that kind and number of fields, this version's.

    Raises:
        WireError: it is none.
    """
    try:
        fields = msgpack.unpackb(frame, raw=False, strict_map_key=True, use_list=True)
    except Exception as error:  # noqa: BLE001 - msgpack raises many types on hostile bytes
        raise WireError("malformed", type(error).__name__) from None
    if not isinstance(fields, list) or len(fields) < 2:
        raise WireError("malformed", "not an array")
    _check_head(fields, len(fields), kind, length)
    return fields


def unpack_columns(frame: Buffer, kind: int, heads: int, columns: int) -> list[Any]:
    """As :func:`unpack`, for messages whose last fields are columns: large ones are views of the frame.

    Args:
        frame: the message.
        kind: what it should be.
        heads: number of the fields before the columns; the last of them is a list of names, which is checked
            and must not be changed.
        columns: their number.

    Raises:
        WireError: it is no such message.
    """
    view, size = memoryview(frame).toreadonly(), len(frame)
    start, fields = _LAST.get(kind, (b"", []))
    if not start or bytes(view[: len(start)]) != start:  # most begin as the one before
        at, fields = _unpack_head(view, kind, heads, columns)
        start = bytes(view[:at])
        if at <= LONGEST_KEPT:
            _LAST[kind] = start, fields
    fields, at = list(fields), len(start)
    for _ in range(columns):
        code = view[at] if at < size else 0
        begin = at + 1 + (1 << (code - 0xC4)) if 0xC4 <= code <= 0xC6 else size + 1
        at = begin + int.from_bytes(view[at + 1 : begin], "big")
        if at > size:
            raise WireError("malformed", "a column is no binary or cut off")
        # Arithmetic on columns that begin anywhere is slower: small ones are worth their copy.
        fields.append(bytes(view[begin:at]) if at - begin <= SMALL_COLUMN else view[begin:at])
    if at != size:
        raise WireError("malformed", "more than one message")
    return fields


_LAST: dict[int, tuple[bytes, list[Any]]] = {}
"""By kind, how the last message began: the bytes before its columns, and their fields."""


def _unpack_head(view: memoryview, kind: int, heads: int, columns: int) -> tuple[int, list[Any]]:
    """Where the columns begin, and the fields before them."""
    size, some = len(view), HEAD_BYTES
    fields: list[Any] | None = None
    while fields is None:
        reader = msgpack.Unpacker(
            raw=False, strict_map_key=True, read_size=some, max_buffer_size=max(some, size)
        )
        reader.feed(view[:some])
        try:
            length = reader.read_array_header()
            fields = [reader.unpack() for _ in range(min(length, heads))]
        except msgpack.OutOfData:
            if some >= size:
                raise WireError("malformed", "cut off") from None
            some *= 16
        except Exception as error:  # noqa: BLE001 - msgpack raises many types on hostile bytes
            raise WireError("malformed", type(error).__name__) from None
    if length < 2:
        raise WireError("malformed", "not an array")
    _check_head(fields, length, kind, heads + columns)
    fields[-1] = name_list(fields[-1])
    return reader.tell(), fields


def _check_head(fields: list[Any], length: int, kind: int, expected: int) -> None:
    if fields[0] != kind:
        raise WireError("unexpected-kind", shown(fields[0]))
    if fields[1] != VERSION:
        raise WireError("wrong-version", shown(fields[1]))
    if length != expected:
        raise WireError("malformed", f"{length} fields instead of {expected}")


def read(value: Any, dtype: np.dtype[Any], count: int | None = None) -> Any:
    """A column over the field's bytes, of ``count`` entries if that is given.

    Raises:
        WireError: no column, too long, or of another length.
    """
    if not isinstance(value, bytes | memoryview) or len(value) % dtype.itemsize:
        raise WireError("malformed", "a column is no binary of whole entries")
    found = np.frombuffer(value, dtype=dtype)
    if found.size > MAX_REQUESTS:
        raise WireError("oversized", f"{found.size} entries")
    if count is not None and found.size != count:
        raise WireError("ragged", f"{found.size} entries instead of {count}")
    return found


def integer(value: Any, low: int, high: int) -> int:
    """An integer field from ``low`` to ``high``, or :class:`WireError`."""
    if type(value) is not int or not low <= value <= high:
        raise WireError("malformed", "an integer is missing or out of range")
    return value


def text(value: Any) -> str:
    """A name, or :class:`WireError`."""
    if not isinstance(value, str) or len(value) > MAX_NAME:
        raise WireError("malformed", "a name is no short string")
    return value


def name_list(value: Any) -> list[str]:
    """A list of names, or :class:`WireError`."""
    if not isinstance(value, list):
        raise WireError("malformed", "no list of names")
    # Most lists are good: looked at as a whole, and one by one only for the error.
    if set(map(type, value)) <= {str} and max(map(len, value), default=0) <= MAX_NAME:
        return value
    return [text(name) for name in value]


def check_spec(spec: Any, length: int) -> None:
    """``[dtype, shape]`` or ``[name, dtype, shape]``, or :class:`WireError`."""
    ok = isinstance(spec, list) and len(spec) == length and isinstance(spec[-1], list) and len(spec[-1]) <= 8
    if not ok or not all(type(d) is int and 0 <= d < 1 << 31 for d in spec[-1]):
        raise WireError("malformed", "a tensor's dtype and shape")
    for name in spec[:-1]:
        text(name)
