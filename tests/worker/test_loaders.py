"""Where models come from: saved programs, functions, state dicts; and what is refused before any traffic."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import wait_until

from symphony.profile_file import FORMAT
from worker.definition import Definition, DefinitionError, load_definition
from worker.executor import Executor
from worker.versions import fingerprint

torch = pytest.importorskip("torch", reason="models need PyTorch")
pytestmark = pytest.mark.zoo

NET = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)

    def forward(self, x):
        return self.layer(x)

def load(device):
    torch.manual_seed(0)
    return Net()

def double(items):
    import numpy as np
    return {"x": torch.from_numpy(np.stack([2 * item["x"] for item in items]))}

def negative(outputs):
    return {"y": -outputs["y"].numpy()}
"""


class Net(torch.nn.Module):  # type: ignore[misc,name-defined,unused-ignore]
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 2)

    def forward(self, x: Any) -> Any:
        return self.layer(x)


@pytest.fixture
def net() -> Any:
    torch.manual_seed(0)
    return Net().eval()


def definition(folder: Path, **change: Any) -> Definition:
    (folder / "loaders_net.py").write_text(NET)
    value = {"name": "net", "slo_ms": 50, "max_batch": 4, "loader": "loaders_net:load"}
    value |= {"profile": {"alpha_ms": 1, "beta_ms": 1}}
    value |= {"inputs": [{"name": "x", "dtype": "FP32", "shape": [3]}]}
    value |= {"outputs": [{"name": "y", "dtype": "FP32", "shape": [2]}]}
    return load_definition(value | change, folder)


def answer(made: Definition, count: int = 3) -> Any:
    from worker.torch_device import TorchDevice

    device = TorchDevice("cpu")
    device.load("net", made)
    x = np.arange(3 * count, dtype=np.float32).reshape(count, 3)
    executed = device.collect(device.launch("net", device.prepare("net", [{"x": row} for row in x]), count))
    return x, executed.outputs["y"]


def expected(net: Any, x: Any) -> Any:
    with torch.inference_mode():
        return net(torch.from_numpy(x)).numpy()


@contextmanager
def starting(made: Definition) -> Iterator[Executor]:
    from worker.torch_device import TorchDevice

    executor = Executor(lambda: TorchDevice("cpu"), [made])
    executor.start()
    try:
        yield executor
    finally:
        assert executor.close()


def refused(made: Definition, message: str) -> None:
    with starting(made) as executor, pytest.raises(DefinitionError, match=message):
        wait_until(executor.ready, 60)


def export(net: Any, file: Path, fixed: bool = False) -> None:
    shapes = None if fixed else ({0: torch.export.Dim("batch")},)
    program = torch.export.export(net, (torch.randn(2, 3),), dynamic_shapes=shapes)
    torch.export.save(program, file)


def test_a_torch_export_program(tmp_path: Path, net: Any) -> None:
    export(net, tmp_path / "net.pt2")
    x, y = answer(definition(tmp_path, loader="net.pt2"))
    np.testing.assert_allclose(y, expected(net, x), rtol=1e-5)


