"""The clairvoyant bound: its parts by hand, brute force on tiny instances, and every policy below it."""

from __future__ import annotations

import random
from itertools import combinations

import numpy as np
import pytest

from simulator.arrivals import Arrivals
from simulator.clairvoyant import least_bad, least_bad_share, least_work
from simulator.experiment import parse_experiment
from simulator.goodput import bad_share
from simulator.system import Cluster, ModelSpec

MS = 1_000_000


def cluster(models: list[ModelSpec], gpus: int, data: int = 0) -> Cluster:
    return Cluster(models, [0] * gpus, 0, data, 0, 0)


def spec(slo_ms: float, *table_ms: float) -> ModelSpec:
    return ModelSpec("m", round(slo_ms * MS), (tuple(round(x * MS) for x in table_ms),), 1.0)


def column(*at_ms: float) -> np.ndarray:
    return np.array([round(t * MS) for t in at_ms], np.int64)


def test_work_is_that_of_the_largest_batch_that_could_gather() -> None:
    model = spec(20, 10, 12, 14, 30)
    # 0, 1 and 2 ms: three within 20 - 14 ms. 15 and 22: two within 20 - 12, 2 and 15 are not. 50: alone.
    found = least_work(column(0, 1, 2, 15, 22, 50), model, cluster([model], 1))
    assert found.tolist() == pytest.approx([14 * MS / 3] * 3 + [6 * MS] * 2 + [10 * MS])


def test_a_request_that_cannot_be_in_time_is_bad() -> None:
    model = spec(9, 10, 12)
    at = column(0, 100)
    arrivals = Arrivals(at, np.zeros(2, np.uint32), at + 9 * MS)
    assert least_bad(arrivals, cluster([model], 4), 0) == 2


def test_a_burst_beyond_the_gpus_costs_what_is_beyond() -> None:
    """40 at once, at most 2 in a batch of 10 ms, SLO 10 ms, 8 GPUs: 16 are served, and the bound says so."""
    model = spec(10, 10, 10)
    at = column(*[5.0] * 40)
    arrivals = Arrivals(at, np.zeros(40, np.uint32), at + 10 * MS)
    assert least_bad(arrivals, cluster([model], 8), 0) == 24
    assert least_bad(arrivals, cluster([model], 20), 0) == 0
    assert least_bad(arrivals, cluster([model], 8), 6 * MS) == 0  # before what counts


def most_good(at: list[int], which: list[int], models: list[ModelSpec], gpus: int) -> int:
    """All schedules in which every batch starts as early as it can, by trying."""
    best = 0

    def go(left: frozenset[int], free: tuple[int, ...], good: int) -> None:
        nonlocal best
        best = max(best, good)
        if good + len(left) <= best:
            return
        for size in range(1, len(left) + 1):
            for batch in combinations(sorted(left), size):
                model = models[which[batch[0]]]
                table = model.latency[0]
                if size > len(table) or any(which[i] != which[batch[0]] for i in batch):
                    continue
                for gpu in range(len(free)):
                    end = max(free[gpu], *(at[i] for i in batch)) + table[size - 1]
                    if end <= min(at[i] for i in batch) + model.slo:
                        after = tuple(sorted((*free[:gpu], end, *free[gpu + 1 :])))
                        go(left - set(batch), after, good + size)

    go(frozenset(range(len(at))), (0,) * gpus, 0)
    return best


@pytest.mark.parametrize("seed", range(60))
def test_never_above_what_brute_force_loses(seed: int) -> None:
    rng = random.Random(seed)
    models = []
    for _ in range(rng.choice((1, 2))):
        table = np.cumsum([rng.randint(2, 8)] + [rng.randint(0, 3) for _ in range(2)]).tolist()
        models.append(spec(table[0] * rng.choice((1, 1.5, 2.5)), *table))
    n = rng.randint(3, 5)
    at = sorted(rng.randint(0, 12) * MS for _ in range(n))
    which = [rng.randrange(len(models)) for _ in range(n)]
    gpus = rng.choice((1, 1, 2))
    deadline = np.array([t + models[m].slo for t, m in zip(at, which, strict=True)], np.int64)
    arrivals = Arrivals(np.array(at, np.int64), np.array(which, np.uint32), deadline)
    bound = least_bad(arrivals, cluster(models, gpus), 0)
    assert bound <= n - most_good(at, which, models, gpus)


def test_brute_force_is_met_where_the_bound_is_exact() -> None:
    """One GPU, 4 at once, batches of one: two fit into the SLO."""
    model = spec(10, 5)
    at = [0, 0, 0, 0]
    arrivals = Arrivals(np.array(at), np.zeros(4, np.uint32), np.full(4, 10 * MS))
    assert most_good(at, [0] * 4, [model], 1) == 2
    assert least_bad(arrivals, cluster([model], 1), 0) == 2


@pytest.mark.parametrize("arrivals", ["poisson", "gamma:0.1"])
@pytest.mark.parametrize("count", [1, 6])
def test_no_policy_loses_less(arrivals: str, count: int) -> None:
    model = {"name": "m", "alpha_ms": 1.0, "beta_ms": 5.0, "slo_ms": 25, "count": count, "arrivals": arrivals}
    content = {
        "gpus": 4,
        "network": {"control_us": 100, "data_us": 50, "result_us": 2000},
        "seconds": 1,
        "models": [model | {"rate": 2400 / count}],
    }
    experiment = parse_experiment(content, "x")
    bounds = []
    for scale in (1.0, 2.0):
        bound = least_bad_share(experiment, scale)
        bounds.append(bound)
        for policy in ("eager", "deferred", "target", "adaptive", "clockwork", "shepherd"):
            assert bad_share(experiment, policy, scale) >= bound
    assert bounds[-1] > 0.1  # twice what the GPUs can do
