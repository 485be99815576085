from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.arrivals import ArrivalError, Arrivals

PROCESSES = ["poisson", "constant", "gamma:0.1", "gamma:4"]


@given(st.sampled_from(PROCESSES), st.floats(0.01, 5_000), st.floats(0.001, 3), st.integers(0, 2**32))
def test_times_ascend_within_the_duration_and_repeat(
    text: str, rate: float, seconds: float, seed: int
) -> None:
    process = Arrivals.parse(text)
    times, again = (process.times(rate, seconds, np.random.default_rng(seed)) for _ in range(2))
    assert times.dtype == np.int64
    assert (np.diff(times) >= 0).all()
    assert times.size == 0 or (times[0] >= 0 and times[-1] < seconds * 1e9)
    assert times.tolist() == again.tolist()


@pytest.mark.parametrize(
    ("text", "dispersion"), [("poisson", 1), ("constant", 0), ("gamma:0.1", 10), ("gamma:4", 0.25)]
)
def test_rate_and_burstiness(text: str, dispersion: float) -> None:
    rate, seconds = 1_000.0, 400.0
    times = Arrivals.parse(text).times(rate, seconds, np.random.default_rng(5))
    assert times.size == pytest.approx(rate * seconds, rel=0.02)
    gaps = np.diff(times) / 1e9
    assert gaps.var() / gaps.mean() ** 2 == pytest.approx(dispersion, rel=0.1, abs=1e-6)


def test_constant_arrivals_of_two_models_do_not_march_in_step() -> None:
    one, other = (Arrivals("constant").times(100, 1, np.random.default_rng(seed)) for seed in (1, 2))
    assert one.size == other.size == 100
    assert one[0] != other[0]


@pytest.mark.parametrize(
    "text", ["", "uniform", "gamma", "gamma:", "gamma:0", "gamma:-1", "gamma:nan", "poisson:2"]
)
def test_what_is_no_process_is_told(text: str) -> None:
    with pytest.raises(ArrivalError, match="gamma"):
        Arrivals.parse(text)
