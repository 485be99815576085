"""Rates from shards' counters: what is noise, what is a load that has moved, and since when."""

from __future__ import annotations

import numpy as np
import pytest

from scheduler.offered import SECOND, Meter, Offered

MODELS, SHARDS, RATE = 40, 4, 130.0
HALF = np.array([1.0] * (MODELS // 2) + [0.02] * (MODELS // 2))
FINE = 20
"""Steps of the virtual clock per second."""


class Shards:
    """Four shards of ten models each that tell their counters once a second, each at its own moment."""

    def __init__(self, seed: int, phases: tuple[int, ...], window_s: float = 3.0, bursts: int = 1) -> None:
        self.meter = Meter(window_s)
        self.chance = np.random.default_rng(seed)
        self.phases, self.bursts = phases, bursts
        self.counts = np.zeros(MODELS, np.int64)
        self.step = 0

    def run(self, seconds: float, weights: np.ndarray) -> list[Offered]:
        """What was offered, as of every round of all shards."""
        rounds = []
        for _ in range(round(seconds * FINE)):
            mean = weights / weights.sum() * RATE / FINE / self.bursts
            self.counts += self.chance.poisson(mean) * self.bursts
            self.step += 1
            for shard, phase in enumerate(self.phases):
                if self.step % FINE == phase:
                    mine = range(shard * 10, shard * 10 + 10)
                    at = self.step * SECOND // FINE
                    self.meter.saw(f"shard-{shard}", at, {f"m{i}": int(self.counts[i]) for i in mine})
            if self.step % FINE == max(self.phases):
                rounds.append(self.meter.offered())
        return rounds


def new_share(offered: Offered) -> float:
    """Of the load, on the second half of the models."""
    rates = [offered.rates[f"m{i}"] for i in range(MODELS)]
    return sum(rates[MODELS // 2 :]) / sum(rates)


PHASES = [(0, 0, 0, 0), (0, 6, 10, 16), (1, 1, 19, 19)]


@pytest.mark.parametrize("phases", PHASES)
@pytest.mark.parametrize("seed", range(5))
def test_of_a_load_that_has_moved_only_what_is_new_counts(phases: tuple[int, ...], seed: int) -> None:
    shards = Shards(seed, phases)
    before = shards.run(12, HALF)[-1]
    assert before.whole
    assert new_share(before) < 0.06
    told = shards.run(5, HALF[::-1])
    ready = [offered for offered in told if not offered.fresh and offered.moved_from(before) > 0.25]
    assert told.index(ready[0]) <= 3  # two whole seconds of every shard, and the round that brings them
    assert new_share(ready[0]) > 0.9
    assert ready[0].moved_from(before) > 1.0


@pytest.mark.parametrize("bursts", [1, 5])
def test_a_steady_load_does_not_move(bursts: int) -> None:
    moved = fresh = 0
    for seed in range(10):
        shards = Shards(seed, PHASES[1], bursts=bursts)
        planned = shards.run(8, HALF)[-1]
        for offered in shards.run(30, HALF):
            fresh += offered.fresh
            moved += offered.moved_from(planned) > 0.25
    assert fresh <= 3
    assert moved <= 3


def test_a_load_that_begins_is_measured_from_its_beginning() -> None:
    meter = Meter(5)
    meter.saw("shard-0", 1, {"m0": 0})
    assert meter.offered() == Offered()
    assert not meter.known(["shard-0"])
    for second in range(2, 8):
        for shard in range(SHARDS):
            meter.saw(f"shard-{shard}", second * SECOND, {"m0": 100 * max(0, second - 5)})
    offered = meter.offered()
    assert offered.rates["m0"] == pytest.approx(400)
    assert not offered.whole
    assert meter.known([f"shard-{shard}" for shard in range(SHARDS)])


def test_a_shard_that_began_anew_or_has_gone_is_counted_from_there() -> None:
    meter = Meter(10)
    for second in range(1, 6):
        meter.saw("shard-0", second * SECOND, {"a": 100 * second})
        meter.saw("shard-1", second * SECOND, {"a": 50 * second})
    assert meter.offered().rates["a"] == pytest.approx(150)
    meter.saw("shard-1", 6 * SECOND, {"a": 10})
    assert not meter.known(["shard-1"])
    meter.saw("shard-1", 7 * SECOND, {"a": 60})
    assert meter.offered().rates["a"] == pytest.approx(150)
    meter.gone("shard-0")
    assert meter.offered().rates["a"] == pytest.approx(50)
    meter.gone("shard-1")
    assert meter.offered() == Offered()
