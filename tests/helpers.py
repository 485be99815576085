"""What tests of several packages share."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import psutil

T = TypeVar("T")

_PAUSE = threading.Event()


def wait_until(condition: Callable[[], T], timeout: float = 10.0, what: str = "the condition") -> T:
    """Poll ``condition`` until it is true and return its value; fail after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(f"{what} did not come true within {timeout:g} s (last value: {value!r})")
        _PAUSE.wait(0.005)


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that were free a moment ago, all different."""
    held = [socket.socket() for _ in range(count)]
    try:
        for sock in held:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in held]
    finally:
        for sock in held:
            sock.close()


class Cluster:
    """A ``symphony up`` that a test started; see :func:`cluster`.

    Attributes:
        registry, publish, subscribe: the broker's endpoints.
        process: the supervising process.
        log: all that it and its children have printed.
    """

    def __init__(self, folder: Path, config: str, environment: dict[str, str] | None = None) -> None:
        ports = free_ports(3)
        self.registry, self.publish, self.subscribe = (f"tcp://127.0.0.1:{port}" for port in ports)
        self.file = folder / "cluster.yaml"
        self.file.write_text(config)
        self._log = folder / "cluster.log"
        keys = ("REGISTRY", "PUBLISH", "SUBSCRIBE")
        self.environment = dict(os.environ) | (environment or {})
        self.environment |= {
            f"SYMPHONY_BROKER_{key}_PORT": str(p) for key, p in zip(keys, ports, strict=True)
        }
        with self._log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "symphony", "up", "--config", str(self.file)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self.environment,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def wait_for(self, text: str, timeout: float = 60.0, count: int = 1) -> None:
        """Until ``text`` has been printed ``count`` times; fails with the log if the cluster ends before."""

        def printed() -> bool:
            if self.log.count(text) >= count:
                return True
            assert self.process.poll() is None, f"the cluster ended:\n{self.log}"
            return False

        try:
            wait_until(printed, timeout, repr(text))
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log}") from None

    def wait_ready(self, timeout: float = 60.0) -> None:
        """Until every process is ready."""
        self.wait_for("\nready after", timeout)

    def pid(self, role: str, name: str = "") -> int:
        """The process of ``role`` (broker, scheduler, worker) whose command line holds ``name``."""
        for child in psutil.Process(self.process.pid).children():
            argv = child.cmdline()
            if role in argv and (not name or name in argv):
                return child.pid
        raise AssertionError(f"no {role} {name} runs:\n{self.log}")

    def kill(self, role: str, name: str = "") -> None:
        """SIGKILL to one process."""
        os.kill(self.pid(role, name), signal.SIGKILL)

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout: float = 30.0) -> int:
        """Stop in order; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(timeout)
        finally:
            self.process.kill()
            self.process.wait()


@contextmanager
def cluster(
    folder: Path, config: str, environment: dict[str, str] | None = None, ready: bool = True
) -> Iterator[Cluster]:
    """A whole cluster of real processes on free ports; stopped, in order if possible, at the end."""
    running = Cluster(folder, config, environment)
    try:
        if ready:
            running.wait_ready()
        yield running
    finally:
        running.stop()
