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
from simulator.baselines.squishy import Node, Session, Share, merge, pack, plan
from simulator.engine import simulate
from simulator.experiment import ExperimentError
from simulator.results import outcomes
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
    """The latencies of the paper's table 2, each size rounded up to 4, 8 or 16."""
    return tuple([four * MS] * 4 + [eight * MS] * 4 + [sixteen * MS] * 8)


A, B, C = steps(50, 75, 100), steps(50, 90, 125), steps(60, 95, 125)


def test_squishy_packing_of_the_papers_example() -> None:
    """Section 4.1: A and B share a GPU whose cycle of 125 ms they fill; C does not fit beside A."""
    sessions = [
        Session(0, 64, 200 * MS, A),
        Session(1, 32, 250 * MS, B),
        Session(2, 32, 250 * MS, C),
    ]
    nodes = pack(sessions)
    found = [[(share.session.model, share.batch) for share in node.shares] for node in nodes]
    assert found == [[(0, 8), (1, 4)], [(2, 4)]]
    assert nodes[0].duty == pytest.approx(125 * MS)
    assert nodes[0].occupancy == pytest.approx(1.0)


def test_saturated_sessions_get_whole_gpus() -> None:
    """Table 2's throughputs: 160 requests/s per GPU for A with batches of 16, 128 for B."""
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


@pytest.mark.parametrize("name", ["clockwork", "clockwork:64", "nexus", "nexus-replanned:0.3", "shepherd"])
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
    assert lost.any() == (name == "shepherd") or noise > 0


def test_names_with_options() -> None:
    one = cluster([50])
    assert isinstance(make_baseline("shepherd:2.5", one), Shepherd)
    assert make_baseline("deferred", one) is None
    for name in ("shepherd:0.5", "clockwork:many", "nexus:3", "nexus-replanned:-1"):
        with pytest.raises(ExperimentError, match=r"expected clockwork\[:LARGEST_BATCH\]"):
            make_baseline(name, one)
