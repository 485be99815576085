"""What is counted while an experiment runs is what its record says afterwards, and percentiles are exact."""

from __future__ import annotations

import math
from itertools import chain
from typing import Any

import numpy as np
import pytest
from core_system import make_experiment

from simulator.arrivals import make_arrivals
from simulator.batches import Batches
from simulator.engine import Record, cluster_of
from simulator.goodput import run_once
from simulator.results import count_from, summarize, tally_of
from simulator.runs import run, simulate
from simulator.system import NEVER
from simulator.tally import Counter, Latencies, Tally

NETWORK = {"control_us": 100, "data_us": 50, "result_us": 2000, "jitter_us": 200}
SHARES = [0, 50, 90, 99, 99.9, 100]


@pytest.mark.parametrize(
    "changes",
    [
        {"warmup_s": 0.3},
        {"network": NETWORK, "noise": 0.1, "warmup_s": 0.3},  # some are late
        {"coalesce_us": 300, "warmup_s": 0},
        {"model": {"popularity": "zipf:1"}, "warmup_s": 0},
    ],
)
def test_counting_on_the_way_gives_what_the_record_gives(changes: dict[str, Any]) -> None:
    experiment = make_experiment(7000, count=5, seconds=2, **changes)
    found = run(experiment, "deferred")
    arrivals = make_arrivals(experiment)
    record = simulate(experiment, "deferred", arrivals)
    theirs = tally_of(experiment, found.cluster, arrivals, record)
    ours = found.tally
    assert len(found.record.request) == 0
    assert np.array_equal(found.record.start, record.start)
    assert ours.requests == theirs.requests == len(arrivals.at)
    for name in ("offered", "good", "late", "oldest"):
        assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name
    assert (ours.late.sum() > 0) == ("noise" in changes)
    assert ours.good.sum() > 0
    assert ours.percentiles(SHARES) == theirs.percentiles(SHARES)
    one, two = (
        summarize(experiment, found.cluster, "deferred", tally, record, None) for tally in (ours, theirs)
    )
    assert one == two


def test_percentiles_are_the_upper_neighbours_of_the_exact_ones() -> None:
    rng = np.random.default_rng(3)
    n = 100_000
    sizes = np.array([4, n - 4, 0])
    for latency in (
        rng.integers(0, 1 << 31, n),
        rng.integers(0, 1 << 40, n),
        (1 << 32) - 2 + rng.integers(0, 4, n),
        np.full(n, 7),
    ):
        counts = np.array([4, n - 4, 0])
        latencies = Latencies.of(latency, sizes)
        tally = Tally(n, counts, counts, counts * 0, latencies, np.zeros(4, np.int64))
        whole, models = tally.percentiles(SHARES)
        ordered = np.sort(latency).tolist()
        assert whole == [ordered[math.ceil(share / 100 * (n - 1))] for share in SHARES]
        first = sorted(latency[:4])
        assert models[0] == [first[math.ceil(share / 100 * 3)] for share in SHARES]
        second = np.sort(latency[4:]).tolist()
        assert models[1] == [second[math.ceil(share / 100 * (n - 5))] for share in SHARES]
        assert models[2] is None


def test_nothing_answered_and_nothing_counted() -> None:
    counter = Counter([10, 20], 0)
    tally = counter.tally()
    assert tally.bad_share == 0
    assert tally.percentiles([50]) == (None, [None, None])
    result = run_once(make_experiment(0.5, gpus=1, seconds=4, model={"slo_ms": 6.4}), "deferred")
    assert result["p50_ms"] is None or result["p50_ms"] > 0


def test_latencies_beyond_32_bits_are_kept() -> None:
    counter = Counter([5_000_000_000], 0)
    one = np.array([0]), np.array([2]), np.array([6_000_000_000])
    counter.answer(*one, np.array([6_000_000_000, 6_100_000_000]))
    counter.answer(*one, np.array([5_900_000_000, 9_000_000_000]))
    tally = counter.tally()
    ordered = [2_000_000_000, 4_900_000_000, 5_000_000_000, 5_100_000_000]
    assert tally.percentiles([0, 30, 60, 100]) == (ordered, [ordered])
    assert tally.late.tolist() == [1]


def test_more_latencies_than_were_expected_find_room() -> None:
    rng = np.random.default_rng(4)
    slo, begin = np.array([1000, 2000, 3000]), 500
    counter = Counter(slo.tolist(), begin, [10, 0, 100])
    latencies: list[list[int]] = [[], [], []]
    for _ in range(20):
        model, size = rng.integers(0, 3, 40), rng.integers(1, 12, 40)
        answered = 5000 + rng.integers(0, 1000, 40)
        latency = rng.integers(0, 5000, int(size.sum()))
        arrived = np.repeat(answered, size) - latency
        counter.answer(model, size, answered, arrived + np.repeat(slo[model], size))
        for of, ns, at in zip(np.repeat(model, size), latency, arrived, strict=True):
            if at >= begin:
                latencies[of].append(int(ns))
    tally = counter.tally()
    shares = [10.0, 50.0, 99.0]
    whole, models = tally.percentiles(shares)
    for mine, found in zip([list(chain(*latencies)), *latencies], [whole, *models], strict=True):
        assert found == [sorted(mine)[math.ceil(share / 100 * (len(mine) - 1))] for share in shares]
    assert tally.late.tolist() == [sum(ns > slo[m] for ns in latencies[m]) for m in range(3)]
    assert (tally.good + tally.late).tolist() == [len(mine) for mine in latencies]


def test_batches_by_model() -> None:
    """Two models on two GPUs over two seconds; a batch of model 1 was killed, one starts too early."""
    second = 1_000_000_000
    start = np.array([0, 10, 20, 30, 40]) * second // 20  # 0, 0.5, 1, 1.5, 2 s
    record = Record(
        model=np.array([0, 1, 0, 1, 0]),
        gpu=np.array([0, 0, 0, 1, 1]),
        size=np.array([2, 3, 2, 1, 5]),
        decided=start,
        start=start,
        end=start + second // 4,
        answered=np.array([second, second, 2 * second, NEVER, 3 * second]),
        request=np.zeros(0, np.int64),
        dropped=np.zeros(0, np.int64),
        events=5,
        wall_s=1.0,
    )
    batches = Batches(record, start - 1_000_000, 3, second // 4, second // 4 + 2 * second)
    zero, one, two = batches.by_model()
    assert (zero.batches, zero.lost, zero.histogram, zero.mean_size) == (2, 0, {"2": 1, "5": 1}, 3.5)
    assert (one.batches, one.lost, one.histogram, one.mean_size) == (1, 1, {"3": 1}, 3)
    assert (two.batches, two.histogram, two.mean_size, two.wait_p99_ms) == (0, {}, None, None)
    assert (zero.busy_ns, one.busy_ns) == (second / 2, second / 2)
    assert (zero.gpus_used_mean, one.gpus_used_mean) == (1, 1)
    assert batches.total().histogram == {"2": 1, "3": 1, "5": 1}
    assert batches.total().wait_mean_ms == 1
    assert batches.used_by_second() == [1, 1]
    assert batches.busy_by_second() == [0.5, 0.5]


def test_the_warm_up_ends_where_the_experiment_says() -> None:
    experiment = make_experiment(1, seconds=20)
    assert count_from(experiment) == 1_000_000_000 + 2_000_000_000
    assert len(cluster_of(experiment).gpu_type) == 8
