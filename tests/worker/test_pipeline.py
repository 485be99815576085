"""What the CUDA path consists of, on the CPU: staging buffers, the order of lanes, graphs and padding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.definition import Definition, DefinitionError, load_definition

torch = pytest.importorskip("torch", reason="the CUDA path needs PyTorch")
pytestmark = pytest.mark.zoo

from worker.graphs import Graphs, choose, padded  # noqa: E402
from worker.lanes import HostLanes  # noqa: E402
from worker.profiling import Trial  # noqa: E402
from worker.staging import Staging  # noqa: E402
from worker.torch_device import TorchDevice  # noqa: E402
from worker.turns import Turns  # noqa: E402


class Recorder(HostLanes):
    """Counts marks and notes what each lane is told; marks are reached when the test says so."""

    def __init__(self) -> None:
        super().__init__(staged=True)
        self.log: list[str] = []
        self.marks = 0
        self.all_reached = True

    def mark(self, lane: str) -> int:
        self.marks += 1
        self.log.append(f"{lane}: mark {self.marks}")
        return self.marks

    def after(self, lane: str, mark: Any) -> None:
        self.log.append(f"{lane}: after {mark}")

    def time_of(self, mark: Any) -> int:
        return int(mark)

    def wait(self, mark: Any) -> None:
        self.log.append(f"wait {mark}")

    def reached(self, mark: Any) -> bool:
        return self.all_reached

    def to_device(self, host: Any) -> Any:
        self.log.append("in: copy")
        return host.clone()


def linear(folder: Any, **change: Any) -> Definition:
    (folder / "pipeline_net.py").write_text(
        "import torch\n"
        "class M(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        return x[:, :2] * 2\n"
        "def load(device):\n"
        "    return M()\n"
    )
    value = {"name": "linear", "slo_ms": 50, "max_batch": 8, "loader": "pipeline_net:load"}
    value |= {"inputs": [{"name": "x", "dtype": "FP32", "shape": [3]}]}
    value |= {"outputs": [{"name": "y", "dtype": "FP32", "shape": [2]}]}
    return load_definition(value | change, folder)


def items(*values: float) -> list[dict[str, Any]]:
    return [{"x": np.array([v, v + 1, v + 2], dtype=np.float32)} for v in values]


def test_a_batch_crosses_the_lanes_in_order_and_nothing_waits_before_its_end(tmp_path: Any) -> None:
    lanes = Recorder()
    device = TorchDevice("cpu", lanes=lanes)
    device.load("a", linear(tmp_path))
    assert lanes.log == ["load: mark 1", "wait 1"], "weights are there before a batch can run"
    lanes.log.clear()
    lanes.marks = 0
    first = device.prepare("a", items(1))
    launched = device.launch("a", first, 1)
    second = device.prepare("a", items(5, 6))
    following = device.launch("a", second, 2)
    assert lanes.log == [
        "in: mark 1",
        "in: copy",
        "in: mark 2",
        "compute: after 2",
        "compute: mark 3",
        "compute: mark 4",
        "out: after 4",
        "out: mark 5",
        "in: mark 6",
        "in: copy",
        "in: mark 7",
        "compute: after 7",
        "compute: mark 8",
        "compute: mark 9",
        "out: after 9",
        "out: mark 10",
    ], "two batches are under way and nobody has waited"
    assert device.collect(launched).outputs["y"].tolist() == [[2, 4]]
    assert device.collect(following).outputs["y"].tolist() == [[10, 12], [12, 14]]
    assert lanes.log[-2:] == ["wait 5", "wait 10"]


def test_staging_buffers_are_used_again_only_when_the_device_is_done_with_them(tmp_path: Any) -> None:
    lanes = Recorder()
    device = TorchDevice("cpu", lanes=lanes)
    device.load("a", linear(tmp_path))
    for value in range(20):
        launched = device.launch("a", device.prepare("a", items(value)), 1)
        assert device.collect(launched).outputs["y"].tolist() == [[2 * value, 2 * value + 2]]
    assert device.staging.made == 1
    lanes.all_reached = False
    for value in range(3):
        device.prepare("a", items(value))
    assert device.staging.made == 4, "what is still being copied from is not touched"


def test_outputs_stay_what_they_were_when_buffers_are_used_again(tmp_path: Any) -> None:
    device = TorchDevice("cpu", lanes=HostLanes(staged=True))
    device.load("a", linear(tmp_path))
    kept = [device.collect(device.launch("a", device.prepare("a", items(v)), 1)).outputs for v in range(5)]
    assert [outputs["y"].tolist() for outputs in kept] == [[[2 * v, 2 * v + 2]] for v in range(5)]


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("size", [0, 3, 4])
def test_inputs_are_staged_as_they_would_be_stacked(tmp_path: Any, precision: str, size: int) -> None:
    device = TorchDevice("cpu", lanes=HostLanes(staged=True))
    device.load("a", linear(tmp_path, precision=precision))
    model = device._models["a"]
    assert model.stacks
    some = items(0.1, 0.2, 0.3)
    for item in some:
        item["x"].flags.writeable = False  # as what came over the network
    ((_, view),) = device._staged(model, some, size).values()
    (expected,) = model.inputs(some).values()
    assert view.dtype == getattr(torch, precision)
    assert torch.equal(view, padded(expected, size))


@given(st.lists(st.tuples(st.integers(0, 5000), st.sampled_from([torch.uint8, torch.float32])), max_size=30))
def test_a_staging_view_has_its_shape_and_type_and_no_two_batches_share_one(wanted: list[Any]) -> None:
    staging = Staging(lambda size: torch.empty(size, dtype=torch.uint8), lambda mark: True)
    held = [staging.take((length,), kind) for length, kind in wanted]
    for (buffer, view), (length, kind) in zip(held, wanted, strict=True):
        assert (tuple(view.shape), view.dtype) == ((length,), kind)
        assert buffer.numel() >= view.nbytes
    assert len({buffer.data_ptr() for buffer, _ in held}) == len(held)
    for buffer, _ in held:
        staging.give(buffer, None)
    again = [staging.take((length,), kind) for length, kind in wanted]
    assert staging.made == len(wanted) == len(again)


# -- graphs ----------------------------------------------------------------------------------------


def test_padding_is_chosen_where_the_next_graph_is_faster() -> None:
    eager = {1: 5.0, 2: 5.0, 4: 5.0, 8: 9.0}
    assert choose(eager, {1: 1.0, 2: 2.0, 4: 4.0, 8: 8.5}, 8) == [1, 2, 4, 4, 0, 0, 0, 8]
    assert choose(eager, {8: 1.0}, 8) == [8] * 8
    assert choose(eager, {}, 8) == [0] * 8
    assert choose(eager, {4: 99.0}, 8) == [0] * 8


@given(
    st.lists(st.floats(0.1, 100), min_size=4, max_size=4),
    st.lists(st.floats(0.1, 100), min_size=4, max_size=4),
)
def test_what_is_chosen_is_never_slower_than_no_graph(without: list[float], with_graph: list[float]) -> None:
    sizes = [1, 2, 4, 8]
    eager, captured = dict(zip(sizes, without, strict=True)), dict(zip(sizes, with_graph, strict=True))
    for b, size in enumerate(choose(eager, captured, 8), 1):
        assert size == 0 or size >= b
        if size and b in eager:
            assert captured[size] <= eager[b]


def test_rows_are_padded_with_copies_of_the_last() -> None:
    tensor = torch.tensor([[1.0], [2.0]])
    assert padded(tensor, 4).tolist() == [[1], [2], [2], [2]]
    assert padded(tensor, 2) is tensor


def test_a_graph_is_replayed_on_its_own_tensors() -> None:
    made = Graphs(HostLanes(), lambda tensors: {"y": tensors["x"] + 1})
    made.capture(2, {"x": torch.zeros(2)})
    assert made.replay(2, {"x": torch.tensor([3.0, 4.0])})["y"].tolist() == [4, 5]
    assert made.sizes() == [2]
    assert made.size_for(1) == 0
    with pytest.raises(ValueError, match=r"shape \[3\], the CUDA graph was captured for \[2\]"):
        made.replay(2, {"x": torch.zeros(3)})


def test_a_device_with_graphs_answers_the_same(tmp_path: Any) -> None:
    device = TorchDevice("cpu", lanes=HostLanes(staged=True))
    definition = linear(tmp_path, cuda_graphs=True)
    device.load("a", definition)
    trial = Trial(device, "a", definition, lambda rng: items(float(rng.integers(9)))[0], Turns())
    trial.first()
    assert len(device.graph_sizes("a")) == 8
    captured = device._models["a"].graphs
    assert captured is not None
    assert captured.sizes() == [1, 2, 4, 8]
    captured.table = [1, 2, 4, 4, 8, 8, 8, 8]
    for count in range(1, 9):
        launched = device.launch("a", device.prepare("a", items(*range(count))), count)
        assert device.collect(launched).outputs["y"].tolist() == [[2 * v, 2 * v + 2] for v in range(count)]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
@pytest.mark.parametrize("change", [{}, {"cuda_graphs": True}, {"precision": "float16"}])
def test_cuda_overlaps_batches_and_answers_the_same(tmp_path: Any, change: dict[str, Any]) -> None:
    device = TorchDevice("cuda:0")
    definition = linear(tmp_path, **change)
    device.load("a", definition)
    Trial(device, "a", definition, lambda rng: items(float(rng.integers(9)))[0], Turns()).first()
    launched = [device.launch("a", device.prepare("a", items(*range(n))), n) for n in (3, 5, 8)]
    for count, one in zip((3, 5, 8), launched, strict=True):
        executed = device.collect(one)
        assert executed.outputs["y"].tolist() == [[2 * v, 2 * v + 2] for v in range(count)]
        assert executed.finished_ns > executed.started_ns


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
def test_cuda_graphs_of_one_model_outlive_those_of_another(tmp_path: Any) -> None:
    device = TorchDevice("cuda:0")
    definition = linear(tmp_path, cuda_graphs=True)
    for key in ("a", "b"):
        device.load(key, definition)
        Trial(device, key, definition, lambda rng: items(float(rng.integers(9)))[0], Turns()).first()
    device.unload("a")
    graphs = device._models["b"].graphs
    assert graphs is not None
    graphs.table = [1, 2, 4, 4, 8, 8, 8, 8]
    for count in (1, 3, 8):
        launched = device.launch("b", device.prepare("b", items(*range(count))), count)
        assert device.collect(launched).outputs["y"].tolist() == [[2 * v, 2 * v + 2] for v in range(count)]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
def test_cuda_refuses_to_capture_what_waits_for_the_device_and_goes_on(tmp_path: Any) -> None:
    definition = linear(tmp_path, cuda_graphs=True)
    net = tmp_path / "pipeline_net.py"
    net.write_text(
        net.read_text().replace("return x[:, :2] * 2", "return x[:, :2] * (2 + 0 * x.sum().item())")
    )
    device = TorchDevice("cuda:0")
    device.load("a", definition)
    trial = Trial(device, "a", definition, lambda rng: items(1.0)[0], Turns())
    with pytest.raises(DefinitionError, match="cuda_graphs: a batch of 1 cannot be captured"):
        trial.first()
    assert trial.run(2)[0].outputs["y"].tolist() == [[2, 4], [2, 4]]