def test_a_torchscript_archive(tmp_path: Path, net: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(net, torch.randn(2, 3)).save(str(tmp_path / "net.ts"))
    x, y = answer(definition(tmp_path, loader="net.ts"))
    np.testing.assert_allclose(y, expected(net, x), rtol=1e-5)


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_weights_from_a_state_dict(tmp_path: Path, ending: str) -> None:
    torch.manual_seed(7)
    other = Net().eval()
    if ending == "pt":
        torch.save(other.state_dict(), tmp_path / "w.pt")
    else:
        pytest.importorskip("safetensors.torch").save_file(other.state_dict(), tmp_path / "w.safetensors")
    x, y = answer(definition(tmp_path, weights=f"w.{ending}"))
    np.testing.assert_allclose(y, expected(other, x), rtol=1e-5)


def test_hooks_that_the_definition_names(tmp_path: Path, net: Any) -> None:
    made = definition(tmp_path, preprocess="loaders_net:double", postprocess="loaders_net:negative")
    x, y = answer(made)
    np.testing.assert_allclose(y, -expected(net, 2 * x), rtol=1e-5)


def test_a_module_that_changes_is_loaded_anew_and_the_old_one_goes_on(tmp_path: Path) -> None:
    from worker.torch_device import TorchDevice

    file = tmp_path / "changing_net.py"
    file.write_text(NET.replace("return self.layer(x)", "return x[:, :2] + 1"))
    device, made = TorchDevice("cpu"), definition(tmp_path, loader="changing_net:load")
    item = {"x": np.zeros(3, np.float32)}

    def run(key: str) -> Any:
        return device.collect(device.launch(key, device.prepare(key, [item]), 1)).outputs["y"].tolist()

    first = fingerprint(made)
    device.load("net#1", made)
    file.write_text(NET.replace("return self.layer(x)", "return x[:, :2] + 2"))
    assert fingerprint(made) != first
    device.load("net#2", made)
    assert (run("net#1"), run("net#2")) == ([[1, 1]], [[2, 2]])


def test_a_program_whose_batch_dimension_is_fixed_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    program = torch.export.export(Net().eval(), (torch.randn(1, 3),))
    torch.export.save(program, tmp_path / "net.pt2")
    refused(
        definition(tmp_path, loader="net.pt2"),
        r"a batch of 2 .* a batch of 1 ran: its batch dimension is fixed. Export it with a dynamic one",
    )
    with starting(definition(tmp_path, loader="net.pt2", max_batch=1)) as executor:
        wait_until(executor.ready, 60)


def test_a_module_that_returns_one_row_whatever_comes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "one_row.py").write_text(
        NET.replace("return self.layer(x)", "return self.layer(x)[:1]").replace("loaders_net", "one_row")
    )
    refused(
        definition(tmp_path, loader="one_row:load"),
        r"output 'y' has shape \[1, 2\]; expected \[2, 2\].* its batch dimension is fixed",
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loader": "absent.pt2"}, r"model 'net': loader: .*absent.pt2: there is no such file"),
        ({"loader": "broken.pt2"}, r"broken.pt2: no torch.export program: "),
        ({"loader": "broken.ts"}, r"broken.ts: no TorchScript program: "),
        ({"loader": "broken.pt2", "precision": "float16"}, r"has the precision it was saved in"),
        ({"loader": "loaders_net:absent"}, r"module 'loaders_net' has no function 'absent'"),
        ({"loader": "no_such_module:load"}, r"there is no module 'no_such_module'"),
        ({"weights": "absent.safetensors"}, r"weights file .*absent.safetensors does not exist"),
        ({"weights": "other.pt"}, r"weights from other.pt do not fit the network"),
        (
            {"outputs": [{"name": "y", "dtype": "FP32", "shape": [5]}]},
            r"shape \[1, 2\]; expected \[1, 5\]",
        ),
        (
            {"outputs": [{"name": n, "dtype": "FP32", "shape": [2]} for n in "yz"]},
            r"the model returned 1 outputs; its definition says y, z",
        ),
        ({"postprocess": "loaders_net:absent"}, r"postprocess: .* has no function 'absent'"),
    ],
)
def test_what_is_refused_before_any_traffic(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    for name in ("broken.pt2", "broken.ts"):
        (tmp_path / name).write_bytes(b"this is no program")
    torch.save({"layer.weight": torch.zeros(9, 9)}, tmp_path / "other.pt")
    refused(definition(tmp_path, **change), message)


def test_a_profile_of_another_device_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(
        f"{{format: {FORMAT}, model: net, device: NVIDIA-H100, precision: fp32, torch: '2', measured_at: '',"
        " weights_mb: 1, load_ms: 1, batches: [{b: 1, p50_ms: 1, p95_ms: 1, p99_ms: 1, memory_mb: 1},"
        " {b: 4, p50_ms: 1, p95_ms: 1, p99_ms: 1, memory_mb: 1}]}"
    )
    message = (
        r"model 'net': profile p.yaml: it was measured on 'NVIDIA-H100', but this device is 'cpu': measure"
    )
    refused(definition(tmp_path, profile={"file": "p.yaml"}), message)
    emulated = definition(tmp_path, profile={"file": "p.yaml"}, loader="emulated")
    given = emulated.given_profile()
    assert given is not None
    assert given.max_batch == 4, "an emulated GPU may be of any type"


@pytest.mark.parametrize("loader", ["model.onnx", "model.pth", "a:b:c"])
def test_an_unknown_loader_is_refused(tmp_path: Path, loader: str) -> None:
    with pytest.raises(DefinitionError, match=r"loader: expected 'emulated', 'module:function' or a file"):
        definition(tmp_path, loader=loader)
