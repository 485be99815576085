"""Hot messages as they are read by somebody else, with nothing but msgpack and struct, and round trips."""

from __future__ import annotations

import struct
from dataclasses import fields

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_examples import EXAMPLES, KEYS
from wire_strategies import U64, answers, dones, many_results, plans, results, submits, tensors

from symphony import control, wire
from symphony.wire.framing import pack_columns


def _same(one: object, other: object) -> None:
    assert type(one) is type(other)
    for field in fields(one):  # type: ignore[arg-type]
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype, field.name
            assert a.tolist() == b.tolist(), field.name
        else:
            assert a == b, field.name


@given(submits())
def test_submit_round_trip(message: wire.Submit) -> None:
    _same(wire.decode_submit(wire.encode_submit(message)), message)


@given(plans())
def test_plan_round_trip(message: wire.Plan) -> None:
    _same(wire.decode_plan(wire.encode_plan(message)), message)


@given(U64, st.lists(U64, max_size=20))
def test_fetch_round_trip(fetch: int, keys: list[int]) -> None:
    got, column = wire.decode_fetch(wire.encode_fetch(fetch, keys))
    assert (got, column.tolist()) == (fetch, keys)


@given(tensors())
def test_tensors_round_trip(message: wire.Tensors) -> None:
    _same(wire.decode_tensors(wire.encode_tensors(message), len(message.specs)), message)


@given(results())
def test_result_round_trip(message: wire.Result) -> None:
    _same(wire.decode_result(wire.encode_result(message), len(message.outputs)), message)


@given(many_results())
def test_results_round_trip(message: wire.Results) -> None:
    _same(wire.decode_results(wire.encode_results(message)), message)


@given(answers())
def test_answer_round_trip(message: wire.Answer) -> None:
    _same(wire.decode_answer(wire.encode_answer(message)), message)


@given(dones())
def test_done_round_trip(message: wire.Done) -> None:
    _same(wire.decode_done(wire.encode_done(message)), message)


# -- somebody else's reader: nothing but msgpack and struct -------------------------------------------


def _u32(column: bytes) -> list[int]:
    return list(struct.unpack(f"<{len(column) // 4}I", column))


def _u64(column: bytes) -> list[int]:
    return list(struct.unpack(f"<{len(column) // 8}Q", column))


def _i64(column: bytes) -> list[int]:
    return list(struct.unpack(f"<{len(column) // 8}q", column))


def test_submit_as_documented() -> None:
    kind, version, incarnation, slot, model, deadline, key, priority = msgpack.unpackb(EXAMPLES[wire.SUBMIT])
    assert (kind, version, incarnation, slot, priority) == (1, 1, 99, 7, None)
    assert (_u32(model), _i64(deadline), _u64(key)) == ([0, 1], [-5, 2**62], KEYS)


def test_plan_as_documented() -> None:
    f = msgpack.unpackb(EXAMPLES[wire.PLAN])
    assert f[:4] == [2, 1, "shard-0", ["a", "b"]]
    assert [_u64(f[4]), _u32(f[5]), _u32(f[6]), _i64(f[7]), _u32(f[8])] == [
        [9, 10],
        [0, 3],
        [1, 0],
        [100, 200],
        [2, 1],
    ]
    assert (_u64(f[9]), _i64(f[10])) == ([*KEYS, 1], [500, 600, 700])


def test_fetch_as_documented() -> None:
    kind, version, fetch, key = msgpack.unpackb(EXAMPLES[wire.FETCH])
    assert (kind, version, fetch, _u64(key)) == (3, 1, 5, KEYS)


def test_tensors_as_documented() -> None:
    kind, version, fetch, key, names, specs = msgpack.unpackb(EXAMPLES[wire.TENSORS])
    assert (kind, version, fetch, _u64(key), names) == (4, 1, 5, KEYS, ["x"])
    assert specs == [["FP32", [3]], ["FP32", [4]]]


def test_result_as_documented() -> None:
    f = msgpack.unpackb(EXAMPLES[wire.RESULT])
    assert f[:9] == [5, 1, "w", "a", 9, 3, 4, 100, 150]
    assert (_u64(f[9]), list(f[10]), f[11], f[12]) == (KEYS, [0, 6], [["y", "FP32", [2]]], "boom")


