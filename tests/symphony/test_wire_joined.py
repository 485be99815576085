"""Many messages read at once say what each of them says alone, and hostile ones spoil only themselves."""

from __future__ import annotations

from array import array
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_strategies import dones, submits

from symphony import native, wire
from symphony.wire import framing
from symphony.wire import submits as submits_source

MINE, ANOTHER = 5, 6


class Loops(wire.SubmitReader):
    """With the source of the compiled loops run as Python."""

    def __init__(self) -> None:
        super().__init__(compiled=False)
        self._loops = submits_source.Submits()


READERS = [wire.SubmitReader(), wire.SubmitReader(compiled=False), Loops()]


def _slow_submits(frames: list[bytes]) -> tuple[list[tuple[int, ...]], int, list[str]]:
    rows: list[tuple[int, ...]] = []
    others = 0
    errors = []
    for frame in frames:
        try:
            m = wire.decode_submit(frame)
        except wire.WireError as error:
            errors.append(error.reason)
            continue
        if m.incarnation != MINE:
            others += 1
            continue
        ranks = [0] * m.key.size if m.priority is None else m.priority.tolist()
        rows += zip(m.model.tolist(), m.deadline.tolist(), m.key.tolist(), ranks, strict=True)
    return rows, others, errors


def _fast_submits(frames: list[bytes]) -> tuple[list[tuple[int, ...]], int, list[str]]:
    """What the reader says; the same with and without the compiled loops, and the counts fit."""
    answers = []
    for reader in READERS:
        counts = np.full(3, 7, np.int64)
        found = reader.read(frames, MINE, counts)
        assert counts.tolist() == [7 + np.count_nonzero(found.model == model) for model in range(3)]
        answers.append(_said(found))
    assert all(answer == answers[0] for answer in answers)
    return answers[0]


def _said(found: wire.Submitted) -> tuple[list[tuple[int, ...]], int, list[str]]:
    ranks = [0] * found.key.size if found.priority is None else found.priority.tolist()
    columns = (found.model.tolist(), found.deadline.tolist(), found.key.tolist())
    rows = list(zip(*columns, ranks, strict=True))
    return rows, len(found.others), [error.reason for error in found.errors]


def _meant_for(message: wire.Submit, incarnation: int) -> bytes:
    columns = (message.model, message.deadline, message.key, message.priority)
    return wire.encode_submit(wire.Submit(incarnation, message.slot, *columns))


@given(st.lists(st.tuples(submits(), st.sampled_from([MINE, MINE, MINE, ANOTHER])), max_size=5))
def test_submits_together_are_what_they_are_one_by_one(messages: list[tuple[wire.Submit, int]]) -> None:
    frames = [_meant_for(message, incarnation) for message, incarnation in messages]
    assert _fast_submits(frames) == _slow_submits(frames)


@given(st.lists(submits(), min_size=1, max_size=4), st.data())
def test_a_mutilated_submit_spoils_only_itself(messages: list[wire.Submit], data: st.DataObject) -> None:
    frames = [_meant_for(message, MINE) for message in messages]
    at = data.draw(st.integers(0, len(frames) - 1))
    spoilt = bytearray(frames[at])
    for _ in range(data.draw(st.integers(1, 3))):
        spoilt[data.draw(st.integers(0, len(spoilt) - 1))] = data.draw(st.integers(0, 255))
    frames[at] = bytes(spoilt[: data.draw(st.integers(0, len(spoilt)))])
    assert _fast_submits(frames) == _slow_submits(frames)


def test_columns_of_odd_lengths_and_types_in_a_submit_are_seen() -> None:
    good = [
        wire.SUBMIT,
        wire.VERSION,
        MINE,
        3,
        bytes(8),
        bytes(16),
        np.full(2, 3 << 48, "<u8").tobytes(),
        None,
    ]
    for position, value in [
        (4, bytes(7)), (4, bytes(12)), (4, "aaaaaaaa"), (5, bytes(8)), (5, bytes(17)), (6, bytes(17)),
        (7, bytes(1)), (7, "ab"), (7, 5), (3, 4), (3, 3.0), (3, -1), (3, 70_000), (1, 2), (0, 7),
    ]:  # fmt: skip
        bad = [*good]
        bad[position] = value
        frames = [msgpack.packb(good), msgpack.packb(bad), msgpack.packb(good)]
        rows, others, errors = _fast_submits(frames)
        assert (len(rows), others, len(errors)) == (4, 0, 1), (position, value)
        assert (rows, others, errors) == _slow_submits(frames)


FORMS = [submits_source] + ([native.compiled("submits")] if native.compiled("submits") else [])


