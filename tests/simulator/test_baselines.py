"""The baselines' rules on cases that are worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from core_system import make_experiment

from simulator.arrivals import make_arrivals
from simulator.baselines import make_baseline
from simulator.baselines.clockwork import Clockwork
from simulator.baselines.nexus import Nexus
from simulator.baselines.shepherd import Shepherd
from simulator.baselines.squishy import Node, Session, Share, assign, merge, pack, plan, plan_types
from simulator.experiment import ExperimentError
from simulator.results import outcomes
from simulator.runs import simulate
from simulator.system import NEVER, Cluster, ModelSpec

MS = 1_000_000
LINE = tuple((5 + b) * MS for b in range(1, 65))  # l(b) = b + 5 ms


def cluster(slos: list[int], gpus: int = 1, rate: float = 100.0, control: int = 0) -> Cluster:
    models = [ModelSpec(f"m{i}", slo * MS, (LINE,), rate) for i, slo in enumerate(slos)]
    return Cluster(models, [0] * gpus, control=control)


def submit(system: Clockwork | Shepherd | Nexus, now: int, model: int, slo: int, keys: range) -> None:
    for key in keys:
        system.submit(now, model, now + slo * MS, key)


def sent(system: Clockwork | Shepherd | Nexus) -> list[tuple[int, int, list[int]]]:
    """(model, GPU, keys) of what was sent since the last look."""
    out = [(s.model, s.gpu, list(s.keys)) for s in system.decisions.sent]
    system.decisions.sent.clear()
    return out


# --- Clockwork -----------------------------------------------------------------------------------


def busy_clockwork(slos: list[int], largest: int = 16) -> Clockwork:
    system = Clockwork(cluster(slos), largest)
    system.free[0] = 10 * MS
    return system


def test_clockwork_never_waits() -> None:
    system = Clockwork(cluster([50], gpus=2))
    submit(system, 0, 0, 50, range(1, 4))
    assert sent(system) == [(0, 0, [1]), (0, 1, [2])]
    assert system.next_wakeup() == 6 * MS


def test_the_lowest_numbered_free_gpu_is_taken() -> None:
    system = Clockwork(cluster([50], gpus=3))
    submit(system, 0, 0, 50, range(1, 3))
    system.complete(6 * MS, 0, 1, 6 * MS)
    system.complete(6 * MS, 1, 2, 6 * MS)
    submit(system, 7 * MS, 0, 50, range(3, 4))
    assert [gpu for _, gpu, _ in sent(system)] == [0, 1, 0]


def test_clockwork_takes_powers_of_two() -> None:
    system = busy_clockwork([80])
    submit(system, 0, 0, 80, range(1, 8))
    assert system.next_wakeup() == 10 * MS
    system.advance(10 * MS)
    assert sent(system) == [(0, 0, [1, 2, 3, 4])]  # seven are there, four is the largest size below


@pytest.mark.parametrize(("largest", "size"), [(16, 16), (64, 32)])
def test_clockwork_ends_at_its_largest_size(largest: int, size: int) -> None:
    system = busy_clockwork([80], largest)
    submit(system, 0, 0, 80, range(1, 41))
    system.advance(10 * MS)
    assert sent(system) == [(0, 0, list(range(1, size + 1)))]


def test_clockwork_takes_the_earliest_required_start() -> None:
    system = busy_clockwork([40, 38])
    submit(system, 0, 0, 40, range(1, 9))  # 8 requests: 13 ms, required start 27
    submit(system, 0, 1, 38, range(9, 11))  # 2 requests: 7 ms, required start 31
    system.advance(10 * MS)
    assert sent(system) == [(0, 0, list(range(1, 9)))]
    other = busy_clockwork([40, 33])
    submit(other, 0, 0, 40, range(1, 9))
    submit(other, 0, 1, 33, range(9, 11))  # 2 requests: required start 26
    other.advance(10 * MS)
    assert sent(other) == [(1, 0, [9, 10])]


def test_clockwork_passes_over_heads_that_would_keep_the_batch_small() -> None:
    """Two requests are due so soon that they fit only into a batch of 2; four later ones fill one of 4."""
    system = busy_clockwork([80])
    for key, due in enumerate([18, 18, 40, 40, 40, 40], 1):
        system.submit(0, 0, due * MS, key)
    system.advance(10 * MS)
    assert sent(system) == [(0, 0, [3, 4, 5, 6])]
    assert system.decisions.dropped == [1, 2]  # they stood before the batch and leave all queues


def test_clockwork_degrades_gently() -> None:
    """A third above what it can carry, it serves nearly all that it can (and not only what is due next)."""
    experiment = make_experiment(7000, seconds=2, model={"slo_ms": 20})
    out = outcomes(
        experiment, arrivals := make_arrivals(experiment), simulate(experiment, "clockwork", arrivals)
    )
    assert out.good.sum() / 2 > 3500


def test_clockwork_takes_a_smaller_batch_where_the_larger_is_too_late() -> None:
    system = busy_clockwork([20])
    submit(system, 0, 0, 20, range(1, 9))  # 8 would take 13 ms from 10 ms on, 4 take 9
    system.advance(10 * MS)
    assert sent(system) == [(0, 0, [1, 2, 3, 4])]


def test_clockwork_rejects_at_once_and_says_until_when_an_action_may_start() -> None:
    system = Clockwork(cluster([30]))
    system.submit(0, 0, 5 * MS, 1)
    assert system.decisions.dropped == [1]
    system.submit(0, 0, 30 * MS, 2)
    assert system.decisions.sent[0].latest == 24 * MS


# --- Nexus ---------------------------------------------------------------------------------------


def steps(four: int, eight: int, sixteen: int) -> tuple[int, ...]:
    """Latencies like those of the paper's example (from memory), sizes rounded up to 4, 8 or 16."""
    return tuple([four * MS] * 4 + [eight * MS] * 4 + [sixteen * MS] * 8)


