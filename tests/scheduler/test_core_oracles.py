"""What theory says of one model on eight GPUs, and what the core does under a virtual clock."""

from __future__ import annotations

import random
from typing import Any

import pytest
from driver import constant, drive
from rig import CORES, MS, linear

from scheduler.core.machine import Core

LENGTHS = linear(1.082, 5.204, 128)


def cluster(core_type: type[Core], gpus: int, slo_ns: int, largest: int = 128, **settings: Any) -> Core:
    core = core_type(**settings)
    core.add_model(0, slo_ns, largest)
    core.set_profile(0, 0, 0, LENGTHS[:largest])
    for gpu in range(gpus):
        core.add_gpu(0, gpu)
    return core


@pytest.mark.parametrize(("slo_ms", "size", "rate"), [(100, 77, 6959), (25, 15, 5598)])
def test_staggered_bound(slo_ms: int, size: int, rate: int) -> None:
    """The bound itself: the largest b with l(b)·(1 + 1/N) ≤ SLO, and the rate that it carries."""
    best = max(b for b in range(1, 129) if LENGTHS[b - 1] * (1 + 1 / 8) <= slo_ms * MS)
    assert best == size
    assert int(8 * best / LENGTHS[best - 1] * 1e9) == rate


@CORES
@pytest.mark.parametrize(("slo_ms", "size", "rate"), [(100, 77, 6959), (25, 15, 5598)])
def test_constant_arrivals_near_the_staggered_bound(
    core_type: type[Core], slo_ms: int, size: int, rate: int
) -> None:
    core = cluster(core_type, 8, slo_ms * MS)
    outcome = drive(core, constant(0.99 * rate, 3, slo_ms * MS))
    assert outcome.late == 0
    assert outcome.bad_share < 0.01
    assert 0.85 * size <= outcome.mean_batch <= size + 1


@CORES
def test_beyond_the_bound_the_batches_stay_large(core_type: type[Core]) -> None:
    """At 1.5 times the bound the window drop gives up heads, and most of the bound is still served."""
    outcome = drive(cluster(core_type, 8, 100 * MS), constant(1.5 * 6959, 3, 100 * MS))
    assert outcome.late == 0
    assert outcome.good > 0.9 * 6959 * 3
    assert outcome.mean_batch > 50


@CORES
@pytest.mark.parametrize(("policy", "share"), [("deferred", 0.85), ("eager", 0.98), ("adaptive", 0.98)])
def test_eight_models_on_gpus_six_times_as_fast_as_others(
    core_type: type[Core], policy: str, share: float
) -> None:
    """Two A30 and six T4 (ResNet-50 as NVIDIA measured it), 90 % of what the fluid would carry."""
    core = core_type(policy=policy)
    for model in range(8):
        core.add_model(model, 28 * MS, 64)
        core.set_profile(0, model, 0, linear(0.23, 1.1, 64))
        core.set_profile(0, model, 1, linear(2.33, 3.7, 64))
    for gpu in range(8):
        core.add_gpu(0, gpu, int(gpu >= 2))
    rng = random.Random(1)
    at, arrivals = 0.0, []
    for key in range(1, 4001):
        at += rng.expovariate(0.9 * 9266) * 1e9
        arrivals.append((int(at), rng.randrange(8), int(at) + 28 * MS, key))
    outcome = drive(core, arrivals)
    assert outcome.late == 0
    assert outcome.good > share * outcome.offered
    assert {d[2] for d in outcome.dispatches} == set(range(8))


@CORES
def test_use_is_proportional_to_load(core_type: type[Core]) -> None:
    """At a quarter of the bound the highest-numbered GPUs are never touched."""
    outcome = drive(cluster(core_type, 8, 100 * MS), constant(6959 / 4, 3, 100 * MS))
    assert outcome.bad_share == 0
    assert {d[2] for d in outcome.dispatches} <= {0, 1, 2}


@CORES
def test_a_gpu_that_runs_over_makes_late_only_what_the_margin_does_not_cover(core_type: type[Core]) -> None:
    rng = random.Random(7)
    overruns = [rng.randrange(2 * MS) for _ in range(5000)]

    def runs(predicted: int, batch: int) -> int:
        return predicted + overruns[batch]

    arrivals = constant(3000, 2, 100 * MS)
    assert drive(cluster(core_type, 8, 100 * MS), arrivals, runs).late > 0
    covered = drive(cluster(core_type, 8, 100 * MS, margin_ns=4 * MS), arrivals, runs)
    assert (covered.late, covered.bad_share) == (0, 0)


@CORES
def test_latencies_of_the_network_are_kept_free(core_type: type[Core]) -> None:
    """With dispatch and result latencies every result is at the frontend by its deadline."""
    core = cluster(core_type, 8, 100 * MS, control_ns=300_000, data_ns=20_000, result_ns=500_000)
    outcome = drive(core, constant(5000, 2, 100 * MS), result_ns=500_000)
    assert (outcome.late, outcome.drops) == (0, [])


@CORES
def test_poisson_arrivals_at_nine_tenths_of_the_bound(core_type: type[Core]) -> None:
    rng = random.Random(3)
    now, arrivals = 0.0, []
    for key in range(1, 15_000):
        now += rng.expovariate(0.9 * 6959 / 1e9)
        arrivals.append((int(now), 0, int(now) + 100 * MS, key))
    outcome = drive(cluster(core_type, 8, 100 * MS), arrivals)
    assert outcome.late == 0
    assert outcome.bad_share < 0.01
