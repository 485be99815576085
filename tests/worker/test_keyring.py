"""Keys in a ring: none is lost while it is needed, whatever the order in which batches end."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from symphony import native
from symphony.wire import keys as loops
from worker.keyring import KeyRing


def none() -> None:
    """Nothing is needed any more."""


def keys(first: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    return np.arange(first, first + count, dtype=np.uint64)


def test_batches_come_back_in_any_order_across_the_ends_of_the_ring() -> None:
    ring = KeyRing(8)
    a = ring.append(keys(0, 5), none)
    b = ring.append(keys(100, 2), lambda: a)
    c = ring.append(keys(200, 6), lambda: b)
    found = ring.take(np.array([c, b]), np.array([6, 2]))
    assert found.tolist() == [200, 201, 202, 203, 204, 205, 100, 101]


def test_room_is_used_again() -> None:
    ring = KeyRing(16)
    for turn in range(100):
        start = ring.append(keys(turn, 7), none)
        assert ring.take(np.array([start]), np.array([7])).tolist() == list(range(turn, turn + 7))
    assert ring.room == 16


class Loops(KeyRing):
    """With the loops, run as Python."""

    def __init__(self, room: int) -> None:
        super().__init__(room, compiled=False)
        self._loops = loops


FORMS = {"columns": lambda room: KeyRing(room, compiled=False), "loops": Loops, "as built": KeyRing}


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 5)), max_size=60))
def test_what_is_needed_stays(form: str, steps: list[tuple[int, int]]) -> None:
    """Each step adds a batch and ends the batch that lies so many places from the oldest, if there is one."""
    ring = FORMS[form](4)
    there: list[tuple[int, list[int]]] = []
    number = 0
    for size, ends in steps:
        wanted = list(range(number, number + size))
        number += size
        start = ring.append(
            np.array(wanted, np.uint64), lambda: min((first for first, _ in there), default=None)
        )
        there.append((start, wanted))
        if ends < len(there):
            first, expected = there.pop(ends)
            assert ring.take(np.array([first]), np.array([len(expected)])).tolist() == expected
    for first, expected in there:
        assert ring.take(np.array([first]), np.array([len(expected)])).tolist() == expected


@pytest.mark.skipif(native.compiled("keys") is None, reason="no compiled loops in this build")
def test_the_compiled_loops_are_compiled() -> None:
    assert type(native.compiled("keys").gather) is not type(loops.gather)
