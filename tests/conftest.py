"""Every test is watched for what it leaves behind: ZeroMQ contexts, sockets, threads, processes."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq
from zmq.utils.garbage import gc as zmq_garbage

sys.path.insert(0, str(Path(__file__).parent))  # tests import `helpers`

SETTLE_S = 2.0
"""Threads and processes that were told to stop may need a moment to be gone."""

_contexts: weakref.WeakSet[zmq.Context[Any]] = weakref.WeakSet()


_make_context = zmq.Context.__init__


def _make_tracked_context(self: zmq.Context[Any], *args: Any, **kwargs: Any) -> None:
    _make_context(self, *args, **kwargs)
    _contexts.add(self)


zmq.Context.__init__ = _make_tracked_context  # type: ignore[method-assign]

# pyzmq frees what was sent without a copy on a thread of its own, with a context of its own, that
# starts with the first such message and lasts as long as the process. It is no test's leak.
zmq_garbage.start()


def _open_contexts() -> set[int]:
    return {id(context) for context in list(_contexts) if not context.closed}


def _threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if not _harmless(thread)}


def _harmless(thread: threading.Thread) -> bool:
    # pytest-timeout's own timer; tqdm's and torch's helpers live as long as the process.
    return thread.name.startswith(("pytest_timeout", "tqdm")) or not thread.is_alive()


def _children() -> dict[int, str]:
    found = {}
    for child in psutil.Process().children(recursive=True):
        try:
            if child.status() != psutil.STATUS_ZOMBIE or child.ppid() == os.getpid():
                found[child.pid] = " ".join(child.cmdline())[:120] or child.name()
        except psutil.NoSuchProcess:
            continue
    return found


def _sockets() -> set[tuple[object, ...]]:
    connections = psutil.Process().net_connections(kind="inet")
    return {(c.fd, c.laddr, c.raddr) for c in connections if c.status != psutil.CONN_NONE}


def _left(
    contexts: set[int],
    threads: set[threading.Thread],
    children: dict[int, str],
    sockets: set[tuple[object, ...]],
) -> list[str]:
    problems = []
    if _open_contexts() - contexts:
        problems.append(f"{len(_open_contexts() - contexts)} ZeroMQ context(s) not closed")
    problems += [f"thread {thread.name!r} still runs" for thread in _threads() - threads]
    problems += [
        f"child process {pid} still runs: {name}" for pid, name in _children().items() if pid not in children
    ]
    problems += [f"socket {entry[1]} → {entry[2] or 'nobody'} still open" for entry in _sockets() - sockets]
    return problems


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """Fail a test that leaks contexts, sockets, threads or child processes, naming each."""
    before = (_open_contexts(), _threads(), _children(), _sockets())
    yield
    problems = _left(*before)
    deadline = time.monotonic() + SETTLE_S
    while problems and time.monotonic() < deadline:
        gc.collect()
        threading.Event().wait(0.02)
        problems = _left(*before)
    if problems:
        pytest.fail("the test left behind: " + "; ".join(problems), pytrace=False)
