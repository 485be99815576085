"""The policy ``adaptive``: its plan on loads that can be worked out by hand, its slow loop, its limits."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rig import CORES, MS, Rig, linear
from streams import Stream, random_settings

from scheduler.core.adaptive import FIRST_NS
from scheduler.core.limits import NEVER
from scheduler.core.machine import Core
from scheduler.core.plans import Load, finish, fluid_batch, make_plan, saturation, usual_target
from scheduler.core.policies import make_policy
from scheduler.core.rules import RULES, Idle, planned_early, pressure, thresholds

ALPHA, BETA = 1.082, 5.204
"""ResNet-50 of the Symphony paper's scheduler benchmark, ms."""


def load(
    rates: list[float],
    gpus: int,
    slo_ms: float | list[float] = 50.0,
    line: tuple[float, float] = (ALPHA, BETA),
    dispersion: float = 1.0,
) -> Load:
    n = len(rates)
    table = np.array(linear(*line, 128)) / 1e9
    budget = np.full(n, slo_ms) / 1e3 if isinstance(slo_ms, float) else np.array(slo_ms) / 1e3
    zeros = np.zeros(n, np.int64)
    return Load(np.array(rates), budget, zeros, zeros + 128, table, 0.0, gpus, dispersion)


def test_the_fluid_batch_solves_its_equation() -> None:
    one = load([1000.0, 3.0, 1e6], 8)
    b = fluid_batch(one, 1.0)
    assert b[0] == pytest.approx((51 - BETA) / (ALPHA + 1.0))  # (b - 1)/r + l(b) = SLO
    assert b[1] == pytest.approx(1 + (50 - ALPHA - BETA) / (1e3 / 3 + ALPHA))  # gathers hardly anybody
    assert b[2] == pytest.approx((50.001 - BETA) / (ALPHA + 1e-3))


@pytest.mark.parametrize(("slo_ms", "rps"), [(100.0, 6_959), (25.0, 5_598)])
def test_one_model_saturates_at_the_staggered_bound(slo_ms: float, rps: float) -> None:
    """The bound is over whole batches, the fluid one between them: never below, at most one batch above."""
    scale, batch, gpus = finish(saturation(load([1000.0], 8, slo_ms)))
    assert rps <= scale * 1000 <= 1.03 * rps
    assert gpus[0] == pytest.approx(8, rel=1e-3)
    assert (batch[0] - 1) / (scale * 1000) + (ALPHA * batch[0] + BETA) / 1e3 == pytest.approx(
        slo_ms / 1e3, rel=1e-3
    )


def test_a_model_over_many_gpus_waits_and_many_models_on_few_do_not() -> None:
    assert make_plan(load([5000.0], 8)).waits.all()
    assert not make_plan(load([600.0] * 8, 8)).waits.any()
    # One that would wait among many that would not: nobody does.
    assert not make_plan(load([2000.0] + [100.0] * 40, 8)).waits.any()


def test_among_many_gpus_a_model_waits_for_one_of_its_own_unless_requests_come_in_bursts() -> None:
    rates = [600.0] * 64
    assert make_plan(load(rates, 64)).waits.all()
    assert not make_plan(load(rates, 64, dispersion=8.0)).waits.any()
    assert make_plan(load([6000.0] * 8, 64, dispersion=8.0)).waits.all()  # eight GPUs each


def test_no_gain_from_batches_no_waiting() -> None:
    assert not make_plan(load([500.0], 8, 100.0, line=(10.0, 1.0))).waits.any()


def test_the_sustaining_batch_grows_with_the_load() -> None:
    sizes = [int(make_plan(load([r], 8)).sustain[0]) for r in (100.0, 2000.0, 4000.0, 5000.0, 6000.0)]
    assert sizes == sorted(sizes)
    assert sizes[0] == 1
    assert sizes[-1] == make_plan(load([6000.0], 8)).full[0]


def test_the_usual_target_is_that_of_the_other_policies() -> None:
    """Whatever the margin: they take no account of it."""
    core = Core("deferred", margin_ns=4 * MS)
    core.add_model(0, 30 * MS, 64)
    core.set_profile(0, 0, 0, linear(ALPHA, BETA, 64))
    core.add_gpu(0, 0)
    for key in range(1, 401):
        core.arrive(key * MS, 0, (key + 30) * MS, key)
    one = load([1000.0], 1, 26.0)  # what the margin leaves of 30 ms
    assert usual_target(replace(one, margin=0.004)).tolist() == [core.lane_target[0]]
    assert usual_target(one)[0] < core.lane_target[0]


def test_bursts_ask_for_batches_that_are_worth_their_fixed_time() -> None:
    calm = make_plan(load([1500.0], 8, 15.0)).sustain[0]
    bursty = make_plan(load([1500.0], 8, 15.0, dispersion=10.0)).sustain[0]
    assert bursty > calm


