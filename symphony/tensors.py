"""Tensors between NumPy and the wire: names of types, raw frames, and checks against a model's inputs.

A tensor on the wire is ``[dtype, shape]`` in a header and one raw frame: the elements in C order,
little-endian. ``BYTES`` elements (text as UTF-8) each start with their length as a little-endian
uint32, as in the binary extension of the Open Inference Protocol. In NumPy they are arrays of
``object`` that hold ``bytes``.

Everything here raises :class:`~symphony.status.InvalidRequest` and nothing else, whatever it is
given; the text names the tensor and says what was expected.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from symphony.bus import MAX_MESSAGE
from symphony.control import TensorSpec
from symphony.status import InvalidRequest

Array = npt.NDArray[Any]
Buffer = bytes | bytearray | memoryview

BYTES: Final = "BYTES"
DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
"""NumPy types by their name on the wire; ``BYTES`` is not among them."""

_NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}
_LENGTH: Final = struct.Struct("<I")
_MOST_ELEMENTS: Final = 1 << 40


class Encoded(NamedTuple):
    """The inputs of one request as they travel: one spec ``[dtype, shape]`` and one frame per name."""

    names: tuple[str, ...]
    specs: list[list[Any]]
    frames: list[Any]


def dtype_name(array: Array) -> str:
    """The wire's name of an array's type (``FP32``, ``BYTES`` …)."""
    if array.dtype.kind in "OSU":
        return BYTES
    name = _NAMES.get(array.dtype.newbyteorder("<"))
    if name is None:
        raise InvalidRequest(
            f"arrays of {array.dtype} cannot be sent; use one of {', '.join(DTYPES)} or BYTES"
        )
    return name


def as_array(value: Any, dtype: str) -> Array:
    """``value`` as an array that has the wire type ``dtype``.

    An array must have that type already: a silent cast would hide a mistake. Text, bytes, Python
    numbers and lists have none of their own and are given it, if nothing is lost.
    """
    if isinstance(value, (str, bytes, bytearray)):
        array = np.empty((), dtype=object)
        array[()] = bytes(value) if isinstance(value, bytearray) else value
        return array
    if isinstance(value, (np.ndarray, np.generic)):
        return np.asarray(value)
    try:
        array = np.asarray(value)
    except Exception as error:  # noqa: BLE001 - objects make arrays of themselves, with errors of their own
        raise InvalidRequest(f"no array can be made of it: {error}") from None
    target = DTYPES.get(dtype)
    if target is None or array.dtype.kind in "OSU":
        return array
    integers = array.dtype.kind in "iu" and target.kind in "iu"
    if not integers and not np.can_cast(array.dtype, target, "same_kind"):
        return array
    with np.errstate(over="ignore"):
        cast = array.astype(target)
    kept = cast == array if integers else np.isfinite(cast) == np.isfinite(array)
    if not np.all(kept):
        raise InvalidRequest(f"a value does not fit in {dtype}")
    return cast


def encode(array: Array) -> tuple[str, list[int], Any]:
    """``(dtype, shape, frame)``.

    The frame is a view of the array where its layout allows, so the array must not change until the
    request is done; it may be read-only.
    """
    name = dtype_name(array)
    if name == BYTES:
        return name, list(array.shape), _encode_bytes(array)
    if array.nbytes == 0:
        return name, list(array.shape), b""
    ordered = np.ascontiguousarray(array, dtype=DTYPES[name])
    # A flat view of bytes: libzmq takes the memory as it is, and len() of it is its size.
    return name, list(array.shape), ordered.reshape(-1).view(np.uint8).data


def _encode_bytes(array: Array) -> bytes:
    parts: list[bytes] = []
    for item in array.reshape(-1).tolist():
        if isinstance(item, str):
            try:
                item = item.encode()
            except UnicodeEncodeError as error:
                raise InvalidRequest(f"a text is no valid Unicode: {error.reason}") from None
        elif not isinstance(item, bytes):
            raise InvalidRequest(f"a BYTES element must be str or bytes, not {type(item).__name__}")
        parts.append(_LENGTH.pack(len(item)))
        parts.append(item)
    return b"".join(parts)


def decode(dtype: str, shape: Sequence[int], frame: Buffer) -> Array:
    """The array of ``shape``; numeric ones are read-only views of the frame, BYTES are object arrays.

    Raises:
        InvalidRequest: the type is unknown, or the frame does not hold exactly that many elements.
    """
    return Rows(dtype, shape, frame, 1).row(0, copy=False)


class Rows:
    """``rows`` stacked items of one shape in one frame, checked when made, taken apart when asked.

    Raises:
        InvalidRequest: the frame does not hold exactly ``rows`` items of that type and shape.
    """

    __slots__ = ("_array", "_frame", "_spans", "rows", "shape")

    def __init__(self, dtype: str, shape: Sequence[int], frame: Buffer, rows: int) -> None:
        self.shape = tuple(shape)
        self.rows = rows
        self._frame = memoryview(frame)
        self._array: Array | None = None
        self._spans: list[tuple[int, int]] = []
        count, extent = rows, 1
        for dimension in self.shape:
            count *= dimension
            extent *= max(1, dimension)
        if count < 0 or extent >= _MOST_ELEMENTS:
            raise InvalidRequest(f"shape {list(self.shape)} is out of range")
        if dtype == BYTES:
            self._spans = _spans(self._frame, count)
            return
        target = DTYPES.get(dtype)
        if target is None:
            raise InvalidRequest(f"unknown type {dtype[:40]!r}")
        if count * target.itemsize != self._frame.nbytes:
            raise InvalidRequest(
                f"{self._frame.nbytes} bytes cannot be {rows} x {dtype} {list(self.shape)}, "
                f"which takes {count * target.itemsize}"
            )
        self._array = np.frombuffer(self._frame, dtype=target).reshape((rows, *self.shape))

    def row(self, index: int, copy: bool = True) -> Array:
        """Item ``index``; an array of its own unless ``copy`` is False."""
        if self._array is not None:
            row: Array = np.asarray(self._array[index])
            return row.copy() if copy else row
        size = len(self._spans) // self.rows
        out = np.empty(size, dtype=object)
        for i, (start, stop) in enumerate(self._spans[index * size : (index + 1) * size]):
            out[i] = bytes(self._frame[start:stop])
        return out.reshape(self.shape)


def _spans(frame: memoryview, count: int) -> list[tuple[int, int]]:
    """Where each BYTES element lies; the lengths are not to be trusted."""
    if count * _LENGTH.size > frame.nbytes:
        raise InvalidRequest(f"{frame.nbytes} bytes cannot hold {count} BYTES elements")
    spans: list[tuple[int, int]] = []
    at = 0
    for _ in range(count):
        if at + _LENGTH.size > frame.nbytes:
            raise InvalidRequest("a BYTES tensor ends before its last element")
        (length,) = _LENGTH.unpack_from(frame, at)
        at += _LENGTH.size
        if at + length > frame.nbytes:
            raise InvalidRequest("a BYTES element is longer than its tensor")
        spans.append((at, at + length))
        at += length
    if at != frame.nbytes:
        raise InvalidRequest(f"{frame.nbytes - at} bytes after the last BYTES element")
    return spans


def check(spec: TensorSpec, dtype: str, shape: Sequence[int]) -> None:
    """Raises :class:`InvalidRequest` unless a tensor's type and shape are those of ``spec``."""
    if dtype != spec.dtype:
        raise InvalidRequest(f"tensor {spec.name!r} must be {spec.dtype}, not {dtype}")
    wanted = spec.shape
    if len(shape) != len(wanted) or any(w not in (-1, s) for w, s in zip(wanted, shape, strict=True)):
        raise InvalidRequest(
            f"tensor {spec.name!r} must have shape {wanted}{_any(wanted)}, not {list(shape)} "
            "(one request is one item: there is no batch dimension)"
        )


