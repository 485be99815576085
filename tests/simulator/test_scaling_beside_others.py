"""The shipped comparison of autoscalers, on less time per case: what ours keeps to, beside two others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import simulator
from scheduler import select
from simulator.goodput import run_once
from simulator.study import Point, load_study

FILE = Path(simulator.__file__).parent / "experiments" / "autoscale.yaml"
SECONDS = {
    "constant": 900,
    "step up x3": 600,
    "step down /3": 600,
    "sine": 1_200,
    "azure llm": 1_200,
    "azure functions": 900,
}


def points() -> list[Point]:
    return load_study(FILE)[1]


def test_every_case_is_looked_at() -> None:
    assert {point.at["case"] for point in points()} == SECONDS.keys()


@pytest.mark.skipif(select.compiled_core() is None, reason="takes minutes without the compiled core")
@pytest.mark.parametrize("case", SECONDS)
def test_at_most_a_fifth_above_the_need_and_no_other_is_both_cheaper_and_better(case: str) -> None:
    found: dict[str, dict[str, Any]] = {}
    for point in points():
        if point.at["case"] == case:
            short = point.experiment.model_copy(update={"seconds": float(SECONDS[case])})
            found[point.at["autoscale.policy"]] = run_once(short, "deferred", point.scale)["scaling"]
    ours = found.pop("symphony")
    assert ours["gpu_seconds_ratio"] <= 1.2
    assert ours["bad_share_outside"] < 0.01
    assert ours["reversals"] <= 8
    if case == "constant":
        assert ours["decisions_settled"] == 0
    assert len(found) == 2
    for policy, other in found.items():
        cheaper = ours["gpu_seconds"] < other["gpu_seconds"]
        assert cheaper or ours["bad_share"] < other["bad_share"], policy
