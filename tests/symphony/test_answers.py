"""RESULT, ANSWER and FETCH messages, good and hostile, on a table without sockets."""

from __future__ import annotations

import logging
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from symphony import answers, fetches, wire
from symphony.faults import Faults
from symphony.pending import Line, Outcome, PendingTable, Request
from symphony.status import Status
from symphony.tensors import Encoded

U64 = np.uint64


class World:
    """Requests with keys 1…n that wait, and what became of them."""

    def __init__(self, count: int = 4, inputs: Encoded | None = None) -> None:
        self.faults = Faults(logging.getLogger("test"))
        self.table = PendingTable(self.faults)
        self.outcomes: dict[int, Outcome] = {}
        for key in range(1, count + 1):
            request = Request("m", inputs, 1000, 0, self._done)
            self.table.admit(request, 10**15)
            self.table.assign(request, key, Line())

    def _done(self, request: Request, outcome: Outcome) -> None:
        assert request.key not in self.outcomes
        self.outcomes[request.key] = outcome

    def take(self, *frames: bytes) -> None:
        answers.take(list(frames), self.table, 5, self.faults)


def result(keys: list[int], status: list[int], outputs: list[list[Any]], error: str | None = None) -> bytes:
    key, codes = np.array(keys, U64), np.array(status, np.uint8)
    return wire.encode_result(wire.Result("w", "m", 7, 2, 9, 100, 200, key, codes, outputs, error))


def test_rows_go_to_the_keys_that_are_ok_in_order() -> None:
    world = World()
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    header = result([4, 1, 3, 2], [0, 6, 0, 0], [["y", "FP32", [2]]], "boom")
    world.take(header, rows.tobytes())
    assert world.outcomes[1].status is Status.FAILED
    assert world.outcomes[1].detail == "boom"
    for row, key in enumerate((4, 3, 2)):
        outcome = world.outcomes[key]
        assert outcome.batch.row(outcome.row)["y"].tolist() == rows[row].tolist()
        assert (outcome.batch.size, outcome.batch.worker, outcome.batch.gpu) == (9, "w", 2)


def results(keys: list[int], status: list[int], counts: list[int]) -> bytes:
    n = len(counts)
    columns = [np.arange(n, dtype=np.uint64), *(np.arange(n, dtype=np.uint32) for _ in range(2))]
    times = [np.full(n, at, np.int64) for at in (100, 200)]
    names = [f"m{i}" for i in range(n)]
    message = wire.Results(
        "w", names, *columns, np.full(n, 9, np.uint32), *times, np.array(counts, np.uint32),
        np.array(keys, U64), np.array(status, np.uint8),
    )  # fmt: skip
    return wire.encode_results(message)


def test_results_of_several_batches_in_one_message() -> None:
    world = World()
    world.take(results([3, 1, 4, 4], [0, 6, 0, 0], [2, 0, 2]))
    assert {key: outcome.status for key, outcome in world.outcomes.items()} == {
        3: Status.OK, 1: Status.FAILED, 4: Status.OK,
    }  # fmt: skip
    batch = world.outcomes[4].batch
    assert (batch.model, batch.gpu, batch.batch, batch.size, batch.worker) == ("m2", 2, 2, 9, "w")
    assert (batch.started, batch.finished) == (100, 200)
    assert world.outcomes[3].batch.model == "m0"
    assert world.outcomes[3].batch.row(0) == {}
    assert world.faults.counts == {"duplicate-answer": 1}


