"""Each rule of docs/algorithm.md on a case small enough to work out by hand.

Unless a test says otherwise: l(b) = b + 5 ms, largest batch 8, SLO 100 ms, no network, one GPU.
"""

from __future__ import annotations

from typing import Any

import pytest
from reference import Dispatch, Drop
from rig import CORES, MS, columns, linear, read

from scheduler.core.limits import (
    DEPTH,
    EXPIRED,
    FULL,
    HANDED_BACK,
    NEVER,
    SAMPLE_NS,
    UNSERVED,
    WINDOW,
)
from scheduler.core.machine import Core
from scheduler.core.validate import validate

pytestmark = CORES
Actions = tuple[list[Dispatch], list[Drop]]


class World:
    """One core, told and read in ms."""

    def __init__(self, core_type: type[Core], gpus: int = 1, largest: int = 8, **settings: Any) -> None:
        self.core = core_type(**settings)
        self.key = 0
        self.model(0, largest=largest)
        for gpu in range(gpus):
            self.core.add_gpu(0, gpu)

    def model(
        self, number: int, slo: float = 100, alpha: float = 1, beta: float = 5, largest: int = 8
    ) -> None:
        self.core.add_model(number, round(slo * MS), largest)
        self.core.set_profile(self.core.now, number, 0, linear(alpha, beta, largest))

    def submit(self, now: float, *deadlines: float, model: int = 0, priority: int = 0) -> Actions:
        n = len(deadlines)
        keys = list(range(self.key + 1, self.key + 1 + n))
        self.key += n
        m, d, k, p = columns(
            model=[model] * n,
            deadline=[round(at * MS) for at in deadlines],
            key=keys,
            priority=[priority] * n,
        )
        self.core.submit(round(now * MS), m, d, k, p)
        return self.read()

    def advance(self, now: float) -> Actions:
        self.core.advance(round(now * MS))
        return self.read()

    def complete(self, now: float, gpu: int, batch: int, finished: float) -> Actions:
        self.core.complete(
            round(now * MS), *columns(gpu=[gpu], batch=[batch], finished=[round(finished * MS)])
        )
        return self.read()

    def read(self) -> Actions:
        validate(self.core)
        return read(self.core)

    @property
    def wakeup(self) -> float:
        return self.core.next_wakeup() / MS


def brief(actions: Actions) -> list[tuple[int, float, float, tuple[int, ...]]]:
    """Of the dispatches: GPU, start and end in ms, keys; there must be no drops."""
    assert actions[1] == []
    return [(d[2], d[5] / MS, d[6] / MS, d[7]) for d in actions[0]]


def gone(actions: Actions) -> list[tuple[int, int]]:
    """Of the drops: key and reason; there must be no dispatches."""
    assert actions[0] == []
    return [(drop[0], drop[3]) for drop in actions[1]]


NOTHING: Actions = ([], [])

# --- the window --------------------------------------------------------------------------------


def test_a_window_opens_when_one_more_could_not_join(core_type: type[Core]) -> None:
    """One request, due at 100: a second could join until 100 − l(2) = 93."""
    world = World(core_type)
    assert world.submit(0, 100) == NOTHING
    assert world.wakeup == 93
    assert world.advance(92.999) == NOTHING
    assert brief(world.advance(93)) == [(0, 93, 99, (1,))]
    assert world.core.next_wakeup() == NEVER


def test_an_arrival_opens_the_window_earlier(core_type: type[Core]) -> None:
    """With each request that joins, the opening moves by l(B+2) − l(B+1)."""
    world = World(core_type)
    world.submit(0, 100)
    assert world.submit(10, 110) == NOTHING
    assert world.wakeup == 92
    assert world.submit(20, 120) == NOTHING
    assert brief(world.advance(91)) == [(0, 91, 99, (1, 2, 3))]


def test_a_full_batch_goes_at_once(core_type: type[Core]) -> None:
    world = World(core_type)
    assert brief(world.submit(1, *[101] * 9)) == [(0, 1, 14, tuple(range(1, 9)))]
    assert sum(world.core.queued_by_model(1)) == 1


def test_a_batch_is_as_large_as_its_head_permits(core_type: type[Core]) -> None:
    """At 0 with 9.5 ms left b = 4 is the largest with l(b) = b + 5 ≤ 9.5, so the window is open."""
    world = World(core_type)
    assert brief(world.submit(0, *[9.5] * 6)) == [(0, 0, 9, (1, 2, 3, 4))]


