"""Who goes first, by policy and priority; models and GPUs that come and go (docs/algorithm.md).

Unless a test says otherwise: l(b) = b + 5 ms, largest batch 8, SLO 100 ms, no network, one GPU.
"""

from __future__ import annotations

import pytest
from rig import CORES, MS, columns
from world import NOTHING, World, brief, gone

from scheduler.core.limits import FULL, HANDED_BACK, UNSERVED
from scheduler.core.machine import Core

pytestmark = CORES


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
