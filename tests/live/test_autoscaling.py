"""The number of worker processes of `symphony up` follows the load, by decisions on the control channel."""

from __future__ import annotations

from pathlib import Path

import pytest
from caller import Caller
from helpers import cluster, wait_until

from symphony.snapshot import fetch_snapshot
from symphony.status import Status

pytestmark = [pytest.mark.live, pytest.mark.timeout(180)]

CONFIG = """
broker: {heartbeat_ms: 100, lease_ms: 1500}
scheduler: {policy: eager}
autoscale: {actuator: local, min: 1, max: 3, startup_s: 2, window_s: 4, fast_s: 2,
            cooldown_up_s: 2, cooldown_down_s: 4}
models: [{name: net, slo_ms: 500, max_batch: 2, loader: emulated, profile: {alpha_ms: 10, beta_ms: 20}}]
workers: [{device: emulated, gpus: 1}]
"""


def test_workers_come_with_the_load_and_go_with_it(tmp_path: Path) -> None:
    with cluster(tmp_path, CONFIG) as running:

        def gpus() -> int:
            members = fetch_snapshot(running.registry, 10).members
            return sum(len(m.gpus) for m in members if m.state == "ready")

        with Caller(running.registry, running.subscribe, "net", rate=110) as caller:
            wait_until(lambda: gpus() == 3, 60, "three GPUs")
            here = caller.sent
            caller.wait_for(Status.OK, 100, here)
            assert set(caller.finish()) <= {Status.OK, Status.DROPPED, Status.OVERLOADED}
        wait_until(lambda: gpus() == 1, 60, "one GPU")
        # Another leader's requests are new ones, although without epochs it knows nothing of the first's.
        running.kill("scheduler", "shard-0")
        running.wait_for("shard-0    started again")
        with Caller(running.registry, running.subscribe, "net", rate=110) as caller:
            wait_until(lambda: gpus() == 3, 60, "three GPUs again")
            caller.wait_for(Status.OK, 100, caller.sent)
        assert "asked before" not in running.log
        assert "up to {'emulated'" in running.log
        assert "down to {'emulated': 1}" in running.log
        assert running.stop() == 0