def test_equal_models_need_no_guard_and_tight_ones_among_lax_ones_do() -> None:
    assert not make_plan(load([500.0] * 4, 8)).guard.any()
    plan = make_plan(load([500.0, 1500.0], 8, [12.0, 200.0]))
    assert plan.guard[0] == 0
    assert 0 < plan.guard[1] < 8
    assert plan.guard_ns == pytest.approx((12.0 - ALPHA - BETA) * 1e6)


def test_the_dial_takes_gpus_away_from_early_starts() -> None:
    gpus = [make_plan(load([200.0] * 8, 8), dial).gpus for dial in (0.0, 0.2, 1.0)]
    assert gpus[0] == 8
    assert gpus == sorted(gpus, reverse=True)
    assert gpus[-1] < 8
    assert make_plan(load([900.0] * 8, 8), 1.0).gpus == 8


@pytest.mark.parametrize("name", ["adaptive:-1", "adaptive:2", "adaptive:x", "adaptive:nan"])
def test_a_dial_out_of_range(name: str) -> None:
    with pytest.raises(ValueError, match="adaptive"):
        make_policy(name)


def test_the_idle_share_follows_the_work() -> None:
    idle = Idle()
    idle.note(0, 0, 8)
    for i in range(1, 200):
        idle.note(i * 10 * MS, 6 * 10 * MS, 8)  # 6 of 8 GPUs are busy
    assert idle.share == pytest.approx(0.25, abs=0.01)
    for i in range(200, 400):
        idle.note(i * 10 * MS, 0, 8)
    assert idle.share > 0.99


def test_fewer_idle_gpus_ask_for_larger_batches() -> None:
    plan = make_plan(load([5000.0], 8))
    sizes = [int(planned_early(plan, pressure(idle))[0]) for idle in (1.0, 0.15, 0.12, 0.0)]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (plan.sustain[0], plan.full[0])


@CORES
def test_it_starts_early_and_deferred_does_not(core_type: type[Core]) -> None:
    sent = {}
    for policy in ("adaptive", "deferred"):
        core = core_type(policy)
        core.add_model(0, 50 * MS, 32)
        core.set_profile(0, 0, 0, linear(ALPHA, BETA, 32))
        core.add_gpu(0, 0)
        core.arrive(MS, 0, 51 * MS, 1)
        sent[policy] = core.actions.dispatched
    assert sent == {"adaptive": 1, "deferred": 0}


