"""Experiment files: what is refused, and with which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from simulator.arrivals import check_arrivals
from simulator.engine import cluster_of
from simulator.experiment import ExperimentError, load_experiment, parse_experiment
from simulator.runs import check_policy
from simulator.zoo import zoo, zoo_row
from symphony.status import SymphonyError

MODEL = {"name": "a", "alpha_ms": 1, "beta_ms": 5, "slo_ms": 50, "rate": 100}


def parse(model: dict[str, Any] | None = None, **top: Any) -> Any:
    return parse_experiment({"gpus": 2, "models": [MODEL | (model or {})]} | top, "file.yaml")


@pytest.mark.parametrize(
    ("model", "top", "words"),
    [
        ({"colour": 1}, {}, ["file.yaml", "models[0].colour", "unknown key"]),
        ({}, {"gpu": 3}, ["gpu: unknown key"]),
        ({"rate": -1}, {}, ["models[0].rate", "greater than or equal to 0", "-1"]),
        ({"slo_ms": 5.9}, {}, ["model a can never be served", "5.9 ms", "6 ms", "0.1 ms too much"]),
        ({"slo_ms": 7}, {"network": {"result_us": 2000}}, ["the network 2 ms", "1 ms too much"]),
        ({"arrivals": "gamma:0"}, {}, ["models[0].arrivals", "gamma:SHAPE"]),
        ({"arrivals": "uniform"}, {}, ["expected constant, poisson"]),
        ({"popularity": "zipf"}, {}, ["zipf:S"]),
        ({"alpha_ms": None}, {}, ["alpha_ms and beta_ms belong together"]),
        ({"profile": "resnet50"}, {}, ["expected one of alpha_ms with beta_ms, table, profile"]),
        ({"rate": None}, {}, ["rate is missing"]),
        ({"modulation": {}}, {}, ["one of step, ramp and sine"]),
        ({}, {"gpus": 0}, ["gpus: expected at least 1"]),
        ({}, {"gpus": []}, ["a number of GPUs or a list"]),
        ({}, {"seconds": 3, "warmup_s": 3}, ["warmup_s is 3", "less than seconds"]),
        ({}, {"models": [MODEL, MODEL]}, ["the name 'a' stands there twice"]),
        ({}, {"models": []}, ["models: expected at least one"]),
        ({}, {"network": {"jitter": 1}}, ["network.jitter: unknown key"]),
    ],
)
def test_refusals_name_the_key(model: dict[str, Any], top: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ExperimentError) as caught:
        parse(model, **top)
    for word in words:
        assert word in str(caught.value)


def test_one_fault_is_told_once() -> None:
    with pytest.raises(ExperimentError) as caught:
        parse({"rate": -1})
    assert str(caught.value).endswith("greater than or equal to 0, not -1")


def test_a_profile_that_lacks_the_gpu_type() -> None:
    model = {"alpha_ms": None, "beta_ms": None, "profiles": {"big": {"alpha_ms": 1, "beta_ms": 1}}}
    with pytest.raises(ExperimentError, match=r"model a: no profile for GPU type 'small'; .* for big"):
        parse(model, gpus=[{"type": "big", "count": 1}, {"type": "small", "count": 1}])


def test_profiles_from_a_table_a_file_and_the_zoo(tmp_path: Path) -> None:
    none = {"alpha_ms": None, "beta_ms": None}
    experiment = parse(none | {"table": {1: 2.0, 4: 5.0}})
    assert experiment.profile(experiment.models[0], "gpu").latency_ns == (
        2_000_000,
        3_000_000,
        4_000_000,
        5_000_000,
    )
    experiment = parse(none | {"profile": "resnet50"})
    assert experiment.profile(experiment.models[0], "gpu").latency(1) == 6_286_000
    (tmp_path / "p.json").write_text('{"format": "symphony-profile-1", "latency_ns": [1000000, 2000000]}')
    (tmp_path / "e.yaml").write_text(
        "gpus: 1\nmodels:\n  - {name: a, profile: p.json, slo_ms: 10, rate: 1}\n"
    )
    experiment = load_experiment(tmp_path / "e.yaml")
    assert cluster_of(experiment).models[0].latency == ((1_000_000, 2_000_000),)
    with pytest.raises(ExperimentError, match=r"no file .*, and no row 'nothing-like-it' in the zoo"):
        parse(none | {"profile": "nothing-like-it"})


def test_the_zoo_names_each_row_once() -> None:
    assert len(zoo()) == 35
    assert zoo_row("yolo9000").batch_max == 24
    assert zoo_row("LanguageModeling/BERT@V100 32GB").alpha_ms == 3.2867
    assert all(row.source for row in zoo().values())
    with pytest.raises(SymphonyError, match="there are LanguageModeling/BERT@V100 32GB"):
        zoo_row("bert")


def test_files_and_settings(tmp_path: Path) -> None:
    path = tmp_path / "e.yaml"
    with pytest.raises(ExperimentError, match=r"cannot read the experiment .*No such file"):
        load_experiment(path)
    for text in ("gpus: [", "gpus: 2026-02-31", "gpus: " + 2_000 * "["):
        path.write_text(text)
        with pytest.raises(ExperimentError, match="not YAML"):
            load_experiment(path)
    path.write_text("just text")
    with pytest.raises(ExperimentError, match="expected a map"):
        load_experiment(path)
    path.write_text(
        "gpus: 1\nmodels:\n  - {name: a, alpha_ms: 1, beta_ms: 1, slo_ms: 10, rate: 1}\n"
        "  - {name: b, alpha_ms: 1, beta_ms: 1, slo_ms: 10, rate: 1}\n"
    )
    changed = load_experiment(path, {"models.rate": "7", "models.1.slo_ms": "20", "network.data_us": "3"})
    assert [group.rate for group in changed.models] == [7, 7]
    assert [group.slo_ms for group in changed.models] == [10, 20]
    assert changed.network.data_us == 3
    with pytest.raises(ExperimentError, match=r"--set models.5.rate"):
        load_experiment(path, {"models.5.rate": "1"})


def test_unknown_policies_and_empty_loads() -> None:
    with pytest.raises(ExperimentError, match=r"unknown policy 'best'.*baselines: "):
        check_policy("best", cluster_of(parse()))
    with pytest.raises(ExperimentError, match="nothing arrives"):
        check_arrivals(parse({"rate": 0}))
