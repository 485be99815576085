"""Every message on the data path: fields, units, version, encode and decode.

A hot message is one MessagePack array, ``[kind, version, ...]``, whose columns are packed
little-endian binaries, so that a receiver reads them with ``numpy.frombuffer`` (or a C cast) and
never loops over requests. Tensors follow as raw frames. ``docs/wire-protocol.md`` describes the
same messages for writers in other languages; control messages (maps) are in
:mod:`symphony.control`.

Units: times are int64 nanoseconds of cluster time; a request key is uint64, the frontend's slot in
the top 16 bits and that frontend's sequence number, which only rises, in the low 48.

Every ``decode_*`` raises :class:`WireError` and nothing else, whatever bytes it is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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

MAX_REQUESTS: Final = 65_536
"""Most requests in one message; more is malformed."""

SLOT_SHIFT: Final = 48
SEQUENCE_MASK: Final = (1 << SLOT_SHIFT) - 1

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
U32 = npt.NDArray[np.uint32]
U8 = npt.NDArray[np.uint8]
Buffer = bytes | memoryview

_U64: Final = np.dtype("<u8")
_I64: Final = np.dtype("<i8")
_U32: Final = np.dtype("<u4")
_U8: Final = np.dtype("u1")


class WireError(ValueError):
    """A message that cannot be understood. ``reason`` is a short word to count by."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


def slot_of(key: int) -> int:
    """The frontend slot in a request key."""
    return key >> SLOT_SHIFT


@dataclass(slots=True, frozen=True)
class Submit:
    """Frontend → scheduler: requests to schedule; all columns have the same length.

    ``incarnation`` is that of the shard whose model table the indexes in ``model`` refer to: a
    restarted shard refuses indexes that were meant for its predecessor.
    """

    incarnation: int
    slot: int
    model: U32
    deadline: I64
    key: U64
    priority: U8 | None = None


@dataclass(slots=True, frozen=True)
class Plan:
    """Scheduler → worker: batches to run. ``key``/``deadline`` hold ``size[i]`` entries for batch i."""

    shard: str
    models: list[str]
    batch: U64
    gpu: U32
    model: U32
    exec_at: I64
    size: U32
    key: U64
    deadline: I64


@dataclass(slots=True, frozen=True)
class Tensors:
    """Frontend → worker: the inputs of the requests that are still wanted.

    ``specs`` holds, per key and then per input name, ``[dtype, shape]``; one frame each follows.
    """

    fetch: int
    key: U64
    names: list[str]
    specs: list[list[Any]]


@dataclass(slots=True, frozen=True)
class Result:
    """Worker → frontend: what became of one frontend's part of a batch.

    ``size`` is that of the whole batch; ``outputs`` holds ``[name, dtype, item_shape]``; one frame
    each follows, rows stacked in the order of those keys whose status is OK.
    """

    worker: str
    model: str
    batch: int
    gpu: int
    size: int
    started: int
    finished: int
    key: U64
    status: U8
    outputs: list[list[Any]]
    error: str | None = None


@dataclass(slots=True, frozen=True)
class Answer:
    """Scheduler → frontend: requests that will have no result, with their status and no tensors."""

    source: str
    key: U64
    status: U8
    detail: str | None = None


@dataclass(slots=True, frozen=True)
class Done:
    """Worker → scheduler and ops: completion timings, one entry per batch.

    ``received`` is when the plan arrived, ``exec_at`` what the scheduler predicted for the start,
    ``failed`` how many requests of the batch did not end as OK. ``sequence`` counts this worker's
    messages, so that a reader notices a loss.
    """

    worker: str
    sequence: int
    models: list[str]
    batch: U64
    gpu: U32
    model: U32
    size: U32
    failed: U32
    received: I64
    exec_at: I64
    started: I64
    finished: I64


def _pack(fields: Sequence[Any]) -> bytes:
    packed: bytes = msgpack.packb(fields, use_bin_type=True)
    return packed


def _column(values: npt.ArrayLike, dtype: np.dtype[Any]) -> bytes:
    return np.ascontiguousarray(values, dtype=dtype).tobytes()


def kind_of(frame: Buffer) -> int:
    """The kind of a hot message, read from its second byte without decoding the rest.

    Raises:
        WireError: ``malformed`` if the frame cannot start a hot message.
    """
    if len(frame) < 4 or not (0x90 <= frame[0] <= 0x9F or frame[0] == 0xDC):
        raise WireError("malformed", "not an array")
    return int(frame[1] if frame[0] != 0xDC else frame[3])


