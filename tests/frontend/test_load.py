"""The load generator and its command, against the client's fake cluster."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from fake_cluster import GRACE_MS, FakeCluster
from helpers import free_ports, wait_until

from frontend.arrivals import Arrivals
from frontend.load import LoadError, LoadPlan, ModelLoad, Progress, run_load
from symphony.cli.load import command
from symphony.engine import Engine
from symphony.pending import Request
from symphony.status import SymphonyError, Unavailable, UnknownModel


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with FakeCluster() as cluster:
        yield cluster


def plan(cluster: FakeCluster, *models: ModelLoad, **options: Any) -> LoadPlan:
    settings: dict[str, Any] = {"seconds": 0.5, "registry": cluster.registry, "subscribe": cluster.subscribe}
    return LoadPlan(models=list(models), **(settings | options))


def invoke(cluster: FakeCluster, *args: str) -> Result:
    where = ["--registry", cluster.registry, "--subscribe", cluster.subscribe, "--wait", "1"]
    return CliRunner().invoke(command, [*args, *where])


def test_every_request_is_offered_and_each_has_its_place(cluster: FakeCluster) -> None:
    steps: list[Progress] = []
    models = ("plain", "double", "upper", "drops", "full", "fails", "silent", "late", "twice")
    loads = [ModelLoad(model=m, rate=100, arrivals=Arrivals("constant")) for m in models]
    report = run_load(plan(cluster, *loads, grace_ms=GRACE_MS), steps.append)
    assert report.ok
    assert report.total.offered == 450
    place = {
        "drops": "dropped",
        "full": "rejected",
        "fails": "failed",
        "silent": "unanswered",
        "late": "late",
    }
    for name, model in report.models.items():
        assert getattr(model, place.get(name, "good")) == model.offered == 50
    assert report.models["fails"].reasons == {"FAILED: ValueError: the model's own text": 50}
    assert report.duplicate_answers >= 50
    assert report.models["plain"].mean_batch is not None
    assert steps[-1].answered == 450
    assert steps[-1].elapsed_s == 0.5


def test_the_same_seed_offers_the_same(cluster: FakeCluster) -> None:
    loads = [ModelLoad(model="plain", rate=300), ModelLoad(model="drops", rate=100)]
    counts = []
    for seed in (1, 1, 2):
        report = run_load(plan(cluster, *loads, seed=seed, seconds=0.2))
        counts.append([m.offered for m in report.models.values()])
    assert counts[0] == counts[1] != counts[2]


def test_adding_a_model_changes_nothing_for_the_others(cluster: FakeCluster) -> None:
    plain, drops = ModelLoad(model="plain", rate=300), ModelLoad(model="drops", rate=100)
    alone = run_load(plan(cluster, plain, seconds=0.2)).models["plain"].offered
    both = run_load(plan(cluster, drops, plain, seconds=0.2)).models["plain"].offered
    assert alone == both


def test_deadline_and_priority_count_from_the_intended_time(cluster: FakeCluster) -> None:
    load = ModelLoad(model="plain", rate=100, arrivals=Arrivals("constant"), deadline_ms=900, priority=2)
    assert run_load(plan(cluster, load, seconds=0.3)).total.offered == 30
    sent = cluster.shards[0].submitted
    deadlines = np.concatenate([message.deadline for message in sent])
    assert deadlines.size == 30
    assert set(np.diff(deadlines).tolist()) <= {9_999_999, 10_000_000, 10_000_001}
    assert all(message.priority is not None and set(message.priority.tolist()) == {2} for message in sent)


def test_a_users_inputs_are_sent(cluster: FakeCluster) -> None:
    def provider(i: int, rng: np.random.Generator) -> dict[str, Any]:
        return {"x": np.full(3, i, np.float32)}

    report = run_load(plan(cluster, ModelLoad(model="double", rate=100, inputs=provider)))
    assert report.total.good == report.total.offered > 0


def test_a_shard_that_is_lost_leaves_one_outcome_each(cluster: FakeCluster) -> None:
    timer = threading.Timer(0.25, cluster.shards[0].kill)
    timer.start()
    report = run_load(plan(cluster, ModelLoad(model="plain", rate=400)))
    timer.join()
    assert report.ok
    assert report.total.good > 0
    assert report.total.rejected > 0
    assert report.total.good + report.total.rejected == report.total.offered


@pytest.mark.parametrize(
    ("load", "options", "text"),
    [
        ({"rate": 0}, {}, r"the rate of 'plain' must be above 0 and at most 1e7 requests/s, not 0"),
        ({"rate": -5}, {}, "must be above 0"),
        ({"rate": float("nan")}, {}, "must be above 0"),
        ({"deadline_ms": 0}, {}, "the deadline of 'plain' must be above 0 ms"),
        ({}, {"seconds": 0}, "more than 0 and at most 1e6 seconds"),
        ({}, {"seed": -1}, "seed must not be negative"),
    ],
)
def test_a_plan_that_makes_no_sense_is_told(load: dict[str, Any], options: dict[str, Any], text: str) -> None:
    bad = LoadPlan(
        models=[ModelLoad(**{"model": "plain", "rate": 1.0, **load})], **{"seconds": 1.0, **options}
    )
    with pytest.raises(LoadError, match=text):
        run_load(bad)


def test_no_model_or_one_twice_is_told() -> None:
    with pytest.raises(LoadError, match="at least one model"):
        run_load(LoadPlan(models=[], seconds=1))
    with pytest.raises(LoadError, match="'a' is there twice"):
        run_load(LoadPlan(models=[ModelLoad(model="a", rate=1)] * 2, seconds=1))


def test_an_unknown_model_and_no_broker_are_told(cluster: FakeCluster) -> None:
    with pytest.raises(UnknownModel, match="unknown model 'nix'; the cluster has: double"):
        run_load(plan(cluster, ModelLoad(model="nix", rate=1), wait_s=0.3))
    (port,) = free_ports(1)
    endpoint = f"tcp://127.0.0.1:{port}"
    nowhere = LoadPlan(
        models=[ModelLoad(model="a", rate=1)], seconds=1, registry=endpoint, subscribe=endpoint, wait_s=0.1
    )
    with pytest.raises(Unavailable, match="no broker answered"):
        run_load(nowhere)


# -- the command ---------------------------------------------------------------------------------


def test_json_on_standard_output_is_one_object_and_the_table_goes_elsewhere(cluster: FakeCluster) -> None:
    result = invoke(cluster, "plain=200", "drops=50", "--seconds", "0.3", "--json", "-")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["models"]["plain"]["good"] == report["models"]["plain"]["offered"] > 0
    assert report["total"]["dropped"] == report["models"]["drops"]["offered"]
    assert "mean batch" in result.stderr


def test_table_and_file(cluster: FakeCluster, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    result = invoke(
        cluster, "double=100", "--seconds", "0.3", "--arrivals", "gamma:0.5", "--deadline-ms", "200",
        "--json", str(file),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "double" in result.stdout
    assert json.loads(file.read_text())["one_outcome_each"] is True


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["plain"], "expected MODEL=VALUE, as in resnet50=1000, not 'plain'"),
        (["=5"], "expected MODEL=VALUE"),
        (["plain="], "expected MODEL=VALUE"),
        (["plain=fast"], "MODEL=RATE: expected a number above 0, not 'fast'"),
        (["plain=-5"], "MODEL=RATE: expected a number above 0, not '-5'"),
        (["plain=0"], "expected a number above 0"),
        (["plain=inf"], "expected a number above 0"),
        (["plain=1", "plain=2"], "a model is there twice"),
        (["plain=1", "--deadline-ms", "x"], "--deadline-ms: expected a number above 0"),
        (["plain=1", "--deadline-ms", "other=5"], "--deadline-ms names 'other', which is offered no load"),
        (["plain=1", "--inputs", "other=a:b"], "--inputs names 'other', which is offered no load"),
        (["plain=1", "--json", "/no/such/folder/x.json"], "--json: cannot write"),
        (["plain=1", "--seed", "-1"], "-1 is not in the range"),
        ([], "Missing argument 'MODEL=RATE...'"),
    ],
)
def test_bad_arguments_are_misuse_and_told(args: list[str], text: str) -> None:
    result = CliRunner().invoke(command, args)
    assert result.exit_code == 2
    assert text in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["plain=1", "--arrivals", "uniform"], "arrivals must be poisson, constant or gamma:SHAPE"),
        (["plain=1", "--seconds", "-1"], "more than 0 and at most 1e6 seconds"),
        (["plain=1", "--inputs", "plain=nix"], "inputs must be given as module:function"),
        (["nix=1"], "unknown model 'nix'; the cluster has: double"),
    ],
)
def test_errors_are_symphonys_own(cluster: FakeCluster, args: list[str], text: str) -> None:
    result = invoke(cluster, *args)
    assert isinstance(result.exception, SymphonyError)
    assert text in str(result.exception)


def test_an_interrupt_in_the_middle_of_a_hand_over_loses_nothing(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C comes after the generator has taken the requests that are due, before the engine has them."""
    hand_over = Engine.submit_many
    handed: list[int] = []

    def interrupted(engine: Engine, requests: list[Request]) -> None:
        handed.append(len(requests))
        if len(handed) == 5:
            signal.raise_signal(signal.SIGINT)
        hand_over(engine, requests)

    monkeypatch.setattr(Engine, "submit_many", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        report = run_load(plan(cluster, ModelLoad(model="plain", rate=500), seconds=60))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert report.interrupted
    assert report.one_outcome_each
    assert report.seconds < 60
    assert report.total.good == report.total.offered >= 5


def test_ctrl_c_stops_early_and_reports(cluster: FakeCluster, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    where = ["--registry", cluster.registry, "--subscribe", cluster.subscribe]
    args = ["plain=200", "--seconds", "60", "--json", str(file), *where]
    # Whoever runs the tests in the background has SIGINT ignored, and children inherit that.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{heed}; from symphony.cli.load import command; command({args!r})"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        shard = cluster.shards[0]
        wait_until(lambda: len(shard.submitted) > 20 or process.poll() is not None, 20, "the load")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 1, err
    report = json.loads(file.read_text())
    assert report["interrupted"] is True
    assert report["one_outcome_each"] is True
    assert report["total"]["good"] == report["total"]["offered"] > 20
    assert "interrupted before its end" in out
