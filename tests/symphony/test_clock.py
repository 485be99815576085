"""The cluster clock: which sample is believed, and what is promised of it."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from symphony.clock import PING_EVERY_NS, PINGS_FIRST, PINGS_LATER, UNKNOWN_NS, WINDOW, ClusterClock, PingPong

S = 1_000_000_000


def test_before_any_sample_it_is_the_wall_clock_and_says_that_it_is_unsure() -> None:
    clock = ClusterClock()
    assert not clock.synced
    assert clock.uncertainty_ns == UNKNOWN_NS
    assert abs(clock.now() - time.time_ns()) < S


def test_the_brokers_own_clock_is_exact() -> None:
    clock = ClusterClock.origin()
    assert clock.synced
    assert clock.uncertainty_ns == 0


def test_one_sample_gives_offset_and_half_the_round_trip() -> None:
    clock = ClusterClock()
    clock.sample(1_000, 5_000_100, 1_200)
    assert clock.offset_ns == 5_000_100 - 1_100
    assert clock.uncertainty_ns == 100
    assert clock.to_monotonic(clock.to_cluster(77)) == 77


def test_the_smallest_round_trip_wins() -> None:
    clock = ClusterClock()
    clock.sample(0, 10_000, 20_000)
    clock.sample(30_000, 1_030_050, 30_100)
    clock.sample(40_000, 5_000_000, 90_000)
    assert clock.offset_ns == 1_000_000
    assert clock.uncertainty_ns < 60


def test_an_old_sample_loses_its_trust() -> None:
    clock = ClusterClock()
    clock.sample(0, 7_000_050, 100)  # 50 ns, but it ages
    for i in range(1, 4):
        clock.sample(i * 10 * S, 8_000_000 + i * 10 * S, i * 10 * S + 200_000)
    assert clock.offset_ns == 8_000_000 - 100_000


def test_the_window_slides() -> None:
    clock = ClusterClock()
    clock.sample(0, 50, 100)
    for i in range(WINDOW):
        clock.sample(1_000 * (i + 1), 1_000_000 + 1_000 * (i + 1) + 100, 1_000 * (i + 1) + 200)
    assert clock.offset_ns == 1_000_000


def test_an_answer_before_its_question_is_ignored() -> None:
    clock = ClusterClock()
    clock.sample(100, 5, 50)
    assert not clock.synced


def test_a_restart_forgets_the_samples_and_keeps_the_offset_until_the_next() -> None:
    clock = ClusterClock()
    clock.sample(0, 50, 100)
    clock.restart()
    assert not clock.synced
    assert clock.offset_ns == 0
    clock.sample(0, 9_050, 100)
    assert clock.offset_ns == 9_000


@given(
    true_offset=st.integers(-(10**15), 10**15),
    trips=st.lists(st.tuples(st.integers(0, 10**7), st.integers(0, 10**7)), min_size=1, max_size=50),
)
def test_the_error_is_never_more_than_the_uncertainty(true_offset: int, trips: list[tuple[int, int]]) -> None:
    clock = ClusterClock()
    now = 0
    for there, back in trips:
        clock.sample(now, now + there + true_offset, now + there + back)
        now += there + back + 1_000
        assert abs(clock.offset_ns - true_offset) <= clock.uncertainty_ns + 1


def test_pings_come_in_a_burst_and_then_now_and_then() -> None:
    clock = ClusterClock()
    pings = PingPong(clock, 0)
    now = 0
    for _ in range(PINGS_FIRST):
        assert pings.next_at <= now
        pings.sent(now, now + S)
        assert pings.next_at == now + S
        now += 100
        pings.pong(now - 100, 5_000, now)
    assert pings.next_at == now + PING_EVERY_NS
    now = pings.next_at
    for _ in range(PINGS_LATER):
        assert pings.next_at <= now
        pings.sent(now, now + S)
        pings.pong(now, 5_000, now)
    assert pings.next_at == now + PING_EVERY_NS


@pytest.mark.parametrize("foreign", [0, 99, 101])
def test_only_the_answer_to_the_last_ping_counts(foreign: int) -> None:
    clock = ClusterClock()
    pings = PingPong(clock, 0)
    pings.sent(100, S)
    pings.pong(foreign, 5_000, 200)
    assert not clock.synced
    pings.pong(100, 5_000, 200)
    assert clock.synced


def test_a_restarted_broker_is_measured_anew() -> None:
    clock = ClusterClock()
    pings = PingPong(clock, 0)
    pings.sent(100, S)
    pings.restart(150)
    assert pings.next_at == 150
    pings.pong(100, 5_000, 200)
    assert not clock.synced
