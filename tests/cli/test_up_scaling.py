"""The local actuator of ``symphony up``: decisions become workers that start, and workers that go."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from symphony.cli.up import Up
from symphony.cli.up_scaling import LocalScaling
from symphony.config import load_config
from symphony.control import GpuInfo, Member, ScaleDecision, encode_control
from symphony.membership import Published
from symphony.supervisor import ChildEvent, ChildSpec, GaveUp, Started


class Processes:
    """As much of a supervisor as the actuator uses."""

    def __init__(self) -> None:
        self.running = ["broker", "shard-0", "worker-0"]
        self.retired: list[str] = []

    def add(self, spec: ChildSpec, now: int) -> list[ChildEvent]:
        self.running.append(spec.name)
        assert spec.argv[spec.argv.index("--gpus") + 1] == "1"
        return [Started(spec.name, 1, True)]

    def retire(self, name: str) -> None:
        self.retired.append(name)


class World:
    """Decisions for shard-0 of the built-in cluster, whose worker has eight GPUs."""

    def __init__(self) -> None:
        self.processes, self.said = Processes(), list[str]()
        supervisor: Any = self.processes
        self.scaling = LocalScaling(load_config(None, {}), supervisor, self.said.append)
        self.members: dict[str, Member] = {}
        self.sequence = 0

    def join(self, name: str, *numbers: int) -> None:
        gpus = [GpuInfo(number=number, type="emulated") for number in numbers]
        self.members[name] = Member(id=name, role="worker", incarnation=1, gpus=gpus)

    def decide(self, kind: str, gpus: int, epoch: int = 1, leader: str = "shard-0", **more: Any) -> None:
        self.sequence += 1
        decision: Any = {"kind": kind, "requested": {"emulated": gpus}, "at": 0, "sequence": self.sequence}
        body = ScaleDecision(shard="shard-0", epoch=epoch, leader=leader, **decision, **more)
        self.take(encode_control(body))

    def take(self, body: bytes) -> None:
        self.scaling.take(Published("decision.shard-0", 1, self.sequence, body), self.members, 0)


def test_what_is_missing_is_started_and_what_is_drained_goes() -> None:
    world = World()
    world.join("worker-0", *range(8))
    world.decide("up", 10)
    assert world.processes.running[3:] == ["shard-0-more-1", "shard-0-more-2"]
    assert [event.name for event in world.scaling.events] == ["shard-0-more-1", "shard-0-more-2"]
    world.join("shard-0-more-1", 8)
    world.join("shard-0-more-2", 9)
    world.decide("down", 9, drain=[9])
    assert world.processes.retired == ["shard-0-more-2"]
    assert "0 GPUs starting, 1 draining" in world.said[-1]


def test_an_older_leader_and_what_is_no_decision_are_not_heard() -> None:
    world = World()
    world.join("worker-0", *range(8))
    world.decide("up", 9, epoch=4, leader="shard-0")
    for epoch, leader in ((3, "shard-0"), (4, "shard-1")):
        world.decide("up", 12, epoch=epoch, leader=leader)
        assert "refused: a decision of epoch" in world.said[-1]
    world.decide("hold", 20, epoch=5)
    world.take(b"\xc1")
    world.take(msgpack.packb({"type": "ping", "v": 1, "t": 1}))
    assert world.processes.running[3:] == ["shard-0-more-1"]


@pytest.mark.parametrize(("name", "fatal"), [("shard-0-more-1", False), ("worker-0", True), ("broker", True)])
def test_only_a_process_of_the_configuration_takes_the_cluster_with_it(name: str, fatal: bool) -> None:
    world = World()
    world.join("worker-0", *range(8))
    world.decide("up", 9)
    up = Up(load_config(None, {}), {})
    up._scaling = world.scaling
    gone = GaveUp(name, "exited with code 3", ("no memory left",))
    up._tell([gone])
    assert up._failure == (gone if fatal else None)