def test_second_answers_and_unknown_keys_are_counted_and_ignored() -> None:
    world = World()
    world.take(result([1, 1, 99], [0, 0, 0], []))
    world.take(wire.encode_answer(wire.Answer("s", np.array([1, 2], U64), np.array([4, 4], np.uint8))))
    assert world.outcomes[1].status is Status.OK
    assert world.outcomes[2].status is Status.DROPPED
    assert "deadline could not be met" in world.outcomes[2].detail
    assert world.faults.counts == {"duplicate-answer": 3}


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([b""], "reply-malformed"),
        ([b"\xff" * 100], "reply-malformed"),
        ([result([1], [0], [])[:-3]], "reply-malformed"),
        ([result([1], [0], [["y", "FP32", [2]]])], "reply-ragged"),
        ([result([1], [0], [["y", "FP32", [2]]]), b"short"], "reply-malformed"),
        ([result([1], [0], [["y", "FP32", [2**31 - 1] * 8]]), b""], "reply-malformed"),
        ([result([1], [0], [["y", "FP32", [0, *[2**31 - 1] * 7]]]), b""], "reply-malformed"),
        ([result([1], [0], [["y", "NONE", [2]]]), b"x" * 8], "reply-malformed"),
        ([result([1], [0], [["y", "UINT8", []], ["y", "UINT8", []]]), b"x", b"x"], "reply-malformed"),
        ([result([1], [99], [])], "reply-malformed"),
        ([results([1], [99], [1])], "reply-malformed"),
        ([results([1], [0], [2])], "reply-ragged"),
        ([results([1], [0], [1])[:-2]], "reply-malformed"),
        ([results([1], [0], [1]), b"x"], "reply-unexpected-kind"),
        (
            [wire.encode_answer(wire.Answer("s", np.array([1], U64), np.array([0], np.uint8)))],
            "reply-malformed",
        ),
        ([wire.encode_fetch(1, np.array([1], U64))], "reply-unexpected-kind"),
        ([msgpack.packb([wire.ANSWER, 2, "s", b"", b"", None])], "reply-wrong-version"),
        ([msgpack.packb([wire.ANSWER, 1, "s", b"x" * 8, b"", None])], "reply-ragged"),
    ],
)
def test_what_is_malformed_is_counted_and_harms_nobody(frames: list[bytes], reason: str) -> None:
    world = World()
    world.take(*frames)
    assert world.outcomes == {}
    assert world.faults.counts == {reason: 1}
    world.take(result([1, 2, 3, 4], [0] * 4, []))
    assert len(world.outcomes) == 4


@settings(max_examples=300)
@given(st.lists(st.binary(max_size=200), min_size=1, max_size=4), st.integers(0, 400), st.binary(max_size=3))
def test_random_and_mutilated_messages_raise_nothing(junk: list[bytes], at: int, patch: bytes) -> None:
    good = result([1, 2], [0, 0], [["y", "FP32", [2]]])
    payload = np.zeros(4, np.float32).tobytes()
    ask = wire.encode_fetch(3, np.array([1, 2], U64))
    world = World()
    for message in (junk, [good[:at] + patch + good[at + len(patch) :], payload], [good, payload[:at]]):
        world.take(*message)
    for frame in (junk[0], ask[:at], ask[:at] + patch + ask[at + len(patch) :]):
        fetches.serve([b"id", frame], world.table, world.faults)
    assert fetches.serve(junk, world.table, world.faults) is None or len(junk) == 2
    world.table.validate()


def test_a_fetch_is_served_in_its_order_without_those_that_are_gone() -> None:
    world = World(3, Encoded(("a", "b"), [["UINT8", [2]], ["FP32", []]], [b"xy", b"1234"]))
    world.table.answer(2, Outcome(Status.DROPPED, 0))
    answer = fetches.serve(
        [b"id", wire.encode_fetch(8, np.array([3, 2, 77, 1, 3], U64))], world.table, world.faults
    )
    assert answer is not None
    assert answer[0] == b"id"
    tensors = wire.decode_tensors(answer[1], len(answer) - 2)
    assert (tensors.fetch, tensors.key.tolist(), tensors.names) == (8, [3, 1], ["a", "b"])
    assert tensors.specs == [["UINT8", [2]], ["FP32", []]] * 2
    assert answer[2:] == [b"xy", b"1234"] * 2


def test_a_fetch_of_nothing_that_is_left_is_answered_all_the_same() -> None:
    world = World(1)
    answer = fetches.serve([b"id", wire.encode_fetch(8, np.array([5], U64))], world.table, world.faults)
    assert answer is not None
    assert wire.decode_tensors(answer[1], 0).key.size == 0


def test_a_fetch_across_models_with_other_tensors_gets_the_first_ones() -> None:
    world = World(1, Encoded(("a",), [["UINT8", []]], [b"x"]))
    other = Request("n", Encoded(("b",), [["UINT8", []]], [b"y"]), 0, 0, lambda r, o: None)
    world.table.admit(other, 10**15)
    world.table.assign(other, 50, Line())
    answer = fetches.serve([b"id", wire.encode_fetch(1, np.array([1, 50], U64))], world.table, world.faults)
    assert answer is not None
    assert wire.decode_tensors(answer[1], 1).key.tolist() == [1]
    assert world.faults.counts == {"fetch-mixed": 1}


@pytest.mark.parametrize(
    "frames", [[b"id"], [b"id", b"", b""], [b"id", b""], [b"id", b"\x94\x03\x02\x01\xc4\x00"]]
)
def test_a_malformed_fetch_is_counted(frames: list[bytes]) -> None:
    world = World()
    assert fetches.serve(frames, world.table, world.faults) is None
    assert sum(world.faults.counts.values()) == 1