@CORES
def test_a_plan_sets_the_lanes(core_type: type[Core]) -> None:
    core: Any = core_type("adaptive")
    core.add_model(0, 50 * MS, 128)
    core.set_profile(0, 0, 0, linear(ALPHA, BETA, 128))
    for gpu in range(8):
        core.add_gpu(0, gpu)
    for key, t in enumerate(range(0, 2 * FIRST_NS, MS // 4), 1):  # 4,000 requests/s
        core.arrive(t, 0, t + 50 * MS, key)
    assert core.tuner.plan is not None
    told = thresholds(core.tuner.losses.chosen, core.tuner.plan, core.tuner.told.pressed)
    assert core.lane_target[0] == told.target[0] > 1
    assert core.lane_early[0] == told.early[0]


@pytest.mark.parametrize("seed", range(10))
def test_long_streams_against_the_reference(seed: int) -> None:
    """Long enough for several plans, under churn, with dials; the core and the reference agree."""
    rng = random.Random(3000 + seed)
    settings = random_settings(rng) | {"policy": rng.choice(("adaptive", "adaptive:0.3", "adaptive:1"))}
    rig = Rig(check=seed % 2 == 0, **settings)
    stream = Stream(rig, rng, start=rng.choice((0, 1_763_800_000_000_000_000)), churn=0.02)
    for _ in range(350):
        stream.step()
    rig.settle()


@pytest.mark.parametrize("rule", [rule for rule in range(len(RULES)) if rule != 0])
def test_each_rule_against_the_reference(rule: int) -> None:
    """Whatever the rehearsals say: a rule that is followed is followed alike."""
    rng = random.Random(5000 + rule)
    rig = Rig(**random_settings(rng) | {"policy": "adaptive"})
    assert rig.reference is not None
    tuners = [core.tuner for core in rig.cores] + [rig.reference.tuner]
    for tuner in tuners:
        assert tuner is not None
        tuner.losses.chosen = rule
    stream = Stream(rig, rng, churn=0.01)
    for _ in range(200):
        stream.step()
    rig.settle()


def test_the_streams_reach_plans() -> None:
    planned = 0
    for seed in range(6):
        rng = random.Random(3000 + seed)
        rig = Rig(check=False, reference=False, **random_settings(rng) | {"policy": "adaptive:0.3"})
        stream = Stream(rig, rng, churn=0.02)
        for _ in range(350):
            stream.step()
        assert rig.core.tuner is not None
        planned += rig.core.tuner.plan is not None
    assert planned >= 4


@CORES
def test_a_cushion_cuts_batches_and_opens_windows_earlier(core_type: type[Core]) -> None:
    """l(b) = b + 5 ms, 20 ms: four leave at frontrun, 20 - l(5) = 10; with a cushion of 2 ms at 8."""
    for cushion, opening in ((0, 10 * MS), (2 * MS, 8 * MS)):
        core: Any = core_type("deferred")
        core.add_model(0, 20 * MS, 64)
        core.set_profile(0, 0, 0, linear(1.0, 5.0, 64))
        core.add_gpu(0, 0)
        for key in range(1, 5):
            core.arrive(0, 0, 20 * MS, key)
            core.plan_lane(0, NEVER, 0, 4, cushion, NEVER)
        core.advance(opening - 1)
        assert core.actions.dispatched == 0
        core.advance(opening)
        assert core.actions.dispatched == 1


@CORES
def test_a_cushion_costs_no_request(core_type: type[Core]) -> None:
    """l(b) = b + 5 ms, 20 ms: 15 fit; with a cushion of 3 ms 12 leave, and with one that none allows 15."""
    for cushion, size in ((0, 15), (3 * MS, 12), (30 * MS, 15)):
        core: Any = core_type("eager")
        core.add_model(0, 20 * MS, 64)
        core.set_profile(0, 0, 0, linear(1.0, 5.0, 64))
        core.add_gpu(0, 0)
        core.arrive(0, 0, 20 * MS, 1)
        core.complete(*done(core, 0))
        core.plan_lane(0, NEVER, 0, 1, cushion, NEVER)
        core.clear_actions()
        n = 20
        t = 6 * MS
        core.submit(
            t,
            np.zeros(n, np.uint32),
            np.full(n, t + 20 * MS, np.int64),
            np.arange(2, 2 + n, dtype=np.uint64),
        )
        assert core.actions.size[0] == size


def done(core: Any, gpu: int) -> tuple[int, Any, Any, Any]:
    """The first batch of the GPU came back when it was predicted to."""
    end = core.actions.finish_at[0]
    return end, np.array([gpu], np.uint32), np.array([0], np.uint64), np.array([end], np.int64)


@CORES
def test_the_ends_of_batches_are_learned(core_type: type[Core]) -> None:
    core: Any = core_type("adaptive")
    core.add_model(0, 50 * MS, 8)
    core.set_profile(0, 0, 0, [10 * MS] * 8)
    core.add_gpu(0, 0)
    core.arrive(0, 0, 50 * MS, 1)
    core.report(11 * MS, 0, 0, 11 * MS)  # a tenth of its length too late
    core.report(11 * MS, 0, 0, 11 * MS)  # nobody knows it any more
    assert core.ran == 1
    assert core.ran_over / 2**20 == pytest.approx(0.1, abs=1e-5)
    assert core.ran_squares / 2**40 == pytest.approx(0.01, abs=1e-5)


@CORES
def test_the_delay_of_a_batch_is_not_that_of_the_one_behind_it(core_type: type[Core]) -> None:
    """A batch of 20 ms ends 2 ms late; one of 10 ms behind it, sent ahead, takes its 10 ms."""
    core: Any = core_type("adaptive", 2 * MS)  # it reaches the GPU 2 ms before that is free
    for model, length in ((0, 20 * MS), (1, 10 * MS)):
        core.add_model(model, 90 * MS, 8)
        core.set_profile(0, model, 0, [length] * 8)
    core.add_gpu(0, 0)
    core.arrive(0, 0, 90 * MS, 1)
    core.arrive(20 * MS, 1, 110 * MS, 2)
    assert core.actions.exec_at[1] == 22 * MS
    core.report(24 * MS, 0, 0, 24 * MS)
    core.report(34 * MS, 0, 1, 34 * MS)
    assert core.ran == 2
    assert core.ran_over / 2**20 == pytest.approx(0.1, abs=1e-5)


@CORES
def test_a_lane_lingers_from_its_heads_arrival(core_type: type[Core]) -> None:
    """l(b) = b + 5 ms, 50 ms: leaves 2 ms after its first request came, or at once with four."""
    core: Any = core_type("deferred")
    core.add_model(0, 50 * MS, 64)
    core.set_profile(0, 0, 0, linear(1.0, 5.0, 64))
    for gpu in range(2):
        core.add_gpu(0, gpu)
    core.arrive(0, 0, 50 * MS, 1)
    core.advance(49 * MS)
    core.plan_lane(0, 4, 0, 4, 0, 2 * MS)
    core.clear_actions()
    for key, t in ((2, 101), (3, 102), (4, 102)):
        core.arrive(t * MS, 0, (t + 50) * MS, key)
    assert core.next_wakeup() == 103 * MS
    core.advance(103 * MS)
    assert list(core.actions.size)[: core.actions.dispatched] == [3]
    core.clear_actions()
    for key in range(5, 9):
        core.arrive(104 * MS, 0, 154 * MS, key)
    assert list(core.actions.size)[: core.actions.dispatched] == [4]
