"""What a live cluster says of things that are wrong, and that it keeps serving meanwhile."""

from __future__ import annotations

from pathlib import Path

import msgpack
import psutil
import pytest
import zmq
from caller import Caller
from commands import end, start
from helpers import Cluster, cluster, wait_until

from symphony import control
from symphony.bus import Bus, send
from symphony.plans import ClusterPlan, Declined, PlanStamp, Propose
from symphony.snapshot import fetch_snapshot
from symphony.status import Status

pytestmark = [pytest.mark.live, pytest.mark.timeout(180)]

NET = "{name: net, slo_ms: 500, max_batch: 2, loader: emulated, profile: {alpha_ms: 10, beta_ms: 20}}"
SCALED = """
broker: {{heartbeat_ms: 100, lease_ms: 1500}}
scheduler: {{policy: eager}}
autoscale: {{actuator: command, command: [sh, {script}], command_timeout_s: 1.5, min: 1, max: 3, startup_s: 1,
            window_s: 4, fast_s: 2, cooldown_up_s: 1, cooldown_down_s: 4, patience_s: 2}}
models: [{net}]
workers: [{{device: emulated, gpus: 1}}]
"""
SCRIPT = """
cd {folder}
echo x >> asked
case $(wc -l < asked) in
  1) echo $$ > hung; sleep 600 & echo $! >> hung; wait;;
  2) echo 'no quota' >&2; exit 3;;
  *) exit 0;;
esac
"""
SHARDED = """
broker: {heartbeat_ms: 100, lease_ms: 1500}
scheduler: {policy: eager, shards: 2}
epoch: {seconds: 10, window_s: 2, least_s: 1, settle_s: 0.5}
models:
  - {name: net, slo_ms: 500, max_batch: 8, loader: emulated, profile: {alpha_ms: 5, beta_ms: 20}}
workers:
  - {device: emulated, gpus: 2, shard: shard-0, models: [net]}
  - {device: emulated, gpus: 2, shard: shard-1, models: [net]}
"""


def test_an_actuator_that_hangs_then_fails_then_lies(tmp_path: Path) -> None:
    script = tmp_path / "actuator.sh"
    script.write_text(SCRIPT.format(folder=tmp_path))
    with (
        cluster(tmp_path, SCALED.format(script=script, net=NET)) as running,
        Caller(running.registry, running.subscribe, "net", rate=110) as caller,
    ):
        running.wait_for("code timeout, why no answer within")
        hung = [int(line) for line in (tmp_path / "hung").read_text().split()]
        assert len(hung) == 2
        wait_until(lambda: not any(map(psutil.pid_exists, hung)), 10, "what hung to be gone")
        running.wait_for("code failed, why exit code 3: no quota")
        running.wait_for("code accepted")
        running.wait_for("did not come within", count=3)
        here = caller.sent
        caller.wait_for(Status.OK, 60, here)
        assert set(caller.finish()) <= {Status.OK, Status.DROPPED, Status.OVERLOADED}
        assert running.stop() == 0


def _propose(running: Cluster, stamp: PlanStamp, base: PlanStamp | None) -> control.ControlMessage:
    """What the broker answers to a plan in the name of that leader."""
    members = {member.id: member for member in fetch_snapshot(running.registry, 10).members}
    proposal = Propose(
        id=stamp.leader,
        incarnation=members[stamp.leader].incarnation,
        plan=ClusterPlan(stamp=stamp),
        base=base,
    )
    with Bus() as bus:
        sock = bus.connect(zmq.DEALER, running.registry)
        assert send(sock, control.encode_control(proposal))
        assert sock.poll(10_000)
        return control.decode_control(sock.recv_multipart()[0])


def test_older_plans_a_strangers_statistics_and_a_second_worker_of_the_same_id(tmp_path: Path) -> None:
    with (
        cluster(tmp_path, SHARDED) as running,
        Caller(running.registry, running.subscribe, "net", rate=60) as caller,
    ):

        def planned() -> PlanStamp | None:
            plan = fetch_snapshot(running.registry, 10).plan
            return plan.stamp if plan is not None and plan.stamp.epoch >= 2 else None

        have = wait_until(planned, 60, "a plan of the allocator")
        assert have is not None
        for leader in ("shard-0", "shard-1"):
            answer = _propose(running, PlanStamp(epoch=1, leader=leader, revision=99), have)
            assert isinstance(answer, Declined)
            assert "is older than what is in force" in answer.reason
        answer = _propose(running, PlanStamp(epoch=have.epoch + 50, leader="shard-1"), None)
        assert isinstance(answer, Declined)
        assert "is in force" in answer.reason

        with Bus() as bus:
            stranger = bus.connect(zmq.PUB, running.publish)
            body = msgpack.packb(
                {"at": 1, "models": {"net": {"offered": 1, "queued": 0}}, "busy_share": 1, "gpus": 1}
            )

            def refused() -> bool:
                send(stranger, [b"stats.stranger", body])
                return "stats-of-a-stranger" in running.log

            wait_until(refused, 30, "the leader to say whose statistics it does not take")

        links = (
            "--registry",
            running.registry,
            "--publish",
            running.publish,
            "--subscribe",
            running.subscribe,
        )
        again = start("worker", "--config", str(running.file), "--id", "worker-0", "--gpus", "2", *links)
        try:
            wait_until(lambda: again.poll() is not None, 30, "the second worker-0 to be refused")
            assert again.returncode == 1
        finally:
            _, told = end(again)
        assert "'worker-0' is already the id of a worker that is alive" in told
        assert "give this one another id or stop the other" in told
        assert "two processes with the same id" in running.log

        here = caller.sent
        caller.wait_for(Status.OK, 60, here)
        assert caller.finish().keys() == {Status.OK}
        workers = [m for m in fetch_snapshot(running.registry, 10).members if m.role == "worker"]
        assert sorted(m.id for m in workers) == ["worker-0", "worker-1"]
        assert running.stop() == 0
