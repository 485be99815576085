"""When a batch goes, how large it is and which heads are given up for it (docs/algorithm.md).

Unless a test says otherwise: l(b) = b + 5 ms, largest batch 8, SLO 100 ms, no network, one GPU.
"""

from __future__ import annotations

import pytest
from rig import CORES, MS, linear, read
from world import NOTHING, World, brief, gone

from scheduler.core.limits import DEPTH, EXPIRED, NEVER, SAMPLE_NS, WINDOW
from scheduler.core.machine import Core

pytestmark = CORES


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
