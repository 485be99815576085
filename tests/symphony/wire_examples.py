"""One message of every kind, as bytes or as an object, for the tests of the wire."""

from __future__ import annotations

from typing import Any

import numpy as np

from symphony import control, wire
from symphony.plans import Accepted, ClusterPlan, Declined, Group, PlanEvent, PlanStamp, Propose


def array(values: list[int], code: str) -> Any:
    return np.array(values, dtype=np.dtype(code))


KEYS = [7 << 48 | 41, 7 << 48 | 42]
EXAMPLES: dict[int, bytes] = {
    wire.SUBMIT: wire.encode_submit(
        wire.Submit(99, 7, array([0, 1], "<u4"), array([-5, 2**62], "<i8"), array(KEYS, "<u8"))
    ),
    wire.PLAN: wire.encode_plan(
        wire.Plan(
            "shard-0",
            ["a", "b"],
            array([9, 10], "<u8"),
            array([0, 3], "<u4"),
            array([1, 0], "<u4"),
            array([100, 200], "<i8"),
            array([2, 1], "<u4"),
            array([*KEYS, 1], "<u8"),
            array([500, 600, 700], "<i8"),
        )
    ),
    wire.FETCH: wire.encode_fetch(5, KEYS),
    wire.TENSORS: wire.encode_tensors(
        wire.Tensors(5, array(KEYS, "<u8"), ["x"], [["FP32", [3]], ["FP32", [4]]])
    ),
    wire.RESULT: wire.encode_result(
        wire.Result(
            "w",
            "a",
            9,
            3,
            4,
            100,
            150,
            array(KEYS, "<u8"),
            array([0, 6], "u1"),
            [["y", "FP32", [2]]],
            "boom",
        )
    ),
    wire.ANSWER: wire.encode_answer(
        wire.Answer("shard-0", array(KEYS, "<u8"), array([4, 3], "u1"), "queue full")
    ),
    wire.DONE: wire.encode_done(
        wire.Done(
            "w",
            12,
            ["a"],
            array([9], "<u8"),
            *(array([n], "<u4") for n in (3, 0, 4, 1)),
            *(array([n], "<i8") for n in (90, 95, 100, 150)),
        )
    ),
    wire.RESULTS: wire.encode_results(
        wire.Results(
            "w",
            ["a", "b"],
            array([9, 10], "<u8"),
            *(array(values, "<u4") for values in ([3, 4], [1, 0], [2, 5])),
            *(array(values, "<i8") for values in ([100, 110], [150, 160])),
            array([1, 2], "<u4"),
            array([*KEYS, 7 << 48], "<u8"),
            array([0, 0, 6], "u1"),
        )
    ),
}


MEMBER = control.Member(
    id="w", role="worker", incarnation=3, gpus=[control.GpuInfo(number=0, type="cpu")], stats={"a": 1}
)
MODEL = control.ModelSpec(name="m", slo_ms=10, max_batch=2, profiles={"cpu": [1, 2]})
PLAN_OF_CLUSTER = ClusterPlan(
    stamp=PlanStamp(epoch=3, leader="s", revision=1),
    groups=[Group(shard="s", gpus=[0, 3, 7, 7], models=["m"], active=False)],
    routes={"m": {"s": 0.25, "t": 1}},
)
CONTROLS: list[Any] = [
    control.Join(member=MEMBER, models=[MODEL], gpus_wanted=2, gpu_type="cpu"),
    control.Joined(member=MEMBER, broker=1, heartbeat_ms=500, lease_ms=2000, sequences={"member": 3}),
    control.Refused(reason="no", retry_ms=None),
    control.Heartbeat(id="w", incarnation=3, stats={"x": [1, {"y": None}]}),
    control.Beat(known=True, broker=1, sequences={}),
    control.Ping(t=5),
    control.Pong(t=5, now=2**62),
    control.Update(member=MEMBER),
    control.Leave(id="w", incarnation=3),
    control.Left(),
    control.AskSnapshot(),
    control.Snapshot(broker=1, sequences={"model": 1}, members=[MEMBER], models=[MODEL]),
    control.MemberEvent(event="death", member=MEMBER),
    control.ModelEvent(model=MODEL),
    control.ScaleDecision(
        epoch=3,
        leader="shard-0",
        shard="shard-1",
        sequence=2,
        at=5,
        kind="down",
        requested={"a": 3},
        drain=[7, 6],
        numbers={"need": 1.5},
    ),
    Propose(id="s", incarnation=3, plan=PLAN_OF_CLUSTER, base=None),
    Accepted(stamp=PLAN_OF_CLUSTER.stamp),
    Declined(reason="older", have=PLAN_OF_CLUSTER.stamp),
    PlanEvent(plan=PLAN_OF_CLUSTER),
]
