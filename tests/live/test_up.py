"""``symphony up`` with the real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from helpers import Cluster, cluster, wait_until

from symphony.snapshot import fetch_snapshot

pytestmark = pytest.mark.live

CONFIG = """
workers:
  - {device: emulated, gpus: 2, models: [resnet50]}
models: [resnet50-emulated]
"""


def _symphony(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "symphony", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        check=False,
    )


def _members(running: Cluster) -> dict[str, int]:
    return {member.id: member.pid for member in fetch_snapshot(running.registry, 10).members}


def test_it_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    with cluster(tmp_path, CONFIG) as running:
        snapshot = fetch_snapshot(running.registry, 10)
        members = {member.id: member for member in snapshot.members}
        assert {"shard-0", "worker-0"} < set(members)
        assert [gpu.number for gpu in members["worker-0"].gpus] == [0, 1]
        assert "resnet50" in members["shard-0"].models
        children = psutil.Process(running.process.pid).children(recursive=True)
        assert running.stop(signal.SIGINT) == 0
        assert running.log.rstrip().endswith("symphony up: stopped")
        assert not [child for child in children if child.is_running()]


def test_a_second_one_on_the_same_ports_is_refused(tmp_path: Path) -> None:
    with cluster(tmp_path, CONFIG) as running:
        second = _symphony("up", "--config", str(running.file), environment=running.environment)
        assert second.returncode == 1
        assert "is in use: a Symphony broker with" in second.stderr
        assert "Traceback" not in second.stderr
        assert running.process.poll() is None


@pytest.mark.parametrize(("role", "name"), [("worker", "worker-0"), ("scheduler", "shard-0")])
def test_a_killed_process_comes_back(tmp_path: Path, role: str, name: str) -> None:
    with cluster(tmp_path, CONFIG) as running:
        before = _members(running)[name]
        running.kill(role, name)
        running.wait_for(f"{name:<10} was killed by SIGKILL; starting it again")
        wait_until(lambda: _members(running).get(name, before) != before, 30)
        running.wait_for("\nready after", count=2)


def test_a_killed_broker_sees_everybody_again(tmp_path: Path) -> None:
    with cluster(tmp_path, CONFIG) as running:
        before = _members(running)
        running.kill("broker")
        running.wait_for("broker     started again")
        wait_until(lambda: _members(running) == before, 30)


def test_its_children_die_with_it(tmp_path: Path) -> None:
    with cluster(tmp_path, CONFIG) as running:
        children = psutil.Process(running.process.pid).children(recursive=True)
        assert len(children) == 3
        os.kill(running.process.pid, signal.SIGKILL)
        running.process.wait()
        wait_until(lambda: not any(c.is_running() and c.status() != psutil.STATUS_ZOMBIE for c in children))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("models: [./gone.yaml]\nworkers: [{device: emulated}]", "no model definition"),
        ("workers: [{device: emulated, models: [nothing]}]", "no model definition 'nothing'"),
        ("workers: [{device: emulated, gpu: 2}]", "workers.0.gpu: unknown key; did you mean gpus?"),
        ("broker: {registry_port: no}", "broker.registry_port: expected a valid integer"),
        ("a: [", "not YAML at line 1"),
        (
            "workers: [{device: emulated}]\n"
            "models: [{name: m, slo_ms: 5, max_batch: 2, loader: emulated, profile: {points: {1: 3, 2: 1}}}]",
            "falls from 3 ms at batch size 1 to 1 ms at batch size 2",
        ),
    ],
)
def test_a_bad_file_is_explained_before_anything_starts(tmp_path: Path, config: str, words: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(config)
    done = _symphony("up", "--config", str(file))
    assert done.returncode == 1
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_a_worker_that_cannot_start_ends_it_all_with_its_words(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text(
        "name: broken\nslo_ms: 10\nmax_batch: 2\nloader: no_such_module:load\n"
        "inputs: [{name: x, dtype: FP32, shape: [1]}]\noutputs: [{name: y, dtype: FP32, shape: [1]}]\n"
    )
    config = "workers: [{device: cpu}]\nmodels: [./broken.yaml]\n"
    with cluster(tmp_path, config, ready=False) as running:
        assert running.process.wait(60) == 1
        last = running.log.rstrip().split("\n")[-1]
        assert last.startswith("symphony: worker-0 exited with code 1")
        assert "no_such_module" in last
