"""The wire benchmark: its books against a dictionary, and a small run of the whole."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.wire import main
from bench.wire_books import Books
from bench.wire_load import Frames
from symphony import wire
from symphony.cli.bench import command
from symphony.status import Status
from symphony.wire import keys

FIRST = 1_000
STATUSES = [Status.OK, Status.OK, Status.DROPPED, Status.OVERLOADED]
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("offer"), st.lists(st.integers(0, 30), max_size=6)),
        st.tuples(
            st.just("answer"), st.lists(st.tuples(st.integers(-3, 60), st.sampled_from(STATUSES)), max_size=8)
        ),
        st.tuples(st.just("count"), st.none()),
    ),
    max_size=25,
)


class Loops(Books):
    """With the loops, run as Python."""

    def __init__(self, first: int, room: int) -> None:
        super().__init__(first, room, compiled=False)
        self._loops = keys


FORMS = {"columns": lambda *a: Books(*a, compiled=False), "loops": Loops, "as built": Books}


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=100)
@given(EVENTS, st.integers(0, 30))
def test_every_request_is_accounted_for_exactly_once(
    form: str, events: list[tuple[str, list[int]]], at: int
) -> None:
    room = 16
    books = FORMS[form](FIRST, room)
    waiting: dict[int, int] = {}  # number → deadline
    sums = dict.fromkeys(("offered", "good", "late", "dropped", "failed", "unanswered", "duplicates"), 0)
    number = counted = 0
    for kind, values in events:
        if kind == "count":
            books.count_from_here()
            counted = number
            sums = dict.fromkeys(sums, 0)
        elif kind == "offer":
            keys = books.offer(np.array(values, np.int64))
            assert keys.tolist() == [FIRST + number + i for i in range(len(values))]
            for deadline in values:
                if number - room in waiting:
                    del waiting[number - room]
                    sums["unanswered"] += number - room >= counted
                waiting[number] = deadline
                number += 1
                sums["offered"] += 1
        else:
            key = np.array([(7 << 48) + FIRST + n for n, _ in values], np.uint64)  # type: ignore[misc]
            books.answer(key, np.array([s for _, s in values], np.uint8), at)  # type: ignore[misc]
            for n, status in values:  # type: ignore[misc]
                if n not in waiting:
                    sums["duplicates"] += 1
                    continue
                deadline = waiting.pop(n)
                if n >= counted:
                    ok = "good" if deadline >= at else "late"
                    names = {Status.OK: ok, Status.DROPPED: "dropped", Status.OVERLOADED: "failed"}
                    sums[names[status]] += 1
        assert books.waiting == len(waiting)
    sums["unanswered"] += sum(n >= counted for n in waiting)
    books.close()
    assert {name: getattr(books, name) for name in sums} == sums


def test_answers_without_a_status_are_not_counted() -> None:
    books = Books(FIRST, 16)
    with pytest.raises(ValueError, match="1 keys and 0 statuses"):
        books.answer(books.offer(np.array([5])), np.zeros(0, np.uint8), 1)


@given(st.integers(1, 90), st.lists(st.integers(1, 40), min_size=1, max_size=4))
def test_the_messages_are_those_that_a_client_sends(size: int, counts: list[int]) -> None:
    frames = Frames((wire.SUBMIT, wire.VERSION, 2**60, 7), size)
    first = 7 << 48
    for count in counts:
        model = np.arange(count, dtype=np.uint32)
        deadline, key = model.astype(np.int64) - 5, model.astype(np.uint64) + first
        sent = [bytes(frame) for frame in frames.of(model, deadline, key)]
        first += count
        wanted = []
        for at in range(0, count, size):
            part = slice(at, at + size)
            wanted.append(wire.encode_submit(wire.Submit(2**60, 7, model[part], deadline[part], key[part])))
        assert sent == wanted


@pytest.mark.live
def test_a_small_load_is_served_whole() -> None:
    sizes = ["--rate", "4000", "--gpus", "16", "--models", "4", "--shards", "2", "--seconds", "1.5"]
    result = CliRunner().invoke(command, ["wire", *sizes, "--submit-size", "16", "--json", "-"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    named = {"offered_per_s", "good_per_s", "bad_share", "unanswered", "lateness_p50_us", "lateness_p99_us"}
    assert named <= set(found)
    assert set(found["cpu_us_per_request"]) == {
        "broker", "shard-0", "shard-1", "worker-0", "worker-1", "load-0",
    }  # fmt: skip
    books = found["books"]
    assert books["offered"] > 3_000
    assert books["unanswered"] == books["duplicates"] == 0
    assert books["good"] + books["late"] + books["dropped"] + books["failed"] == books["offered"]
    assert books["good"] > 0
    assert set(found["loop"]["shard-0"]["share"]) >= {"wait", "completions", "submits", "act"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--rate", "-5"], "rate and seconds must be above 0"),
        (["--seconds", "nan"], "rate and seconds must be above 0"),
        (["--submit-size", "0"], "submit size at least 1"),
        (["--gpus", "1", "--shards", "2"], "every shard needs a GPU"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(options)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