def _unpack(frame: Buffer, kind: int, length: int) -> list[Any]:
    try:
        fields = msgpack.unpackb(frame, raw=False, strict_map_key=True, use_list=True)
    except Exception as error:  # noqa: BLE001 - msgpack raises many types on hostile bytes
        raise WireError("malformed", type(error).__name__) from None
    if not isinstance(fields, list) or len(fields) < 2:
        raise WireError("malformed", "not an array")
    if fields[0] != kind:
        raise WireError("unexpected-kind", repr(fields[0])[:40])
    if fields[1] != VERSION:
        raise WireError("wrong-version", repr(fields[1])[:40])
    if len(fields) != length:
        raise WireError("malformed", f"{len(fields)} fields instead of {length}")
    return fields


def _read(value: Any, dtype: np.dtype[Any], count: int | None = None) -> Any:
    if not isinstance(value, bytes) or len(value) % dtype.itemsize:
        raise WireError("malformed", "a column is no binary of whole entries")
    column = np.frombuffer(value, dtype=dtype)
    if column.size > MAX_REQUESTS:
        raise WireError("oversized", f"{column.size} entries")
    if count is not None and column.size != count:
        raise WireError("ragged", f"{column.size} entries instead of {count}")
    return column


def _int(value: Any, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise WireError("malformed", "an integer is missing or out of range")
    return value


def _str(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 256:
        raise WireError("malformed", "a name is no short string")
    return value


def _names(value: Any) -> list[str]:
    if not isinstance(value, list):
        raise WireError("malformed", "no list of names")
    return [_str(name) for name in value]


_MAX_U64 = (1 << 64) - 1
_MAX_I64 = (1 << 63) - 1


def encode_submit(message: Submit) -> bytes:
    """One frame."""
    priority = None if message.priority is None else _column(message.priority, _U8)
    return _pack(
        (
            SUBMIT,
            VERSION,
            message.incarnation,
            message.slot,
            _column(message.model, _U32),
            _column(message.deadline, _I64),
            _column(message.key, _U64),
            priority,
        )
    )


def decode_submit(frame: Buffer) -> Submit:
    """Read-only columns over the frame's bytes; keys of another slot than the header's are refused."""
    f = _unpack(frame, SUBMIT, 8)
    model = _read(f[4], _U32)
    count = model.size
    key = _read(f[6], _U64, count)
    slot = _int(f[3], 0, 0xFFFF)
    if count and ((key >> np.uint64(SLOT_SHIFT)) != slot).any():
        raise WireError("foreign-key", f"keys of another slot than {slot}")
    priority = None if f[7] is None else _read(f[7], _U8, count)
    return Submit(_int(f[2], 0, _MAX_U64), slot, model, _read(f[5], _I64, count), key, priority)


def encode_plan(message: Plan) -> bytes:
    """One frame."""
    return _pack(
        (
            PLAN,
            VERSION,
            message.shard,
            message.models,
            _column(message.batch, _U64),
            _column(message.gpu, _U32),
            _column(message.model, _U32),
            _column(message.exec_at, _I64),
            _column(message.size, _U32),
            _column(message.key, _U64),
            _column(message.deadline, _I64),
        )
    )


def decode_plan(frame: Buffer) -> Plan:
    """Read-only columns; model indexes are checked against the names, sizes against the keys."""
    f = _unpack(frame, PLAN, 11)
    names = _names(f[3])
    batch = _read(f[4], _U64)
    n = batch.size
    model, size = _read(f[6], _U32, n), _read(f[8], _U32, n)
    if n and int(model.max()) >= len(names):
        raise WireError("malformed", "a model index without a name")
    key = _read(f[9], _U64, int(size.sum()))
    return Plan(
        _str(f[2]),
        names,
        batch,
        _read(f[5], _U32, n),
        model,
        _read(f[7], _I64, n),
        size,
        key,
        _read(f[10], _I64, key.size),
    )


def encode_fetch(fetch: int, key: npt.ArrayLike) -> bytes:
    """One frame: worker → frontend, give me the inputs of these keys; ``fetch`` comes back."""
    return _pack((FETCH, VERSION, fetch, _column(key, _U64)))


def decode_fetch(frame: Buffer) -> tuple[int, U64]:
    """``(fetch, keys)``."""
    f = _unpack(frame, FETCH, 4)
    return _int(f[2], 0, _MAX_U64), _read(f[3], _U64)


def encode_tensors(message: Tensors) -> bytes:
    """The header frame; the caller appends the tensors' frames."""
    return _pack((TENSORS, VERSION, message.fetch, _column(message.key, _U64), message.names, message.specs))


def decode_tensors(frame: Buffer, payloads: int) -> Tensors:
    """``payloads`` is the number of frames that followed the header; it must match the specs."""
    f = _unpack(frame, TENSORS, 6)
    key, names, specs = _read(f[3], _U64), _names(f[4]), f[5]
    if not isinstance(specs, list) or len(specs) != key.size * len(names) or payloads != len(specs):
        raise WireError("ragged", "specs, keys and frames do not match")
    for spec in specs:
        _check_spec(spec, 2)
    return Tensors(_int(f[2], 0, _MAX_U64), key, names, specs)


def _check_spec(spec: Any, length: int) -> None:
    ok = isinstance(spec, list) and len(spec) == length and isinstance(spec[-1], list) and len(spec[-1]) <= 8
    if not ok or not all(type(d) is int and 0 <= d < 1 << 31 for d in spec[-1]):
        raise WireError("malformed", "a tensor's dtype and shape")
    for name in spec[:-1]:
        _str(name)


def encode_result(message: Result) -> bytes:
    """The header frame; the caller appends one frame per output."""
    return _pack(
        (
            RESULT,
            VERSION,
            message.worker,
            message.model,
            message.batch,
            message.gpu,
            message.size,
            message.started,
            message.finished,
            _column(message.key, _U64),
            _column(message.status, _U8),
            message.outputs,
            message.error,
        )
    )


def decode_result(frame: Buffer, payloads: int) -> Result:
    """``payloads`` is the number of frames that followed the header."""
    f = _unpack(frame, RESULT, 13)
    key = _read(f[9], _U64)
    outputs = f[11]
    if not isinstance(outputs, list) or len(outputs) != payloads:
        raise WireError("ragged", "outputs and frames do not match")
    for spec in outputs:
        _check_spec(spec, 3)
    if f[12] is not None and not isinstance(f[12], str):
        raise WireError("malformed", "error is no string")
    return Result(
        _str(f[2]),
        _str(f[3]),
        _int(f[4], 0, _MAX_U64),
        _int(f[5], 0, 0xFFFFFFFF),
        _int(f[6], 0, MAX_REQUESTS),
        _int(f[7], -_MAX_I64, _MAX_I64),
        _int(f[8], -_MAX_I64, _MAX_I64),
        key,
        _read(f[10], _U8, key.size),
        outputs,
        f[12],
    )


def encode_answer(message: Answer) -> bytes:
    """One frame."""
    return _pack(
        (
            ANSWER,
            VERSION,
            message.source,
            _column(message.key, _U64),
            _column(message.status, _U8),
            message.detail,
        )
    )


def decode_answer(frame: Buffer) -> Answer:
    """Read-only columns."""
    f = _unpack(frame, ANSWER, 6)
    key = _read(f[3], _U64)
    if f[5] is not None and not isinstance(f[5], str):
        raise WireError("malformed", "detail is no string")
    return Answer(_str(f[2]), key, _read(f[4], _U8, key.size), f[5])


def encode_done(message: Done) -> bytes:
    """The body frame; on the wire the topic ``done.<worker>`` goes before it."""
    return _pack(
        (
            DONE,
            VERSION,
            message.worker,
            message.sequence,
            message.models,
            _column(message.batch, _U64),
            _column(message.gpu, _U32),
            _column(message.model, _U32),
            _column(message.size, _U32),
            _column(message.failed, _U32),
            _column(message.received, _I64),
            _column(message.exec_at, _I64),
            _column(message.started, _I64),
            _column(message.finished, _I64),
        )
    )


def decode_done(frame: Buffer) -> Done:
    """Read-only columns; model indexes are checked against the names."""
    f = _unpack(frame, DONE, 14)
    names = _names(f[4])
    batch = _read(f[5], _U64)
    n = batch.size
    model = _read(f[7], _U32, n)
    if n and int(model.max()) >= len(names):
        raise WireError("malformed", "a model index without a name")
    return Done(
        _str(f[2]),
        _int(f[3], 0, _MAX_U64),
        names,
        batch,
        _read(f[6], _U32, n),
        model,
        _read(f[8], _U32, n),
        _read(f[9], _U32, n),
        _read(f[10], _I64, n),
        _read(f[11], _I64, n),
        _read(f[12], _I64, n),
        _read(f[13], _I64, n),
    )
