"""Completions of a tick come in one order, whether they were listed by tick or kept in order of time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from core_system import make_experiment

import scheduler.core.replay
from simulator.engine import Record
from simulator.runs import run


def columns(record: Record) -> dict[str, Any]:
    names = ("model", "gpu", "size", "decided", "start", "end", "answered")
    return {name: getattr(record, name) for name in names} | {"events": record.events}


@pytest.mark.parametrize("coalesce_us", [700, 5000, 60_000])
def test_completions_far_ahead_and_near(monkeypatch: pytest.MonkeyPatch, coalesce_us: float) -> None:
    """Few ticks have lists of their own: most completions are further ahead, and some ticks have both."""
    network = {"control_us": 100, "data_us": 50, "result_us": 2000, "jitter_us": 900}
    experiment = make_experiment(
        3000, count=4, seconds=0.8, coalesce_us=coalesce_us, network=network, noise=0.2, warmup_s=0
    )
    compiled = columns(run(experiment, "deferred").record)
    monkeypatch.setenv("SYMPHONY_PURE", "1")
    plain = columns(run(experiment, "deferred").record)
    assert plain["size"].sum() > 500
    for ticks in (4, 16):
        monkeypatch.setattr(scheduler.core.replay, "TICKS", ticks)
        few = columns(run(experiment, "deferred").record)
        for name, column in plain.items():
            assert np.array_equal(column, few[name]), (ticks, name)
            assert np.array_equal(column, compiled[name]), name