def test_latencies_and_margin_move_the_window(core_type: type[Core]) -> None:
    """d = 100 − result; opening at d − l(2) − 2·data − control − margin; latest likewise with b = 1."""
    world = World(core_type, control_ns=2 * MS, data_ns=MS // 2, result_ns=3 * MS, margin_ns=round(0.25 * MS))
    world.submit(0, 100)
    assert world.wakeup == 100 - 3 - 7 - 1 - 2 - 0.25
    start = world.wakeup
    assert brief(world.advance(start)) == [(0, start + 2.5, start + 8.5, (1,))]
    world.complete(start + 9, 0, 0, start + 8.5)
    world.submit(200, 300)
    assert gone(world.advance(300 - 3 - 6 - 0.5 - 2 - 0.25 + 0.001)) == [(2, EXPIRED)]


def test_up_to_latest_a_batch_goes_and_then_no_more(core_type: type[Core]) -> None:
    """The GPU is busy until 94: a request due at 100 can still go then, one due 1 ns earlier cannot."""
    world = World(core_type, largest=89)
    assert brief(world.submit(0, *[200] * 89))[0][2] == 94
    world.submit(1, 100)
    assert world.advance(93.999) == NOTHING
    assert brief(world.advance(94)) == [(0, 94, 100, (90,))]
    world = World(core_type, largest=89)
    world.submit(0, *[200] * 89)
    world.submit(1, 99.999999)
    assert gone(world.advance(94)) == [(90, EXPIRED)]


def test_a_passed_latest_forms_the_batch_anew(core_type: type[Core]) -> None:
    """The GPU is busy: three requests could go until 92, then two until 93, one until 94, then none."""
    world = World(core_type, gpus=1, largest=100)
    assert brief(world.submit(0, *[200] * 100)) == [(0, 0, 105, tuple(range(1, 101)))]
    assert world.submit(1, 100, 100, 100) == NOTHING
    for now, size in ((92, 3), (92.5, 2), (93.5, 1), (94, 1)):
        assert world.advance(now) == NOTHING
        assert world.core.candidate(0)[2] == size
    assert world.wakeup == pytest.approx(94, abs=1e-5)
    assert gone(world.advance(94.000001)) == [(101, EXPIRED), (102, EXPIRED), (103, EXPIRED)]


def test_drop_by_timer_not_at_the_next_event(core_type: type[Core]) -> None:
    """What cannot finish even alone is dropped 1 ns after it could; the wake-up says when."""
    world = World(core_type, largest=100)
    world.submit(0, *[200] * 100)
    world.submit(1, 50)
    due = 0
    while not (actions := read(world.core))[1]:
        due = world.core.next_wakeup()
        assert due <= 50 * MS
        world.core.advance(due)
    assert due == 44 * MS + 1
    assert gone(actions) == [(101, EXPIRED)]


# --- the window drop ---------------------------------------------------------------------------


def test_window_drop_keeps_batches_large(core_type: type[Core]) -> None:
    """The GPU is busy until 105. At 104 there come one request due at 117.5 and eight due at 200.

    Nine would end at 118. T is the eight, and since no rate is known the target is 45 (l(45) = SLO/2),
    so b = 8. Until 104.5 a batch of 8 ends by 117.5 and the first request stays and goes first; then
    it would hold the batch down to 7, and is given up.
    """
    world = World(core_type, largest=100)
    world.submit(0, *[200] * 100)
    assert world.submit(104, 117.5, *[200] * 8) == NOTHING
    assert world.core.candidate(0)[2] == 8
    assert gone(world.advance(104.500001)) == [(101, WINDOW)]
    assert world.core.candidate(0)[2] == 8
    assert sum(world.core.queued_by_model(1)) == 8


def test_requests_that_fit_into_a_batch_of_the_target_stay_and_go_first(core_type: type[Core]) -> None:
    """Target 2: l(2) = 7. The GPU is busy until 13. Of four at 12.9, due after 6.5, 7.5, 60 and 60 ms, only
    the first is in the way of two."""
    world = World(core_type)
    world.model(1)
    world.submit(0, *[200] * 8, model=1)
    world.core.remove_model(0, 0)
    world.model(0, slo=14)  # no rate yet: the largest b with l(b) ≤ 7 is 2
    actions = world.submit(12.9, 19.4, 20.4, 72.9, 72.9)
    assert gone(actions) == [(9, WINDOW)]
    assert brief(world.advance(13)) == [(0, 13, 20, (10, 11))]


def test_nothing_is_given_up_that_an_idle_gpu_can_take_at_once(core_type: type[Core]) -> None:
    """The same four in one column find two idle GPUs: one after another they would have been served, too.

    Due after 6.5 ms the first goes alone, and one more would not fit with the second, due after 7.5.
    """
    world = World(core_type, gpus=2)
    world.core.remove_model(0, 0)
    world.model(0, slo=14)
    assert brief(world.submit(0, 6.5, 7.5, 60, 60)) == [(0, 0, 6, (1,)), (1, 0, 7, (2, 3))]


def test_no_drop_where_no_tail_is_in_time(core_type: type[Core]) -> None:
    """Two requests that are both too late for the GPU's free time are not dropped for each other."""
    world = World(core_type, largest=100)
    world.submit(0, *[200] * 100)
    assert world.submit(90, 100, 100) == NOTHING
    assert {drop[1] for drop in gone(world.advance(94.000001))} == {EXPIRED}


# --- GPUs --------------------------------------------------------------------------------------


def test_the_lowest_numbered_idle_gpu(core_type: type[Core]) -> None:
    world = World(core_type, gpus=0)
    for gpu in (9, 4, 6):
        world.core.add_gpu(0, gpu)
    for gpu in (4, 6, 9):
        assert world.submit(1, *[101] * 8)[0][0][2] == gpu
    world.complete(5, 9, 2, 4)
    world.complete(5, 6, 1, 4)
    for gpu in (6, 9):
        assert world.submit(6, *[106] * 8)[0][0][2] == gpu
    assert world.submit(7, *[107] * 8) == NOTHING
    assert world.advance(world.wakeup)[0][0][2] == 4


def test_a_busy_gpu_is_told_ahead_by_the_dispatch_latency(core_type: type[Core]) -> None:
    """Control 2 ms, data 0.1 ms: eight requests reach the GPU 2.8 ms later, just as it becomes free."""
    world = World(core_type, control_ns=2 * MS, data_ns=MS // 10)
    assert brief(world.submit(0, *[100] * 8)) == [(0, 2.8, 15.8, tuple(range(1, 9)))]
    assert world.submit(1, *[101] * 8) == NOTHING
    assert world.wakeup == pytest.approx(13)
    assert world.advance(12.999) == NOTHING
    assert brief(world.advance(13)) == [(0, 15.8, 28.8, tuple(range(9, 17)))]


def test_an_early_end_frees_the_gpu_early(core_type: type[Core]) -> None:
    world = World(core_type)
    world.submit(0, *[100] * 16)
    assert brief(world.complete(6, 0, 0, 5)) == [(0, 6, 19, tuple(range(9, 17)))]


def test_a_late_end_moves_what_follows(core_type: type[Core]) -> None:
    """Batch 1 is told ahead to start at 15; batch 0 ends at 17 instead: the GPU is free at 30, not 28."""
    world = World(core_type, control_ns=2 * MS)
    world.submit(0, *[100] * 8)
    world.submit(1, *[101] * 8)
    assert brief(world.advance(13)) == [(0, 15, 28, tuple(range(9, 17)))]
    world.complete(18, 0, 0, 17)
    assert world.core.gpus.free_at[0] == 30 * MS
    world.submit(19, *[119] * 8)
    assert world.wakeup == 28


def test_a_completion_stands_for_the_older_ones(core_type: type[Core]) -> None:
    world = World(core_type, control_ns=2 * MS)
    world.submit(0, *[100] * 8)
    world.submit(1, *[101] * 8)
    world.advance(13)
    world.complete(29, 0, 1, 28)
    assert world.core.outstanding(0) == 0
    world.complete(29, 0, 0, 15)
    assert world.core.strange_completions == 1


def test_a_gpu_that_reports_nothing_gets_four_batches(core_type: type[Core]) -> None:
    world = World(core_type)
    for i in range(DEPTH + 2):
        now = 20.0 * i
        assert len(world.submit(now, *[now + 100] * 8)[0]) == (i < DEPTH)
    assert brief(world.complete(121, 0, 3, 75)) == [(0, 121, 134, tuple(range(33, 41)))]


def test_an_overdue_gpu_gets_nothing_until_it_reports(core_type: type[Core]) -> None:
    world = World(core_type, gpus=2, overdue_ns=10 * MS)
    assert world.submit(0, *[100] * 8)[0][0][2] == 0
    assert world.submit(23, *[123] * 8)[0][0][2] == 0  # it ended at 13, by prediction; 10 ms are not over
    assert world.submit(60, *[160] * 8)[0][0][2] == 1
    world.complete(61, 0, 1, 60)
    assert world.submit(62, *[162] * 8)[0][0][2] == 0


def test_a_late_change_still_finds_the_lowest_number(core_type: type[Core]) -> None:
    """GPU 0 is free at 14, GPU 1 at 6; the first event after that is a GPU's coming, and 0 is taken."""
    world = World(core_type, gpus=2)
    world.model(1, largest=1)
    assert world.submit(1, *[101] * 8)[0][0][2] == 0
    assert world.submit(1, 101, model=1)[0][0][2] == 1
    assert world.submit(2, *[102] * 8) == NOTHING
    world.core.add_gpu(20 * MS, 5)
    assert [d[2] for d in world.read()[0]] == [0]


# --- order -------------------------------------------------------------------------------------


def test_the_smallest_latest_goes_first(core_type: type[Core]) -> None:
    """Three models wait for one GPU: the one that can wait least is served first, then by number."""
    world = World(core_type, largest=20)
    for model, beta in ((1, 5), (2, 25), (3, 5)):
        world.model(model, beta=beta, largest=2)
    assert len(world.submit(0, *[100] * 20)[0]) == 1  # busy until 25
    for model in (3, 1, 2):
        assert world.submit(1, 90, 90, model=model) == NOTHING
    order = []
    while sum(world.core.queued_by_model(4)):
        order += [d[0] for d in world.advance(world.wakeup)[0]]
    assert order == [2, 3, 1]  # latest of 3 equals that of 1: model 3's lane is the older one


def test_deadline_order_whatever_the_order_of_arrival(core_type: type[Core]) -> None:
    """Requests with deadlines of their own stand where those put them; equals in order of arrival."""
    world = World(core_type)
    world.submit(0, 100, 90, 95)
    world.submit(1, 95, 80, 90)
    actions = world.submit(2, 300, 60)
    assert [d[7] for d in actions[0]] == [(8, 5, 2, 6, 3, 4, 1, 7)]


def test_a_tight_deadline_opens_the_window_of_all(core_type: type[Core]) -> None:
    world = World(core_type)
    world.submit(0, 100, 100)
    assert world.wakeup == 92
    world.submit(1, 50)
    assert world.wakeup == 41
    assert [d[7] for d in world.advance(41)[0]] == [(3, 1, 2)]


# --- target size -------------------------------------------------------------------------------


def paper_target(lengths: list[int], slo: int, rate: float) -> int:
    """DESIGN: for n = rate·l(b)/b ≥ 1 GPUs l(b)(1 + 1/n) ≤ SLO, else l(b) + b/rate ≤ SLO."""
    best = 1
    for b, length in enumerate(lengths, 1):
        n = rate * length / 1e9 / b
        needs = length * (1 + 1 / n) if n >= 1 else length + b / rate * 1e9
        if needs <= slo:
            best = b
    return best


@pytest.mark.parametrize("per_sample", [1, 3, 20, 100, 347])
def test_target_from_the_rate(core_type: type[Core], per_sample: int) -> None:
    """Before any rate l(b) ≤ SLO/2; then what the rate of the last whole samples calls for."""
    world = World(core_type, gpus=64, largest=128)
    world.submit(0, 100)
    assert world.core.lane_target[0] == 45
    for sample in range(1, 120):
        now = sample * SAMPLE_NS / MS
        world.submit(now, *[now + 100] * per_sample)
        for gpu in range(64):
            if world.core.outstanding(gpu):
                last = max(world.core.gpus.out_batch[gpu * DEPTH : gpu * DEPTH + DEPTH])
                world.complete(now, gpu, last, now)
    rate = per_sample / SAMPLE_NS * 1e9
    assert world.core.lane_target[0] == paper_target(linear(1, 5, 128), 100 * MS, rate)


def test_after_five_quiet_seconds_the_rate_is_unknown_again(core_type: type[Core]) -> None:
    world = World(core_type, largest=128)
    for sample in range(10):
        world.submit(50 * sample, 50 * sample + 100)
        world.advance(50 * sample + 49)
    assert world.core.lane_target[0] != 45
    world.submit(6000, 6100)
    assert world.core.lane_target[0] == 45


def test_new_latencies_make_a_new_target(core_type: type[Core]) -> None:
    """A model that comes back smaller must not keep the target of its former self."""
    world = World(core_type, largest=128)
    world.submit(0, 100)
    assert world.core.lane_target[0] == 45
    world.core.remove_model(0, 0)
    world.read()
    world.model(0, largest=2)
    world.submit(1, 101)
    assert world.core.lane_target[0] == 2


# --- priorities --------------------------------------------------------------------------------


def test_a_higher_priority_goes_first_whatever_its_latest(core_type: type[Core]) -> None:
    world = World(core_type, largest=20)
    world.submit(0, *[100] * 20)
    world.submit(1, *[60] * 20, priority=0)
    world.submit(1, *[90] * 20, priority=3)
    order = []
    while sum(world.core.queued_by_model(1)):
        dispatches, _ = world.advance(world.wakeup)
        order += [d[1] for d in dispatches]
    assert order[0] == 3


def test_a_longer_reach_does_not_overtake_a_higher_priority(core_type: type[Core]) -> None:
    """Data 0.1 ms a request: a batch of 20 of priority 0 would reach for the GPU 1.9 ms before the
    single request of priority 3 does."""
    world = World(core_type, largest=20, data_ns=MS // 10)
    world.model(1, largest=1)
    world.submit(0, *[100] * 20)  # busy from 2 until 27
    world.submit(1, *[500] * 20, priority=0)
    assert world.submit(1, 101, model=1, priority=3) == NOTHING
    assert world.advance(25) == NOTHING
    assert world.wakeup == pytest.approx(26.9)
    assert [(d[1], d[3]) for d in world.advance(26.9)[0]] == [(3, 1)]


def test_a_lane_behind_one_that_is_passed_over_is_woken_in_time(core_type: type[Core]) -> None:
    """Data 0.1 ms a request, the GPU busy until 27 and known to run over by 5 ms.

    Two requests of model 0, due at 36, reach it from 26.8 on, but not even one would be in time there.
    They wait on, so model 1's full batch of one may not take it ahead at 26.9, but once it is idle.
    """
    world = World(core_type, largest=20, data_ns=MS // 10, policy="eager")
    world.model(1, largest=1)
    world.submit(0, *[100] * 20)
    world.core.set_gpu_margin(0, 5 * MS)
    assert world.submit(1, 36, 36) == NOTHING
    assert world.submit(1, 101, model=1) == NOTHING
    assert world.wakeup == pytest.approx(26.8)
    assert world.advance(26.8) == NOTHING
    assert world.advance(26.9) == NOTHING
    assert world.wakeup == pytest.approx(27)
    assert brief(world.advance(27)) == [(0, 27.1, 33.1, (23,))]


# --- types of GPUs, models that are not everywhere ------------------------------------------------


def test_a_model_goes_only_where_it_is(core_type: type[Core]) -> None:
    world = World(core_type, gpus=0)
    world.model(1)
    world.core.add_gpu(0, 0, 0, [1])
    world.core.add_gpu(0, 1, 0, [0, 1])
    assert world.submit(1, *[101] * 8)[0][0][2] == 1
    assert world.submit(1, *[101] * 8, model=1)[0][0][2] == 0
    assert world.submit(1, *[101] * 8) == NOTHING
    assert world.wakeup == 14


def test_candidates_are_formed_against_the_type_that_would_take_them(core_type: type[Core]) -> None:
    """GPU 0 needs 2b + 5, GPU 1 b + 5: a window opens by the lowest-numbered idle one's latencies."""
    world = World(core_type, gpus=0)
    world.core.set_profile(0, 0, 1, linear(2, 5, 8))
    world.core.add_gpu(0, 0, 1)
    world.core.add_gpu(0, 1, 0)
    world.submit(0, 100)
    assert world.wakeup == 100 - 9
    assert brief(world.advance(91)) == [(0, 91, 98, (1,))]
    world.submit(95, 195)
    world.advance(95.5)
    world.core.drain_gpu(96 * MS, 0)
    world.read()
    assert world.wakeup == 195 - 7


def test_a_head_that_is_too_tight_for_the_slow_gpu_gets_the_fast_one(core_type: type[Core]) -> None:
    """The lowest-numbered idle GPU cannot serve it in time, an idle one of another type can."""
    world = World(core_type, gpus=0)
    world.core.set_profile(0, 0, 1, linear(2, 30, 8))
    world.core.add_gpu(0, 0, 1)
    world.core.add_gpu(0, 1, 0)
    assert world.submit(0, 20) == NOTHING
    assert brief(world.advance(world.wakeup)) == [(1, 13, 19, (1,))]


def far_apart(core_type: type[Core], **settings: Any) -> World:
    """GPU 0 needs 4b + 5, GPU 1 b + 5."""
    world = World(core_type, gpus=0, **settings)
    world.core.set_profile(0, 0, 1, linear(4, 5, 8))
    world.core.add_gpu(0, 0, 1)
    world.core.add_gpu(0, 1, 0)
    return world


def test_a_slow_gpu_that_becomes_idle_costs_no_head(core_type: type[Core]) -> None:
    """The window was that of the fast GPU; the slow one, idle again, could not be in time with it."""
    world = far_apart(core_type)
    world.core.add_model(1, 100 * MS, 1)
    world.core.set_profile(0, 1, 1, [88 * MS])
    assert brief(world.submit(0, 100, model=1)) == [(0, 0, 88, (1,))]
    assert world.submit(1, 100, 100, 100) == NOTHING
    assert world.wakeup == 100 - 9
    assert brief(world.submit(90, 190, 190)) == [(1, 90, 100, (2, 3, 4, 5, 6))]


def test_each_type_gets_what_it_can_serve_well(core_type: type[Core]) -> None:
    """Tight heads go with a full batch to the fast GPU though the slow one comes first; it gets the rest."""
    world = far_apart(core_type)
    assert brief(world.submit(0, *[14] * 3, *[100] * 8)) == [(1, 0, 13, tuple(range(1, 9)))]
    assert world.wakeup == 100 - 21
    assert brief(world.advance(79)) == [(0, 79, 96, (9, 10, 11))]


def test_a_head_is_given_up_only_where_no_type_could_serve_it_well(core_type: type[Core]) -> None:
    """Both are busy. In 12 ms not even the fast GPU ends a batch of the target: the heads go."""
    world = far_apart(core_type)
    assert [d[2] for d in world.submit(0, *[100] * 16)[0]] == [0, 1]
    assert gone(world.submit(1, *[13] * 3, *[101] * 8)) == [(17, WINDOW), (18, WINDOW), (19, WINDOW)]
    assert brief(world.advance(13)) == [(1, 13, 26, tuple(range(20, 28)))]


def test_heads_that_an_idle_gpu_can_take_at_once_are_not_given_up(core_type: type[Core]) -> None:
    """The same heads while both are idle: the fast GPU serves them with as many as they allow."""
    world = far_apart(core_type)
    assert brief(world.submit(0, *[12] * 3, *[100] * 8)) == [(1, 0, 12, tuple(range(1, 8)))]
    assert world.core.candidate(0)[2] == 4


def test_a_slow_gpu_gets_no_batch_that_is_small_for_its_heads_sake(core_type: type[Core]) -> None:
    """One of the two in time is less than GPU 0 could do: they wait for GPU 1, which takes both."""
    world = far_apart(core_type, policy="eager")
    assert [d[2] for d in world.submit(0, *[100] * 16)[0]] == [0, 1]
    assert world.complete(1, 0, 0, 1) == NOTHING
    assert world.submit(11, 23, 23) == NOTHING
    assert world.wakeup == 13
    assert brief(world.advance(13)) == [(1, 13, 20, (17, 18))]


def test_one_unsteady_gpu_does_not_keep_a_lane_from_the_others(core_type: type[Core]) -> None:
    """GPU 0 runs over by up to 99 ms: no request can be in time there; GPU 1 takes them all."""
    world = World(core_type, gpus=2)
    world.core.set_gpu_margin(0, 99 * MS)
    assert brief(world.submit(0, *[100] * 8)) == [(1, 0, 13, tuple(range(1, 9)))]
    world.model(1, slo=1000)
    assert world.submit(1, *[1001] * 8, model=1)[0][0][2] == 0


# --- policies ----------------------------------------------------------------------------------


def test_eager(core_type: type[Core]) -> None:
    assert brief(World(core_type, policy="eager").submit(0, 100)) == [(0, 0, 6, (1,))]


def test_target(core_type: type[Core]) -> None:
    """At the target size (SLO 14: 2) or at the window's opening."""
    world = World(core_type, policy="target")
    world.core.remove_model(0, 0)
    world.model(0, slo=14)
    assert world.submit(0, 14) == NOTHING
    assert world.wakeup == 14 - 7
    assert brief(world.submit(1, 15)) == [(0, 1, 8, (1, 2))]


def test_latest(core_type: type[Core]) -> None:
    world = World(core_type, policy="latest")
    world.submit(0, 100)
    assert world.wakeup == 94
    assert brief(world.advance(94)) == [(0, 94, 100, (1,))]


def test_timeout(core_type: type[Core]) -> None:
    """After 4 ms of the oldest one's wait, or at three; never beyond latest."""
    world = World(core_type, policy="timeout:4:3")
    assert world.submit(0, 100) == NOTHING
    assert world.wakeup == 4
    assert brief(world.advance(4)) == [(0, 4, 10, (1,))]
    assert brief(world.submit(20, 120, 120, 120)) == [(0, 20, 28, (2, 3, 4))]
    late = World(core_type, policy="timeout:500")
    late.submit(0, 100)
    assert late.wakeup == 94


# --- coming and going --------------------------------------------------------------------------


def test_a_draining_model_serves_what_is_queued(core_type: type[Core]) -> None:
    world = World(core_type)
    world.submit(0, 100)
    world.core.drain_model(0)
    assert gone(world.submit(1, 101)) == [(2, UNSERVED)]
    assert brief(world.advance(93)) == [(0, 93, 99, (1,))]


def test_a_removed_model_hands_its_requests_back(core_type: type[Core]) -> None:
    world = World(core_type)
    world.submit(0, 100, 90)
    world.submit(0, 80, priority=2)
    world.core.remove_model(MS, 0)
    assert gone(world.read()) == [(2, HANDED_BACK), (1, HANDED_BACK), (3, HANDED_BACK)]


def test_the_last_gpu_goes_and_its_models_are_unserved(core_type: type[Core]) -> None:
    world = World(core_type, gpus=2)
    world.submit(0, 100)
    world.core.drain_gpu(MS, 0)
    assert world.read() == NOTHING
    world.core.remove_gpu(2 * MS, 1)
    assert gone(world.read()) == [(1, UNSERVED)]
    assert gone(world.submit(3, 103)) == [(2, UNSERVED)]


def test_a_draining_gpu_gets_nothing_more_and_may_report(core_type: type[Core]) -> None:
    world = World(core_type, gpus=2)
    world.submit(0, *[100] * 8)
    world.core.drain_gpu(MS, 0)
    assert world.core.outstanding(0) == 1
    assert world.submit(20, *[120] * 8)[0][0][2] == 1
    world.complete(21, 0, 0, 13)
    assert world.core.outstanding(0) == 0
    world.core.set_gpu_models(22 * MS, 0, [0])
    assert world.submit(60, *[160] * 8)[0][0][2] == 1


def test_requests_of_a_gpu_that_died_are_taken_again(core_type: type[Core]) -> None:
    world = World(core_type)
    keys = world.submit(0, *[100] * 8)[0][0][7]
    world.core.remove_gpu(MS, 0)
    world.core.add_gpu(MS, 0)
    m, d, k = columns(model=[0] * 8, deadline=[100 * MS] * 8, key=keys)
    world.core.submit(2 * MS, m, d, k, None, True)
    assert world.read()[0][0][7] == keys


def test_a_full_lane_refuses(core_type: type[Core]) -> None:
    world = World(core_type, max_queue=2)
    assert gone(world.submit(0, 100, 100, 100)) == [(3, FULL)]
    assert gone(world.submit(0, 100, priority=1)) == []
