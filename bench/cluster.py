"""A cluster of real processes for benchmarks, and what each of its processes costs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from symphony import local
from symphony.config import Config, load_config
from symphony.control import Member
from symphony.snapshot import fetch_snapshot
from symphony.status import Unavailable

START_S: Final = 60.0
QUIET: Final = 0.5
"""A machine whose load average per core is above this is busy with something else."""


@dataclass(frozen=True)
class Running:
    """A cluster that is up.

    Attributes:
        config: what it was made from; its ports were free ones.
        processes: role or id → process.
    """

    config: Config
    processes: dict[str, psutil.Process]

    def members(self) -> dict[str, Member]:
        """Who is there, by id."""
        return {member.id: member for member in fetch_snapshot(self.config.registry, 5).members}

    def shard_stats(self, shard: str = "shard-0") -> dict[str, Any]:
        """What the shard published last."""
        return self.members()[shard].stats

    def cpu_seconds(self) -> dict[str, float]:
        """Processor time of each process since its start; 0 for one that has gone."""
        return {name: _cpu_seconds(process) for name, process in self.processes.items()}


def _cpu_seconds(process: psutil.Process) -> float:
    try:
        return float(sum(process.cpu_times()[:2]))
    except psutil.NoSuchProcess:
        return 0.0


@contextmanager
def running(config: str, start_s: float = START_S) -> Iterator[Running]:
    """Start ``symphony up`` with this YAML on free ports; stop it at the end.

    Raises:
        RuntimeError: it is not ready within ``start_s``; the text ends with its log.
    """
    with tempfile.TemporaryDirectory(prefix="symphony-bench-") as folder:
        file = Path(folder) / "cluster.yaml"
        file.write_text(config)
        environment = dict(os.environ)
        for key, port in zip(("REGISTRY", "PUBLISH", "SUBSCRIBE"), _free_ports(3), strict=True):
            environment[f"SYMPHONY_BROKER_{key}_PORT"] = str(port)
        loaded = load_config(file, environment)
        log = Path(folder) / "log"
        with log.open("wb") as output:
            up = subprocess.Popen(
                [sys.executable, "-m", "symphony", "up", "--config", str(file)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        try:
            _wait_ready(loaded, up, log, start_s)
            yield Running(loaded, _children(up.pid))
        finally:
            up.terminate()
            try:
                up.wait(20)
            except subprocess.TimeoutExpired:
                up.kill()
                up.wait()


def machine() -> str:
    """One line on this machine and how busy it is with other things."""
    cores = os.cpu_count() or 1
    load = os.getloadavg()[0]
    state = "quiet" if load <= QUIET * cores else "BUSY with something else: figures are not the machine's"
    return f"{cores} cores, load average {load:.2f} before the start ({state})"


def _free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    try:
        for sock in held:
            sock.bind(("127.0.0.1", 0))
        return [int(sock.getsockname()[1]) for sock in held]
    finally:
        for sock in held:
            sock.close()


def _wait_ready(config: Config, up: subprocess.Popen[bytes], log: Path, start_s: float) -> None:
    deadline = time.monotonic() + start_s
    missing = ["the broker"]
    while missing:
        if up.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the cluster is not ready (missing {missing}):\n{log.read_text()}")
        time.sleep(0.1)
        try:
            snapshot = fetch_snapshot(config.registry, 0.5)
        except Unavailable:
            continue
        missing = local.waiting_for(config, {member.id: member for member in snapshot.members})


def _children(pid: int) -> dict[str, psutil.Process]:
    found = {}
    for child in psutil.Process(pid).children():
        argv = child.cmdline()
        found[argv[argv.index("--id") + 1] if "--id" in argv else "broker"] = child
    return found
