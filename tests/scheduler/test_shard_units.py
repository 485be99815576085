"""The shard's parts by themselves: margins, statistics, model table, answers to frontends."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import zmq
from cluster_parts import ANY_PORT
from helpers import wait_until
from shard_parts import MS, S, make_table, spec

from scheduler.core.limits import DUPLICATE, EXPIRED, FULL, HANDED_BACK, REASONS, TYPES, WINDOW
from scheduler.core.machine import Core
from scheduler.frontends import PARKED, PATIENCE_NS, STATUS_OF, Frontends
from scheduler.margins import ENOUGH, REMEMBERED, SLICE, Margins
from scheduler.table import ModelTable
from symphony import wire
from symphony.bus import Bus, Sock, drain
from symphony.control import Member, ModelSpec
from symphony.faults import Faults
from symphony.membership import describe
from symphony.status import Status

CAP = 100 * MS
LOG = logging.getLogger(__name__)


# --- margins -----------------------------------------------------------------------------------


def _overruns(margins: Margins, gpu: int, *overruns: int) -> None:
    margins.observe(np.full(len(overruns), gpu), np.array(overruns))


def _of(margins: Margins, *gpus: int) -> list[int]:
    return margins.of(np.array(gpus)).tolist()  # type: ignore[no-any-return]


def test_a_margin_is_the_95th_percentile_of_the_last_overruns() -> None:
    margins = Margins()
    _overruns(margins, 3, *(overrun * 1_000 for overrun in range(100)))
    assert margins.changes(CAP) == [(3, 95_000)]
    assert _of(margins, 3) == [95_000]
    assert margins.changes(CAP) == [], "only GPUs with something new"


def test_a_few_batches_are_no_reason_for_a_margin() -> None:
    margins = Margins()
    _overruns(margins, 0, *[MS] * (ENOUGH - 1))
    assert margins.changes(CAP) == []
    assert _of(margins, 0) == [0]
    _overruns(margins, 0, MS)
    assert margins.changes(CAP) == [(0, MS)]


def test_margins_are_never_negative_nor_absurd_and_old_overruns_are_forgotten() -> None:
    margins = Margins()
    _overruns(margins, 0, *[10 * CAP] * REMEMBERED)
    _overruns(margins, 1, *[-MS] * REMEMBERED)
    assert margins.changes(CAP) == [(0, CAP)], "the other stays at none"
    _overruns(margins, 0, *[7] * REMEMBERED)
    assert margins.changes(CAP) == [(0, 7)]
    margins.forget(0)
    margins.forget(99)
    assert _of(margins, 0, 1, 99) == [0, 0, 0]


def test_margins_are_worked_out_a_slice_of_gpus_at_a_time() -> None:
    margins = Margins()
    gpus = np.arange(3 * SLICE - 5)
    for _ in range(ENOUGH):
        margins.observe(gpus, gpus * 1_000 + 1)
    assert margins.slices == 3
    changes = [margins.changes(CAP) for _ in range(3)]
    assert max(len(slice_) for slice_ in changes) == SLICE
    assert [pair for slice_ in changes for pair in slice_] == [(g, g * 1_000 + 1) for g in gpus.tolist()]


# --- the table of models -----------------------------------------------------------------------


def test_numbers_are_dense_and_stay() -> None:
    core, table = make_table("a", "b")
    assert table.names == ["a", "b"]
    assert [table.number(name) for name in ("a", "b", "c")] == [0, 1, None]
    assert table.numbers(["b", "x", "a", "b"]) == [0, 1]
    assert not table.learn(5, spec("a")), "known"
    assert table.learn(5, spec("c"))
    assert all(core.has_model(number) for number in range(3))


def test_a_new_profile_of_a_known_model_is_taken_in() -> None:
    core, table = make_table("a")
    more = spec("a").model_copy(update={"profiles": {"t": [MS] * 8, "u": [2 * MS] * 8}})
    assert not table.learn(1, more)
    core.add_gpu(2, 0, table.type_number("u") or 0, [0])
    core.submit(3, np.zeros(1, np.uint32), np.array([S]), np.array([1], np.uint64))
    assert core.actions.dispatches().finish_at[0] == 3 + 2 * MS


def test_what_cannot_be_taken_in_is_counted() -> None:
    core = Core("eager")
    faults = Faults(LOG)
    table = ModelTable(core, faults)
    assert table.learn(0, spec("a"))
    assert not table.learn(0, spec("a", slo_ms=7))
    falling = ModelSpec(name="b", slo_ms=5, max_batch=2, profiles={"t": [9, 3], "short": [1]})
    assert table.learn(0, falling), "it has a name and no usable profile"
    for i in range(TYPES + 3):
        table.type_number(f"type-{i}")
    assert faults.counts == Counter({"model-redefined": 1, "bad-profile": 2, "too-many-gpu-types": 5})


# --- answers to frontends ----------------------------------------------------------------------


class Desk:
    """A :class:`Frontends` with real sockets at its ends."""

    def __init__(self) -> None:
        self.bus = Bus()
        self.faults = Faults(LOG)
        self.frontends = Frontends(self.bus, "shard-0", self.faults)
        self.pulls: dict[str, Sock] = {}

    def member(self, name: str, slot: int | None) -> Member:
        if name not in self.pulls:
            self.pulls[name], _ = self.bus.bind(zmq.PULL, ANY_PORT)
        endpoint = self.pulls[name].getsockopt(zmq.LAST_ENDPOINT).decode().rstrip("\0")  # type: ignore[union-attr]
        return describe(name, "frontend", slot=slot, endpoints={"reply": endpoint})

    def got(self, name: str, messages: int) -> list[wire.Answer]:
        found: list[wire.Answer] = []

        def enough() -> bool:
            found.extend(wire.decode_answer(frames[0]) for frames in drain(self.pulls[name]))
            return len(found) >= messages

        wait_until(enough)
        return found

    @property
    def socks(self) -> int:
        return len(self.bus._sockets) - len(self.pulls)


@pytest.fixture
def desk() -> Iterator[Desk]:
    made = Desk()
    yield made
    made.bus.close()


def _keys(slot: int, *numbers: int) -> Any:
    return np.array([(slot << wire.SLOT_SHIFT) + number for number in numbers], np.uint64)


def _codes(*reasons: int) -> Any:
    return np.array(reasons, np.int64)


def test_every_reason_has_the_status_that_the_caller_is_told() -> None:
    names = {REASONS[code]: Status(status).name for code, status in enumerate(STATUS_OF) if code}
    assert names == {
        "expired": "DROPPED",
        "window": "DROPPED",
        "full": "OVERLOADED",
        "unknown-model": "UNKNOWN_MODEL",
        "out-of-range": "INVALID",
        "duplicate": "OK",
        "unserved": "UNAVAILABLE",
        "handed-back": "UNAVAILABLE",
    }


def test_drops_are_split_by_frontend(desk: Desk) -> None:
    desk.frontends.saw(desk.member("a", 1))
    desk.frontends.saw(desk.member("b", 65_535))
    keys = np.concatenate([_keys(1, 5), _keys(65_535, 9), _keys(1, 2)])
    desk.frontends.drops(0, keys, _codes(EXPIRED, FULL, HANDED_BACK))
    (mine,) = desk.got("a", 1)
    assert mine.key.tolist() == _keys(1, 5, 2).tolist()
    assert mine.status.tolist() == [Status.DROPPED, Status.UNAVAILABLE]
    (yours,) = desk.got("b", 1)
    assert (yours.key.tolist(), yours.status.tolist()) == (_keys(65_535, 9).tolist(), [Status.OVERLOADED])


def test_what_came_back_and_cannot_be_sent_again_is_unavailable_not_dropped(desk: Desk) -> None:
    desk.frontends.saw(desk.member("a", 1))
    desk.frontends.drops(0, _keys(1, 1, 2, 3), _codes(EXPIRED, WINDOW, FULL), lost=True)
    (answer,) = desk.got("a", 1)
    assert answer.status.tolist() == [Status.UNAVAILABLE, Status.UNAVAILABLE, Status.OVERLOADED]


def test_a_duplicate_is_not_answered(desk: Desk) -> None:
    desk.frontends.saw(desk.member("a", 1))
    desk.frontends.drops(0, _keys(1, 1, 2), _codes(DUPLICATE, EXPIRED))
    desk.frontends.drops(0, _keys(1, 1), _codes(DUPLICATE))
    (answer,) = desk.got("a", 1)
    assert answer.key.tolist() == _keys(1, 2).tolist()
    assert desk.faults.counts == {"duplicate-key": 2}


def test_more_than_a_message_holds_goes_into_several(desk: Desk) -> None:
    desk.frontends.saw(desk.member("a", 0))
    n = wire.MAX_REQUESTS + 10
    desk.frontends.answer(0, np.arange(n, dtype=np.uint64), np.full(n, Status.DROPPED, np.uint8))
    answers = desk.got("a", 2)
    assert [answer.key.size for answer in answers] == [wire.MAX_REQUESTS, 10]
    assert np.concatenate([answer.key for answer in answers]).tolist() == list(range(n))


def test_answers_for_an_unknown_slot_wait_for_a_while(desk: Desk) -> None:
    frontends = desk.frontends
    frontends.answer(0, _keys(7, 1), np.zeros(1, np.uint8))
    frontends.answer(MS, _keys(8, 1), np.zeros(1, np.uint8), "why")
    assert frontends.waiting
    frontends.retry(PATIENCE_NS // 2)
    frontends.saw(desk.member("b", 8))
    frontends.retry(PATIENCE_NS - 1)
    (answer,) = desk.got("b", 1)
    assert answer.detail == "why"
    assert frontends.waiting
    frontends.retry(PATIENCE_NS)
    assert not frontends.waiting
    assert desk.faults.counts == {"answer-undeliverable": 1}


def test_only_so_many_answers_wait(desk: Desk) -> None:
    for number in range(PARKED + 3):
        desk.frontends.answer(0, _keys(7, number), np.zeros(1, np.uint8))
    assert desk.faults.counts == {"answer-undeliverable": 3}


def test_sockets_follow_the_frontends(desk: Desk) -> None:
    frontends = desk.frontends
    first = desk.member("a", 1)
    frontends.saw(first)
    frontends.saw(first)
    assert desk.socks == 1
    frontends.saw(desk.member("a", 2))  # the same process has another slot
    assert desk.socks == 1
    frontends.saw(desk.member("b", 2))  # another process has that slot now
    assert desk.socks == 1
    frontends.lost(desk.member("a", 2))  # news of the one before comes late
    assert desk.socks == 1
    frontends.answer(0, _keys(2, 1), np.zeros(1, np.uint8))
    desk.got("b", 1)
    frontends.lost(desk.member("b", 2))
    assert desk.socks == 0
    frontends.lost(describe("x", "frontend"))
    frontends.saw(describe("y", "frontend", slot=9))
    frontends.saw(describe("z", "frontend", slot=9, endpoints={"reply": "nonsense"}))
    assert desk.socks == 0
    assert desk.faults.counts == {"frontend-endpoint": 1}


def test_a_full_pipe_is_counted(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.frontends.saw(desk.member("a", 1))
    monkeypatch.setattr("scheduler.frontends.send", lambda *_: False)
    desk.frontends.answer(0, _keys(1, 1), np.zeros(1, np.uint8))
    assert desk.faults.counts == {"answer-pipe-full": 1}