def _any(shape: Sequence[int]) -> str:
    return " (-1: any length)" if -1 in shape else ""


def check_names(specs: Sequence[TensorSpec], names: Sequence[str]) -> None:
    """Raises :class:`InvalidRequest` unless ``names`` are exactly the names of ``specs``, in any order."""
    wanted = [spec.name for spec in specs]
    takes = f"the model takes {', '.join(wanted) if wanted else 'no tensors'}"
    for name in names:
        if name not in wanted:
            raise InvalidRequest(f"unknown tensor {str(name)[:80]!r}; {takes}")
    for name in wanted:
        if name not in names:
            raise InvalidRequest(f"tensor {name!r} is missing; {takes}")
    if len(names) != len(wanted):
        raise InvalidRequest(f"a tensor is given twice; {takes}")


def encode_inputs(specs: Sequence[TensorSpec], inputs: Mapping[str, Any]) -> Encoded:
    """The inputs of one request, checked against the model's and in the order of the model's.

    Raises:
        InvalidRequest: a wrong name, type or shape, or a tensor larger than one message may be.
    """
    if not isinstance(inputs, Mapping):
        raise InvalidRequest(f"inputs must map tensor names to arrays, not be a {type(inputs).__name__}")
    check_names(specs, list(inputs))
    wire_specs: list[list[Any]] = []
    frames: list[Any] = []
    for spec in specs:
        try:
            dtype, shape, frame = encode(as_array(inputs[spec.name], spec.dtype))
        except InvalidRequest as error:
            raise InvalidRequest(f"tensor {spec.name!r}: {error}") from None
        check(spec, dtype, shape)
        if len(frame) > MAX_MESSAGE:
            raise InvalidRequest(
                f"tensor {spec.name!r} has {len(frame)} bytes; at most {MAX_MESSAGE} can be sent"
            )
        wire_specs.append([dtype, shape])
        frames.append(frame)
    return Encoded(tuple(spec.name for spec in specs), wire_specs, frames)
