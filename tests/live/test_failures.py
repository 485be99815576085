"""Real processes, killed in mid-load: every request has one outcome, and the cluster comes back."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from caller import Caller
from commands import ROOT, broker_process, end, run, start
from helpers import Cluster, cluster, free_ports, wait_until

from symphony.control import Member
from symphony.membership import fetch_snapshot
from symphony.status import Status

pytestmark = [pytest.mark.live, pytest.mark.timeout(180)]

MODEL = "{name: net, slo_ms: 2000, max_batch: 16, loader: emulated, profile: {alpha_ms: 1, beta_ms: 30}}"
QUICK = "broker: {heartbeat_ms: 100, lease_ms: 1000}"


def _config(workers: int, policy: str = "timeout:40") -> str:
    lines = [QUICK, f'scheduler: {{policy: "{policy}"}}', f"models: [{MODEL}]", "workers:"]
    return "\n".join(lines + ["  - {device: emulated, gpus: 2, models: [net]}"] * workers)


@contextlib.contextmanager
def _loaded(folder: Path, config: str, **options: Any) -> Iterator[tuple[Cluster, Caller]]:
    """A cluster with a caller that has had its first answers."""
    with contextlib.ExitStack() as stack:
        running = stack.enter_context(cluster(folder, config))
        caller = stack.enter_context(Caller(running.registry, running.subscribe, "net", **options))
        caller.wait_for(Status.OK, 20)
        yield running, caller


def _members(registry: str) -> dict[str, Member]:
    return {member.id: member for member in fetch_snapshot(registry, 10).members}


def _shard(registry: str) -> dict[str, Any]:
    return _members(registry)["shard-0"].stats


@pytest.mark.parametrize("policy", ["timeout:40", "deferred"])
def test_a_worker_killed_in_mid_load(tmp_path: Path, policy: str) -> None:
    with _loaded(tmp_path, _config(2, policy)) as (running, caller):
        running.kill("worker", "worker-0")
        here = caller.sent
        running.wait_for("worker-0   started again")
        wait_until(lambda: _shard(running.registry).get("gpus") == 4, 30, "its GPUs to take part again")
        caller.wait_for(Status.OK, 30, here)
        ended = caller.finish()
        # The other worker takes over, and what was out is sent again if there is time for it.
        assert set(ended) <= {Status.OK, Status.UNAVAILABLE, Status.DROPPED}
        if policy != "deferred":
            assert ended[Status.OK] == caller.sent
        assert caller.engine.faults.counts["duplicate-answer"] <= 32, "at most what ran on two GPUs"


def test_the_only_worker_killed_in_mid_load(tmp_path: Path) -> None:
    with _loaded(tmp_path, _config(1)) as (running, caller):
        running.kill("worker", "worker-0")
        caller.wait_for(Status.UNAVAILABLE)
        here = caller.sent
        running.wait_for("worker-0   started again")
        caller.wait_for(Status.OK, 20, here)
        ended = caller.finish()
        assert set(ended) == {Status.OK, Status.UNAVAILABLE}


def test_the_shard_killed_in_mid_load(tmp_path: Path) -> None:
    with _loaded(tmp_path, _config(1)) as (running, caller):
        running.kill("scheduler", "shard-0")
        here = caller.sent
        caller.wait_for(Status.UNAVAILABLE)
        running.wait_for("shard-0    started again")
        caller.wait_for(Status.OK, 30, here)
        ended = caller.finish()
        assert set(ended) <= {Status.OK, Status.UNAVAILABLE, Status.TIMEOUT}
        wait_until(lambda: _shard(running.registry).get("gpus") == 2, 30)


def test_the_broker_killed_in_mid_load(tmp_path: Path) -> None:
    with _parts(tmp_path, _config(1)) as (ports, file):
        registry, _, subscribe = (f"tcp://127.0.0.1:{port}" for port in ports)
        with contextlib.ExitStack() as first:
            broker = first.enter_context(broker_process(ports, "--fresh", "--config", file))
            roles = first.enter_context(_roles(file, ports))
            with Caller(registry, subscribe, "net") as caller:
                caller.wait_for(Status.OK, 20)
                before = _members(registry)
                broker.send_signal(signal.SIGKILL)
                broker.wait(10)
                here = caller.sent
                wait_until(lambda: caller.sent > here + 150, 30, "two and a half seconds without a broker")
                with broker_process(ports, "--config", file):
                    wait_until(lambda: set(_members(registry)) == set(before), 30, "everybody to be back")
                    after = _members(registry)
                    assert {m.id: (m.incarnation, m.slot, m.gpus) for m in after.values()} == {
                        m.id: (m.incarnation, m.slot, m.gpus) for m in before.values()
                    }
                    here = caller.sent
                    wait_until(lambda: caller.sent > here + 90, 30, "a lease to pass")
                    with Caller(registry, subscribe, "net") as newcomer:
                        newcomer.wait_for(Status.OK, 10)
                        assert set(newcomer.finish()) == {Status.OK}
                    assert set(caller.finish()) == {Status.OK}
                    assert all(role.poll() is None for role in roles)
                    assert [_stop(role) for role in roles] == [0, 0]


@contextlib.contextmanager
def _parts(folder: Path, config: str) -> Iterator[tuple[list[int], str]]:
    file = folder / "cluster.yaml"
    file.write_text(config)
    yield free_ports(3), str(file)


@contextlib.contextmanager
def _roles(file: str, ports: list[int]) -> Iterator[list[subprocess.Popen[str]]]:
    """A shard and a worker, each started alone."""
    names = ("REGISTRY", "PUBLISH", "SUBSCRIBE")
    where = {f"SYMPHONY_{name}": f"tcp://127.0.0.1:{port}" for name, port in zip(names, ports, strict=True)}
    roles: list[subprocess.Popen[str]] = []
    try:
        roles.append(start("scheduler", "--config", file, "--id", "shard-0", **where))
        roles.append(start("worker", "--config", file, "--id", "worker-0", **where))
        yield roles
    finally:
        for role in roles:
            end(role)


def _stop(process: subprocess.Popen[str]) -> int:
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    return process.returncode


CLIENT_THAT_DIES = """
import os, signal, sys
sys.path.insert(0, "tests")
from helpers import wait_until
from symphony.client import Client
client = Client(sys.argv[1], sys.argv[2], connect_timeout_s=30)
client.infer("net", deadline_ms=20_000)
for _ in range(200):
    client.submit("net", deadline_ms=20_000)
