"""CSV of results, and how one policy compares with the others."""

from __future__ import annotations

import csv
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from simulator.tables import csv_text, ratios
from symphony.cli.simulate import command

TEXT = """
gpus: 2
seconds: 1
models:
  - {name: r50, alpha_ms: 1.082, beta_ms: 5.204, slo_ms: 50, rate: 200, count: 2}
"""


def result(policy: str, at: int, value: float, ideal: float | None = 100.0) -> dict[str, Any]:
    return {"policy": policy, "point": {"x": at}, "goodput_rps": value, "fluid_ideal_rps": ideal}


def test_ratios() -> None:
    results = [result("a", 1, 50), result("b", 1, 100), result("a", 2, 90), result("b", 2, 60)]
    results += [result("a", 3, 80), result("b", 3, 0)]  # b carries nothing there: no ratio
    to_b, to_ideal = ratios(results, "a", "goodput_rps")
    assert (to_b.other, to_b.points, to_b.wins, to_b.worst) == ("b", 2, 1, "x 1")
    assert (to_b.least, to_b.median, to_b.most) == (0.5, 1.0, 1.5)
    assert (to_ideal.other, to_ideal.points, to_ideal.median) == ("fluid ideal", 3, 0.8)
    assert ratios(results, "nobody", "goodput_rps") == []


def test_csv_has_a_line_per_run_and_model(tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text(TEXT)
    args = [str(tmp_path / "e.yaml"), "--compare", "deferred,eager", "--csv", str(tmp_path / "out.csv")]
    outcome = CliRunner().invoke(command, args)
    assert outcome.exit_code == 0, outcome.output
    rows = list(csv.DictReader(StringIO((tmp_path / "out.csv").read_text())))
    places = [(row["policy"], row["model"]) for row in rows]
    models = ["total", "r50-0", "r50-1"]
    assert places == [(policy, model) for policy in ("deferred", "eager") for model in models]
    for policy in (rows[:3], rows[3:]):
        assert int(policy[0]["offered"]) == int(policy[1]["offered"]) + int(policy[2]["offered"])
        assert float(policy[0]["p50_ms"]) > 0
        assert policy[1]["events"] == ""  # of the whole run only


def test_csv_of_a_study_names_the_point(tmp_path: Path) -> None:
    study = "study: {compare: [eager], sweep: {models.count: [1, 2]}, seeds: 1}\n"
    (tmp_path / "s.yaml").write_text(TEXT + study)
    args = [str(tmp_path / "s.yaml"), "--csv", str(tmp_path / "s.csv"), "--json", str(tmp_path / "s.json")]
    assert CliRunner().invoke(command, args).exit_code == 0
    rows = list(csv.DictReader(StringIO((tmp_path / "s.csv").read_text())))
    assert [row["models.count"] for row in rows if row["model"] == "total"] == ["1", "2"]
    assert list(rows[0])[:4] == ["models.count", "policy", "seed", "model"]


def test_csv_to_standard_output_stands_alone(tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text(TEXT)
    outcome = CliRunner().invoke(command, [str(tmp_path / "e.yaml"), "--csv", "-"])
    rows = list(csv.DictReader(StringIO(outcome.output)))
    assert [row["model"] for row in rows] == ["total", "r50-0", "r50-1"]
    both = CliRunner().invoke(command, [str(tmp_path / "e.yaml"), "--csv", "-", "--json", "-"])
    assert both.exit_code == 2
    assert "only one of them" in both.output


def test_what_is_missing_stays_empty() -> None:
    run = {"policy": "a", "seed": 1, "p50_ms": None, "models": {"m": {"p50_ms": 2.0}}, "over_time": {}}
    assert csv_text([run]) == "policy,seed,model,p50_ms\na,1,total,\na,1,m,2.0\n"


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text(TEXT)
    outcome = CliRunner().invoke(command, [str(tmp_path / "e.yaml"), "--csv", str(tmp_path / "no" / "x.csv")])
    assert outcome.exit_code != 0
    with pytest.raises(Exception, match="cannot write"):
        raise outcome.exception or AssertionError("no exception")
