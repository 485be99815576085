"""A GPU leaves a shard and comes to it by the cluster's plan, with the batch that is out on it intact."""

from __future__ import annotations

from cluster_parts import Node
from shard_parts import World, spec, world

from symphony.control import Member
from symphony.messages import of_ranges
from symphony.plans import ClusterPlan, Group, PlanStamp, Propose


class Leader:
    """A second scheduler, which only plans."""

    def __init__(self, w: World) -> None:
        self.w = w
        self.node: Node = w.nodes.add("shard-9", "scheduler", state="ready", shard="shard-9")
        w.until(lambda: "shard-0" in self.node.membership.members)
        self.revision = 0

    def plan(self, *groups: Group) -> None:
        base = None if self.node.membership.plan is None else self.node.membership.plan.stamp
        stamp = PlanStamp(epoch=1, leader="shard-9", revision=self.revision)
        self.revision += 1
        me = self.node.membership.me
        plan = ClusterPlan(stamp=stamp, groups=list(groups))
        assert self.node.membership.propose(
            Propose(id=me.id, incarnation=me.incarnation, plan=plan, base=base)
        )
        self.w.until(lambda: self.record.adopted == stamp, what=f"{stamp} to be adopted")

    @property
    def record(self) -> Member:
        return self.node.membership.members["shard-0"]

    def owns(self) -> list[int]:
        return list(of_ranges(self.record.owns))


def test_a_gpu_that_leaves_finishes_what_it_has_and_gets_no_more() -> None:
    with world() as w:
        worker = w.worker("worker", [spec("m", max_batch=1)], gpus=2)
        front = w.frontend()
        leader = Leader(w)
        leader.plan(Group(shard="shard-0", gpus=[0, 1], models=["m"]))
        w.until(lambda: leader.owns() == [0, 1])
        keys = front.submit(w.shard, [w.number("m")] * 2)
        w.until(lambda: len(worker.keys) == 2)
        leader.plan(Group(shard="shard-0", gpus=[0, 0], models=["m"]))
        assert leader.owns() == [0, 1], "a batch is still out on GPU 1"
        by_gpu = {gpu: batch for batch, gpu in worker.batches}
        worker.complete((by_gpu[0], 0))
        later = front.submit(w.shard, [w.number("m")])
        w.until(lambda: len(worker.keys) == 3)
        assert worker.batches[-1][1] == 0
        worker.complete((by_gpu[1], 1))
        w.until(lambda: leader.owns() == [0])
        leader.plan(Group(shard="shard-0", gpus=[0, 1], models=["m"]))
        w.until(lambda: leader.owns() == [0, 1])
        assert worker.keys == keys + later
        assert front.told == {}


def test_a_shard_serves_gpus_of_a_worker_that_names_another() -> None:
    with world() as w:
        worker = w.worker("worker", [spec("m"), spec("n")], gpus=2, shard="shard-5")
        front = w.frontend()
        leader = Leader(w)
        w.until(lambda: len(worker.gpus) == 2)
        assert leader.record.models == []
        leader.plan(
            Group(shard="shard-5", gpus=[0, 0], models=["m"]),
            Group(shard="shard-0", gpus=[1, 1], models=["n"]),
        )
        w.until(lambda: leader.owns() == [1])
        assert leader.record.models == ["n"]
        keys = front.submit(w.shard, [w.number("n")])
        w.until(lambda: worker.keys == keys)
        assert worker.batches[0][1] == 1


def test_models_that_no_gpu_holds_any_more_leave_a_hole_in_the_table() -> None:
    with world() as w:
        w.worker("worker", [spec("a"), spec("b")], gpus=1)
        leader = Leader(w)
        leader.plan(Group(shard="shard-0", gpus=[0, 0], models=["a", "b"]))
        w.until(lambda: leader.record.models == ["a", "b"])
        leader.plan(Group(shard="shard-0", gpus=[0, 0], models=["b"]))
        w.until(lambda: leader.record.models == ["", "b"])
        leader.plan(Group(shard="shard-0", gpus=[0, 0], models=["a", "b"]))
        w.until(lambda: leader.record.models == ["a", "b"])