@pytest.mark.parametrize("module", FORMS)
def test_the_loops_read_what_encoders_write(module: Any) -> None:
    rng = np.random.default_rng(3)
    reader = module.Submits()
    for size in (0, 1, 5, 63, 300, 8_000):  # the lengths of columns take one, two and four bytes
        model = rng.integers(0, 4, size).astype(np.uint32)
        deadline = rng.integers(-(1 << 62), 1 << 62, size)
        key = np.arange(size, dtype=np.uint64) | np.uint64(0xFFFF << 48)
        frame = wire.encode_submit(wire.Submit(framing.MAX_U64, 0xFFFF, model, deadline, key))
        counts = np.zeros(3, np.int64)
        assert reader.read([frame, frame], framing.MAX_U64, counts) == 2 * size
        for column, wanted in zip(reader.columns(2 * size), (model, deadline, key), strict=True):
            assert column.tolist() == 2 * wanted.tolist()
        assert counts.tolist() == [2 * np.count_nonzero(model == number) for number in range(3)]


@given(st.lists(submits(), max_size=4), st.integers(-100, 100), st.lists(st.integers(-100, 100), max_size=3))
def test_what_is_too_late_is_taken_out(messages: list[wire.Submit], otherwise: int, due: list[int]) -> None:
    frames = [_meant_for(message, MINE) for message in messages]
    limits = np.array(due, np.int64)
    answers = []
    for reader in READERS:
        counts = np.zeros(len(due), np.int64)
        whole = reader.read(frames, MINE, counts.copy())
        rows = _said(whole)[0]
        left, old = reader.split(whole, limits, otherwise, counts)
        late = [row for row in rows if row[1] < (due[row[0]] if row[0] < len(due) else otherwise)]
        assert _said(left)[0] == [row for row in rows if row not in late]
        assert old.tolist() == [row[2] for row in late]
        assert counts.tolist() == [sum(row[0] == model for row in late) for model in range(len(due))]
        answers.append(_said(left))
    assert all(answer == answers[0] for answer in answers)


@pytest.mark.parametrize("module", FORMS)
def test_the_loops_leave_what_is_unusual_to_others_and_count_nothing(module: Any) -> None:
    reader, counts = module.Submits(), np.zeros(3, np.int64)
    one = np.ones(1, np.uint32), np.ones(1, np.int64), np.full(1, 3 << 48, np.uint64)
    usual = wire.encode_submit(wire.Submit(MINE, 3, *one))
    unusual = [
        wire.encode_submit(wire.Submit(ANOTHER, 3, *one)),
        wire.encode_submit(wire.Submit(MINE, 4, *one)),
        wire.encode_submit(wire.Submit(MINE, 3, *one, np.ones(1, np.uint8))),
        usual + b"\xc0",
        b"",
    ]
    assert reader.read([usual], MINE, counts) == 1
    for frame in [*unusual, *(usual[:n] for n in range(len(usual)))]:
        assert reader.read([usual, frame], MINE, counts) == -1
    assert counts.tolist() == [0, 1, 0]
    with pytest.raises(TypeError):
        reader.read([usual, 5], MINE, counts)


@pytest.mark.skipif(native.compiled("submits") is None, reason="no compiled loops in this build")
def test_the_compiled_loops_are_compiled() -> None:
    reader = native.compiled("submits").Submits()
    assert not hasattr(reader, "__dict__")
    assert isinstance(submits_source.Submits().model, array)
    assert not isinstance(reader.model, array)


def test_the_loops_know_the_numbers_of_the_wire() -> None:
    known = (submits_source.KIND, submits_source.FORM, submits_source.MOST)
    assert known == (framing.SUBMIT, framing.VERSION, framing.MAX_REQUESTS)


def _rows(found: wire.Completed) -> list[tuple[int, ...]]:
    columns = (found.batch, found.gpu, found.size, found.failed, found.exec_at, found.started, found.finished)
    return list(zip(*(column.tolist() for column in columns), strict=True))


@given(st.lists(dones(), max_size=4), st.data())
def test_dones_together_are_what_they_are_one_by_one(messages: list[wire.Done], data: st.DataObject) -> None:
    frames = [wire.encode_done(message) for message in messages]
    if frames and data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(frames) - 1))
        frames[at] = frames[at][: data.draw(st.integers(0, len(frames[at]) - 1))]
    found = wire.join_dones(frames)
    alone = [wire.join_dones([frame]) for frame in frames]
    assert _rows(found) == [row for one in alone for row in _rows(one)]
    assert [e.reason for e in found.errors] == [e.reason for one in alone for e in one.errors]


def test_an_index_without_a_name_spoils_only_its_message() -> None:
    good = [wire.DONE, wire.VERSION, "w", 1, ["m"], bytes(8), *[bytes(4)] * 4, *[bytes(8)] * 4]
    bad = [*good]
    bad[7] = np.array([1], "<u4").tobytes()
    found = wire.join_dones([msgpack.packb(good), msgpack.packb(bad)])
    assert (found.batch.tolist(), [error.reason for error in found.errors]) == ([0], ["malformed"])
