"""Four shards, forty emulated models: the load moves, routes and GPUs follow; processes are killed."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import Cluster, cluster, wait_until

from symphony.control import Snapshot
from symphony.engine import Engine
from symphony.messages import of_ranges
from symphony.pending import Outcome, Request
from symphony.plans import ClusterPlan, PlanStamp
from symphony.snapshot import fetch_snapshot
from symphony.status import Status, SymphonyError, Unavailable

pytestmark = [pytest.mark.live, pytest.mark.timeout(240)]

SHARDS, MODELS, GPUS = 4, 40, 8
EPOCH_S = 10
FOLLOW_S = 2 * EPOCH_S + 40
"""Two epochs, and what a machine may be busy with besides."""
S = 1_000_000_000
SLO_MS = 1_500
WORK = 6.6
"""GPUs that 130 requests/s to one half of the models of :func:`_tight` keep busy."""
GRACE_MS = 5_000
"""Long, so that what a busy machine answers late is told from what nobody answers."""


def _config(shards: int = SHARDS, workers: int = SHARDS, models: int = MODELS) -> str:
    """Every worker begins with its shard's share of the models; its GPUs hold two thirds of all."""
    per = models // shards
    lines = [
        "broker: {heartbeat_ms: 100, lease_ms: 1500}",
        # Eager, and with margins for a busy machine: ten models on two GPUs collide where all wait for the
        # last moment, and what is bad here should be the change's.
        f"scheduler: {{policy: eager, shards: {shards}, timer_margin_us: 50000, result_latency_us: 50000}}",
        f"epoch: {{seconds: {EPOCH_S}, window_s: 3, least_s: 2, settle_s: 1.0, grace_s: 0.5}}",
        "models:",
    ]
    lines += [
        f"  - {{name: m{i}, slo_ms: {SLO_MS}, max_batch: 16, loader: emulated, memory_mb: 100, load_ms: 20, "
        "profile: {alpha_ms: 15, beta_ms: 60}}"
        for i in range(models)
    ]
    lines.append("workers:")
    for w in range(workers):
        s = w % shards
        mine = ", ".join(f"m{i}" for i in range(s * per, (s + 1) * per))
        lines.append(
            f"  - {{device: emulated, gpus: {GPUS // workers}, memory_mb: {100 * models * 2 // 3}, "
            f"shard: shard-{s}, models: [{mine}]}}"
        )
    return "\n".join(lines)


def _tight(gpus: int) -> str:
    """GPUs that hold a shard's ten models and no more: where the load goes, GPUs have to follow."""
    lines = [
        "broker: {heartbeat_ms: 100, lease_ms: 1500}",
        f"scheduler: {{policy: eager, shards: {SHARDS}, timer_margin_us: 50000, result_latency_us: 50000}}",
        f"epoch: {{seconds: {EPOCH_S}, window_s: 3, least_s: 2, settle_s: 1.0, grace_s: 0.5}}",
        "models:",
    ]
    lines += [
        f"  - {{name: m{i}, slo_ms: 1000, max_batch: 16, loader: emulated, memory_mb: 100, load_ms: 20, "
        "profile: {alpha_ms: 30, beta_ms: 85}}"
        for i in range(MODELS)
    ]
    lines.append("workers:")
    per = MODELS // SHARDS
    for s in range(SHARDS):
        mine = ", ".join(f"m{i}" for i in range(s * per, (s + 1) * per))
        lines.append(
            f"  - {{device: emulated, gpus: {gpus // SHARDS}, memory_mb: {100 * per}, shard: shard-{s}, "
            f"models: [{mine}]}}"
        )
    return "\n".join(lines)


