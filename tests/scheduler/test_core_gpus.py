"""Which GPU a batch gets: idle, busy, of another type, or without the model (docs/algorithm.md).

Unless a test says otherwise: l(b) = b + 5 ms, largest batch 8, SLO 100 ms, no network, one GPU.
"""

from __future__ import annotations

import pytest
from rig import CORES, MS, linear
from world import NOTHING, World, brief, far_apart, gone

from scheduler.core.limits import DEPTH, WINDOW
from scheduler.core.machine import Core

pytestmark = CORES


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
