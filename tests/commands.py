"""Running the ``symphony`` command as a process of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from helpers import wait_until

from symphony.snapshot import fetch_snapshot
from symphony.status import Unavailable

ROOT = Path(__file__).parent.parent


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """``symphony ARGUMENTS`` with pipes for its output; variables on top of the test's environment."""
    return subprocess.Popen(
        [sys.executable, "-m", "symphony", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments: str, **environment: str) -> tuple[int, str, str]:
    """Run to the end: exit code, standard output, standard error."""
    with start(*arguments, **environment) as process:
        out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def end(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Kill what may still run, and collect its output."""
    process.kill()
    return process.communicate(timeout=10)


@contextlib.contextmanager
def broker_process(ports: list[int], *options: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A broker process that answers; killed at the end if it still runs."""
    names = ("--registry-port", "--publish-port", "--subscribe-port")
    given = [text for name, port in zip(names, ports, strict=True) for text in (name, str(port))]
    process = start("broker", *given, *options, **environment)
    try:
        wait_until(lambda: process.poll() is not None or answers(ports[0]), 30, "the broker to answer")
        assert process.poll() is None, end(process)
        yield process
    finally:
        end(process)


def answers(port: int) -> bool:
    """Whether a broker answers on the registry port."""
    try:
        fetch_snapshot(f"tcp://127.0.0.1:{port}", 0.2)
    except Unavailable:
        return False
    return True
