"""What results take to return, from made-up completions; times in ms."""

from __future__ import annotations

import numpy as np

from scheduler.returning import ENOUGH, LONGEST_NS, REMEMBERED, Returning

MS = 1_000_000
CAP = 10 * MS


def come(learner: Returning, *ways_ms: float, times: int = ENOUGH) -> None:
    """So many batches whose completions took these times in turn."""
    for turn in range(times):
        now = (1_000 + turn) * MS
        finished = np.array([now - round(way * MS) for way in ways_ms], np.int64)
        learner.observe(now, finished)


def test_what_all_but_one_in_a_hundred_take_is_learned() -> None:
    learner = Returning(2 * MS)
    come(learner, *[3.0] * 975, *[8.0] * 20, *[900.0] * 5, times=3)
    assert learner.learn(CAP) == 8 * MS
    assert 3 * MS <= learner.learn(CAP) <= 8 * MS
    come(learner, *[6.0] * 97, *[9.0] * 3, times=REMEMBERED // 100 + 1)
    assert learner.learn(CAP) == 9 * MS


def test_a_few_batches_teach_nothing() -> None:
    learner = Returning(2 * MS)
    come(learner, 7.0, times=ENOUGH - 1)
    assert learner.learn(CAP) == 2 * MS
    come(learner, 7.0, times=1)
    assert learner.learn(CAP) == 7 * MS


def test_it_stays_between_what_was_configured_and_the_cap() -> None:
    learner = Returning(2 * MS)
    come(learner, 50.0)
    assert learner.learn(CAP) == CAP
    come(learner, 0.1, times=REMEMBERED)
    assert learner.learn(CAP) == 2 * MS
    high = Returning(20 * MS)
    come(high, 1.0)
    assert high.learn(CAP) == 20 * MS


def test_small_changes_are_not_given_out() -> None:
    learner = Returning(2 * MS)
    come(learner, 5.0, times=REMEMBERED)
    assert learner.learn(CAP) == 5 * MS
    come(learner, 5.3, times=REMEMBERED)
    assert learner.learn(CAP) == 5 * MS
    come(learner, 5.6, times=REMEMBERED)
    assert learner.learn(CAP) == 5.6 * MS


def test_where_nothing_comes_back_it_is_forgotten_by_halves() -> None:
    learner = Returning(2 * MS)
    come(learner, 10.0)
    assert [learner.learn(CAP) for _ in range(4)] == [10 * MS, 6 * MS, 4 * MS, 3 * MS]
    for _ in range(30):
        learner.learn(CAP)
    assert learner.result_ns == 2 * MS


def test_absurd_times_do_no_harm() -> None:
    learner = Returning(MS)
    for finished in (-(2**62), 2**62):
        learner.observe(0, np.full(ENOUGH, finished, np.int64))
        assert MS <= learner.learn(10 * LONGEST_NS) <= LONGEST_NS