class Load:
    """Open-loop requests on a thread: ``weights[i]`` of them for model i; every outcome is kept once."""

    def __init__(self, running: Cluster, weights: list[float], rate: float) -> None:
        self.engine = Engine(running.registry, running.subscribe, grace_ms=GRACE_MS, connect_timeout_s=30)
        self.engine.start()
        for i in range(len(weights)):
            self.engine.wait_for_model(f"m{i}", 30)
        self.weights = weights
        self._rate = rate
        self._sent: list[float] = []
        self._outcomes: list[list[tuple[float, bool, Status]]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="load")
        self._thread.start()

    def _ask(self) -> None:
        chance = random.Random(1)
        due = time.monotonic()
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            due += 1 / self._rate
            number = len(self._sent)
            model = chance.choices(range(len(self.weights)), self.weights)[0]
            self._outcomes.append([])
            self._sent.append(time.monotonic())
            try:
                self.engine.submit_raw(f"m{model}", None, on_done=self._done, tag=number)
            except SymphonyError as error:
                self._note(number, False, error.status or Status.UNAVAILABLE)

    def _done(self, request: Request, outcome: Outcome) -> None:
        good = outcome.status is Status.OK and outcome.at <= request.deadline
        self._note(request.tag, good, outcome.status)

    def _note(self, number: int, good: bool, status: Status) -> None:
        self._outcomes[number].append((time.monotonic(), good, status))

    @property
    def sent(self) -> int:
        return len(self._sent)

    def good_since(self, since: int) -> int:
        return sum(bool(outcomes) and outcomes[0][1] for outcomes in self._outcomes[since:])

    def bad(self, first: int, last: int) -> str:
        """What became of requests ``first`` to ``last``, for people."""
        some = [outcomes[0] for outcomes in self._outcomes[first:last] if outcomes]
        bad = sum(not good for _, good, _ in some)
        kinds = Counter(status.name if not good else "good" for _, good, status in some)
        return f"{bad / max(1, len(some)):.2%} bad of {len(some)}: {dict(kinds)}"

    def served_again(self, since: int) -> str:
        """How long after request ``since`` somebody, and how long after it everybody was served."""
        moments = [o[0][0] for o in self._outcomes[since:] if o and o[0][1]]
        refused = [
            sent
            for sent, outcome in zip(self._sent[since:], self._outcomes[since:], strict=False)
            if outcome and outcome[0][2] not in (Status.OK, Status.DROPPED)
        ]
        last = max(refused, default=self._sent[since]) - self._sent[since]
        first = min(moments) - self._sent[since]
        return f"first good answer after {first:.3f} s, nothing refused any more after {last:.3f} s"

    def refused(self, last: int) -> bool:
        """Whether one of the ``last`` answered requests found nobody to serve it."""
        recent = [outcome[0][2] for outcome in self._outcomes[-last:] if outcome]
        return any(status not in (Status.OK, Status.DROPPED) for status in recent)

    def finish(self) -> None:
        """Stop, and see that every request has exactly one outcome."""
        self._stop.set()
        self._thread.join()
        bound = (SLO_MS + GRACE_MS) / 1e3 + 10
        wait_until(lambda: all(self._outcomes), bound, "every request to have an outcome")
        assert Counter(map(len, self._outcomes)) == {1: len(self._sent)}
        assert not [
            number for number, ((_, _, status),) in enumerate(self._outcomes) if status is Status.TIMEOUT
        ]

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self.engine.close()


def _snapshot(running: Cluster) -> Snapshot:
    def found() -> Snapshot | None:
        try:
            return fetch_snapshot(running.registry, 1)
        except Unavailable:
            return None

    snapshot = wait_until(found, 30, "the broker's answer")
    assert snapshot is not None
    return snapshot


def _plan(running: Cluster) -> ClusterPlan | None:
    return _snapshot(running).plan


def _share(plan: ClusterPlan, weights: list[float]) -> dict[str, float]:
    """Each shard's part of the load by the plan's routes."""
    total, share = sum(weights), dict.fromkeys((f"shard-{i}" for i in range(SHARDS)), 0.0)
    for i, weight in enumerate(weights):
        for shard, part in plan.routes.get(f"m{i}", {}).items():
            share[shard] += part * weight / total
    return share


def _gpus(plan: ClusterPlan) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for group in plan.groups:
        counts[group.shard] += len(list(of_ranges(group.gpus)))
    return dict(counts)


@contextlib.contextmanager
def _loaded(
    folder: Path, weights: list[float], rate: float = 150, config: str | None = None
) -> Iterator[tuple[Cluster, Load]]:
    with cluster(folder, config or _config()) as running:
        load = Load(running, weights, rate)
        try:
            yield running, load
        finally:
            load.close()


def _settled(running: Cluster, epoch: int) -> bool:
    """Whether a plan of at least that epoch is in force with every GPU in use."""
    plan = _plan(running)
    return plan is not None and plan.stamp.epoch >= epoch and all(group.active for group in plan.groups)


def test_routes_follow_a_load_that_moves(tmp_path: Path) -> None:
    """To the half of the models that two shards serve, whose GPUs cannot carry it."""
    first = [1.0] * MODELS
    with _loaded(tmp_path, first, rate=220) as (running, load):
        wait_until(lambda: _settled(running, 2), 60, "a first plan of the allocator")
        start = load.sent
        wait_until(lambda: load.sent > start + 300, 30, "load under the first plan")
        before = _plan(running)
        assert before is not None
        moved = load.sent
        crowded = {"shard-0", "shard-1"}
        second = [1.0 if crowded & before.routes[f"m{i}"].keys() else 0.02 for i in range(MODELS)]
        load.weights = second
        changed = load.engine.clock.now()
        assert max(_share(before, second).values()) > 0.45

        def followed() -> bool:
            plan = _plan(running)
            return plan is not None and max(_share(plan, second).values()) < 1.4 / SHARDS

        wait_until(followed, FOLLOW_S, "every shard to have about its share of the load")
        took = (load.engine.clock.now() - changed) / S
        calm = load.sent
        wait_until(lambda: load.sent > calm + 300, 30, "load under the new plan")
        plan = _plan(running)
        assert plan is not None
        load.finish()
        print(f"\nfollowed in {took:.1f} s ({took / EPOCH_S:.2f} epochs of {EPOCH_S} s)")
        print(f"before: {load.bad(start, moved)}\nduring: {load.bad(moved, calm)}")
        print(f"after: {load.bad(calm, load.sent)}")
        share, gpus = _share(plan, second), _gpus(plan)
        print(f"load by shard {share}, GPUs {gpus}; before {_share(before, second)}, {_gpus(before)}")
        assert plan.stamp.epoch > before.stamp.epoch
        assert sum(gpus.values()) == GPUS
        for shard, part in share.items():
            assert gpus.get(shard, 0) >= part * GPUS / 3, f"{shard} has {part:.0%} of the load"
        assert load.engine.faults.counts["duplicate-answer"] == 0