A, B, C = steps(50, 75, 100), steps(50, 90, 125), steps(60, 95, 125)


def test_squishy_packing() -> None:
    """A and B share a GPU whose cycle of 125 ms they fill; C does not fit beside them."""
    sessions = [
        Session(0, 64, 200 * MS, A),
        Session(1, 32, 250 * MS, B),
        Session(2, 32, 250 * MS, C),
    ]
    nodes = pack(sessions)
    found = [[(share.session.model, share.batch) for share in node.shares] for node in nodes]
    # C alone: 5 requests gather in 4/32 s, and 125 + 95 ms ≤ 250; its cycle is what is left, 155 ms.
    assert sorted(found) == [[(0, 8), (1, 4)], [(2, 5)]]
    shared, alone = sorted(nodes, key=lambda node: node.duty)
    assert shared.duty == pytest.approx(125 * MS)
    assert shared.occupancy == pytest.approx(1.0)
    assert alone.duty == pytest.approx(155 * MS)


def test_saturated_sessions_get_whole_gpus() -> None:
    """160 requests/s per GPU for A with batches of 16, 128 for B."""
    nodes = pack([Session(0, 330, 200 * MS, A), Session(1, 256, 250 * MS, B)])
    whole = [(n.shares[0].session.model, n.shares[0].batch, round(n.shares[0].rate)) for n in nodes[:4]]
    assert whole == [(0, 16, 160), (0, 16, 160), (1, 16, 128), (1, 16, 128)]
    assert [round(share.rate) for node in nodes[4:] for share in node.shares] == [10]


def test_nodes_do_not_merge_beyond_the_cycle_or_the_objective() -> None:
    one = Node(125.0 * MS, (Share(Session(0, 64, 200 * MS, A), 64, 8),))
    assert merge(one, Node(200.0 * MS, (Share(Session(2, 32, 250 * MS, C), 32, 6),))) is None
    tight = Session(3, 1, 160 * MS, A)  # 125 ms of waiting and 50 ms of work
    assert merge(one, Node(400.0 * MS, (Share(tight, 1, 1),))) is None


def test_the_plan_is_the_largest_that_fits() -> None:
    nodes = plan([Session(0, 100, 200 * MS, A)], 3)
    assert len(nodes) == 3
    assert sum(share.rate for node in nodes for share in node.shares) == pytest.approx(480, rel=2e-3)


FAST = tuple((2 + b) * MS for b in range(1, 65))
"""l(b) = b + 2 ms: with a budget of 50 ms whole GPUs have b = 23 at 920/s; LINE has b = 20 at 800/s."""


