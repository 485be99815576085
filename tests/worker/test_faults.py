"""Models that misbehave on the CPU device: what becomes of their batches, of the others and of the worker."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from fake_peers import FakePeers, fake_peers, running

from symphony.status import Status, SymphonyError
from worker.definition import Definition, load_definition
from worker.executor import Executor
from worker.process import Worker
from worker.runners import DeviceRunner

torch = pytest.importorskip("torch", reason="models need PyTorch")
pytestmark = pytest.mark.zoo

NET = """
import threading
import torch

GATE = threading.Event()
KEPT = []

class Moody(torch.nn.Module):
    '''What it does is in the first column of its input.'''

    def forward(self, x):
        mood = float(x[0, 0])
        if mood == 1:
            raise RuntimeError("bad mood")
        if mood == 2:
            return x[:, :1] / 0
        if mood == 3:
            return x[:1, :1] if len(x) > 1 else x[:, :2]
        if mood == 4:
            GATE.wait(60)
        if mood == 5:
            KEPT.append(torch.zeros(1 << 18))
            if len(KEPT) > 3:
                raise MemoryError("nothing left")
        return x[:, 1:2]

def load(device):
    return Moody()
"""


@pytest.fixture
def peers() -> Iterator[FakePeers]:
    with fake_peers() as made:
        yield made


def definition(folder: Any, name: str = "moody", **change: Any) -> Definition:
    (folder / "moody_net.py").write_text(NET)
    value = {"name": name, "slo_ms": 500, "max_batch": 4, "loader": "moody_net:load"}
    value |= {"profile": {"alpha_ms": 1, "beta_ms": 1}}
    value |= {"inputs": [{"name": "x", "dtype": "FP32", "shape": [2]}]}
    value |= {"outputs": [{"name": "y", "dtype": "FP32", "shape": [1]}]}
    return load_definition(value | change, folder)


@contextmanager
def serving(peers: FakePeers, *models: Definition, **options: Any) -> Iterator[Worker]:
    from worker.torch_device import TorchDevice

    runner = DeviceRunner(Executor(lambda: TorchDevice("cpu"), models, **options))
    with running(peers, runner, list(models)) as worker:
        peers.ready()
        yield worker


def ask(peers: FakePeers, frontend: Any, mood: float, model: str = "moody", count: int = 1) -> list[Any]:
    """The answers of one batch."""
    keys = [frontend.request({"x": np.array([mood, 7], dtype=np.float32)}) for _ in range(count)]
    peers.plan(model, keys)
    peers.until(lambda: all(key in frontend.answers for key in keys))
    return [frontend.answers[key][0] for key in keys]


def test_a_model_that_raises_fails_its_batch_and_serves_the_next(peers: FakePeers, tmp_path: Any) -> None:
    with serving(peers, definition(tmp_path)):
        frontend = peers.frontend()
        for status, _, error in ask(peers, frontend, 1, count=2):
            assert (status, error) == (Status.FAILED, "RuntimeError: bad mood")
        ((status, outputs, _),) = ask(peers, frontend, 0)
        assert (status, float(outputs["y"][0])) == (Status.OK, 7)


def test_nan_passes_unless_the_definition_wants_finite_outputs(peers: FakePeers, tmp_path: Any) -> None:
    with serving(peers, definition(tmp_path), definition(tmp_path, "strict", finite=True)):
        frontend = peers.frontend()
        ((status, outputs, _),) = ask(peers, frontend, 2)
        assert status == Status.OK
        assert np.isinf(outputs["y"]).all()
        ((status, _, error),) = ask(peers, frontend, 2, "strict")
        assert (status, error) == (Status.FAILED, "output 'y' is not a finite number")
        assert ask(peers, frontend, 0, "strict")[0][0] == Status.OK


def test_a_wrong_shape_or_number_of_rows_fails_the_batch(peers: FakePeers, tmp_path: Any) -> None:
    with serving(peers, definition(tmp_path)):
        frontend = peers.frontend()
        ((status, _, error),) = ask(peers, frontend, 3)
        assert (status, error) == (
            Status.FAILED,
            "ValueError: output 'y' has shape [1, 2]; expected [1, 1]",
        )
        for status, _, error in ask(peers, frontend, 3, count=2):
            assert (status, error) == (
                Status.FAILED,
                "ValueError: output 'y' has shape [1, 1]; expected [2, 1]",
            )
        assert ask(peers, frontend, 0)[0][0] == Status.OK


def test_a_model_that_leaks_until_memory_ends_leaves_and_the_others_stay(
    peers: FakePeers, tmp_path: Any
) -> None:
    with serving(peers, definition(tmp_path), definition(tmp_path, "calm")):
        frontend = peers.frontend()
        seen = [ask(peers, frontend, 5)[0] for _ in range(6)]
        assert [status for status, _, _ in seen] == [Status.OK] * 3 + [Status.FAILED] * 3
        assert seen[-1][2] == "MemoryError: nothing left"

        def left() -> bool:
            member = peers.member("worker-0")
            return member is not None and member.models == ["calm"]

        peers.until(left)
        ((status, _, error),) = ask(peers, frontend, 0)
        assert (status, error) == (Status.UNAVAILABLE, "worker-0: model 'moody' is not loaded here")
        assert ask(peers, frontend, 0, "calm")[0][0] == Status.OK


def test_a_model_that_hangs_ends_the_worker_and_every_request_is_answered(
    peers: FakePeers, tmp_path: Any
) -> None:
    with serving(peers, definition(tmp_path), hang_ns=300_000_000) as worker:
        frontend = peers.frontend()
        keys = [frontend.request({"x": np.array([mood, 7], dtype=np.float32)}) for mood in (4, 0, 0)]
        for key in keys:
            peers.plan("moody", [key])
        peers.until(lambda: all(key in frontend.answers for key in keys))
        assert {frontend.answers[key][0][0] for key in keys} == {Status.UNAVAILABLE}
        import moody_net  # type: ignore[import-not-found]

        gate: threading.Event = moody_net.GATE
        gate.set()
    (error,) = worker.errors  # type: ignore[attr-defined]
    assert isinstance(error, SymphonyError)
    assert str(error) == "the device is lost: a batch hangs on the device"
