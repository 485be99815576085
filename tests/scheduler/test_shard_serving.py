"""The shard with real sockets: plans out, completions in, answers for what will have no result."""

from __future__ import annotations

import msgpack
import pytest
import zmq
from shard_parts import MS, FakeWorker, S, spec, world

from symphony.bus import Bus, drain, subscribe
from symphony.control import Member
from symphony.status import Status


def test_a_plan_arrives_at_the_right_worker_with_all_its_columns() -> None:
    with world() as w:
        left = w.worker("left", [spec("a", ms=2)])
        right = w.worker("right", [spec("b", ms=3)])
        front = w.frontend()
        before = w.shard.shard.clock.now()
        keys = front.submit(w.shard, [w.number("b")] * 3 + [w.number("a")] * 2)
        w.until(lambda: len(left.keys) == 2 and len(right.keys) == 3)
        plan = right.plans[0]
        assert plan.shard == "shard-0"
        assert plan.models == ["b"]
        assert plan.model.tolist() == [0]
        assert plan.gpu.tolist() == right.gpus
        assert plan.size.tolist() == [3]
        assert plan.key.tolist() == keys[:3]
        assert left.keys == keys[3:]
        assert left.plans[0].gpu.tolist() == left.gpus
        assert before < plan.exec_at[0] < before + 5 * S
        assert len(set(plan.deadline.tolist())) == 1
        assert before + 9 * S < plan.deadline[0] < before + 20 * S
        assert plan.batch.tolist() != left.plans[0].batch.tolist()
        assert front.told == {}


def test_batches_for_several_gpus_of_a_worker_travel_in_one_message() -> None:
    with world() as w:
        worker = w.worker("worker", [spec("a", max_batch=2), spec("b", max_batch=2)], gpus=4)
        front = w.frontend()
        a, b = w.number("a"), w.number("b")
        keys = front.submit(w.shard, [a, b, a, b, a, b])
        w.until(lambda: len(worker.keys) == 6)
        assert len(worker.plans) == 1
        plan = worker.plans[0]
        assert sorted(plan.gpu.tolist()) == worker.gpus[:4]
        assert sorted(plan.models) == ["a", "b"]
        assert sorted(plan.size.tolist()) == [1, 1, 2, 2]
        assert sorted(worker.keys) == keys
        at = 0
        for model, size in zip(plan.model.tolist(), plan.size.tolist(), strict=True):
            mine = plan.key[at : at + size].tolist()
            at += size
            assert set(mine) <= set(keys[0 if plan.models[model] == "a" else 1 :: 2])


def test_a_completion_frees_the_gpu_before_the_predicted_end() -> None:
    with world(policy="deferred", overdue_ns=0) as w:
        worker = w.worker("worker", [spec("m", max_batch=1, ms=4_000)])
        front = w.frontend()
        first = front.submit(w.shard, [0], due_ns=30 * S)
        w.until(lambda: worker.keys == first)
        second = front.submit(w.shard, [0], due_ns=30 * S)
        third = front.submit(w.shard, [0], due_ns=30 * S)
        w.nodes.pump_for(0.2)
        w.pump()
        assert worker.keys == first, "nothing more while the GPU is busy"
        worker.complete(worker.batches[0])
        w.until(lambda: worker.keys == first + second)
        worker.complete(worker.batches[1])
        w.until(lambda: worker.keys == first + second + third)
        assert len({batch for batch, _ in worker.batches}) == 3
        assert w.shard.shard.core.strange_completions == 0
        worker.complete(worker.batches[2])
        w.until(lambda: not w.shard.shard.fleet.out)


def test_the_lowest_numbered_idle_gpu_is_taken() -> None:
    with world() as w:
        worker = w.worker("worker", [spec("m", max_batch=1)], gpus=3)
        front = w.frontend()
        for turn in range(3):
            front.submit(w.shard, [0])
            w.until(lambda turn=turn: len(worker.plans) == turn + 1)  # type: ignore[misc]
            worker.complete(worker.batches[turn])
            w.until(lambda: not w.shard.shard.fleet.out)
        assert [gpu for _, gpu in worker.batches] == [min(worker.gpus)] * 3


