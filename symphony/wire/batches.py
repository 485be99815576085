"""Batches: plans to workers (PLAN), results to frontends (RESULT, RESULTS), timings (DONE)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from symphony.wire.framing import (
    DONE,
    I64,
    I64_TYPE,
    MAX_I64,
    MAX_REQUESTS,
    MAX_U64,
    PLAN,
    RESULT,
    RESULTS,
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
    pack_columns,
    read,
    text,
    unpack,
    unpack_columns,
)


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
class Results:
    """Worker → frontend: what became of one frontend's parts of several batches without outputs.

    Per batch i: as in :class:`Result`, and ``count[i]`` entries of ``key`` and ``status``.
    """

    worker: str
    models: list[str]
    batch: U64
    gpu: U32
    model: U32
    size: U32
    started: I64
    finished: I64
    count: U32
    key: U64
    status: U8


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


def encode_plan(message: Plan) -> bytes:
    """One frame."""
    return pack_columns(
        (PLAN, VERSION, message.shard),
        message.models,
        (
            (message.batch, U64_TYPE),
            (message.gpu, U32_TYPE),
            (message.model, U32_TYPE),
            (message.exec_at, I64_TYPE),
            (message.size, U32_TYPE),
            (message.key, U64_TYPE),
            (message.deadline, I64_TYPE),
        ),
    )


def decode_plan(frame: Buffer) -> Plan:
    """Read-only columns; model indexes are checked against the names, sizes against the keys."""
    f = unpack_columns(frame, PLAN, 4, 7)
    names = f[3]
    batch = read(f[4], U64_TYPE)
    n = batch.size
    model, size = read(f[6], U32_TYPE, n), read(f[8], U32_TYPE, n)
    check_models(model, names)
    key = read(f[9], U64_TYPE, int(size.sum()))
    return Plan(
        text(f[2]),
        names,
        batch,
        read(f[5], U32_TYPE, n),
        model,
        read(f[7], I64_TYPE, n),
        size,
        key,
        read(f[10], I64_TYPE, key.size),
    )


def encode_result(message: Result) -> bytes:
    """The header frame; the caller appends one frame per output."""
    return pack(
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
            column(message.key, U64_TYPE),
            column(message.status, U8_TYPE),
            message.outputs,
            message.error,
        )
    )


def decode_result(frame: Buffer, payloads: int) -> Result:
    """``payloads`` is the number of frames that followed the header."""
    f = unpack(frame, RESULT, 13)
    key = read(f[9], U64_TYPE)
    outputs = f[11]
    if not isinstance(outputs, list) or len(outputs) != payloads:
        raise WireError("ragged", "outputs and frames do not match")
    for spec in outputs:
        check_spec(spec, 3)
    if f[12] is not None and not isinstance(f[12], str):
        raise WireError("malformed", "error is no string")
    return Result(
        text(f[2]),
        text(f[3]),
        integer(f[4], 0, MAX_U64),
        integer(f[5], 0, 0xFFFFFFFF),
        integer(f[6], 0, MAX_REQUESTS),
        integer(f[7], -MAX_I64, MAX_I64),
        integer(f[8], -MAX_I64, MAX_I64),
        key,
        read(f[10], U8_TYPE, key.size),
        outputs,
        f[12],
    )


def encode_results(message: Results) -> bytes:
    """One frame."""
    return pack_columns(
        (RESULTS, VERSION, message.worker),
        message.models,
        (
            (message.batch, U64_TYPE),
            (message.gpu, U32_TYPE),
            (message.model, U32_TYPE),
            (message.size, U32_TYPE),
            (message.started, I64_TYPE),
            (message.finished, I64_TYPE),
            (message.count, U32_TYPE),
            (message.key, U64_TYPE),
            (message.status, U8_TYPE),
        ),
    )


def decode_results(frame: Buffer) -> Results:
    """Read-only columns; model indexes are checked against the names, counts against the keys."""
    f = unpack_columns(frame, RESULTS, 4, 9)
    names = f[3]
    batch = read(f[4], U64_TYPE)
    n = batch.size
    model, count = read(f[6], U32_TYPE, n), read(f[10], U32_TYPE, n)
    check_models(model, names)
    key = read(f[11], U64_TYPE, int(count.sum()))
    return Results(
        text(f[2]),
        names,
        batch,
        read(f[5], U32_TYPE, n),
        model,
        read(f[7], U32_TYPE, n),
        read(f[8], I64_TYPE, n),
        read(f[9], I64_TYPE, n),
        count,
        key,
        read(f[12], U8_TYPE, key.size),
    )


def encode_done(message: Done) -> bytes:
    """The body frame; on the wire the topic ``done.<worker>`` goes before it."""
    return pack_columns(
        (DONE, VERSION, message.worker, message.sequence),
        message.models,
        (
            (message.batch, U64_TYPE),
            (message.gpu, U32_TYPE),
            (message.model, U32_TYPE),
            (message.size, U32_TYPE),
            (message.failed, U32_TYPE),
            (message.received, I64_TYPE),
            (message.exec_at, I64_TYPE),
            (message.started, I64_TYPE),
            (message.finished, I64_TYPE),
        ),
    )


def decode_done(frame: Buffer) -> Done:
    """Read-only columns; model indexes are checked against the names."""
    f = unpack(frame, DONE, 14)
    names = name_list(f[4])
    batch = read(f[5], U64_TYPE)
    n = batch.size
    model = read(f[7], U32_TYPE, n)
    check_models(model, names)
    return Done(
        text(f[2]),
        integer(f[3], 0, MAX_U64),
        names,
        batch,
        read(f[6], U32_TYPE, n),
        model,
        read(f[8], U32_TYPE, n),
        read(f[9], U32_TYPE, n),
        read(f[10], I64_TYPE, n),
        read(f[11], I64_TYPE, n),
        read(f[12], I64_TYPE, n),
        read(f[13], I64_TYPE, n),
    )


def check_models(model: U32, names: list[str]) -> None:
    """Every index has its name, or :class:`WireError`."""
    if model.size and int(model.max()) >= len(names):
        raise WireError("malformed", "a model index without a name")
