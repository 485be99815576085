"""Resting between turns: when, and for how long; times are ns that the test makes up."""

from __future__ import annotations

from symphony.pace import BURST_NS, SHARE, Pace

US = 1_000
MS = 1_000_000


def turns(pace: Pace, work: int, longest: int, count: int, gap: int = 0) -> int:
    """So many turns of ``work``, each as soon as the rest before is over and ``gap`` has passed; the end."""
    now = max(1_000 * MS, pace.until)
    for _ in range(count):
        pace.worked(now, now + work, longest)
        now = max(now + work, pace.until) + gap
    return now


def test_a_loop_with_little_to_do_never_rests() -> None:
    pace = Pace()
    for second in range(10):
        began = second * 1_000 * MS
        pace.worked(began, began + 200 * US, 2 * MS)
        assert pace.until == began + 200 * US
        assert pace.cycle_ns == 0


def test_a_busy_loop_works_for_a_fifth_of_the_time() -> None:
    pace = Pace()
    start = turns(pace, 100 * US, 2 * MS, 50)
    took = turns(pace, 100 * US, 2 * MS, 50) - start
    assert took == 50 * (1 + SHARE) * 100 * US
    assert pace.cycle_ns == (1 + SHARE) * 100 * US


def test_rests_have_a_limit_and_nothing_is_owed_beyond_it() -> None:
    pace = Pace()
    turns(pace, 10 * MS, 2 * MS, 20)
    assert pace.cycle_ns == 12 * MS
    pace.worked(pace.until + BURST_NS + MS, pace.until + BURST_NS + MS + 100 * US, 2 * MS)
    assert pace.cycle_ns == 0


def test_without_a_limit_to_rest_for_there_is_no_rest() -> None:
    pace = Pace()
    turns(pace, 10 * MS, 0, 20)
    assert pace.cycle_ns == 0


def test_a_loop_that_waits_of_itself_owes_less() -> None:
    pace = Pace()
    turns(pace, 100 * US, 2 * MS, 100, gap=300 * US)
    assert 0 < pace.cycle_ns < (1 + SHARE) * 100 * US