def test_priorities_reach_the_core() -> None:
    with world(policy="deferred", overdue_ns=0) as w:
        worker = w.worker("worker", [spec("m", max_batch=1, ms=1_000)])
        front = w.frontend()
        busy = front.submit(w.shard, [0], due_ns=60 * S)
        w.until(lambda: worker.keys == busy)
        low, high = front.submit(w.shard, [0, 0], due_ns=60 * S, priority=[0, 3])
        w.until(lambda: sum(w.shard.shard.core.queued_by_model(1)) == 2)
        worker.complete(worker.batches[0])
        w.until(lambda: len(worker.keys) >= 2)
        worker.complete(worker.batches[1])
        w.until(lambda: len(worker.keys) == 3)
        assert worker.keys == [*busy, high, low]


def test_drops_are_answered_in_columns_to_each_frontend() -> None:
    with world() as w:
        w.worker("worker", [spec("m", ms=50)])
        one, two = w.frontend("one"), w.frontend("two")
        mine = one.submit(w.shard, [0] * 5, due_ns=10 * MS)
        yours = two.submit(w.shard, [0] * 3, due_ns=10 * MS)
        w.until(lambda: len(one.told) == 5 and len(two.told) == 3)
        assert one.told == dict.fromkeys(mine, Status.DROPPED)
        assert two.told == dict.fromkeys(yours, Status.DROPPED)
        assert [answer.source for answer in one.answers] == ["shard-0"]


def test_what_cannot_be_taken_is_refused_by_its_reason() -> None:
    with world(max_queue=2, policy="deferred") as w:
        w.worker("worker", [spec("m", max_batch=1, ms=4_000)])
        front = w.frontend()
        (served,) = front.submit(w.shard, [0], due_ns=60 * S)
        (unknown,) = front.submit(w.shard, [77])
        (far,) = front.submit(w.shard, [0], due_ns=24 * 3600 * S)
        (past,) = front.submit(w.shard, [0], due_ns=-S)
        w.until(lambda: len(front.told) == 3)
        assert front.told == {
            unknown: Status.UNKNOWN_MODEL,
            far: Status.INVALID,
            past: Status.DROPPED,
        }
        w.until(lambda: len(w.shard.shard.fleet.out) == 1)
        queued = front.submit(w.shard, [0, 0], due_ns=60 * S)
        full = front.submit(w.shard, [0, 0], due_ns=60 * S)
        w.until(lambda: len(front.told) == 5)
        assert [front.told[key] for key in full] == [Status.OVERLOADED] * 2
        assert not {served, *queued} & set(front.told)


def test_a_key_that_does_not_rise_is_no_second_request() -> None:
    with world() as w:
        worker = w.worker("worker", [spec("m")])
        front = w.frontend()
        keys = front.submit(w.shard, [0, 0])
        w.until(lambda: worker.keys == keys)
        front.submit(w.shard, [0, 0], keys=keys)
        later = front.submit(w.shard, [0])
        w.until(lambda: worker.keys == keys + later)
        assert front.told == {}
        assert w.shard.counts["duplicate-key"] == 2


def test_answers_wait_for_a_frontend_that_is_not_known_yet() -> None:
    with world() as w:
        w.worker("worker", [spec("m", ms=50)])
        front = w.frontend(slot=4_711, join=False)
        keys = front.submit(w.shard, [0, 0, 0], due_ns=MS)
        w.until(lambda: w.shard.shard.core.submitted == 3)
        assert front.told == {}
        front.join()
        w.until(lambda: front.told == dict.fromkeys(keys, Status.DROPPED))


