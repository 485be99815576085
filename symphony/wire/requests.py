"""Between frontends and the others: requests (SUBMIT), refusals (ANSWER), inputs (FETCH, TENSORS)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from symphony.wire.framing import (
    ANSWER,
    FETCH,
    I64,
    I64_TYPE,
    MAX_U64,
    SLOT_SHIFT,
    SUBMIT,
    TENSORS,
    U8,
    U8_TYPE,
    U32,
    U32_TYPE,
    U64,
    U64_TYPE,
    VERSION,
    Buffer,
    WireError,
    check_spec,
    column,
    integer,
    name_list,
    pack,
    read,
    text,
    unpack,
)


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
class Answer:
    """Scheduler → frontend: requests that will have no result, with their status and no tensors."""

    source: str
    key: U64
    status: U8
    detail: str | None = None


@dataclass(slots=True, frozen=True)
class Tensors:
    """Frontend → worker: the inputs of the requests that are still wanted.

    ``specs`` holds, per key and then per input name, ``[dtype, shape]``; one frame each follows.
    """

    fetch: int
    key: U64
    names: list[str]
    specs: list[list[Any]]


def encode_submit(message: Submit) -> bytes:
    """One frame."""
    priority = None if message.priority is None else column(message.priority, U8_TYPE)
    return pack(
        (
            SUBMIT,
            VERSION,
            message.incarnation,
            message.slot,
            column(message.model, U32_TYPE),
            column(message.deadline, I64_TYPE),
            column(message.key, U64_TYPE),
            priority,
        )
    )


def decode_submit(frame: Buffer) -> Submit:
    """Read-only columns over the frame's bytes; keys of another slot than the header's are refused."""
    f = unpack(frame, SUBMIT, 8)
    model = read(f[4], U32_TYPE)
    count = model.size
    key = read(f[6], U64_TYPE, count)
    slot = integer(f[3], 0, 0xFFFF)
    if count and ((key >> np.uint64(SLOT_SHIFT)) != slot).any():
        raise WireError("foreign-key", f"keys of another slot than {slot}")
    priority = None if f[7] is None else read(f[7], U8_TYPE, count)
    return Submit(integer(f[2], 0, MAX_U64), slot, model, read(f[5], I64_TYPE, count), key, priority)


def encode_answer(message: Answer) -> bytes:
    """One frame."""
    return pack(
        (
            ANSWER,
            VERSION,
            message.source,
            column(message.key, U64_TYPE),
            column(message.status, U8_TYPE),
            message.detail,
        )
    )


def decode_answer(frame: Buffer) -> Answer:
    """Read-only columns."""
    f = unpack(frame, ANSWER, 6)
    key = read(f[3], U64_TYPE)
    if f[5] is not None and not isinstance(f[5], str):
        raise WireError("malformed", "detail is no string")
    return Answer(text(f[2]), key, read(f[4], U8_TYPE, key.size), f[5])


def encode_fetch(fetch: int, key: npt.ArrayLike) -> bytes:
    """One frame: worker → frontend, give me the inputs of these keys; ``fetch`` comes back."""
    return pack((FETCH, VERSION, fetch, column(key, U64_TYPE)))


def decode_fetch(frame: Buffer) -> tuple[int, U64]:
    """``(fetch, keys)``."""
    f = unpack(frame, FETCH, 4)
    return integer(f[2], 0, MAX_U64), read(f[3], U64_TYPE)


def encode_tensors(message: Tensors) -> bytes:
    """The header frame; the caller appends the tensors' frames."""
    return pack(
        (TENSORS, VERSION, message.fetch, column(message.key, U64_TYPE), message.names, message.specs)
    )


def decode_tensors(frame: Buffer, payloads: int) -> Tensors:
    """``payloads`` is the number of frames that followed the header; it must match the specs."""
    f = unpack(frame, TENSORS, 6)
    key, names, specs = read(f[3], U64_TYPE), name_list(f[4]), f[5]
    if not isinstance(specs, list) or len(specs) != key.size * len(names) or payloads != len(specs):
        raise WireError("ragged", "specs, keys and frames do not match")
    for spec in specs:
        check_spec(spec, 2)
    return Tensors(integer(f[2], 0, MAX_U64), key, names, specs)
