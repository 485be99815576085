"""Studies: points, what is refused, and the command's table, JSON and plots."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import simulator
from simulator.engine import cluster_of
from simulator.experiment import ExperimentError
from simulator.fluid import fluid_ideal
from simulator.study import is_study, load_study, run_point
from symphony.cli.simulate import command

TEXT = """
gpus: 2
seconds: 1
models:
  - {name: r50, alpha_ms: 1.082, beta_ms: 5.204, slo_ms: 50, rate: 200}
study:
  title: A study
  compare: [deferred, eager]
  metric: gpus_used_mean
  cases:
    near: {}
    far: {network: {result_us: 9000}}
  sweep:
    models.count: [1, 2]
    load: [0.2, 0.5]
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "study.yaml"
    file.write_text(TEXT)
    return file


def test_points(path: Path) -> None:
    assert is_study(path)
    study, points = load_study(path)
    assert study.compare == ("deferred", "eager")
    assert len(points) == 8
    assert points[-1].at == {"case": "far", "models.count": 2, "load": 0.5}
    assert points[-1].experiment.network.result_us == 9000
    assert points[-1].experiment.models[0].count == 2
    assert points[0].scale / points[1].scale == pytest.approx(0.4)


def test_objectives_by_factor_and_length_by_requests(path: Path) -> None:
    sweep = {"study.sweep": "{slo_factor: [5, 10], models.alpha_ms: [1.082, 0.1]}", "study.cases": "{}"}
    _, points = load_study(path, sweep | {"study.requests": "5000", "network": "{result_us: 1000}"})
    slos = [point.experiment.models[0].slo_ms for point in points]
    assert slos == pytest.approx([5 * 7.286, 5 * 6.304, 10 * 7.286, 10 * 6.304])
    for point in points:
        cluster = cluster_of(point.experiment)
        ideal = fluid_ideal(cluster)
        assert ideal is not None
        assert point.experiment.seconds == pytest.approx(
            max(5000 / ideal, 40 * slos[points.index(point)] / 1e3)
        )


def test_a_metric_is_the_mean_over_the_seeds(path: Path) -> None:
    study, points = load_study(path, {"study.seeds": "3", "study.metric": "p50_ms"})
    result = run_point(study, points[0], "eager", lambda text, share: None)
    assert list(result["by_seed"]) == ["1", "2", "3"]
    assert len(set(result["by_seed"].values())) == 3
    assert result["p50_ms"] == pytest.approx(sum(result["by_seed"].values()) / 3)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"study.compare": "[best]"}, "unknown policy 'best'"),
        ({"study.compare": "[]"}, "study: compare"),
        ({"study.what": "1"}, "study: what: unknown key"),
        ({"study.sweep": "{models.slo_ms: [50, 3]}"}, r"\(case near, models.slo_ms 3\).*can never be served"),
        (
            {"study.sweep": "{models.arrivals: [poisson, 'trace:none'], models.rate: [1]}"},
            "cannot read the tr",
        ),
        ({"study.sweep": "{slo_factor: [0.5]}"}, "slo_factor 0.5: expected 1 or more"),
        ({"study.sweep": "{load: [0]}"}, "load 0: expected a share"),
    ],
)
def test_refusals_come_before_anything_runs(path: Path, settings: dict[str, str], words: str) -> None:
    with pytest.raises(ExperimentError, match=words):
        load_study(path, settings)


def test_the_command(path: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(command, [str(path)])
    assert result.exit_code == 0, result.output
    assert "A study" in result.output
    result = CliRunner().invoke(command, [str(path), "--json", "-"])
    runs = json.loads(result.output)
    assert len(runs) == 16
    assert runs[0]["point"] == {"case": "near", "models.count": 1, "load": 0.2}
    assert CliRunner().invoke(command, [str(path), "--policy", "eager"]).exit_code == 2
    pytest.importorskip("matplotlib")
    assert CliRunner().invoke(command, [str(path), "--plots", str(tmp_path / "p")]).exit_code == 0
    assert len(list((tmp_path / "p").iterdir())) == 4
    args = [str(path), "--plots", str(tmp_path / "r"), "--set", "study.ratios=true", "--set", "study.seeds=1"]
    result = CliRunner().invoke(command, args)
    assert "deferred as a share of the others" in result.output
    assert [file.name for file in (tmp_path / "r").iterdir()] == ["study.png"]


def test_goodput_of_a_study(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    args = [str(path), "--set", "study.goodput=true", "--set", "study.seeds=1", "--set", "study.cases={}"]
    args += ["--set", "study.sweep={}", "--set", "study.metric=goodput_rps", "--set", "study.compare=[eager]"]
    args += ["--plots", str(tmp_path / "g")]
    result = CliRunner().invoke(command, args)
    assert result.exit_code == 0, result.output
    assert "fluid ideal" in result.output
    assert sorted(file.name for file in (tmp_path / "g").iterdir()) == ["study-0.png", "study.png"]


FOLDER = Path(simulator.__file__).parent / "experiments"
EXPERIMENTS = [file for file in sorted(FOLDER.glob("*.yaml")) if not file.stem.startswith("grid")]
"""Grids have a form of their own, and a test of their own."""


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_the_experiments_that_are_shipped_are_valid(file: Path) -> None:
    assert load_study(file)[1]
