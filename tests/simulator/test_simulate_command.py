"""``symphony simulate``: tables, JSON, comparison, and what it says of bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from symphony.cli.simulate import command

TEXT = """
gpus: 2
seconds: 1
models:
  - {name: r50, alpha_ms: 1.082, beta_ms: 5.204, slo_ms: 50, rate: 200, count: 2}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "e.yaml"
    file.write_text(TEXT)
    return file


def run(*args: object) -> Result:
    return CliRunner().invoke(command, [str(arg) for arg in args])


def test_a_table(path: Path) -> None:
    result = run(path)
    assert result.exit_code == 0, result.output
    for word in ("r50-0", "r50-1", "total", "goodput/s", "fluid ideal"):
        assert word in result.output


def test_json(path: Path, tmp_path: Path) -> None:
    one = json.loads(run(path, "--json", "-", "--policy", "eager").output)
    assert (one["policy"], one["gpus"]) == ("eager", 2)
    assert run(path, "--json", tmp_path / "out.json").exit_code == 0
    assert json.loads((tmp_path / "out.json").read_text())["policy"] == "deferred"


def test_compare_runs_on_identical_arrivals(path: Path) -> None:
    results = json.loads(run(path, "--compare", "deferred,eager,timeout:5", "--json", "-").output)
    assert [result["policy"] for result in results] == ["deferred", "eager", "timeout:5"]
    assert len({result["offered"] for result in results}) == 1


def test_goodput(path: Path) -> None:
    result = run(path, "--goodput", "--seeds", "2", "--set", "models.slo_ms=30")
    assert result.exit_code == 0, result.output
    assert "over 2 seeds" in result.output


def test_a_chrome_trace(path: Path, tmp_path: Path) -> None:
    assert run(path, "--trace-out", tmp_path / "t.json").exit_code == 0
    assert json.loads((tmp_path / "t.json").read_text())["traceEvents"]


def test_plots(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert run(path, "--compare", "deferred,eager", "--plots", tmp_path / "plots").exit_code == 0
    assert {p.name for p in (tmp_path / "plots").iterdir()} >= {"goodput.png", "latency.png", "gpus.png"}


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--policy", "best"], "unknown policy 'best'"),
        (["--set", "models.slo_ms=3"], "can never be served"),
        (["--set", "models.rate=-3"], "greater than or equal to 0"),
        (["--set", "models.rate=0"], "nothing arrives"),
        (["--set", "models.arrivals=trace:none.csv"], "cannot read the trace"),
        (["--set", "rate=3"], "rate: unknown key"),
        (["--set", "rate"], "expected KEY=VALUE"),
        (["--goodput", "--trace-out", "x"], "--trace-out goes with one policy"),
        (["--json", "/nowhere/x.json"], "cannot write /nowhere/x.json: no such directory"),
        (["--csv", "/proc/version"], "cannot write /proc/version"),
        (["--json", "."], "cannot write .: it is a directory"),
        (["--compare", ""], "unknown policy ''"),
    ],
)
def test_bad_input_is_explained_before_anything_runs(path: Path, args: list[str], words: str) -> None:
    result = run(path, *args)
    assert result.exit_code != 0
    assert words in (result.output + str(result.exception))
