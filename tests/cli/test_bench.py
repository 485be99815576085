"""``symphony bench``: finds its benchmarks, hands on their options, refuses others."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from bench import core
from scheduler.core.machine import Core
from symphony.cli.bench import BENCHMARKS, command


def test_the_list_names_every_benchmark() -> None:
    result = CliRunner().invoke(command, [])
    assert result.exit_code == 0
    assert all(name in result.output for name in BENCHMARKS)


def test_an_unknown_benchmark_is_refused_with_the_list() -> None:
    result = CliRunner().invoke(command, ["nothing"])
    assert result.exit_code == 2
    assert "core" in result.output


def test_core_prints_one_json_object() -> None:
    sizes = ["--models", "2", "--gpus", "16", "--load", "0.9", "--requests", "4000"]
    result = CliRunner().invoke(command, ["core", *sizes, "--json", "-"])
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert {"requests_per_s", "ns_per_request", "mean_batch", "compiled", "pure_requests_per_s"} <= set(found)
    assert found["mean_batch"] > 1


def test_the_core_serves_nearly_everything_below_the_fluid_ideal() -> None:
    found = core.run_core(Core, 4, 32, 0.8, 20_000, tick_us=200)
    assert found.requests > 10_000
    assert found.bad_share < 0.01
    assert found.mean_batch > 16


def test_simulate_prints_one_json_object() -> None:
    sizes = ["--models", "2", "--gpus", "16", "--rate", "8000", "--seconds", "0.2"]
    result = CliRunner().invoke(command, ["simulate", *sizes, "--json", "-"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["large"]["requests"] > 1000
    assert found["large"]["bad_share"] < 0.01
    assert 0.8 < found["cell"]["goodput_rps"] / found["cell"]["ideal_rps"] < 1


def test_placement_writes_json_to_a_file_or_standard_output(tmp_path: Path) -> None:
    sizes = ["--models", "16", "--shards", "2", "--rate", "500", "--epochs", "1", "--time-limit", "1"]
    file = tmp_path / "found.json"
    printed = CliRunner().invoke(command, ["placement", *sizes, "--json", str(file)])
    assert printed.exit_code == 0, printed.output
    assert "imbalance" in printed.output
    result = CliRunner().invoke(command, ["placement", *sizes, "--json", "-"])
    assert result.exit_code == 0, result.output
    names = [row["name"] for row in json.loads(result.stdout)]
    assert names == [row["name"] for row in json.loads(file.read_text())]
    assert len(names) == 4
