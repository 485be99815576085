"""Telling the core the time, under a clock that the test sets; l(b) = b + 5 ms, SLO 100 ms."""

from __future__ import annotations

from typing import cast

from rig import MS, columns, linear, read

from scheduler.core.machine import Core
from scheduler.core.validate import validate
from scheduler.stats import Stats
from scheduler.timers import STEPS, Timers
from symphony.clock import ClusterClock


class Clock:
    """Cluster time that stands still until it is set."""

    def __init__(self) -> None:
        self.at = 0

    def now(self) -> int:
        return self.at


class Desk:
    def __init__(self, margin_ns: int = 0, models: int = 1) -> None:
        self.core = Core(margin_ns=margin_ns)
        for model in range(models):
            self.core.add_model(model, 100 * MS, 8)
            self.core.set_profile(0, model, 0, linear(1, 5, 8))
            self.core.add_gpu(0, model)
        self.clock = Clock()
        self.stats = Stats()
        self.timers = Timers(self.core, cast(ClusterClock, self.clock), self.stats)

    def submit(self, model: int, due: float) -> None:
        m, d, k, p = columns(model=[model], deadline=[round(due * MS)], key=[model + 1], priority=[0])
        self.core.submit(self.timers.catch_up(), m, d, k, p)

    def sent(self) -> list[tuple[int, float]]:
        """(model, start in ms) of what was dispatched; nothing was dropped."""
        validate(self.core)
        dispatches, drops = read(self.core)
        assert drops == []
        return [(d[0], d[5] / MS) for d in dispatches]


def test_a_loop_that_waits_for_its_timers_is_told_nothing_ahead() -> None:
    desk = Desk()
    desk.submit(0, 100)  # one more would end at 100 if started at 93
    desk.clock.at = 92 * MS
    desk.timers.look_ahead(0)
    assert desk.sent() == []
    desk.clock.at = 93 * MS
    desk.timers.fire()
    assert desk.sent() == [(0, 93)]


def test_what_falls_due_within_the_cycle_is_served_as_of_its_own_time() -> None:
    desk = Desk(models=3)
    for model, due in enumerate((100, 101, 104)):
        desk.submit(model, due)
    desk.clock.at = 92 * MS
    desk.timers.look_ahead(2 * MS)
    assert desk.sent() == [(0, 93), (1, 94)], "the third is due at 97"
    assert desk.stats.lateness_us() == (0, 0)


def test_time_goes_on_from_what_the_core_was_told() -> None:
    desk = Desk(models=2)
    desk.submit(0, 100)
    desk.clock.at = 92 * MS
    desk.timers.look_ahead(2 * MS)
    assert desk.timers.now() == 93 * MS
    desk.submit(1, 107)
    assert desk.core.clock_steps == 0, "no event is older than the one before"
    desk.clock.at = 95 * MS
    assert desk.timers.now() == 95 * MS


def test_many_timers_take_a_bounded_number_of_steps() -> None:
    desk = Desk(models=100)
    for model in range(100):
        desk.submit(model, 100 + model / 100)
    desk.clock.at = 92 * MS
    told = desk.timers.now()
    steps = 0
    advance = desk.core.advance

    def counted(now: int) -> None:
        nonlocal steps, told
        assert told < now <= 94 * MS + 2 * MS // STEPS
        steps, told = steps + 1, now
        advance(now)

    desk.core.advance = counted  # type: ignore[method-assign]
    desk.timers.look_ahead(2 * MS)
    assert len(desk.sent()) == 100
    assert steps <= STEPS + 1


def test_the_longest_cycle_counts_and_fades_with_the_turns() -> None:
    desk = Desk(models=3)
    desk.timers.look_ahead(8 * MS)
    desk.submit(0, 100)
    desk.clock.at = 86 * MS  # the window opens at 93
    desk.timers.look_ahead(MS)
    assert desk.sent() == [(0, 93)], "within 8 ms less a sixteenth"
    desk.submit(1, 110)
    desk.clock.at = 96 * MS
    desk.timers.look_ahead(0)
    desk.timers.look_ahead(MS)
    assert desk.sent() == [], "a loop that waited has forgotten"
    desk.timers.look_ahead(8 * MS)
    assert desk.sent() == [(1, 103)]
    for _ in range(40):
        desk.timers.look_ahead(MS)
    desk.submit(2, 120)
    desk.clock.at = 110 * MS
    desk.timers.look_ahead(MS)
    assert desk.sent() == [], "due at 113"


def test_a_busy_loop_tells_requests_as_of_when_it_will_have_taken_them_in() -> None:
    desk = Desk()
    assert desk.timers.lead() == 0
    desk.clock.at = 3 * MS
    desk.timers.look_ahead(0)
    assert desk.timers.lead() == 3 * MS, "a loop that has time to wait needs no lead"
    desk.clock.at = 5 * MS
    desk.timers.look_ahead(6 * MS)
    assert desk.timers.lead() == 7 * MS, "as long as it took before"
    assert desk.timers.now() == 7 * MS, "time does not go back"
    desk.clock.at = 30 * MS
    desk.timers.look_ahead(6 * MS)
    assert desk.timers.lead() == 36 * MS, "a cycle of the loop at most"
    desk.clock.at = 40 * MS
    desk.timers.look_ahead(0)
    assert desk.timers.lead() == 40 * MS


def test_a_late_timer_is_told_as_of_its_time_within_the_margin() -> None:
    desk = Desk(margin_ns=3 * MS)
    desk.submit(0, 100)  # due at 90
    desk.clock.at = 92 * MS
    desk.timers.fire()
    assert desk.sent() == [(0, 90)]
    assert desk.stats.lateness_us() == (2_000, 2_000)
