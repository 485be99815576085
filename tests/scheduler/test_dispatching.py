"""What dispatching takes, from made-up completions; times in µs."""

from __future__ import annotations

import numpy as np

from scheduler.dispatching import ENOUGH, LONGEST_NS, Dispatching

US = 1_000
CAP = 5_000 * US


def run(learner: Dispatching, *rows: tuple[int, float, float, float], times: int = 1) -> None:
    """(GPU, planned start, start, end) in µs, as one column; ``times`` such columns, a second apart."""
    for turn in range(times):
        gpu, *moments = zip(*rows, strict=True)
        later = [np.array(column) * US + turn * 10**9 for column in moments]
        learner.observe(np.array(gpu), *(column.astype(np.int64) for column in later))


def test_a_gpu_that_waited_for_its_inputs_is_told_earlier() -> None:
    learner = Dispatching(300 * US)
    run(learner, (0, 1_000, 2_200, 9_000), times=ENOUGH)
    assert learner.learn(CAP) == 1_500 * US


def test_waiting_for_the_batch_before_is_no_wait_for_dispatching() -> None:
    learner = Dispatching(300 * US)
    run(learner, (3, 1_000, 1_000, 7_000), (3, 5_000, 7_000, 9_000), times=ENOUGH)
    assert learner.learn(CAP) == 300 * US


def test_the_batch_before_may_have_come_back_earlier_and_in_any_order() -> None:
    learner = Dispatching(300 * US)
    for turn in range(ENOUGH):
        at = turn * 20_000
        run(learner, (1, at, at, at + 6_000))
        run(learner, (1, at + 11_000, at + 12_000, at + 13_000), (1, at + 5_000, at + 6_000, at + 12_000))
    assert learner.learn(CAP) == 300 * US


def test_a_few_batches_teach_nothing_and_a_change_is_learned_afresh() -> None:
    learner = Dispatching(300 * US)
    run(learner, (0, 1_000, 2_000, 9_000), times=ENOUGH - 1)
    assert learner.learn(CAP) == 300 * US
    run(learner, (0, 1_000, 2_000, 9_000))
    assert learner.learn(CAP) == 1_300 * US
    assert learner.learn(CAP) == 1_300 * US, "what was seen before the change says nothing of it"


def test_it_follows_down_to_what_was_configured_and_up_to_the_cap() -> None:
    learner = Dispatching(300 * US)
    run(learner, (0, 1_000, 90_000, 99_000), times=ENOUGH)
    assert learner.learn(CAP) == CAP
    run(learner, (0, 9_000, 7_000, 9_900), times=ENOUGH)
    assert learner.learn(CAP) == CAP - 2_000 * US
    run(learner, (0, 9_000, 1_000, 9_900), times=ENOUGH)
    assert learner.learn(CAP) == 300 * US
    assert Dispatching(9_000 * US).learn(CAP) == 9_000 * US


def test_absurd_times_do_no_harm() -> None:
    learner = Dispatching(300 * US)
    least, most = -(2**63), 2**63 - 1
    for started in (least, most):
        gpu = np.arange(ENOUGH)
        column = np.full(ENOUGH, started)
        learner.observe(gpu, np.zeros(ENOUGH, np.int64), column, column)
        assert 300 * US <= learner.learn(10 * LONGEST_NS) <= 300 * US + LONGEST_NS


def test_nothing_is_nothing() -> None:
    none = np.zeros(0, np.int64)
    Dispatching(0).observe(none, none, none, none)
