"""The documents say what the code does: the configuration's keys and defaults, the messages' fields."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from symphony import control, plans
from symphony.config import BrokerConfig, ClusterConfig, SchedulerConfig, load_config
from symphony.scaling import AutoscaleConfig, EpochConfig

DOCS = Path(__file__).parent.parent.parent / "docs"
CONFIGURATION = (DOCS / "configuration.md").read_text(encoding="utf-8")
PROTOCOL = (DOCS / "wire-protocol.md").read_text(encoding="utf-8")
EXAMPLE = re.search(r"## The file\n\n```yaml\n(.*?)```", CONFIGURATION, re.S)


def _example() -> str:
    assert EXAMPLE is not None
    return EXAMPLE[1]


def test_the_example_of_a_configuration_can_be_used(tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text(_example(), encoding="utf-8")
    config = load_config(tmp_path / "cluster.yaml", {})
    assert [worker.id for worker in config.workers] == ["worker-0", "text"]
    assert config.epoch is not None


@pytest.mark.parametrize(
    ("section", "model", "all_of_them"),
    [
        ("cluster", ClusterConfig, True),
        ("broker", BrokerConfig, True),
        ("scheduler", SchedulerConfig, True),
        ("epoch", EpochConfig, True),
        ("autoscale", AutoscaleConfig, False),  # the others are in autoscaling.md
    ],
)
def test_the_example_names_every_key_with_its_default(
    section: str, model: type[BaseModel], all_of_them: bool
) -> None:
    documented: dict[str, Any] = yaml.safe_load(_example())[section]
    defaults = model().model_dump()
    assert not all_of_them or documented.keys() == defaults.keys()
    for key, value in documented.items():
        if key != "name":  # the example has one of its own
            assert value == defaults[key], key


def test_autoscaling_names_every_key_with_its_default() -> None:
    text = (DOCS / "autoscaling.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[a-z_`, ]+`) \| ([^|]+) \|", text, re.M)
    defaults = AutoscaleConfig().model_dump()
    named: set[str] = set()
    for keys, values in rows:
        names = re.findall(r"`([a-z_]+)`", keys)
        if not defaults.keys() >= set(names):
            continue
        named |= set(names)
        for name, value in zip(names, values.strip().split(", "), strict=len(names) > 1):
            if re.fullmatch(r"[\d.]+", value):
                assert float(value) == defaults[name], name
    assert named == defaults.keys()


def _table(begin: str) -> set[str]:
    """The keys in the first table after ``begin``."""
    rows = PROTOCOL[PROTOCOL.index(begin) :].split("\n| --- |", 1)[1].split("\n\n", 1)[0]
    names = [row.split("|")[1] for row in rows.split("\n")[1:]]
    return {name.strip() for cell in names for name in cell.split(",")}


@pytest.mark.parametrize(
    ("begin", "model"),
    [
        ("### Member\n", control.Member),
        ("### ModelSpec\n", control.ModelSpec),
        ("### Plan\n", plans.ClusterPlan),
        ("**`join`** —", control.Join),
        ("**`joined`** —", control.Joined),
        ("**`snapshot`** —", control.Snapshot),
        ("**`propose`** —", plans.Propose),
        ("**`decision`**:", control.ScaleDecision),
    ],
)
def test_every_field_of_a_control_message_is_described_and_no_other(
    begin: str, model: type[BaseModel]
) -> None:
    assert _table(begin) == model.model_fields.keys() - {"type", "v"}
