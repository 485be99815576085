"""Every test is watched for what it leaves behind: ZeroMQ contexts, sockets, threads, processes."""

from __future__ import annotations

import gc
import logging
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests import `helpers`, `leaks` …

import leaks

# How long an example or its drawing takes says something about the machine, not about the code.
hypothesis.settings.register_profile(
    "shared", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("shared")

SETTLE_S = 2.0
"""Threads and processes that were told to stop may need a moment to be gone."""


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """Fail a test that leaks contexts, sockets, threads or child processes, naming each."""
    before = leaks.snapshot()
    yield
    problems = leaks.left(*before)
    deadline = time.monotonic() + SETTLE_S
    while problems and time.monotonic() < deadline:
        gc.collect()
        threading.Event().wait(0.02)
        problems = leaks.left(*before)
    if problems:
        pytest.fail("the test left behind: " + "; ".join(problems), pytrace=False)


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """A command run inside a test sets logging up for its own standard error, which ends with it."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    for handler in [handler for handler in root.handlers if type(handler) is logging.StreamHandler]:
        if handler not in handlers:
            root.removeHandler(handler)
    root.setLevel(level)
