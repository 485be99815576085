"""What a test leaves behind: ZeroMQ contexts, sockets, threads, child processes."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any

import psutil
import zmq
from zmq.utils.garbage import gc as zmq_garbage

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


def left(
    contexts: set[int],
    threads: set[threading.Thread],
    children: dict[int, str],
    sockets: set[tuple[object, ...]],
) -> list[str]:
    """What is there and was not there at the :func:`snapshot`, each in words."""
    problems = []
    if _open_contexts() - contexts:
        problems.append(f"{len(_open_contexts() - contexts)} ZeroMQ context(s) not closed")
    problems += [f"thread {thread.name!r} still runs" for thread in _threads() - threads]
    problems += [
        f"child process {pid} still runs: {name}" for pid, name in _children().items() if pid not in children
    ]
    problems += [f"socket {entry[1]} → {entry[2] or 'nobody'} still open" for entry in _sockets() - sockets]
    return problems


def snapshot() -> tuple[set[int], set[threading.Thread], dict[int, str], set[tuple[object, ...]]]:
    """What is there now, for :func:`left`."""
    return _open_contexts(), _threads(), _children(), _sockets()
