"""Results of a hand-made run, of warm-ups, and their bytes from one seed to the same seed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from core_system import make_experiment

from scheduler.core.machine import Core
from scheduler.core.replay import Replay
from simulator import engine
from simulator.arrivals import START_NS, Arrivals
from simulator.engine import Record, cluster_of
from simulator.goodput import goodput, run_at_goodput, run_once
from simulator.results import summarize, tally_of
from simulator.system import NEVER
from simulator.trace_export import write_trace

MS = 1_000_000
COUNTS = ["offered", "good", "late", "dropped", "bad_share", "goodput_rps", "p50_ms", "p99_ms"]
COUNTS += ["mean_batch", "busy_share", "gpus_used_mean"]
WHOLE = ["fluid_ideal_rps", "seconds_simulated", "wall_s", "requests_per_wall_s"]


def at(ms: list[float]) -> np.ndarray:  # type: ignore[type-arg]
    return START_NS + (np.array(ms) * MS).astype(np.int64)


def hand_made() -> Record:
    """Requests 0 and 1 in one batch, 2 in a killed one and again in a late one, 3 dropped."""
    return Record(
        model=np.array([0, 0, 0]),
        gpu=np.array([0, 1, 0]),
        size=np.array([2, 1, 1]),
        decided=at([5, 20, 60]),
        start=at([10, 20, 60]),
        end=at([20, 40, 80]),
        answered=np.array([START_NS + 21 * MS, NEVER, START_NS + 81 * MS]),
        request=np.array([0, 1, 2, 2]),
        dropped=np.array([3]),
        events=9,
        wall_s=0.5,
    )


def test_a_hand_made_run() -> None:
    experiment = make_experiment(1, seconds=0.1, warmup_s=0)
    came = at([0, 4, 15, 30])
    arrivals = Arrivals(came, np.zeros(4, np.uint32), came + 50 * MS)
    cluster = cluster_of(experiment)
    result = summarize(
        experiment,
        cluster,
        "deferred",
        tally_of(experiment, cluster, arrivals, hand_made()),
        hand_made(),
        100.0,
    )
    assert [result[k] for k in ("offered", "good", "late", "dropped")] == [4, 2, 1, 1]
    assert result["bad_share"] == 0.5
    assert result["goodput_rps"] == pytest.approx(20)
    assert (result["p50_ms"], result["p99_ms"]) == (21, 66)
    assert result["mean_batch"] == 1.5
    assert result["batch_histogram"] == {"1": 1, "2": 1}
    assert (result["batches"], result["lost_batches"]) == (2, 1)
    assert result["batch_wait_mean_ms"] == pytest.approx((10 + 45) / 2)
    assert result["busy_share"] == pytest.approx((10 + 20 + 20) / (100 * 8))
    assert result["gpus_used_mean"] == 2
    assert result["over_time"] == {"gpus_busy": [pytest.approx(0.5)], "gpus_used": [2]}
    assert result["models"]["r50"]["good"] == 2
    assert result["requests_per_wall_s"] == 8


def test_the_stable_fields_are_there_in_total_and_per_model() -> None:
    result = run_once(make_experiment(3000, count=2, seconds=1), "deferred")
    for key in COUNTS:
        assert key in result
        assert key in result["models"]["r50-1"]
    for key in WHOLE:
        assert key in result
        assert key in result["models"]["r50-1"]
    assert result["models"]["r50-0"]["fluid_ideal_rps"] == pytest.approx(result["fluid_ideal_rps"] / 2)
    assert sum(part["offered"] for part in result["models"].values()) == result["offered"]
    json.dumps(result)


def test_the_warm_up_does_not_count() -> None:
    whole = run_once(make_experiment(3000, seconds=1, warmup_s=0), "deferred")
    half = run_once(make_experiment(3000, seconds=1, warmup_s=0.5), "deferred")
    assert half["offered"] == pytest.approx(whole["offered"] / 2, rel=0.1)
    assert half["offered_rps"] == pytest.approx(3000, rel=0.1)


POLICIES = ["deferred", "eager", "target", "latest", "timeout:5", "timeout:10:16", "adaptive", "adaptive:1"]
BASELINES = ["clockwork", "clockwork:64", "nexus", "nexus-replanned:0.3", "shepherd", "shepherd-head"]


def text_of(policy: str) -> str:
    """All that a noisy run gives, but for the fields about wall time."""
    experiment = make_experiment(
        4500,
        count=3,
        seconds=0.8,
        network={"control_us": 100, "data_us": 50, "result_us": 2000, "jitter_us": 100},
        noise=0.02,
        margin_us=500,
        model={"arrivals": "gamma:0.5", "popularity": "zipf:1"},
    )
    result = run_once(experiment, policy)
    del result["events_per_wall_s"]
    for part in (result, *result["models"].values()):
        del part["wall_s"], part["requests_per_wall_s"]
    return json.dumps(result)


@pytest.mark.parametrize("policy", POLICIES + BASELINES)
def test_the_same_seed_gives_the_same_bytes(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = text_of(policy)
    assert json.loads(first)["good"] > 0
    assert text_of(policy) == first
    monkeypatch.setattr(engine, "core_class", lambda: Core)
    monkeypatch.setattr(engine, "replay_class", lambda: Replay)
    assert text_of(policy) == first


def test_goodput_is_found_per_seed() -> None:
    experiment = make_experiment(100, gpus=1)
    found = goodput(experiment, "eager", seeds=2)
    assert found.low <= found.rps <= found.high
    assert len(found.by_seed) == 2
    result = run_at_goodput(experiment, "eager", seeds=1)
    assert result["bad_share"] < 0.01
    assert result["goodput_rps"] == result["goodput"]["rps"]
    assert result["goodput_rps"] < result["fluid_ideal_rps"] * 1.1


def test_the_schedule_as_a_trace(tmp_path: Path) -> None:
    experiment = make_experiment(1)
    write_trace(tmp_path / "t.json", cluster_of(experiment), hand_made())
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    slices = [event for event in events if event["ph"] == "X"]
    assert [(e["tid"], e["ts"], e["dur"], e["cat"]) for e in slices] == [
        (1, 10_000, 10_000, "batch"),
        (2, 20_000, 20_000, "lost"),
        (1, 60_000, 20_000, "batch"),
    ]
    assert {e["pid"] for e in events} == {1}  # 0 is special to Perfetto, as is thread 0
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert names == {gpu + 1: f"GPU {gpu}" for gpu in range(8)}
