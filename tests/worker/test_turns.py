"""Background runs wait for batches, and batches for at most one background run."""

from __future__ import annotations

import threading
import time

from helpers import wait_until

from worker.turns import Turns


def test_a_background_run_waits_until_no_batch_is_on_the_device() -> None:
    turns = Turns()
    turns.enter(time.monotonic_ns)
    got: list[bool] = []

    def run() -> None:
        with turns.background(lambda: False) as mine:
            got.append(mine)

    thread = threading.Thread(target=run)
    thread.start()
    turns.enter(time.monotonic_ns)
    turns.leave()
    assert got == [], "one batch is still there"
    turns.leave()
    thread.join(10)
    assert got == [True]
    assert turns.longest_wait_ns < 10**9


def test_a_batch_waits_for_the_end_of_a_background_run_and_the_wait_is_known() -> None:
    turns = Turns()
    entered = threading.Event()

    def batch() -> None:
        turns.enter(time.monotonic_ns)
        entered.set()

    thread = threading.Thread(target=batch)
    with turns.background(lambda: False) as mine:
        assert mine
        thread.start()
        wait_until(lambda: turns._batches == 1)
        assert not entered.is_set()
    thread.join(10)
    assert entered.is_set()
    assert turns.longest_wait_ns > 0


def test_a_background_run_that_should_stop_gets_nothing_and_blocks_nobody() -> None:
    turns = Turns()
    turns.enter(time.monotonic_ns)
    with turns.background(lambda: True) as mine:
        assert not mine
    turns.leave()
    with turns.background(lambda: False) as mine:
        assert mine
    turns.enter(time.monotonic_ns)


def test_background_runs_leave_time_to_batches_where_there_are_some() -> None:
    turns = Turns()
    with turns.background(lambda: False) as mine:
        assert mine
        threading.Event().wait(0.05)
    with turns.background(lambda: True) as mine:
        assert mine, "nobody else is there: no rest"
        threading.Event().wait(0.05)
    turns._rest_until = time.monotonic() + 60
    thread = threading.Thread(target=lambda: (turns.enter(time.monotonic_ns), turns.leave()))
    thread.start()
    thread.join(10)
    with turns.background(lambda: True) as mine:
        assert not mine, "a batch came: the next run waits"
    turns._rest_until = 0
    with turns.background(lambda: False) as mine:
        assert mine
