"""The subscriber in the documentation, run as it stands, against a broker and a publishing worker."""

from __future__ import annotations

import ast
import subprocess
import sys

import numpy as np
import pytest
import zmq
from cluster_parts import running_broker
from commands import ROOT
from helpers import wait_until

from symphony.bus import Bus, send
from symphony.wire import Done, encode_done

pytestmark = pytest.mark.live

EXAMPLE = ROOT / "docs" / "examples" / "telemetry.py"


def test_it_is_short_and_needs_only_zmq_and_msgpack() -> None:
    source = EXAMPLE.read_text()
    assert len(source.splitlines()) <= 15
    nodes = list(ast.walk(ast.parse(source)))
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    assert imported <= {"zmq", "msgpack", "struct", "sys"}
    assert not any(isinstance(node, ast.ImportFrom) for node in nodes)


def test_it_prints_completion_timings() -> None:
    body = encode_done(
        Done(
            "worker-0",
            1,
            ["minilm", "resnet50"],
            batch=np.array([10, 11], np.uint64),
            gpu=np.array([0, 3], np.uint32),
            model=np.array([1, 0], np.uint32),
            size=np.array([77, 5], np.uint32),
            failed=np.array([0, 1], np.uint32),
            received=np.array([1, 1], np.int64),
            exec_at=np.array([2, 2], np.int64),
            started=np.array([1_790_000_000_000_000_000, 5], np.int64),
            finished=np.array([1_790_000_000_088_518_000, 2_000_005], np.int64),
        )
    )
    with running_broker() as broker, Bus() as bus:
        publisher = bus.connect(zmq.PUB, broker.publish)
        with subprocess.Popen(
            [sys.executable, str(EXAMPLE), broker.subscribe], stdout=subprocess.PIPE, text=True
        ) as example:
            try:
                assert example.stdout is not None
                poller = zmq.Poller()
                poller.register(example.stdout.fileno(), zmq.POLLIN)
                wait_until(lambda: (send(publisher, [b"done.worker-0", body]), poller.poll(20))[1], 20)
                first, second = example.stdout.readline(), example.stdout.readline()
            finally:
                example.kill()
    assert [first, second] == [
        "worker-0 GPU 0: resnet50, 77 in 88.518 ms\n",
        "worker-0 GPU 3: minilm, 5 in 2.000 ms\n",
    ]
