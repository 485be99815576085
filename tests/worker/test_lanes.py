"""The CUDA lanes on a fake of ``torch.cuda`` that keeps CUDA's rules: order, buffers, clocks, captures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the CUDA path needs PyTorch")
pytestmark = pytest.mark.zoo

from fake_cuda import FakeCuda, Stream, installed  # noqa: E402

from worker.definition import DefinitionError, load_definition  # noqa: E402
from worker.device import DeviceLost, OutOfMemory  # noqa: E402
from worker.graphs import Graphs  # noqa: E402
from worker.lanes import COMPARE_NS, CudaLanes  # noqa: E402
from worker.torch_device import TorchDevice  # noqa: E402

NET = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.trouble = None

    def forward(self, x):
        if self.trouble is not None:
            raise self.trouble
        return x * 2

def load(device):
    return Net()
"""


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    with installed(monkeypatch) as fake:
        yield fake


def device(folder: Path) -> TorchDevice:
    (folder / "lanes_net.py").write_text(NET)
    value: dict[str, Any] = {"name": "net", "slo_ms": 50, "max_batch": 8, "loader": "lanes_net:load"}
    value |= {"inputs": [{"name": "x", "dtype": "FP32", "shape": [2]}]}
    value |= {"outputs": [{"name": "y", "dtype": "FP32", "shape": [2]}]}
    made = TorchDevice("cpu", lanes=CudaLanes(torch.device("cpu")))
    made.load("a", load_definition(value, folder))
    return made


def items(*values: float) -> list[dict[str, Any]]:
    return [{"x": np.array([v, -v], dtype=np.float32)} for v in values]


def test_two_batches_overlap_and_only_their_own_events_are_waited_for(cuda: FakeCuda, tmp_path: Path) -> None:
    made = device(tmp_path)
    cuda.log.clear()
    first = made.launch("a", made.prepare("a", items(1)), 1)
    second = made.launch("a", made.prepare("a", items(2, 3)), 2)
    said = [what for _, what, _ in cuda.log]
    assert "host waits" not in said, "nobody waits between a batch and the next one"
    assert cuda.default.events == [], "nothing goes to the default stream"
    streams = {stream for stream, what, _ in cuda.log if what == "records"}
    assert len(streams) == 3, "in, compute and out"
    one = made.collect(first)
    assert not second.copied.query(), "the end of the first batch says nothing of the second"
    two = made.collect(second)
    assert one.outputs["y"].tolist() == [[2, -2]]
    assert two.outputs["y"].tolist() == [[4, -4], [6, -6]]
    for executed in (one, two):
        assert executed.finished_ns - executed.started_ns == 500_000, "half a fake ms between two events"
        assert executed.copy_in_ns == 500_000
    assert two.started_ns >= one.finished_ns


def test_a_batch_computes_after_its_copy_in_and_is_copied_out_after_it_has_computed(
    cuda: FakeCuda, tmp_path: Path
) -> None:
    made = device(tmp_path)
    prepared = made.prepare("a", items(1))
    launched = made.launch("a", prepared, 1)
    assert prepared.copied in launched.started.before
    assert launched.ended in launched.copied.before
    launched.copied.synchronize()
    assert launched.prepared.copied.query(), "its end implies that its inputs have been read"


def test_a_buffer_is_used_again_only_when_its_copy_has_happened(cuda: FakeCuda, tmp_path: Path) -> None:
    made = device(tmp_path)
    held = [made.launch("a", made.prepare("a", items(v)), 1) for v in range(4)]
    assert cuda.pinned == 8, "inputs and outputs of four batches under way, no two in the same memory"
    answers = [made.collect(one).outputs["y"].tolist() for one in held]
    assert answers == [[[2 * v, -2 * v]] for v in range(4)]
    for value in range(4):
        made.collect(made.launch("a", made.prepare("a", items(value)), 1))
    assert cuda.pinned == 8


