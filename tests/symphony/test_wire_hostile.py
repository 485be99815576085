"""Hostile bytes, hot messages and control messages: they only raise WireError, with a reason to count."""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_examples import CONTROLS, EXAMPLES

from symphony import control, topics, wire
from symphony.wire import WireError

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


@pytest.mark.parametrize("message", CONTROLS, ids=[message.type for message in CONTROLS])
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
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
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


JOIN: dict[str, Any] = next(m for m in CONTROLS if m.type == "join").model_dump()
MODEL: dict[str, Any] = JOIN["models"][0]
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
        (wire.decode_plan, _changed(wire.PLAN, f10=HUGE), "oversized"),
        (wire.decode_plan, _changed(wire.PLAN, f10=b"\0" * 23), "malformed"),
        (wire.decode_plan, _changed(wire.PLAN, f10="column"), "malformed"),
        (wire.decode_plan, _changed(wire.PLAN, f1=2), "wrong-version"),
        (wire.decode_plan, EXAMPLES[wire.RESULTS], "unexpected-kind"),
        (wire.decode_plan, EXAMPLES[wire.PLAN] + b"\0", "malformed"),
        (wire.decode_plan, EXAMPLES[wire.PLAN][:-1], "malformed"),
        (wire.decode_plan, b"\x90", "malformed"),
        (wire.decode_plan, b"\x91\x02", "malformed"),
        (wire.decode_plan, b"\x93\x02\x01\xa0", "malformed"),
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
        (control.decode_control, msgpack.packb({"type": 1, "v": 1}), "invalid"),
        (control.decode_control, msgpack.packb(JOIN | {"models": [MODEL | {"slo_ms": math.inf}]}), "invalid"),
        (control.decode_control, msgpack.packb(JOIN | {"models": [MODEL | {"slo_ms": 1e300}]}), "invalid"),
        (control.decode_stamp, b"\x93\x01\x02\x03", "malformed"),
        (control.decode_stamp, b"\x92\xa1a\x02", "malformed"),
    ],
    ids=itertools.count(),
)
def test_reasons(decode: Callable[[bytes], object], frame: bytes, reason: str) -> None:
    with pytest.raises(WireError) as caught:
        decode(frame)
    assert caught.value.reason == reason


def test_nothing_that_is_nested_deeply_gets_through_to_repr() -> None:
    """A list that is nested a thousand deep takes a kilobyte, and its ``repr`` raises RecursionError."""
    for depth in (400, 980, 1_000, 1_020):
        deep = b"\x91" * depth + b"\xc0"
        for decode in DECODERS.values():
            for fields in (4, 6, 8, 11, 13, 14):
                array = bytes([0x90 + fields])
                assert not _only_wire_errors(decode, array + deep + b"\x01" * (fields - 1))
                for kind in DECODERS:
                    assert not _only_wire_errors(decode, array + bytes([kind]) + deep * (fields - 1))
        for frame in (b"\x82\xa4type\xa4ping\xa1v" + deep, b"\x82\xa1v\x01\xa4type" + deep):
            assert not _only_wire_errors(control.decode_control, frame)
        body = b"\x81\xa1v" + deep
        assert not _only_wire_errors(lambda body: topics.decode_body("stats", "shard-0", body), body)


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