def test_indexes_that_were_meant_for_a_predecessor_are_refused() -> None:
    with world() as w:
        worker = w.worker("worker", [spec("m")])
        front = w.frontend()
        keys = front.submit(w.shard, [0, 0], incarnation=123)
        w.until(lambda: len(front.told) == 2)
        assert front.told == dict.fromkeys(keys, Status.UNAVAILABLE)
        assert "restarted" in str(front.answers[0].detail)
        assert w.shard.counts["submit-for-another-incarnation"] == 1
        assert worker.keys == []


def test_the_members_are_told_of_the_models_that_it_serves() -> None:
    with world() as w:
        w.worker("worker", [spec("a"), spec("b")])
        other = FakeWorker(w.nodes, "foreign", [spec("c")], shard="shard-9")
        w.workers.append(other)
        front = w.frontend()
        assert front.node is not None
        members = front.node.membership.members
        w.until(lambda: "shard-0" in members and len(members["shard-0"].models) == 2)
        w.until(lambda: "foreign" in members)
        shard: Member = members["shard-0"]
        assert shard.role == "scheduler"
        assert shard.state == "ready"
        assert sorted(shard.models) == ["a", "b"]
        assert set(shard.endpoints) == {"submit", "done"}
        assert set(w.shard.shard.fleet.workers) == {"worker"}
        w.worker("more", [spec("d"), spec("a")])
        w.until(lambda: len(members["shard-0"].models) == 3)
        assert members["shard-0"].models[:2] == shard.models, "numbers never change"


def test_statistics_are_published_and_kept_on_the_record() -> None:
    with world() as w, Bus() as bus:
        worker = w.worker("worker", [spec("m", ms=1)], gpus=2)
        front = w.frontend()
        listener = bus.connect(zmq.SUB, w.broker.subscribe)
        subscribe(listener, ["stats."])
        front.submit(w.shard, [0, 0, 0])
        w.until(lambda: len(worker.keys) == 3)
        worker.complete(*worker.batches, size=3)
        dropped = front.submit(w.shard, [0], due_ns=MS // 10)
        w.until(lambda: list(front.told) == dropped)
        reports = []

        def counted() -> bool:
            reports.extend(msgpack.unpackb(frames[2]) for frames in drain(listener))
            return bool(reports) and reports[-1]["models"]["m"]["good"] == 3

        w.until(counted)
        report = reports[-1]
        model = report["models"]["m"]
        assert model.pop("batch_sizes") == [0, 0, 1]
        further = {"rate", "rate_cv", "oldest_wait_ms", "measured_over_profiled"}
        assert further <= set(model)
        assert {key: model[key] for key in model if key not in further} == {
            "offered": 4, "good": 3, "late": 0, "dropped": 1, "queued": 0, "batches": 1, "mean_batch": 3.0,
        }  # fmt: skip
        assert report["gpus"] == 2
        assert report["margin_us"] >= 300
        assert report["lateness_p99_us"] >= report["lateness_p50_us"] >= 0
        assert front.node is not None
        w.until(lambda: w.broker.members.members["shard-0"].stats.get("models", {}).get("m", {}).get("good"))


@pytest.mark.parametrize("policy", ["deferred", "latest", "target", "timeout:20"])
def test_a_batch_leaves_by_timer_however_narrow_its_window(policy: str) -> None:
    # The latency does not grow with the batch: the window is 20 µs wide, less than any timer's lateness,
    # and only the margin keeps the requests from being given up.
    with world(policy=policy, margin_ns=100 * MS) as w:
        worker = w.worker("worker", [spec("m", slo_ms=500, max_batch=64)])
        front = w.frontend()
        for turn in range(1, 6):
            keys = front.submit(w.shard, [0, 0], due_ns=500 * MS)
            w.until(lambda turn=turn: len(front.told) + len(worker.keys) == 2 * turn)  # type: ignore[misc]
            assert worker.keys[-2:] == keys
            assert (worker.plans[-1].exec_at + MS <= worker.plans[-1].deadline[-2:].min()).all()
            worker.complete(*worker.batches[-len(worker.plans[-1].batch) :])
        assert front.told == {}