def test_sessions_are_placed_one_by_one_on_gpus_of_two_types() -> None:
    kinds = [Session(0, 1000, 50 * MS, LINE), Session(0, 1000, 50 * MS, FAST)]
    nodes = assign([kinds], [0, 1, 0])
    assert nodes is not None
    # The type that takes most of it comes first; the rest goes where it fills the GPU best.
    assert nodes[1] is not None
    assert nodes[1].shares[0].batch == 23
    assert nodes[0] is not None
    assert nodes[0].shares[0].rate == pytest.approx(80)
    assert nodes[2] is None
    assert assign([[Session(0, 5000, 50 * MS, LINE), Session(0, 5000, 50 * MS, FAST)]], [0, 1]) is None
    rates = [share.rate for node in plan_types([kinds], [0, 1]) if node is not None for share in node.shares]
    assert sum(rates) == pytest.approx(1720, rel=2e-3)


def test_nexus_uses_all_types() -> None:
    models = [ModelSpec("m", 50 * MS, (LINE, FAST), 1000.0)]
    system = Nexus(Cluster(models, [0, 1, 1]))
    assert dict(system.routes[0]) == pytest.approx({0: 800, 1: 920, 2: 920}, rel=2e-3)


def test_nexus_spreads_a_session_over_its_gpus() -> None:
    system = Nexus(cluster([50], gpus=2))
    submit(system, 0, 0, 50, range(1, 5))
    assert sent(system) == [(0, 0, [1]), (0, 1, [2])]
    assert [backend.queued for backend in system.backends] == [1, 1]