def test_memory_that_another_stream_reads_is_kept_for_it(cuda: FakeCuda, tmp_path: Path) -> None:
    made = device(tmp_path)
    cuda.log.clear()
    prepared = made.prepare("a", items(1))
    made.collect(made.launch("a", prepared, 1))
    kept = [stream for stream, what, _ in cuda.log if what == "keeps"]
    compute = next(stream for stream, what, mark in cuda.log if what == "waits" and mark is prepared.copied)
    out = next(stream for stream, what, _ in cuda.log if what == "waits" and stream is not compute)
    assert kept == [compute, out], "inputs for compute, outputs for the copy out"


def test_the_clocks_are_compared_again_when_the_comparison_is_old(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [10**12]
    monkeypatch.setattr("worker.lanes.time.monotonic_ns", lambda: now[0])
    lanes = CudaLanes(torch.device("cpu"))

    def ended() -> Any:
        mark = lanes.mark("compute")
        lanes.wait(mark)
        return mark

    first = ended()
    when = lanes.time_of(first)
    assert lanes._reference is not None
    assert when == now[0] - round((lanes._reference.event.at - first.at) * 1e6), "before the comparison"
    held = lanes._reference
    lanes.time_of(ended())
    assert lanes._reference is held
    now[0] += COMPARE_NS + 1
    lanes.time_of(ended())
    assert lanes._reference is not held
    assert not {event.at for event in lanes._clock.events} & {first.at}, "the clock has a stream of its own"


def test_graphs_of_a_copy_share_a_stream_and_a_pool_that_no_other_copy_has(cuda: FakeCuda) -> None:
    lanes = CudaLanes(torch.device("cpu"))

    def call(tensors: Any) -> Any:
        cuda.log.append((cuda.current, "runs", None))
        return {"y": tensors["x"] + 1}

    one, two = Graphs(lanes, call), Graphs(lanes, call)
    for graphs in (one, two):
        for size in (1, 2):
            graphs.capture(size, {"x": torch.zeros(size)})
    streams = [graph.captured_on for graph, _ in cuda.graphs]
    assert [pool for _, pool in cuda.graphs] == [None, f"pool of {streams[0]}", None, f"pool of {streams[2]}"]
    assert streams[0] is streams[1]
    assert streams[2] is streams[3]
    assert streams[0] is not streams[2]
    compute: Stream = lanes._streams["compute"]
    assert not {id(stream) for stream in streams} & {id(stream) for stream in lanes._streams.values()}
    with lanes.use("compute"):
        one.replay(2, {"x": torch.ones(2)})
    assert cuda.log[-1][:2] == (compute, "replays")


def test_errors_are_told_apart(cuda: FakeCuda, tmp_path: Path) -> None:
    made = device(tmp_path)
    module = made._models["a"].module

    def raised(trouble: Exception) -> Any:
        module.trouble = trouble
        with pytest.raises(Exception) as caught:
            made.launch("a", made.prepare("a", items(1)), 1)
        return type(caught.value), str(caught.value)

    assert raised(torch.OutOfMemoryError("tried")) == (OutOfMemory, "cpu is out of memory: tried")
    assert raised(torch.AcceleratorError("an illegal address"))[0] is DeviceLost
    assert raised(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"))[0] is OutOfMemory
    assert raised(RuntimeError("mat1 and mat2")) == (RuntimeError, "mat1 and mat2")


def test_what_cannot_be_captured_is_the_models_fault_and_not_the_devices(
    cuda: FakeCuda, tmp_path: Path
) -> None:
    made = device(tmp_path)
    model = made._models["a"]

    def forbidden(tensors: Any) -> Any:
        raise torch.AcceleratorError("operation not permitted when stream is capturing")

    with pytest.raises(DefinitionError, match=r"cuda_graphs: a batch of 2 cannot be captured: operation not"):
        made._capture(model, Graphs(made.lanes, forbidden), 2, {"x": torch.zeros(2)})
