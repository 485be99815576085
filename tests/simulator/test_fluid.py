"""The yardsticks, and that the core reaches them under constant arrivals."""

from __future__ import annotations

import pytest
from core_system import make_experiment

from simulator.engine import cluster_of
from simulator.fluid import Staggered, fluid_ideal, fluid_scale, staggered
from simulator.goodput import goodput
from simulator.system import Cluster, ModelSpec

R50 = tuple(round((1.082 * b + 5.204) * 1e6) for b in range(1, 129))
MS = 1_000_000


def test_staggered_bound() -> None:
    assert staggered(R50, 8, 100 * MS) == Staggered(77, pytest.approx(6959.04, abs=0.01))
    assert staggered(R50, 8, 25 * MS) == Staggered(15, pytest.approx(5598.58, abs=0.01))
    assert staggered(R50, 8, 7 * MS) == Staggered(0, 0.0)


@pytest.mark.parametrize(("slo", "rps"), [(25, 4103.97), (50, 5834.68)])
def test_fluid_ideal_of_eight_models(slo: int, rps: float) -> None:
    models = [ModelSpec(f"m{i}", slo * MS, (R50,), 100.0) for i in range(8)]
    assert fluid_ideal(Cluster(models, [0] * 8)) == pytest.approx(rps, abs=0.01)


def test_fluid_ideal_of_one_model_is_the_staggered_bound() -> None:
    for slo in (15, 25, 50, 100):
        cluster = Cluster([ModelSpec("m", slo * MS, (R50,), 123.0)], [0] * 8)
        assert fluid_ideal(cluster) == pytest.approx(staggered(R50, 8, slo * MS).rps)


def test_fluid_scale_is_the_largest_that_fits() -> None:
    models = [ModelSpec("a", 50 * MS, (R50,), 900.0), ModelSpec("b", 30 * MS, (R50,), 40.0)]
    cluster = Cluster(models, [0] * 3, result=MS, data=20_000)
    scale = fluid_scale(cluster)
    assert scale is not None

    def need(y: float) -> float:
        gpus = 0.0
        for model in models:
            rate = y * model.rate / 1e9
            fits = [
                b
                for b in range(1, 129)
                if b / rate + R50[b - 1] + b * cluster.data <= model.slo - cluster.result
            ]
            gpus += rate * min(R50[b - 1] / b for b in fits or [1])
        return gpus

    # The need falls where a batch grows, so it is not enough to look just above.
    assert need(scale * (1 + 1e-9)) <= 3 + 1e-6
    assert all(need(scale * (1.001 + 0.01 * i)) > 3 for i in range(100))
    assert fluid_scale(Cluster(models, [0] * 3, result=48 * MS)) == 0.0


def test_types_that_are_alike_count_as_one() -> None:
    models = [
        ModelSpec("a", 50 * MS, (R50, R50), 900.0),
        ModelSpec("b", 30 * MS, (R50, R50), 40.0),
        ModelSpec("c", 30 * MS, (R50, R50), 40.0),
    ]
    both = Cluster(models, [0, 1, 1], control=MS, data=20_000)
    one = Cluster(models, [0, 0, 0], control=MS, data=20_000)
    assert fluid_scale(both) == pytest.approx(fluid_scale(one), rel=1e-5)


def test_types_of_different_speed() -> None:
    """One GPU twice as fast as the other: batches of 10 cost 20 and 10 ms, as long as 10 gather in time."""
    slow = tuple([20 * MS] * 10)
    fast = tuple([10 * MS] * 10)
    cluster = Cluster([ModelSpec("m", 60 * MS, (slow, fast), 100.0)], [0, 1])
    assert fluid_ideal(cluster) == pytest.approx(1500, rel=1e-5)
    late = Cluster([ModelSpec("m", 21 * MS, (slow, fast), 300.0)], [0, 1])
    # 10 gather in the 11 ms that the fast one leaves; the slow one leaves 1 ms and runs one at a time.
    assert fluid_ideal(late) == pytest.approx(1050, rel=1e-5)
    never = Cluster([ModelSpec("m", 9 * MS, (slow, fast), 100.0)], [0, 1])
    assert fluid_ideal(never) == 0.0


def test_models_go_where_they_gain_most() -> None:
    """Model a gains 4x on the second type, b only 2x: all of a goes there, and b fills both."""
    a = ModelSpec("a", 60 * MS, (tuple([40 * MS] * 10), tuple([10 * MS] * 10)), 500.0)
    b = ModelSpec("b", 60 * MS, (tuple([20 * MS] * 10), tuple([10 * MS] * 10)), 500.0)
    # y·500 of each: a takes y/2 of the second GPU, b has the first and 1 − y/2: 500 + 1000 − 500·y.
    assert fluid_scale(Cluster([a, b], [0, 1])) == pytest.approx(1.5, rel=1e-5)


@pytest.mark.parametrize("count", [1, 8])
def test_deferred_reaches_the_ideal_under_constant_arrivals(count: int) -> None:
    experiment = make_experiment(4000, count=count, model={"arrivals": "constant"})
    ideal = fluid_ideal(cluster_of(experiment))
    assert ideal is not None
    assert goodput(experiment, "deferred", seeds=1).rps >= 0.98 * ideal
