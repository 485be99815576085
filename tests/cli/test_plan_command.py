"""``symphony plan``: the shortest cluster file, JSON, explanations, and what it says of bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from symphony.cli.plan import command
from symphony.profile import Profile

TEXT = """
shards: 4
gpus: [{type: v100, count: 32, memory_mb: 16000}]
models:
  - {name: r50, alpha_ms: 1.082, beta_ms: 5.204, slo_ms: 100, rate: 4000, memory_mb: 400, load_ms: 900}
current: {}
"""


def run(tmp_path: Path, text: str, *args: str) -> Result:
    file = tmp_path / "cluster.yaml"
    file.write_text(text)
    return CliRunner().invoke(command, [str(file), *args])


def plan(tmp_path: Path, text: str) -> dict[str, object]:
    result = run(tmp_path, text, "--json", "-")
    assert result.exit_code == 0, result.output
    content = json.loads(result.output)
    assert isinstance(content, dict)
    return content


def test_a_table(tmp_path: Path) -> None:
    result = run(tmp_path, TEXT)
    assert result.exit_code == 0, result.output
    for words in ("shard-3", "optimal", "6 GPUs needed of 32", "0 placements moved"):
        assert words in result.output


def test_explanations(tmp_path: Path) -> None:
    result = run(tmp_path, TEXT.replace("rate: 4000", "rate: 90000"), "--explain")
    for words in ("requests/s unserved", "GPUs are short", "busy GPUs at headroom 0.8", "batches of"):
        assert words in result.output


def test_a_plan_is_planned_from(tmp_path: Path) -> None:
    first = plan(tmp_path, TEXT)
    assert first["status"] == "optimal"
    content = yaml.safe_load(TEXT)
    content["current"] = {"placements": first["placements"], "gpus": first["gpus"]}
    again = plan(tmp_path, json.dumps(content))
    assert again["moved"] == 0
    assert (again["placements"], again["gpus"]) == (first["placements"], first["gpus"])


def test_json_into_a_file(tmp_path: Path) -> None:
    assert run(tmp_path, TEXT, "--json", str(tmp_path / "p.json")).exit_code == 0
    assert json.loads((tmp_path / "p.json").read_text())["gpus_needed"] == 6


def test_latency_in_every_way_that_there_is(tmp_path: Path) -> None:
    line = "alpha_ms: 1.082, beta_ms: 5.204"
    want = plan(tmp_path, TEXT)["gpus_needed"]
    Profile.linear(1.082, 5.204, 128).save(tmp_path / "r50.json")
    for way in (
        "points: {1: 6.286, 128: 143.7}",
        "profile: r50.json",
        f"profiles: {{v100: {{{line}}}}}",
        f"profiles: {{'*': {{{line}}}}}",
    ):
        assert plan(tmp_path, TEXT.replace(line, way))["gpus_needed"] == want


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("rate: 4000", "rate: -1", "models[0].rate: expected greater than or equal to 0, not -1"),
        ("rate: 4000", "rat: 4000", "models[0].rat: unknown key"),
        ("shards: 4", "shards: 0", "shards: expected 1 to 4,096 shards, not 0"),
        ("shards: 4", "shards: four", "shards: expected a number of shards or a list of their ids"),
        ("shards: 4", "shards: [a, b, a]", "shards[2]: the name 'a' stands there twice"),
        ("count: 32", "count: -2", "gpus[0].count"),
        ("gpus: [", "gpus: [{type: v100, count: 1, memory_mb: 1}, ", "gpus[1]: the name 'v100'"),
        ("alpha_ms: 1.082,", "", "models[0] (r50): expected alpha_ms and beta_ms"),
        ("alpha_ms: 1.082,", "alpha_ms: 1.082, profile: x.json,", "models[0]: expected one of"),
        ("alpha_ms: 1.082, beta_ms: 5.204", "profile: x.json", "cannot read the profile"),
        (
            "alpha_ms: 1.082, beta_ms: 5.204",
            "profiles: {t4: {alpha_ms: 1, beta_ms: 2}}",
            "models[0].profiles.t4 (r50): no GPU type 't4' in this cluster (there are: v100)",
        ),
        ("current: {}", "current: {placements: {x: {shard-0: 1}}}", "no model 'x'"),
        ("current: {}", "current: {placements: {r50: {shard-9: 1}}}", "no shard 'shard-9'"),
        ("current: {}", "current: {gpus: {shard-0: {t4: 1}}}", "no GPU type 't4'"),
        ("current: {}", "forbidden: [{model: r50, gpu: t4}]", "forbidden[0].gpu: no GPU type 't4'"),
        ("current: {}", "forbidden: [{model: x, gpu: v100}]", "forbidden[0].model: no model 'x'"),
        ("current: {}", "headroom: 0", "headroom"),
        ("current: {}", "models: ]", "not YAML"),
        ("current: {}", "models: 2026-02-31", "not YAML"),
        (TEXT, "- 1", "expected a map"),
    ],
)
def test_bad_input_is_explained(tmp_path: Path, old: str, new: str, words: str) -> None:
    result = run(tmp_path, TEXT.replace(old, new))
    assert result.exit_code != 0
    assert words in str(result.exception)
    assert "cluster.yaml" in str(result.exception)


def test_no_file(tmp_path: Path) -> None:
    result = CliRunner().invoke(command, [str(tmp_path / "none.yaml")])
    assert "cannot read the cluster file" in str(result.exception)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("memory_mb: 400", "memory_mb: 40000", "24,000 MB too much"),
        ("rate: 4000", "rate: 900000", "GPUs are short"),
        ("gpus: [{type: v100, count: 32, memory_mb: 16000}]", "gpus: []", "there are no GPUs"),
        ("count: 32", "count: 0", "there is none of it"),
    ],
)
def test_load_that_cannot_be_served_is_a_plan(tmp_path: Path, old: str, new: str, words: str) -> None:
    content = plan(tmp_path, TEXT.replace(old, new))
    assert content["status"] == "infeasible"
    assert content["unserved"]
    assert words in str(content["reasons"])
    shown = CliRunner().invoke(command, [str(tmp_path / "cluster.yaml")])
    assert shown.exit_code == 0
    assert words in shown.output, "also without --explain"