def test_early_drop_slides_the_window() -> None:
    system = Nexus(cluster([50]))
    queue = [(9 * MS, 1), (10 * MS, 2), (11 * MS, 3), (30 * MS, 4)]
    # A window of 4 ends at 9 ms, one of 5 would end at 10.
    assert system.early_drop(0, 0, 0, queue, 4) == 0
    assert system.early_drop(MS // 2, 0, 0, queue, 3) == 0
    assert system.early_drop(2 * MS, 0, 0, queue, 3) == 1
    assert system.early_drop(5 * MS, 0, 0, queue, 3) == 3
    assert system.early_drop(40 * MS, 0, 0, queue, 3) == 4


def test_nexus_runs_its_sessions_in_turn() -> None:
    system = Nexus(cluster([100, 100], rate=50.0))
    system.free[0] = 10 * MS
    submit(system, 0, 0, 100, range(1, 4))
    submit(system, 0, 1, 100, range(4, 6))
    system.advance(10 * MS)
    system.advance(system.next_wakeup())
    assert sent(system) == [(0, 0, [1, 2, 3]), (1, 0, [4, 5])]


def test_nexus_plans_anew_for_the_rates_of_the_last_epoch() -> None:
    system = Nexus(cluster([50, 50], gpus=4), epoch_s=1.0)
    assert [len(routes) for routes in system.routes] == [2, 2]
    for i in range(900):
        system.submit(i * MS, 0, (i + 50) * MS, i + 1)
    system.advance(1000 * MS)
    first, second = (sum(rate for _, rate in routes) for routes in system.routes)
    assert first > 100 * second


# --- Shepherd ------------------------------------------------------------------------------------


def test_flex_takes_the_largest_batch() -> None:
    system = Shepherd(cluster([60, 60]))
    system.free[0] = 10 * MS
    system.out[0].append((0, 0, 10 * MS))
    submit(system, 0, 0, 60, range(1, 3))
    submit(system, 0, 1, 60, range(3, 6))
    system.advance(10 * MS)
    assert sent(system) == [(1, 0, [3, 4, 5])]


def test_flex_forms_the_largest_feasible_batch() -> None:
    system = Shepherd(cluster([60]))
    system.queues[0] = [(8 * MS, 1), (9 * MS, 2), (30 * MS, 3), (30 * MS, 4), (30 * MS, 5)]
    # All five would take 10 ms, four take 9: the first request cannot be in either.
    assert system.candidate(0, 0) == (4, 0, 1)


def test_flex_from_the_head() -> None:
    """The pseudocode: what the first request allows, and no more."""
    system = Shepherd(cluster([60]), from_head=True)
    system.queues[0] = [(8 * MS, 1), (9 * MS, 2), (30 * MS, 3), (30 * MS, 4), (30 * MS, 5)]
    assert system.candidate(0, 0) == (3, 0, 0)
    assert system.candidate(3 * MS, 0) == (1, 0, 1)  # the first one is too late even alone


def test_flex_preempts_for_a_larger_batch_of_the_same_model() -> None:
    """The running requests are part of the candidate: 1 of them and 3 that came since."""
    system = Shepherd(cluster([60]))
    submit(system, 0, 0, 60, range(1, 4))
    assert sent(system) == [(0, 0, [1])]
    assert not system.decisions.preempted
    submit(system, MS, 0, 60, range(4, 5))
    assert system.decisions.preempted == [1]
    assert sent(system) == [(0, 0, [1, 2, 3, 4])]
    assert system.queued == 0


@pytest.mark.parametrize(("waiting", "preempts"), [(6, False), (7, True)])
def test_flex_preempts_for_a_batch_three_times_as_large(waiting: int, preempts: bool) -> None:
    system = Shepherd(cluster([60, 60]))
    system.queues[0] = [(60 * MS, 1), (60 * MS, 2)]
    system.queued = 2
    system.decide(0)
    assert sent(system) == [(0, 0, [1, 2])]
    submit(system, MS, 1, 50, range(3, 3 + waiting))
    assert system.decisions.preempted == ([1] if preempts else [])
    if preempts:
        assert sent(system) == [(1, 0, list(range(3, 10)))]
        assert [key for _, key in system.queues[0]] == [1, 2]  # lost and to be done again
        assert system.free[0] == MS + 12 * MS


# --- all of them ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["clockwork", "clockwork:64", "nexus", "nexus-replanned:0.3", "shepherd", "shepherd-head"]
)
@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_every_request_leaves_and_gpus_run_one_batch_at_a_time(name: str, noise: float) -> None:
    experiment = make_experiment(
        7000, count=4, seconds=1, noise=noise, network={"control_us": 100, "data_us": 50, "result_us": 2000}
    )
    arrivals = make_arrivals(experiment)
    record = simulate(experiment, name, arrivals)
    left = np.unique(np.concatenate([record.request, record.dropped]))
    assert np.array_equal(left, np.arange(len(arrivals.at)))
    order = np.argsort(record.start, kind="stable")
    for gpu in range(8):
        mine = order[(record.gpu[order] == gpu) & (record.end[order] > record.start[order])]
        assert (record.start[mine][1:] >= record.end[mine][:-1]).all()
    out = outcomes(experiment, arrivals, record)
    late = (out.latency >= 0) & ~out.good
    assert late.sum() == 0 or noise > 0
    assert out.good.mean() > 0.25
    lost = record.answered == NEVER
    assert lost.any() == name.startswith("shepherd") or noise > 0


@pytest.mark.parametrize("name", ["clockwork", "nexus", "shepherd"])
def test_gpus_of_two_types_carry_more_than_the_slower_ones(name: str) -> None:
    model = {"alpha_ms": None, "beta_ms": None}
    model["profiles"] = {"slow": {"alpha_ms": 2, "beta_ms": 10}, "fast": {"alpha_ms": 1, "beta_ms": 5}}
    gpus = [{"type": "slow", "count": 4}, {"type": "fast", "count": 4}]
    experiment = make_experiment(3500, seconds=2, gpus=gpus, model=model | {"slo_ms": 60})
    arrivals = make_arrivals(experiment)
    record = simulate(experiment, name, arrivals)
    good = outcomes(experiment, arrivals, record).good
    assert good.mean() > 0.95  # the slow ones alone carry at most 4·22/54 ms = 1,630/s
    assert set(record.gpu) == set(range(8))


def test_names_with_options() -> None:
    one = cluster([50])
    assert isinstance(make_baseline("shepherd:2.5", one), Shepherd)
    assert make_baseline("deferred", one) is None
    for name in ("shepherd:0.5", "clockwork:many", "nexus:3", "nexus-replanned:-1"):
        with pytest.raises(ExperimentError, match=r"expected clockwork\[:LARGEST_BATCH\]"):
            make_baseline(name, one)
