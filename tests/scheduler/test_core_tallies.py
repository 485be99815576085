"""The loops over simulated requests, as Python and compiled, against plain NumPy and hand-made cases."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from scheduler.select import compiled_core

FLAVOURS = ["core", *(["compiled"] if compiled_core() is not None else [])]


@pytest.fixture(params=FLAVOURS)
def tallies(request: pytest.FixtureRequest) -> Any:
    return importlib.import_module(f"scheduler.{request.param}.tallies")


def test_requests_are_counted_by_model(tallies: Any) -> None:
    model = np.random.default_rng(1).integers(0, 7, 1000).astype(np.uint32)
    offered = np.full(7, 5)
    tallies.count(model, 10, offered)
    assert (offered == 5 + np.bincount(model[10:], minlength=7)).all()
    tallies.count(model, len(model), offered)
    assert offered.sum() == 35 + 990


def test_answers_are_put_down_until_there_is_no_room(tallies: Any) -> None:
    slo = np.array([100, 1 << 33])
    model, size = np.array([0, 1, 0, 0]), np.array([2, 1, 3, 2])
    answered = np.array([1000, 9_000_000_000, 1200, 1300])
    #                    late, in time   far  before begin, late, in time
    deadline = np.array([999, 1010, 9_000_000_000, 940, 1150, 1250, 1400, 1400])
    good, late, oldest = np.zeros(2, np.int64), np.zeros(2, np.int64), np.zeros(4, np.int64)
    value = np.zeros(8, np.uint32)
    begin, end, stop = 850, np.array([0, 6]), np.array([5, 8])
    done = tallies.answer(model, size, answered, deadline, slo, begin, good, late, oldest, value, end, stop)
    assert done == 3  # the last two have no room behind the four latencies of model 0
    assert value.tolist() == [101, 90, 150, 50, 0, 0, (1 << 32) - 1, 0]
    assert (good.tolist(), late.tolist()) == ([2, 1], [2, 0])
    assert oldest[:3].tolist() == [899, 9_000_000_000 - (1 << 33), 840]
    assert end.tolist() == [4, 7]


def test_the_bins_of_a_histogram_and_what_is_in_some(tallies: Any) -> None:
    rng = np.random.default_rng(2)
    value = rng.integers(0, 1 << 20, 5000).astype(np.uint32)
    begin, end = np.array([0, 1000, 3000]), np.array([900, 1000, 5000])
    mine = np.concatenate([value[:900], value[3000:]])
    bins = np.zeros(4 * 256, np.uint32)
    tallies.histogram(value, begin, end, 12, bins)
    assert (bins.reshape(4, -1).sum(axis=0) == np.bincount(mine >> 12, minlength=256)).all()
    wanted = np.zeros(256, np.uint8)
    wanted[[3, 200]] = 1
    out = np.zeros(5000, np.uint32)
    n = tallies.gather(value, begin, end, 12, wanted, out)
    assert out[:n].tolist() == mine[np.isin(mine >> 12, [3, 200])].tolist()


@pytest.mark.parametrize(("total", "until"), [(1e9, 1 << 60), (500.0, 1 << 60), (1e9, 300_000)])
def test_points_are_running_sums_below_both_ends(tallies: Any, total: float, until: int) -> None:
    gaps = np.random.default_rng(3).standard_exponential(1000)
    gaps[0] += 10.5
    sums = np.cumsum(gaps)
    expected = (sums[sums < total] * 1234.5).astype(np.int64)
    expected = expected[expected < until]
    gaps[0] -= 10.5
    first = gaps[0]
    at = np.zeros(1000, np.int64)
    n = tallies.points(gaps, 10.5, total, 1234.5, until, at)
    assert n == len(expected)
    assert (at[:n] == expected).all()
    assert gaps[0] == 10.5 + first
    assert (n == 1000) == (total == 1e9 and until == 1 << 60)
