"""Latencies measured at start-up: which sizes, what becomes of noise, where measuring ends."""

from __future__ import annotations

import pytest
from fake_device import FakeDevice, definition
from hypothesis import given
from hypothesis import strategies as st

from worker.definition import DefinitionError
from worker.profiling import Stopped, measure, profile_on, sizes
from worker.turns import Turns

MS = 1_000_000


@pytest.mark.parametrize(
    ("max_batch", "expected"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (32, [1, 2, 4, 8, 16, 32])]
)
def test_sizes_double_and_end_at_max_batch(max_batch: int, expected: list[int]) -> None:
    assert sizes(max_batch) == expected


def test_a_line_is_found_again() -> None:
    profile = measure(lambda b: (2 * b + 5) * MS, 32, 10**9)
    assert profile.latency_ns == tuple((2 * b + 5) * MS for b in range(1, 33))


@given(st.lists(st.integers(1, 50 * MS), min_size=6, max_size=6), st.integers(MS, 60 * MS))
def test_whatever_is_measured_is_a_profile(measured: list[int], slo: int) -> None:
    by_size = dict(zip(sizes(32), measured, strict=True))
    profile = measure(by_size.__getitem__, 32, slo)
    assert profile.max_batch == 32
    assert profile.latency(1) == pytest.approx(by_size[1], abs=1)


def test_sizes_beyond_the_slo_are_not_measured_but_continued() -> None:
    asked: list[int] = []

    def run(size: int) -> int:
        asked.append(size)
        return 10 * size * MS

    profile = measure(run, 64, 35 * MS)
    assert max(asked) == 4
    assert profile.latency(64) == 640 * MS
    assert measure(run, 8, 5 * MS).latency(8) == 80 * MS  # not even one is in time


def test_the_first_run_of_a_size_does_not_count() -> None:
    seen: set[int] = set()

    def run(size: int) -> int:
        cold = size not in seen
        seen.add(size)
        return (500 if cold else size) * MS

    assert measure(run, 4, 10**9).latency(4) == 4 * MS


def test_stopping_is_noticed_between_runs() -> None:
    with pytest.raises(Stopped):
        measure(lambda b: MS, 4, 10**9, stop=lambda: True)


def test_a_given_profile_is_taken_and_every_size_tried_once() -> None:
    device, given = FakeDevice(), definition()
    device.load("double#1", given)
    assert profile_on(device, "double#1", given, Turns()) == given.given_profile()
    assert device.sizes == [1, 2, 3, 1, 2, 4, 8, 16, 32]


def test_without_a_profile_it_is_measured() -> None:
    device, without = FakeDevice(), definition(profile=None, max_batch=4)
    device.load("double#1", without)
    assert profile_on(device, "double#1", without, Turns()).max_batch == 4
    assert set(device.sizes) == {1, 2, 3, 4}


def test_a_model_whose_inputs_nobody_can_make_up_needs_a_profile() -> None:
    text = [{"name": "x", "dtype": "BYTES", "shape": []}]
    device, without = FakeDevice(), definition(profile=None, inputs=text)
    device.load("double#1", without)
    with pytest.raises(DefinitionError, match=r"model 'double': give it a profile, or samples"):
        profile_on(device, "double#1", without, Turns())
