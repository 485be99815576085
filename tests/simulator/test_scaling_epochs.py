"""Several shards in virtual time, and an allocator that follows the load."""

from __future__ import annotations

from typing import Any

import pytest

from simulator.experiment import Experiment, ExperimentError, parse_experiment
from simulator.goodput import run_once


def experiment(
    first: dict[str, Any], second: dict[str, Any], seconds: int = 90, **changes: Any
) -> Experiment:
    """Two groups of two models on eight GPUs and two shards."""
    model = {"count": 2, "alpha_ms": 20, "beta_ms": 80, "slo_ms": 1_000, "rate": 50, "load_ms": 2_000}
    content = {
        "gpus": 8,
        "seconds": seconds,
        "warmup_s": 0,
        "shards": {"count": 2, "epoch_s": 20, "headroom": 0.8},
        "models": [model | {"name": "a"} | first, model | {"name": "b"} | second],
    }
    return parse_experiment(content | changes, "test")


def test_a_constant_load_moves_nothing_and_is_served_on_two_shards() -> None:
    results = [run_once(experiment({}, {}), "deferred") for _ in range(2)]
    assert results[0]["epochs"] == results[1]["epochs"]
    assert results[0]["good"] == results[1]["good"]
    plans = results[0]["epochs"]
    assert [plan["at_s"] for plan in plans] == [0, 20, 40, 60, 80]
    assert [plan["moved"] for plan in plans[1:]] == [0, 0, 0, 0]
    assert all(sum(plan["gpus"].values()) == 8 and len(plan["gpus"]) == 2 for plan in plans)
    assert results[0]["bad_share"] < 0.01
    assert results[0]["offered"] == results[0]["good"] + results[0]["late"] + results[0]["dropped"]


def test_gpus_and_models_follow_a_load_that_shifts() -> None:
    """Half of the models get twice the rate, the others a tenth: bad only around the change."""
    up = {"modulation": {"step": [{"at": 30, "factor": 1.7}]}}
    down = {"modulation": {"step": [{"at": 30, "factor": 0.1}]}}
    calm = run_once(experiment(up, down, seconds=140, warmup_s=90), "deferred")
    assert calm["bad_share"] < 0.01
    assert calm["offered"] == calm["good"] + calm["late"] + calm["dropped"]
    changes = [plan["moved"] for plan in calm["epochs"]]
    later = changes[4:]
    assert later == [0] * len(later)  # settled again two epochs after the shift


SCALED = {"gpus": 20, "autoscale": {"max": 40, "startup_s": 10}}
MORE = {"rate": 150}


def test_a_constant_load_settles_under_epochs_and_autoscaling_together() -> None:
    results = [run_once(experiment(MORE, MORE, seconds=150, **SCALED), "deferred") for _ in range(2)]
    scaling = results[0]["scaling"]
    assert results[0]["epochs"] == results[1]["epochs"]
    assert scaling == results[1]["scaling"]
    assert scaling["decisions_settled"] == 0
    assert [plan["moved"] for plan in results[0]["epochs"][1:]] == [0] * 7
    assert not any(plan["unserved"] for plan in results[0]["epochs"])
    assert scaling["over_time"]["gpus_paid"][-1] == sum(results[0]["epochs"][-1]["gpus"].values())
    assert results[0]["bad_share"] < 0.01


def test_gpus_come_for_a_load_that_grows_and_shifts_and_go_with_it() -> None:
    """One half of the models gets four times the rate, for 100 s; the other half a fifth, for good."""
    up = {"modulation": {"step": [{"at": 30, "factor": 4.0}, {"at": 130, "factor": 1.0}]}}
    away = {"modulation": {"step": [{"at": 30, "factor": 0.2}]}}
    result = run_once(experiment(up | MORE, away | MORE, seconds=220, **SCALED), "deferred")
    scaling, plans = result["scaling"], result["epochs"]
    over = scaling["over_time"]
    first = next(decision for decision in scaling["decisions"] if decision["kind"] == "up")
    assert 30 < first["at_s"] <= 40
    at = over["seconds"].index(first["at_s"])
    # Start-up, and what the plan has it hold: one to four models, 2 s each.
    assert max(over["gpus_ready"][at : at + 12]) <= over["gpus_ready"][at]
    assert max(over["gpus_ready"][at : at + 30]) > over["gpus_ready"][at]
    assert max(over["gpus_paid"]) > 25
    assert over["gpus_paid"][-1] <= 13
    bad, offered = over["bad"], over["offered"]
    assert sum(bad[95:125]) < 0.01 * sum(offered[95:125])
    assert sum(bad[170:]) < 0.01 * sum(offered[170:])
    assert sum(plan["moved"] for plan in plans[-2:]) == 0
    assert result["offered"] == result["good"] + result["late"] + result["dropped"]


def test_what_has_no_room_is_said_and_the_rest_is_served() -> None:
    big = {"memory_mb": 20_000}
    gpus = [{"type": "x", "count": 8, "memory_mb": 16_000}]
    result = run_once(experiment(big, {}, seconds=30, gpus=gpus), "deferred")
    assert set(result["epochs"][0]["unserved"]) == {"a-0", "a-1"}
    assert result["models"]["a-0"]["good"] == 0
    assert result["models"]["b-0"]["bad_share"] < 0.01


def test_what_cannot_be_run_is_refused() -> None:
    with pytest.raises(ExperimentError, match=r"gpus: 8 at the start: expected 1 … 6, the limits"):
        experiment({}, {}, autoscale={"max": 3})
    with pytest.raises(ExperimentError, match=r"shards\.count"):
        experiment({}, {}, shards={"count": 0})
    with pytest.raises(ExperimentError, match="shards need a policy of the core"):
        run_once(experiment({}, {}), "nexus")
