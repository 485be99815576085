"""Wire and control messages: round trips, foreign readers, hostile bytes that only raise WireError."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from symphony import control, wire
from symphony.plans import Accepted, ClusterPlan, Declined, Group, PlanEvent, PlanStamp, Propose
from symphony.wire import WireError

U8, U32 = st.integers(0, 255), st.integers(0, 2**32 - 1)
U64, I64 = st.integers(0, 2**64 - 1), st.integers(-(2**63), 2**63 - 1)
TIME = st.integers(-(2**63) + 1, 2**63 - 1)
NAME = st.text(max_size=40)


def _columns(count: int, **kinds: st.SearchStrategy[int]) -> st.SearchStrategy[dict[str, list[int]]]:
    return st.fixed_dictionaries(
        {name: st.lists(kind, min_size=count, max_size=count) for name, kind in kinds.items()}
    )


def _same(one: object, other: object) -> None:
    assert type(one) is type(other)
    for field in fields(one):  # type: ignore[arg-type]
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype, field.name
            assert a.tolist() == b.tolist(), field.name
        else:
            assert a == b, field.name


def _array(values: list[int], code: str) -> Any:
    return np.array(values, dtype=np.dtype(code))


@st.composite
def submits(draw: st.DrawFn) -> wire.Submit:
    slot = draw(st.integers(0, 0xFFFF))
    count = draw(st.integers(0, 6))
    c = draw(_columns(count, model=U32, deadline=I64, seq=st.integers(0, 2**48 - 1), priority=U8))
    return wire.Submit(
        draw(U64),
        slot,
        _array(c["model"], "<u4"),
        _array(c["deadline"], "<i8"),
        _array([slot << 48 | seq for seq in c["seq"]], "<u8"),
        _array(c["priority"], "u1") if draw(st.booleans()) else None,
    )


@st.composite
def plans(draw: st.DrawFn) -> wire.Plan:
    names = draw(st.lists(NAME, min_size=1, max_size=3))
    sizes = draw(st.lists(st.integers(0, 4), max_size=4))
    n, k = len(sizes), sum(sizes)
    c = draw(_columns(n, batch=U64, gpu=U32, model=st.integers(0, len(names) - 1), exec_at=I64))
    r = draw(_columns(k, key=U64, deadline=I64))
    return wire.Plan(
        draw(NAME),
        names,
        _array(c["batch"], "<u8"),
        _array(c["gpu"], "<u4"),
        _array(c["model"], "<u4"),
        _array(c["exec_at"], "<i8"),
        _array(sizes, "<u4"),
        _array(r["key"], "<u8"),
        _array(r["deadline"], "<i8"),
    )


SHAPE = st.lists(st.integers(0, 2**31 - 1), max_size=8)


@st.composite
def tensors(draw: st.DrawFn) -> wire.Tensors:
    names = draw(st.lists(NAME, max_size=3))
    keys = draw(st.lists(U64, max_size=3))
    count = len(names) * len(keys)
    specs = draw(st.lists(st.tuples(NAME, SHAPE).map(list), min_size=count, max_size=count))
    return wire.Tensors(draw(U64), _array(keys, "<u8"), names, specs)


@st.composite
def results(draw: st.DrawFn) -> wire.Result:
    c = draw(st.integers(0, 5).flatmap(lambda n: _columns(n, key=U64, status=U8)))
    return wire.Result(
        draw(NAME),
        draw(NAME),
        draw(U64),
        draw(U32),
        draw(st.integers(0, wire.MAX_REQUESTS)),
        draw(TIME),
        draw(TIME),
        _array(c["key"], "<u8"),
        _array(c["status"], "u1"),
        draw(st.lists(st.tuples(NAME, NAME, SHAPE).map(list), max_size=3)),
        draw(st.none() | st.text(max_size=300)),
    )


@st.composite
def many_results(draw: st.DrawFn) -> wire.Results:
    names = draw(st.lists(NAME, min_size=1, max_size=3))
    counts = draw(st.lists(st.integers(0, 4), max_size=4))
    b = draw(_columns(len(counts), batch=U64, gpu=U32, model=st.integers(0, len(names) - 1), size=U32))
    t = draw(_columns(len(counts), started=TIME, finished=TIME))
    r = draw(_columns(sum(counts), key=U64, status=U8))
    return wire.Results(
        draw(NAME),
        names,
        _array(b["batch"], "<u8"),
        *(_array(b[name], "<u4") for name in ("gpu", "model", "size")),
        *(_array(column, "<i8") for column in t.values()),
        _array(counts, "<u4"),
        _array(r["key"], "<u8"),
        _array(r["status"], "u1"),
    )


@st.composite
def answers(draw: st.DrawFn) -> wire.Answer:
    c = draw(st.integers(0, 5).flatmap(lambda n: _columns(n, key=U64, status=U8)))
    return wire.Answer(
        draw(NAME),
        _array(c["key"], "<u8"),
        _array(c["status"], "u1"),
        draw(st.none() | st.text(max_size=300)),
    )


@st.composite
def dones(draw: st.DrawFn) -> wire.Done:
    names = draw(st.lists(NAME, min_size=1, max_size=3))
    index = st.integers(0, len(names) - 1)
    times = dict.fromkeys(("received", "exec_at", "started", "finished"), I64)
    c = draw(
        st.integers(0, 5).flatmap(
            lambda n: _columns(n, batch=U64, gpu=U32, model=index, size=U32, failed=U32, **times)
        )
    )
    return wire.Done(
        draw(NAME),
        draw(U64),
        names,
        _array(c["batch"], "<u8"),
        *(_array(c[name], "<u4") for name in ("gpu", "model", "size", "failed")),
        *(_array(c[name], "<i8") for name in times),
    )


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


KEYS = [7 << 48 | 41, 7 << 48 | 42]
EXAMPLES: dict[int, bytes] = {
    wire.SUBMIT: wire.encode_submit(
        wire.Submit(99, 7, _array([0, 1], "<u4"), _array([-5, 2**62], "<i8"), _array(KEYS, "<u8"))
    ),
    wire.PLAN: wire.encode_plan(
        wire.Plan(
            "shard-0",
            ["a", "b"],
            _array([9, 10], "<u8"),
            _array([0, 3], "<u4"),
            _array([1, 0], "<u4"),
            _array([100, 200], "<i8"),
            _array([2, 1], "<u4"),
            _array([*KEYS, 1], "<u8"),
            _array([500, 600, 700], "<i8"),
        )
    ),
    wire.FETCH: wire.encode_fetch(5, KEYS),
    wire.TENSORS: wire.encode_tensors(
        wire.Tensors(5, _array(KEYS, "<u8"), ["x"], [["FP32", [3]], ["FP32", [4]]])
    ),
    wire.RESULT: wire.encode_result(
        wire.Result(
            "w",
            "a",
            9,
            3,
            4,
            100,
            150,
            _array(KEYS, "<u8"),
            _array([0, 6], "u1"),
            [["y", "FP32", [2]]],
            "boom",
        )
    ),
    wire.ANSWER: wire.encode_answer(
        wire.Answer("shard-0", _array(KEYS, "<u8"), _array([4, 3], "u1"), "queue full")
    ),
    wire.DONE: wire.encode_done(
        wire.Done(
            "w",
            12,
            ["a"],
            _array([9], "<u8"),
            *(_array([n], "<u4") for n in (3, 0, 4, 1)),
            *(_array([n], "<i8") for n in (90, 95, 100, 150)),
        )
    ),
    wire.RESULTS: wire.encode_results(
        wire.Results(
            "w",
            ["a", "b"],
            _array([9, 10], "<u8"),
            *(_array(values, "<u4") for values in ([3, 4], [1, 0], [2, 5])),
            *(_array(values, "<i8") for values in ([100, 110], [150, 160])),
            _array([1, 2], "<u4"),
            _array([*KEYS, 7 << 48], "<u8"),
            _array([0, 0, 6], "u1"),
        )
    ),
}


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


# -- hostile bytes ------------------------------------------------------------------------------------

DECODERS: dict[int, Callable[[bytes], object]] = {
    wire.SUBMIT: wire.decode_submit,
    wire.PLAN: wire.decode_plan,
    wire.FETCH: wire.decode_fetch,
    wire.TENSORS: lambda frame: wire.decode_tensors(frame, 2),
    wire.RESULT: lambda frame: wire.decode_result(frame, 1),
    wire.ANSWER: wire.decode_answer,
    wire.DONE: wire.decode_done,
    wire.RESULTS: wire.decode_results,
}
MEMBER = control.Member(
    id="w", role="worker", incarnation=3, gpus=[control.GpuInfo(number=0, type="cpu")], stats={"a": 1}
)
MODEL = control.ModelSpec(name="m", slo_ms=10, max_batch=2, profiles={"cpu": [1, 2]})
PLAN_OF_CLUSTER = ClusterPlan(
    stamp=PlanStamp(epoch=3, leader="s", revision=1),
    groups=[Group(shard="s", gpus=[0, 3, 7, 7], models=["m"], active=False)],
    routes={"m": {"s": 0.25, "t": 1}},
)
CONTROLS: list[Any] = [
    control.Join(member=MEMBER, models=[MODEL], gpus_wanted=2, gpu_type="cpu"),
    control.Joined(member=MEMBER, broker=1, heartbeat_ms=500, lease_ms=2000, sequences={"member": 3}),
    control.Refused(reason="no", retry_ms=None),
    control.Heartbeat(id="w", incarnation=3, stats={"x": [1, {"y": None}]}),
    control.Beat(known=True, broker=1, sequences={}),
    control.Ping(t=5),
    control.Pong(t=5, now=2**62),
    control.Update(member=MEMBER),
    control.Leave(id="w", incarnation=3),
    control.Left(),
    control.AskSnapshot(),
    control.Snapshot(broker=1, sequences={"model": 1}, members=[MEMBER], models=[MODEL]),
    control.MemberEvent(event="death", member=MEMBER),
    control.ModelEvent(model=MODEL),
    control.ScaleDecision(
        epoch=3,
        leader="shard-0",
        shard="shard-1",
        sequence=2,
        at=5,
        kind="down",
        requested={"a": 3},
        drain=[7, 6],
        numbers={"need": 1.5},
    ),
    Propose(id="s", incarnation=3, plan=PLAN_OF_CLUSTER, base=None),
    Accepted(stamp=PLAN_OF_CLUSTER.stamp),
    Declined(reason="older", have=PLAN_OF_CLUSTER.stamp),
    PlanEvent(plan=PLAN_OF_CLUSTER),
]
_control_names = [message.type for message in CONTROLS]


def _only_wire_errors(decode: Callable[[bytes], object], frame: bytes) -> bool:
    """True if the frame was understood."""
    try:
        decode(frame)
    except WireError:
        return False
    return True


@pytest.mark.parametrize("kind", EXAMPLES)
def test_truncated_at_every_length(kind: int) -> None:
    frame = EXAMPLES[kind]
    assert _only_wire_errors(DECODERS[kind], frame)
    for length in range(len(frame)):
        assert not _only_wire_errors(DECODERS[kind], frame[:length]), length


@pytest.mark.parametrize("message", CONTROLS, ids=_control_names)
def test_control_round_trip_and_truncation(message: Any) -> None:
    frame = control.encode_control(message)
    assert control.decode_control(frame) == message
    plain = msgpack.unpackb(frame)
    assert (plain["type"], plain["v"]) == (message.type, 1)
    for length in range(len(frame)):
        assert not _only_wire_errors(control.decode_control, frame[:length]), length


@given(st.binary(max_size=200))
def test_random_bytes(frame: bytes) -> None:
    for decode in (*DECODERS.values(), wire.kind_of, control.decode_control, control.decode_stamp):
        _only_wire_errors(decode, frame)


@given(st.sampled_from(sorted(EXAMPLES)), st.data())
def test_examples_with_some_bytes_changed(kind: int, data: st.DataObject) -> None:
    frame = bytearray(EXAMPLES[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(U8)
    _only_wire_errors(DECODERS[kind], bytes(frame))


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(sorted(EXAMPLES)), st.data())
def test_examples_with_a_field_of_another_kind(kind: int, data: st.DataObject) -> None:
    message = msgpack.unpackb(EXAMPLES[kind])
    message[data.draw(st.integers(0, len(message) - 1))] = data.draw(PLAIN)
    _only_wire_errors(DECODERS[kind], msgpack.packb(message))


@given(st.sampled_from(CONTROLS), st.data())
def test_control_with_a_field_of_another_kind(message: Any, data: st.DataObject) -> None:
    plain = msgpack.unpackb(control.encode_control(message))
    plain[data.draw(st.sampled_from(sorted(plain)))] = data.draw(PLAIN)
    _only_wire_errors(control.decode_control, msgpack.packb(plain))


def _changed(kind: int, **by_index: Any) -> bytes:
    message = msgpack.unpackb(EXAMPLES[kind])
    for index, value in by_index.items():
        message[int(index[1:])] = value
    packed: bytes = msgpack.packb(message)
    return packed


HUGE = bytes(8 * (wire.MAX_REQUESTS + 1))


@pytest.mark.parametrize(
    ("decode", "frame", "reason"),
    [
        (wire.decode_submit, b"", "malformed"),
        (wire.decode_submit, b"\xc0", "malformed"),
        (wire.decode_submit, b"\x90", "malformed"),
        (wire.decode_submit, EXAMPLES[wire.PLAN], "unexpected-kind"),
        (wire.decode_submit, EXAMPLES[wire.SUBMIT] + b"\0", "malformed"),
        (wire.decode_submit, _changed(wire.SUBMIT, f1=2), "wrong-version"),
        (wire.decode_submit, _changed(wire.SUBMIT, f3=8), "foreign-key"),
        (wire.decode_submit, _changed(wire.SUBMIT, f3=70_000), "malformed"),
        (wire.decode_submit, _changed(wire.SUBMIT, f4=b"\0" * 12), "ragged"),
        (wire.decode_submit, _changed(wire.SUBMIT, f4=b"\0" * 7), "malformed"),
        (wire.decode_submit, _changed(wire.SUBMIT, f7=b"\0"), "ragged"),
        (wire.decode_submit, _changed(wire.SUBMIT, f4=HUGE), "oversized"),
        (wire.decode_plan, _changed(wire.PLAN, f6=struct.pack("<2I", 0, 2)), "malformed"),
        (wire.decode_plan, _changed(wire.PLAN, f8=struct.pack("<2I", 2, 2)), "ragged"),
        (wire.decode_plan, _changed(wire.PLAN, f8=struct.pack("<2I", 2**32 - 1, 2**32 - 1)), "ragged"),
        (wire.decode_plan, _changed(wire.PLAN, f10=b""), "ragged"),
        (wire.decode_plan, _changed(wire.PLAN, f3=["x" * 300]), "malformed"),
        (wire.decode_fetch, _changed(wire.FETCH, f2=-1), "malformed"),
        (wire.decode_fetch, _changed(wire.FETCH, f3=HUGE), "oversized"),
        (lambda frame: wire.decode_tensors(frame, 1), EXAMPLES[wire.TENSORS], "ragged"),
        (lambda frame: wire.decode_tensors(frame, 3), EXAMPLES[wire.TENSORS], "ragged"),
        (lambda f: wire.decode_tensors(f, 2), _changed(wire.TENSORS, f5=[["FP32", [-1]]] * 2), "malformed"),
        (
            lambda f: wire.decode_tensors(f, 2),
            _changed(wire.TENSORS, f5=[["FP32", [1] * 9]] * 2),
            "malformed",
        ),
        (lambda f: wire.decode_result(f, 0), EXAMPLES[wire.RESULT], "ragged"),
        (lambda f: wire.decode_result(f, 1), _changed(wire.RESULT, f10=b"\0"), "ragged"),
        (lambda f: wire.decode_result(f, 1), _changed(wire.RESULT, f12=5), "malformed"),
        (wire.decode_answer, _changed(wire.ANSWER, f4=b"\0"), "ragged"),
        (wire.decode_done, _changed(wire.DONE, f7=struct.pack("<I", 1)), "malformed"),
        (wire.decode_done, _changed(wire.DONE, f13=b""), "ragged"),
        (wire.kind_of, b"\xdc\x00\x10", "malformed"),
        (control.decode_control, b"", "malformed"),
        (control.decode_control, b"\x90", "malformed"),
        (control.decode_control, msgpack.packb({"type": "ping", "t": 1}), "wrong-version"),
        (control.decode_control, msgpack.packb({"type": "ping", "v": 2, "t": 1}), "wrong-version"),
        (control.decode_control, msgpack.packb({"type": "pin", "v": 1, "t": 1}), "invalid"),
        (control.decode_control, msgpack.packb({"type": "ping", "v": 1, "t": "1"}), "invalid"),
        (control.decode_control, msgpack.packb({"type": "ping", "v": 1, "t": 1, "u": 2}), "invalid"),
        (control.decode_control, b"\xc1" * (control.MAX_CONTROL_BYTES + 1), "oversized"),
        (control.decode_control, b"\x91" * 5_000 + b"\xc0", "malformed"),
        (control.decode_stamp, b"\x93\x01\x02\x03", "malformed"),
        (control.decode_stamp, b"\x92\xa1a\x02", "malformed"),
    ],
    ids=itertools.count(),
)
def test_reasons(decode: Callable[[bytes], object], frame: bytes, reason: str) -> None:
    with pytest.raises(WireError) as caught:
        decode(frame)
    assert caught.value.reason == reason


def test_a_deeply_nested_map_is_refused_or_can_be_sent_on() -> None:
    for depth in (100, 400, 900, 5_000):
        stats = b"\x81\xa1a" * depth + b"\xc0"
        head = msgpack.packb({"type": "heartbeat", "v": 1, "id": "w", "incarnation": 1})
        frame = bytes([head[0] + 1]) + head[1:] + b"\xa5stats" + stats
        try:
            message = control.decode_control(frame)
        except WireError:
            continue
        control.encode_control(message)
