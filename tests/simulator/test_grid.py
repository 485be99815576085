"""The grid study: cells, the search, lines that survive an interruption, the report."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import simulator.grid
import simulator.grid_search
from simulator.experiment import Experiment, ExperimentError
from simulator.grid import cells, load_grid, main, read_lines, summarize_lines
from simulator.grid_search import BEHIND, COARSE, crossing, search

EXPERIMENTS = Path(simulator.grid.__file__).parent / "experiments"
GRID = """
policies: [adaptive, eager]
axes:
  models: [1, 2]
  gpus: [2]
  slo: {medium: 5}
  arrivals: [poisson]
  popularity: [equal, "zipf:1.1"]
  profiles: {r50: [resnet50]}
network: {control_us: 100, data_us: 50, result_us: 2000}
noise: 0.01
requests: 3000
seconds: [1, 2]
"""


@pytest.fixture
def grid_file(tmp_path: Path) -> Path:
    path = tmp_path / "grid.yaml"
    path.write_text(GRID)
    return path


def test_one_model_has_no_popularity(grid_file: Path) -> None:
    found = list(cells(load_grid(grid_file)))
    assert [cell.name for cell in found] == [
        "1 2 medium poisson equal r50",
        "2 2 medium poisson equal r50",
        "2 2 medium poisson zipf:1.1 r50",
    ]
    one = found[0].experiment
    assert one.models[0].slo_ms == pytest.approx(5 * (1.082 + 5.204) + 2.15)
    assert sum(group.rate * group.count for group in one.models) == pytest.approx(found[0].ideal)  # type: ignore[operator]
    assert 0 < one.margin_us < 0.01 * 1.645 * one.models[0].slo_ms * 1e3


@pytest.mark.parametrize("name", ["grid.yaml", "grid_tuning.yaml"])
def test_the_grids_that_come_along(name: str) -> None:
    grid = load_grid(EXPERIMENTS / name)
    assert len(list(cells(grid))) > 200


def test_tuned_on_and_reported_on_share_nothing() -> None:
    tuned, reported = load_grid(EXPERIMENTS / "grid_tuning.yaml"), load_grid(EXPERIMENTS / "grid.yaml")
    assert not set(tuned.seeds) & set(reported.seeds)
    rows = [{row for group in grid.axes.profiles.values() for row in group} for grid in (tuned, reported)]
    assert not rows[0] & rows[1]


def test_an_unknown_key(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(GRID + "axis: 1\n")
    with pytest.raises(ExperimentError, match="axis: unknown key"):
        load_grid(path)


@pytest.mark.parametrize(("limit", "best"), [(0.93, 0.0), (0.93, 0.95), (1.31, 1.0), (0.02, 1.0), (0.4, 1.2)])
def test_the_search_finds_the_limit(monkeypatch: pytest.MonkeyPatch, limit: float, best: float) -> None:
    def bad(_: Experiment, __: str, scale: float) -> float:
        return 0.0 if scale < limit else 0.5

    monkeypatch.setattr(simulator.grid_search, "bad_share", bad)
    found = search(None, "eager", best)  # type: ignore[arg-type]
    wide = COARSE if limit < BEHIND * best else COARSE / 2
    assert limit * (1 - 1.1 * wide) <= found <= limit * (1 + 1.1 * wide)


def test_where_the_search_begins_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[float] = []

    def bad(experiment: Experiment, policy: str, scale: float) -> float:
        runs.append(scale)
        return max(0.0, 0.01 + 0.1 * (scale - 1) + 0.003 * math.sin(150 * scale))

    monkeypatch.setattr(simulator.grid_search, "bad_share", bad)
    found = {search(None, "eager", best) for best in (0.0, 0.5, 0.9, 0.97, 1.0, 1.01, 1.04)}  # type: ignore[arg-type]
    assert max(found) - min(found) < 0.002
    assert found.pop() == pytest.approx(1.0, abs=0.02)
    assert all(math.log(scale, 1.01) == pytest.approx(round(math.log(scale, 1.01))) for scale in runs)


def test_the_crossing_is_that_of_the_best_rising_curve() -> None:
    rising = {1.0: 0.0, 1.1: 0.008, 1.2: 0.012, 1.3: 0.05}
    assert crossing(rising, 0.01) == pytest.approx(1.15)
    dented = {1.0: 0.002, 1.1: 0.012, 1.2: 0.004, 1.3: 0.05}  # a bisection may end at 1.08 or at 1.21
    assert crossing(dented, 0.01) == pytest.approx(1.2 + 0.1 * 2 / 42)
    assert crossing({1.0: 0.0, 2.0: 0.001}, 0.01) == 2.0
    assert crossing({1.0: 0.5}, 0.01) == 0.0


def test_a_run_goes_on_where_it_stopped(grid_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = grid_file.parent / "lines.jsonl"
    arguments = ["run", str(grid_file), "--out", str(out), "--only", "models=1"]
    assert CliRunner().invoke(main, arguments, catch_exceptions=False).exit_code == 0
    lines = read_lines(out)
    assert [(line["policy"], line["seed"]) for line in lines] == [("adaptive", 1), ("eager", 1)]
    assert all(0.3 < line["rps"] / line["ideal"] < 1.3 for line in lines)
    text = out.read_text()
    out.write_text(text.splitlines()[0] + "\n" + text.splitlines()[1][:20])  # cut off while writing
    ran: list[str] = []

    def counted(experiment: Experiment, policy: str, best: float) -> float:
        ran.append(policy)
        return 0.5

    monkeypatch.setattr(simulator.grid, "search", counted)
    assert CliRunner().invoke(main, arguments, catch_exceptions=False).exit_code == 0
    assert ran == ["eager"]
    shown = CliRunner().invoke(main, ["report", str(grid_file), str(out), "--json"], catch_exceptions=False)
    rows = json.loads(shown.output)
    assert [row["cell"] for row in rows] == ["1 2 medium poisson equal r50"]
    assert rows[0]["best"] == "eager"


def test_the_report_compares_on_common_seeds() -> None:
    def line(policy: str, seed: int, rps: float) -> dict[str, Any]:
        return {"cell": "c", "axes": {}, "policy": policy, "seed": seed, "rps": rps, "ideal": 100.0}

    lines = [line("adaptive", 1, 90), line("adaptive", 2, 100), line("eager", 1, 80), line("eager", 2, 120)]
    lines += [line("target", 1, 50), line("target", 2, 70), line("adaptive", 3, 1)]
    (row,) = summarize_lines(lines, "adaptive")
    assert (row["seeds"], row["best"], row["rps"]) == (2, "eager", 95)
    assert row["to_best"] == pytest.approx(0.95)
    assert row["spread"] == pytest.approx(90 / 80 - 100 / 120)


def test_the_bound_is_no_rival_and_judged_by_the_lesser_of_bound_and_ideal() -> None:
    lines = [
        {"cell": "a", "axes": {}, "seed": 1, "policy": policy, "rps": rps, "ideal": 100.0}
        for policy, rps in (("adaptive", 60.0), ("eager", 50.0), ("clairvoyant", 80.0))
    ]
    (row,) = summarize_lines(lines, "adaptive")
    assert row["best"] == "eager"
    assert row["to_bound"] == pytest.approx(0.75)
    assert summarize_lines([lines[0], lines[2]], "adaptive") == []
    assert summarize_lines(lines[:2], "adaptive")[0]["to_bound"] is None
