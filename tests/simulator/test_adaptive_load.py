"""What `adaptive` claims of moving and excessive loads and of its dial; l(b) = 1.082 b + 5.204 ms."""

from __future__ import annotations

from typing import Any

import pytest

from simulator.engine import cluster_of
from simulator.experiment import Experiment, parse_experiment
from simulator.fluid import fluid_scale
from simulator.goodput import run_once


def setting(models: int, slo_ms: float, seconds: float, **more: Any) -> tuple[Experiment, float]:
    """8 GPUs, Poisson arrivals; and the factor on the rates that is the fluid ideal."""
    model = {"name": "m", "alpha_ms": 1.082, "beta_ms": 5.204, "slo_ms": slo_ms, "rate": 500, "count": models}
    content = {
        "gpus": 8,
        "network": {"control_us": 100, "data_us": 50, "result_us": 2000},
        "seconds": seconds,
        "models": [model | {"arrivals": "poisson"} | more],
    }
    experiment = parse_experiment(content, "x")
    scale = fluid_scale(cluster_of(experiment))
    assert scale is not None
    return experiment, scale


@pytest.mark.parametrize(("models", "slo_ms"), [(1, 50), (8, 50)])
def test_far_above_capacity_goodput_stays_within_5_percent_of_its_peak(models: int, slo_ms: float) -> None:
    experiment, ideal = setting(models, slo_ms, 3.0)
    good = [run_once(experiment, "adaptive", ideal * load)["goodput_rps"] for load in (1.0, 1.5, 3.0)]
    assert good[-1] >= 0.95 * max(good)
    assert max(good) >= 0.95 * ideal * 500 * models


@pytest.mark.parametrize("factor", [3.0, 1 / 3])
@pytest.mark.parametrize(("models", "slo_ms"), [(1, 25), (8, 50)])
def test_no_lasting_harm_of_a_step(models: int, slo_ms: float, factor: float) -> None:
    experiment, ideal = setting(models, slo_ms, 5.0, modulation={"step": [{"at": 3.0, "factor": factor}]})
    found = run_once(experiment, "adaptive", ideal * (0.28 if factor > 1 else 0.84))
    assert found["bad_share"] < 0.005


def test_one_end_of_the_dial_halves_the_median_latency_the_other_uses_no_more_gpus() -> None:
    experiment, ideal = setting(1, 25, 3.0)
    for load in (0.3, 0.6):
        fast, few, published = (
            run_once(experiment, policy, load * ideal) for policy in ("adaptive", "adaptive:1", "deferred")
        )
        assert max(fast["bad_share"], few["bad_share"]) < 0.01
        assert few["gpus_used_mean"] <= 1.1 * published["gpus_used_mean"]
        if load == 0.3:
            assert fast["p50_ms"] <= 0.5 * published["p50_ms"]