def test_gpus_follow_a_load_that_moves_to_other_models(tmp_path: Path) -> None:
    """All of the load goes from one half of the models to the other, which other shards hold at first."""
    gpus, half = 12, MODELS // 2
    first = [1.0] * half + [0.02] * half
    with _loaded(tmp_path, first, rate=130, config=_tight(gpus)) as (running, load):

        def fits(weights: list[float]) -> bool:
            """Whether every shard has the GPUs that its part of the load keeps busy, all of them in use."""
            plan = _plan(running)
            if plan is None or not all(group.active for group in plan.groups):
                return False
            counts = _gpus(plan)
            return all(part * WORK <= counts.get(shard, 0) for shard, part in _share(plan, weights).items())

        def held() -> dict[str, int]:
            return dict(
                sorted(
                    _gpus(
                        _snapshot(running).plan or ClusterPlan(stamp=PlanStamp(epoch=1, leader="shard-0"))
                    ).items()
                )
            )

        wait_until(lambda: fits(first), 90, "GPUs where the load is")
        start = load.sent
        wait_until(lambda: load.sent > start + 300, 30, "load under the first plan")
        before = held()
        moved = load.sent
        second = load.weights = first[::-1]
        changed = load.engine.clock.now()
        wait_until(lambda: fits(second), FOLLOW_S, "GPUs where the load is now")
        took = (load.engine.clock.now() - changed) / S
        calm = load.sent
        wait_until(lambda: load.sent > calm + 400, 30, "load under the new plan")
        after = held()
        load.finish()
        print(f"\nGPUs {before} -> {after} in {took:.1f} s ({took / EPOCH_S:.2f} epochs of {EPOCH_S} s)")
        print(f"before: {load.bad(start, moved)}\nduring: {load.bad(moved, calm)}")
        print(f"after: {load.bad(calm, load.sent)}")
        assert sum(after.values()) == gpus
        assert load.engine.faults.counts["duplicate-answer"] == 0


@pytest.mark.parametrize(
    ("role", "name", "shards"),
    [("scheduler", "shard-0", SHARDS), ("scheduler", "shard-2", SHARDS), ("broker", "", SHARDS)],
    ids=["leader", "shard", "broker"],
)
def test_a_process_killed_in_mid_load(tmp_path: Path, role: str, name: str, shards: int) -> None:
    with _loaded(tmp_path, [1.0] * MODELS) as (running, load):
        wait_until(lambda: _settled(running, 1), 60, "a plan")
        wait_until(lambda: load.good_since(0) > 150, 30, "the first answers")
        epoch = _plan(running)
        assert epoch is not None
        here = load.sent
        running.kill(role, name)
        wait_until(lambda: load.good_since(here) > 200, 60, "good answers again")
        wait_until(lambda: not load.refused(300), 60, "every model to be served again")
        if role == "broker":
            wait_until(lambda: _plan(running) is not None, 30, "the plan to be known to the new broker")
        elif name == "shard-0":
            wait_until(
                lambda: (plan := _plan(running)) is not None and plan.stamp.newer_than(epoch.stamp),
                60,
                "a leader's plan",
            )
        load.finish()
        print(f"\n{role} {name}: {load.served_again(here)}; {load.bad(here, load.sent)}")
        assert load.engine.faults.counts["duplicate-answer"] == 0


def test_a_tenth_of_the_workers_killed_in_mid_load(tmp_path: Path) -> None:
    workers = 8
    with _loaded(tmp_path, [1.0] * MODELS, config=_config(workers=workers)) as (running, load):
        wait_until(lambda: _settled(running, 1), 60, "a plan")
        wait_until(lambda: load.good_since(0) > 150, 30, "the first answers")
        here = load.sent
        running.kill("worker", "worker-5")
        wait_until(lambda: load.good_since(here) > 200, 60, "good answers again")

        def back() -> bool:
            members = _snapshot(running).members
            return sum(len(member.gpus) for member in members) == GPUS and _settled(running, 1)

        wait_until(back, 60, "its GPUs to be back")
        load.finish()
        print(f"\nworker-5: {load.served_again(here)}; {load.bad(here, load.sent)}")
