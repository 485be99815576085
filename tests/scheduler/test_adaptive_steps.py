"""The slow loop of ``adaptive`` holds no event up for long: what one look may do is bounded, in counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from rig import MS, linear

import scheduler.core.adaptive as adaptive
from scheduler.core.adaptive import LOOK, PASS, TABLED, TOLD
from scheduler.core.observing import Draft, Reading
from scheduler.core.plans import Load, finish, fluid_batch, make_plan, planning, saturation
from scheduler.core.rehearsal import BUILT, SLICE, Stand
from scheduler.select import core_class

MODELS, GPUS = 1000, 1000


class Looks:
    """What each look at the load did, by kind."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.done: list[dict[str, int]] = []
        tune = adaptive.Tuner.tune

        def look(tuner: Any, core: Any, now: int) -> int:
            self.done.append({})
            return tune(tuner, core, now)

        patch.setattr(adaptive.Tuner, "tune", look)
        self.count(patch, Load, "latency", lambda load, _: PASS + len(load.rate))
        self.count(patch, Reading, "load", lambda *_: 1)
        self.count(patch, Reading, "scene", lambda *_: 1)
        self.count(patch, Draft, "extend", lambda _, first, last: last - first)
        self.count(patch, Stand, "__init__", lambda *_: 1)
        self.count(patch, Stand, "play", lambda _, piece, first, last: last - first)
        install = adaptive.install

        def told(*args: Any) -> int:
            lanes = install(*args)
            self.add("install", lanes)
            return lanes

        patch.setattr(adaptive, "install", told)

    def count(self, patch: pytest.MonkeyPatch, owner: Any, name: str, amount: Any) -> None:
        """Add up what calls of this amount to."""
        real = getattr(owner, name)

        def counted(*args: Any) -> Any:
            self.add(name, amount(*args))
            return real(*args)

        patch.setattr(owner, name, counted)

    def add(self, name: str, amount: int) -> None:
        if self.done and amount:
            self.done[-1][name] = self.done[-1].get(name, 0) + amount


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    return Looks(monkeypatch)


def serve(core: Any, looks: Looks, until_ms: int, per_ms: int = 50) -> None:
    built = 0
    for t in range(1, until_ms):
        model = ((np.arange(per_ms) + t * per_ms) % MODELS).astype(np.uint32)
        key = np.arange(t * per_ms, (t + 1) * per_ms, dtype=np.uint64)
        core.submit(t * MS, model, np.full(per_ms, (t + 50) * MS), key)
        core.clear_actions()
        if core.tuner.rehearsal is not None:
            stands = [stand for stand in core.tuner.rehearsal.stands if stand is not None]
            now = sum(sum(stand.core.models.known) + stand.core.gpus.count / 4 for stand in stands)
            looks.add("built", int(now) - built)
            built = int(now)


def test_no_look_does_more_than_a_bounded_piece_of_work(looks: Looks) -> None:
    core: Any = core_class()("adaptive")
    for model in range(MODELS):
        core.add_model(model, 50 * MS, 64)
        core.set_profile(0, model, 0, [x + model for x in linear(1.082, 5.204, 64)])
    for gpu in range(GPUS):
        core.add_gpu(0, gpu)
    serve(core, looks, 700)
    assert core.tuner.plan is not None
    assert all(core.tuner.rehearsal.stands[rule] is not None for rule in range(2))
    for done in looks.done:
        # A step of the plan is at most the passes of one search in the tables; the last may go beyond LOOK.
        assert done.get("latency", 0) < LOOK + 13 * (PASS + MODELS)
        assert done.get("extend", 0) <= TABLED
        assert done.get("built", 0) < 2 * BUILT
        assert done.get("play", 0) <= SLICE // 2
        kinds = [kind for kind in ("load", "scene", "extend", "latency", "__init__", "play") if kind in done]
        assert len(kinds) <= 1 or "latency" in kinds, "one kind of work a look"
        assert not {"__init__", "play"} & set(kinds) or len(kinds) == 1
        assert done.get("install", 0) <= TOLD or not {"__init__", "play", "built"} & set(done)
    kinds = {kind for done in looks.done for kind in done}
    assert kinds == {"latency", "load", "scene", "extend", "__init__", "built", "play", "install"}


def test_each_plan_is_made_to_its_end_though_looks_are_rare(looks: Looks) -> None:
    """An event every 200 ms only: a plan that is due again is not begun anew."""
    core: Any = core_class()("adaptive")
    for model in range(MODELS):
        core.add_model(model, 50 * MS, 8)
        core.set_profile(0, model, 0, linear(1.082, 5.204, 8))
    core.add_gpu(0, 0)
    for t in range(1, 60):
        n = MODELS if t < 3 else 1
        key = np.arange(t * MODELS, t * MODELS + n, dtype=np.uint64)
        core.submit(t * 200 * MS, np.arange(n, dtype=np.uint32), np.full(n, (t * 200 + 50) * MS), key)
        core.clear_actions()
    assert core.tuner.plan is not None


def test_what_is_known_of_batches_shortens_the_search_and_changes_nothing() -> None:
    rng = np.random.default_rng(9)
    for _ in range(20):
        n = int(rng.integers(1, 30))
        table = np.concatenate([np.cumsum(rng.uniform(0, 3e-3, 64)) + 4e-3 for _ in range(n)])
        at = 64 * np.arange(n)
        load = Load(
            rng.uniform(1, 900, n), rng.uniform(0.02, 0.2, n), at, np.full(n, 64), table, 5e-5, 8, 1.0
        )
        scale, batch, _ = finish(saturation(load))
        assert batch == pytest.approx(fluid_batch(load, scale), rel=1e-12)


def test_steps_of_a_plan_are_short_and_lead_to_it() -> None:
    table = np.array(linear(1.082, 5.204, 128)) / 1e9
    zeros = np.zeros(3, np.int64)
    load = Load(np.array([900.0, 90.0, 9.0]), zeros + 0.05, zeros, zeros + 128, table, 0.0, 8, 1.0)
    steps = list(planning(load))
    assert all(0 < passes <= 13 for passes in steps)
    assert len(steps) > 20
    assert make_plan(load).full.tolist() == finish(planning(load)).full.tolist()
