"""Definition files: what a stranger can get wrong, and what the message says then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from worker import zoo
from worker.definition import Definition, DefinitionError, load_definition
from worker.loading import call, resolve, sampler

GOOD: dict[str, Any] = {
    "name": "mine",
    "slo_ms": 100,
    "max_batch": 8,
    "loader": "somewhere.models:load",
    "inputs": [{"name": "x", "dtype": "FP32", "shape": [2]}],
    "outputs": [{"name": "y", "dtype": "FP32", "shape": []}],
}
EMULATED: dict[str, Any] = {
    "name": "mine",
    "slo_ms": 100,
    "max_batch": 8,
    "loader": "emulated",
    "profile": {"alpha_ms": 1, "beta_ms": 5},
}


def write(folder: Path, value: Any, name: str = "mine.yaml") -> Path:
    file = folder / name
    file.write_text(value if isinstance(value, str) else yaml.safe_dump(value))
    return file


def test_a_good_file_is_read_and_describes_the_model(tmp_path: Path) -> None:
    definition = load_definition(write(tmp_path, GOOD))
    assert (definition.name, definition.emulated, definition.base) == ("mine", False, tmp_path)
    assert definition.given_profile() is None
    emulated = load_definition(write(tmp_path, EMULATED))
    profile = emulated.given_profile()
    assert profile is not None
    spec = emulated.spec({"emulated": profile})
    assert spec.profiles == {"emulated": [6_000_000 + i * 1_000_000 for i in range(8)]}


@pytest.mark.parametrize("name", zoo.names())
def test_the_zoos_definitions_are_good(name: str) -> None:
    definition = load_definition(name)
    assert definition.name == ("resnet50" if name == "resnet50-emulated" else name)
    assert definition.max_batch == (128 if name == "resnet50-emulated" else 32)


def test_the_emulated_resnet_keeps_the_papers_time() -> None:
    profile = load_definition("resnet50-emulated").given_profile()
    assert profile is not None
    assert [profile.latency(b) for b in (1, 77, 128)] == [6_286_000, 88_518_000, 143_700_000]


def test_a_missing_file_names_the_zoo(tmp_path: Path) -> None:
    with pytest.raises(
        DefinitionError, match=r"no model definition '.*nothing.yaml'.*crepe-tiny, efficientnet-b0, minilm"
    ):
        load_definition(tmp_path / "nothing.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [unclosed", r"mine.yaml: not YAML: "),
        ("name: 2026-02-31", r"mine.yaml: not YAML: "),
        ("- a\n- b\n", r"mine.yaml: expected a map with name, slo_ms"),
        ("", r"mine.yaml: expected a map"),
        ("1: 2\n", r"mine.yaml: expected keys that are words"),
    ],
)
def test_no_yaml_or_no_map(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DefinitionError, match=message):
        load_definition(write(tmp_path, text))


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(DefinitionError, match=r"mine.yaml: (cannot be read|not YAML)"):
        load_definition(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_bach": 3}, r"mine.yaml: max_bach: unknown key"),
        ({"base": "/tmp"}, r"mine.yaml: base: unknown key"),
        ({"slo_ms": "soon"}, r"mine.yaml: slo_ms: .*number"),
        ({"slo_ms": -1}, r"slo_ms: .*greater than 0"),
        ({"slo_ms": float("nan")}, r"slo_ms: "),
        ({"max_batch": 0}, r"max_batch: .*greater than or equal to 1"),
        (
            {"loader": "no function"},
            r"loader: expected 'emulated', 'module:function' or a file .*, found 'no function'",
        ),
        ({"loader": 3}, r"loader: expected 'emulated', 'module:function' or a file .*, found 3"),
        ({"samples": "nope"}, r"samples: expected 'module:function', found 'nope'"),
        ({"inputs": []}, r"a model with a loader needs inputs and outputs"),
        (
            {"inputs": [{"name": "x", "dtype": "FLOAT", "shape": [2]}]},
            r"'x' has dtype 'FLOAT'; expected .*FP32",
        ),
        ({"inputs": [{"name": "x", "dtype": "FP32", "shape": [-2]}]}, r"inputs.0.shape.0: "),
        ({"inputs": GOOD["inputs"] * 2}, r"inputs: two tensors of the same name"),
        ({"precision": "int4"}, r"precision: .*float16"),
        ({"name": ""}, r"name: "),
        ({"profile": {}}, r"profile: expected \{alpha_ms, beta_ms\}, or \{points"),
        ({"profile": {"alpha_ms": 1}}, r"alpha_ms and beta_ms are needed both"),
        ({"profile": {"alpha_ms": 1, "beta_ms": 1, "points": {1: 1}}}, r"profile: expected"),
        ({"profile": {"alpha_ms": -1, "beta_ms": 1}}, r"profile.alpha_ms: "),
        ({"profile": {"alpha_ms": 0, "beta_ms": 0}}, r"profile: the latency of batch size 1 is 0"),
        ({"profile": {"points": {2: 1.0, 8: 2.0}}}, r"profile: .*no point for batch size 1"),
        ({"profile": {"points": {1: 1.0, 4: 2.0}}}, r"profile: .*ends at batch size 4, but max_batch is 8"),
        ({"profile": {"points": {1: 0.0, 8: 2.0}}}, r"profile: .*batch size 1 is 0"),
        (
            {"profile": {"points": {1: 5.0, 8: 2.0}}},
            r"falls from 5 ms at batch size 1 to 2 ms at batch size 8",
        ),
        ({"profile": {"points": {1: float("nan"), 8: 2.0}}}, r"profile: .*batch size 1 is nan"),
        ({"profile": {"file": "absent.json"}}, r"cannot read the profile .*absent.json"),
    ],
)
def test_a_bad_value_names_file_and_key(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DefinitionError, match=message) as caught:
        load_definition(write(tmp_path, GOOD | change))
    assert "mine.yaml" in str(caught.value)


@pytest.mark.parametrize("key", ["name", "slo_ms", "max_batch", "loader"])
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    with pytest.raises(DefinitionError, match=rf"mine.yaml: {key}: Field required"):
        load_definition(write(tmp_path, {k: v for k, v in GOOD.items() if k != key}))


def test_an_emulated_model_needs_a_profile(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match="an emulated model needs a profile"):
        load_definition(write(tmp_path, EMULATED | {"profile": None}))


def test_a_profile_file_lies_beside_the_definition_and_must_reach_max_batch(tmp_path: Path) -> None:
    table = {"format": "symphony-profile-1", "latency_ns": [1_000, 2_000, 3_000]}
    (tmp_path / "l.json").write_text(json.dumps(table))
    value = EMULATED | {"profile": {"file": "l.json"}, "max_batch": 2}
    profile = load_definition(write(tmp_path, value)).given_profile()
    assert profile is not None
    assert profile.latency_ns == (1_000, 2_000)
    with pytest.raises(DefinitionError, match="ends at batch 3, max_batch is 4"):
        load_definition(write(tmp_path, value | {"max_batch": 4}))


def test_a_map_in_a_configuration_is_a_definition_too() -> None:
    assert load_definition(EMULATED).emulated
    with pytest.raises(DefinitionError, match="definition of 'mine': max_batch"):
        load_definition(EMULATED | {"max_batch": "many"})


# -- references to code ----------------------------------------------------------------------------


def definition(folder: Path, **change: Any) -> Definition:
    return load_definition(write(folder, GOOD | change))


def test_a_module_beside_the_definition_is_found(tmp_path: Path) -> None:
    (tmp_path / "beside_models.py").write_text("def load(device, **options):\n    return (device, options)\n")
    mine = definition(tmp_path, loader="beside_models:load")
    assert call(mine, "loader", mine.loader, "cpu", a=1) == ("cpu", {"a": 1})


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("absent_module.models:load", r"model 'mine': loader: .*no module 'absent_module'.* or in .*"),
        ("worker.absent:load", r"no module 'worker.absent'"),
        ("worker.zoo.samples:absent", r"module 'worker.zoo.samples' has no function 'absent'"),
        ("worker.zoo.samples:FRAME", r"has no function 'FRAME'"),
        ("needs_more:load", r"the module needs 'not_installed', which is not installed"),
        ("broken_module:load", r"importing it raised ValueError: broken at import"),
    ],
)
def test_code_that_is_not_there_is_named(tmp_path: Path, reference: str, message: str) -> None:
    (tmp_path / "needs_more.py").write_text("import not_installed\n")
    (tmp_path / "broken_module.py").write_text("raise ValueError('broken at import')\n")
    mine = definition(tmp_path)
    with pytest.raises(DefinitionError, match=message):
        resolve(mine, "loader", reference)


def test_what_a_loader_raises_is_explained(tmp_path: Path) -> None:
    (tmp_path / "raising_models.py").write_text(
        "def load(device, size=1):\n    raise RuntimeError('no weights')\n"
    )
    mine = definition(tmp_path, loader="raising_models:load")
    with pytest.raises(DefinitionError, match=r"model 'mine': loader: .* raised RuntimeError: no weights"):
        call(mine, "loader", mine.loader, None)
    with pytest.raises(DefinitionError, match=r"raised TypeError: .*unexpected keyword argument 'colour'"):
        call(mine, "loader", mine.loader, None, colour="red")


def test_inputs_can_be_made_up_only_when_their_shape_is_fixed(tmp_path: Path) -> None:
    import numpy as np

    sample = sampler(definition(tmp_path))
    assert sample is not None
    made = sample(np.random.default_rng(0))["x"]
    assert (made.dtype, made.shape) == (np.dtype("<f4"), (2,))
    text = [{"name": "t", "dtype": "BYTES", "shape": []}]
    assert sampler(definition(tmp_path, inputs=text)) is None
    named = definition(tmp_path, inputs=text, samples="worker.zoo.samples:sentence")
    assert sampler(named) is not None