wait_until(lambda: client.engine.in_flight >= 150, 30, "150 requests in flight")
print("submitted", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_client_that_goes_away_with_requests_in_flight(tmp_path: Path) -> None:
    with _loaded(tmp_path, _config(1)) as (running, caller):
        died = subprocess.run(
            [sys.executable, "-c", CLIENT_THAT_DIES, running.registry, running.subscribe],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert died.returncode == -signal.SIGKILL, died.stderr
        assert "submitted" in died.stdout
        caller.wait_for(Status.OK, 60, caller.sent)
        assert set(caller.finish()) == {Status.OK}
        fronts = [m for m in _members(running.registry).values() if m.role == "frontend"]
        wait_until(
            lambda: len([m for m in _members(running.registry).values() if m.role == "frontend"]) == 1,
            20,
            f"the dead client to leave ({len(fronts)} were there)",
        )
        wait_until(lambda: _shard(running.registry)["models"]["net"]["queued"] == 0, 20)
        wait_until(lambda: _members(running.registry)["worker-0"].stats.get("outstanding") == 0, 20)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_a_loaded_cluster_answers_everybody_and_leaves_nothing(
    tmp_path: Path, number: signal.Signals
) -> None:
    with _loaded(tmp_path, _config(2)) as (running, caller):
        children = psutil.Process(running.process.pid).children(recursive=True)
        assert len(children) == 4
        assert running.stop(number) == 0
        assert not [child for child in children if child.is_running()]
        ended = caller.finish()
        assert set(ended) <= {Status.OK, Status.UNAVAILABLE, Status.TIMEOUT, Status.DROPPED}
        assert ended[Status.OK] >= 20
        assert "Traceback" not in running.log


def test_the_tools_against_a_live_cluster(tmp_path: Path) -> None:
    with cluster(tmp_path, _config(1)) as running:
        where = {"SYMPHONY_REGISTRY": running.registry, "SYMPHONY_SUBSCRIBE": running.subscribe}
        report = tmp_path / "report.json"
        code, out, err = run("load", "net=80", "--seconds", "2", "--json", "-", **where)
        assert code == 0, err
        load = json.loads(out)
        for part in (load["total"], load["models"]["net"]):
            assert part["offered"] > 100
            assert part["good"] + part["late"] == part["offered"]
            assert part["unanswered"] == part["failed"] == part["rejected"] == part["dropped"] == 0
            assert part["mean_batch"] >= 1
            assert part["p99_ms"] >= part["p50_ms"] > 30
            assert part["goodput_rps"] > 50
        code, out, err = run("load", "net=50", "--seconds", "1", "--json", str(report), **where)
        assert code == 0, err
        assert json.loads(report.read_text())["total"]["offered"] > 20

        # The load's own numbers are those of the shard.
        wait_until(lambda: _shard(running.registry)["models"]["net"]["offered"] >= load["total"]["offered"])
        code, out, err = run("status", "--json", **where)
        assert code == 0, err
        status = json.loads(out)
        assert status["members"]["worker-0"]["state"] == "ready"
        assert status["models"]["net"]["max_batch"] == 16
        assert status["shards"]["shard-0"]["models"]["net"]["dropped"] == 0
        code, out, err = run("status", **where)
        assert code == 0, err
        assert "shard-0" in out
        assert "net" in out

        code, out, err = run("telemetry", "--topic", "stats.", "--count", "2", "--seconds", "20", **where)
        assert code == 0, err
        lines = [json.loads(line) for line in out.splitlines()]
        assert [line["topic"] for line in lines] == ["stats.shard-0"] * 2
        assert lines[1]["seq"] == lines[0]["seq"] + 1
        assert lines[1]["body"]["at"] > lines[0]["body"]["at"]
        assert running.stop() == 0


def test_telemetry_of_a_load_has_every_batch(tmp_path: Path) -> None:
    with cluster(tmp_path, _config(1)) as running:
        where = {"SYMPHONY_REGISTRY": running.registry, "SYMPHONY_SUBSCRIBE": running.subscribe}
        with start("telemetry", "--topic", "done.", **where) as telemetry:
            try:
                assert telemetry.stdout is not None
                with Caller(running.registry, running.subscribe, "net") as caller:
                    seen: list[Any] = []
                    while not seen:
                        seen = json.loads(telemetry.stdout.readline())["body"]["batches"]
                    batch = seen[0]
                    assert batch["model"] == "net"
                    assert batch["received"] <= batch["started"] < batch["finished"]
                    assert batch["size"] >= 1
                    assert batch["failed"] == 0
                    caller.finish()
                telemetry.send_signal(signal.SIGINT)
                telemetry.communicate(timeout=20)
                assert telemetry.returncode == 0
            finally:
                end(telemetry)


def test_tools_without_a_cluster_say_what_is_missing() -> None:
    port = free_ports(1)[0]
    where = {"SYMPHONY_REGISTRY": f"tcp://127.0.0.1:{port}", "SYMPHONY_SUBSCRIBE": "tcp://127.0.0.1:1"}
    for arguments in (("load", "net=10", "--wait", "0.3"), ("status", "--timeout", "0.3")):
        code, out, err = run(*arguments, **where)
        assert code == 1
        assert str(port) in err
        assert "symphony up" in err
        assert "Traceback" not in err
        assert out == ""
