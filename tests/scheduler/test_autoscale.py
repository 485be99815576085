"""The autoscaler's rules, each on a hand-made window."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from scheduler.autoscale import Decision, State, decide
from scheduler.evidence import SECOND, ModelLoad, Sample, fluid_need
from symphony.scaling import AutoscaleConfig

SETTINGS = AutoscaleConfig(min=1, max=100, startup_s=30, up=0.95, target=0.88, down=0.88)
START = 1_000 * SECOND


def second(
    at: int,
    need: float,
    gpus: int,
    *,
    bad: int = 0,
    idle: int = 0,
    starting: int = 0,
    draining: int = 0,
    offered: int = 1_000,
) -> Sample:
    """One second on ``gpus`` GPUs of type a, of which the last ``idle`` are idle."""
    busy = {gpu: 0.9 if gpu < gpus - idle else 0.0 for gpu in range(gpus)}
    coming = frozenset(range(1_000, 1_000 + starting))
    going = frozenset(range(2_000, 2_000 + draining))
    return Sample(
        at=START + at * SECOND,
        seconds=1.0,
        offered=offered,
        good=offered - bad,
        late=0,
        dropped=bad,
        need={"a": need},
        busy=busy,
        types=dict.fromkeys([*busy, *coming, *going], "a"),
        starting=coming,
        draining=going,
    )


def window(seconds: int = 30, **what: object) -> list[Sample]:
    return [second(at, **what) for at in range(seconds)]  # type: ignore[arg-type]


def first(
    samples: list[Sample], settings: AutoscaleConfig = SETTINGS, state: State | None = None
) -> Decision:
    return decide(samples, state or State(), settings)[0]


def test_a_load_that_fits_is_left_alone() -> None:
    decision = first(window(need=9.0, gpus=10))
    assert (decision.kind, decision.reason) == ("hold", "the load fits")
    assert decision.planned == decision.requested == decision.observed == {"a": 10}


def test_a_load_above_up_gets_as_many_gpus_as_bring_it_to_the_target() -> None:
    decision, state = decide(window(need=19.5, gpus=10, bad=400), State(), SETTINGS)
    assert decision.kind == "up"
    assert decision.requested == {"a": math.ceil(19.5 / 0.88)} == state.requested
    assert decision.observed == {"a": 10}
    assert "195%" in decision.reason


def test_what_was_asked_for_is_not_asked_for_again() -> None:
    samples = window(need=19.5, gpus=10, bad=400)
    _, state = decide(samples, State(), SETTINGS)
    later = [second(at, need=19.5, gpus=10, starting=3, bad=400) for at in range(20, 50)]
    decision, _ = decide(later, state, SETTINGS)
    assert (decision.kind, decision.reason) == ("hold", "waiting for what was asked for")
    assert (decision.requested, decision.observed) == ({"a": 23}, {"a": 13})


def test_fluid_need_is_the_rate_times_the_time_per_request_at_the_largest_batch_in_time() -> None:
    table = [5_000_000 + 1_000_000 * b for b in range(1, 33)]
    load = ModelLoad(
        rate=1_000.0, budget_ns=20_000_000, latency_ns={"a": table, "b": [x // 2 for x in table]}
    )
    # b/rate + l(b) = b + 5 + b ms ≤ 20 ms: b = 7, 12 ms for 7 requests
    need = fluid_need([load], ["a", "b"])
    assert need["a"] == pytest.approx(1_000 * 0.012 / 7)
    # half the time: 2.5 + 0.5 b + b ≤ 20: b = 11, 8 ms
    assert need["b"] == pytest.approx(1_000 * 0.008 / 11)
    assert fluid_need([replace(load, rate=1.0)], ["a"])["a"] == pytest.approx(0.006)
    assert fluid_need([replace(load, budget_ns=5_000_000)], ["a"])["a"] == math.inf
    assert fluid_need([load], ["c"])["c"] == math.inf
    assert fluid_need([replace(load, rate=0.0)], ["c"])["c"] == 0
