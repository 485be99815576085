"""The demo: what it refuses to call a success, and one short run of the whole."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import run

from frontend.report import LoadReport, ModelReport
from symphony.cli import demo, demo_screen
from symphony.control import ModelSpec

ANSWERS: dict[str, Any] = {"pitch": {"cents": 2.4}}
MODEL = ModelReport(
    offered=10,
    good=8,
    late=1,
    dropped=1,
    rejected=0,
    failed=0,
    unanswered=0,
    goodput_rps=8.0,
    p50_ms=5.0,
    p99_ms=9.0,
    mean_batch=2.0,
)
REPORT = LoadReport(
    total=MODEL, models={"m": MODEL}, seconds=1.0, one_outcome_each=True, interrupted=False, generator={}
)


def test_late_and_dropped_requests_are_answers() -> None:
    assert demo_screen.problems(REPORT, ANSWERS) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"one_outcome_each": False}, "got no answer"),
        ({"total": dataclasses.replace(MODEL, unanswered=3)}, "3 of 10 requests got no answer"),
        ({"duplicate_answers": 2}, "2 requests got a second answer"),
        ({"interrupted": True}, "interrupted"),
    ],
)
def test_what_is_no_success(change: dict[str, Any], words: str) -> None:
    (problem,) = demo_screen.problems(dataclasses.replace(REPORT, **change), ANSWERS)
    assert words in problem


@pytest.mark.parametrize("cents", [10.1, float("nan")])
def test_a_wrong_pitch_is_no_success(cents: float) -> None:
    (problem,) = demo_screen.problems(REPORT, {"pitch": {"cents": cents}})
    assert "cents off, more than 10" in problem


def test_the_rate_is_a_share_of_what_the_device_can_do() -> None:
    def model(name: str, ms: int) -> ModelSpec:
        return ModelSpec(name=name, slo_ms=100, max_batch=8, profiles={"cpu": [ms * 1_000_000] * 8})

    assert demo._rate(model("minilm", 40)) == round(demo.DEVICE_SHARE * 200)
    assert demo._rate(model("minilm", 40_000)) == demo.LEAST_RPS
    assert demo._rate(model("minilm", 1)) == demo.MOST_RPS
    assert demo._rate(model("resnet50", 1)) == demo.EMULATED_RPS


def test_the_ports_of_the_configuration_differ(tmp_path: Path) -> None:
    config = demo.write_config(tmp_path / "cluster.yaml", "cuda:0")
    assert [(w.id, w.device, w.shard) for w in config.workers] == [
        ("device", "cuda:0", "shard-0"),
        ("emulated", "emulated", "shard-1"),
    ]


@pytest.mark.live
@pytest.mark.zoo
def test_a_short_run(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    argv = [
        sys.executable,
        "-m",
        "symphony",
        "demo",
        "--seconds",
        "2",
        "--device",
        "cpu",
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The orchestra tuned its instruments" in done.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert set(report["models"]) == {"minilm", "crepe-tiny", "resnet50"}
    total = report["total"]
    parts = ("good", "late", "dropped", "rejected", "failed", "unanswered")
    assert total["offered"] == sum(total[part] for part in parts) > 3_000
    assert report["answers"]["pitch"]["cents"] <= 10


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = run("demo", "--device", "cpu", "--out", str(tmp_path / "file" / "demo"))
    assert code == 1
    assert "cannot write to" in err
    assert "Traceback" not in err
