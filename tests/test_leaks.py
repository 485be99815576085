"""The watch for leaks sees what it is there for."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading

import leaks
import zmq
from helpers import wait_until


def test_every_kind_of_leak_is_named() -> None:
    before = leaks.snapshot()
    assert leaks.left(*before) == []
    context = zmq.Context()
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="lingering")
    thread.start()
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    listener = socket.create_server(("127.0.0.1", 0))
    try:
        found = "; ".join(leaks.left(*before))
    finally:
        context.term()
        stop.set()
        thread.join()
        child.communicate()
        listener.close()
    assert "1 ZeroMQ context(s) not closed" in found
    assert "thread 'lingering' still runs" in found
    assert f"child process {child.pid} still runs" in found
    assert "socket" in found
    wait_until(lambda: leaks.left(*before) == [])