def test_answer_as_documented() -> None:
    kind, version, source, key, status, detail = msgpack.unpackb(EXAMPLES[wire.ANSWER])
    assert (kind, version, source, _u64(key)) == (6, 1, "shard-0", KEYS)
    assert (list(status), detail) == ([4, 3], "queue full")


def test_done_as_documented() -> None:
    f = msgpack.unpackb(EXAMPLES[wire.DONE])
    assert f[:5] == [7, 1, "w", 12, ["a"]]
    assert [_u64(f[5]), *(_u32(f[n]) for n in range(6, 10))] == [[9], [3], [0], [4], [1]]
    assert [_i64(f[n]) for n in range(10, 14)] == [[90], [95], [100], [150]]


def test_results_as_documented() -> None:
    f = msgpack.unpackb(EXAMPLES[wire.RESULTS])
    assert f[:4] == [8, 1, "w", ["a", "b"]]
    assert [_u64(f[4]), *(_u32(f[n]) for n in range(5, 8))] == [[9, 10], [3, 4], [1, 0], [2, 5]]
    assert [_i64(f[8]), _i64(f[9]), _u32(f[10])] == [[100, 110], [150, 160], [1, 2]]
    assert (_u64(f[11]), list(f[12])) == ([*KEYS, 7 << 48], [0, 0, 6])


def test_a_stamp_is_two_integers() -> None:
    assert msgpack.unpackb(control.encode_stamp(2**62, 17)) == [2**62, 17]
    stamp = control.decode_stamp(control.encode_stamp(2**62, 17))
    assert (stamp.broker, stamp.seq) == (2**62, 17)


def test_a_frame_as_a_foreign_writer_would_write_it() -> None:
    frame = msgpack.packb(
        [1, 1, 99, 7, struct.pack("<1I", 0), struct.pack("<1q", 5), struct.pack("<1Q", 7 << 48), None]
    )
    message = wire.decode_submit(frame)
    assert (message.slot, message.key.tolist(), message.priority) == (7, [7 << 48], None)


@pytest.mark.parametrize("kind", EXAMPLES)
def test_the_kind_is_read_without_decoding(kind: int) -> None:
    assert wire.kind_of(EXAMPLES[kind]) == kind
    assert wire.kind_of(memoryview(EXAMPLES[kind])) == kind


@pytest.mark.parametrize("entries", [0, 1, 31, 32, 8_191, 8_192, 70_000])
def test_columns_are_packed_as_msgpack_would(entries: int) -> None:
    wide, narrow = np.arange(entries, dtype=np.int64)[::-1], np.arange(entries, dtype=np.uint8)
    head, names = (8, 1, "worker-0"), ["m", "n"]
    columns = (wide[::-1].astype(">i8").tobytes(), wide.astype("<u4").tobytes(), narrow.tobytes())
    frame = pack_columns(
        head, names, ((wide[::-1], np.dtype(">i8")), (wide, np.dtype("<u4")), (narrow, np.dtype("u1")))
    )
    assert frame == msgpack.packb((*head, names, *columns))


def test_columns_behind_thousands_of_names_and_large_ones_are_read_as_they_were_sent() -> None:
    n = 3_000
    names = [f"model-{i}" for i in range(n)]
    index = np.arange(n, dtype=np.uint32)
    times, keys = np.arange(n, dtype=np.int64), np.arange(2 * n, dtype=np.uint64)
    size = np.full(n, 2, np.uint32)
    message = wire.Plan(
        "shard-0", names, keys[:n], index, index, times, size, keys + 5, keys.astype(np.int64) - 7
    )
    frame = bytearray(wire.encode_plan(message))
    found = wire.decode_plan(memoryview(frame))
    _same(found, message)
    with pytest.raises(ValueError, match="read-only"):
        found.key[0] = 1


@given(st.lists(plans(), min_size=1, max_size=3), st.lists(st.integers(0, 2), max_size=6))
def test_messages_that_begin_as_others_did_are_read_as_if_alone(
    some: list[wire.Plan], order: list[int]
) -> None:
    frames = [wire.encode_plan(plan) for plan in some]
    for i in order:
        _same(wire.decode_plan(frames[i % len(frames)]), some[i % len(some)])
        with pytest.raises(wire.WireError):
            wire.decode_plan(frames[i % len(frames)][:-1])
