"""``torch.compile``: compiled before the first batch and never in one; what cannot be compiled is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="models need PyTorch")
pytestmark = [
    pytest.mark.zoo,
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),  # Inductor's own imports
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU"),
]

from torch._dynamo.utils import counters  # noqa: E402

from worker.compiling import trial_sizes  # noqa: E402
from worker.definition import Definition, DefinitionError, load_definition  # noqa: E402
from worker.loading import sampler  # noqa: E402
from worker.profiling import Trial  # noqa: E402
from worker.torch_device import TorchDevice  # noqa: E402
from worker.turns import Turns  # noqa: E402

NET = """
import numpy as np
import torch

class Told(torch.nn.Module):
    '''Twice its input, and whether it was compiled.'''

    def forward(self, x):
        return 2 * x, torch.full((len(x),), 1.0 if torch.compiler.is_compiling() else 0.0)

class Broken(torch.nn.Module):
    def forward(self, x):
        if torch.compiler.is_compiling():
            torch._assert(False, "not like this")
        return 2 * x, x[:, 0]

def stack(items):
    return {"x": torch.from_numpy(np.stack([item["x"] for item in items]))}

def sample(rng):
    return {"x": rng.standard_normal(3).astype(np.float32)}

def load(device, what="Told"):
    return globals()[what]()
"""


def definition(folder: Path, **change: Any) -> Definition:
    value: dict[str, Any] = {"name": "told", "slo_ms": 50, "max_batch": 8, "loader": "told_net:load"}
    value |= {"compile": True, "inputs": [{"name": "x", "dtype": "FP32", "shape": [-1]}]}
    value |= {"preprocess": "told_net:stack", "samples": "told_net:sample"}
    value |= {"outputs": [{"name": "y", "dtype": "FP32", "shape": [-1]}, {"name": "c", "dtype": "FP32"}]}
    value["outputs"][1]["shape"] = []
    if not (folder / "told_net.py").exists():
        (folder / "told_net.py").write_text(NET)
    return load_definition(value | change, folder)


def trial(device: TorchDevice, made: Definition, key: str) -> Trial:
    device.load(key, made)
    samples: Callable[[np.random.Generator], Any] | None = sampler(made)
    assert samples is not None
    return Trial(device, key, made, samples, Turns())


def test_a_few_sizes_make_it_compile_everything() -> None:
    assert trial_sizes(1) == [1]
    assert trial_sizes(2) == [1, 2]
    assert trial_sizes(128) == [1, 2, 3, 128]


@pytest.mark.timeout(400)
def test_everything_is_compiled_before_the_first_batch_and_nothing_after(tmp_path: Path) -> None:
    device = TorchDevice("cpu")
    first = trial(device, definition(tmp_path), "told#1")
    first.first()
    made = counters["stats"]["unique_graphs"]
    for size in (1, 2, 5, 8, 1):
        executed, _ = first.run(size)
        assert executed.outputs["c"].tolist() == [1.0] * size
    second = trial(device, definition(tmp_path), "told#2")
    second.first()
    assert second.run(4)[0].outputs["c"].tolist() == [1.0] * 4
    # Another rank, which no program is for: it runs, and nothing is compiled for it.
    item = {"x": np.ones((2, 2), dtype=np.float32)}
    launched = device.launch("told#1", device.prepare("told#1", [item]), 1)
    assert launched.outputs["c"].tolist() == [0.0]
    assert launched.outputs["y"].tolist() == [[[2.0, 2.0], [2.0, 2.0]]]
    assert counters["stats"]["unique_graphs"] == made


def test_what_cannot_be_compiled_is_refused(tmp_path: Path) -> None:
    broken = trial(TorchDevice("cpu"), definition(tmp_path, options={"what": "Broken"}), "told#1")
    with pytest.raises(DefinitionError, match=r"model 'told': compile: a batch of 1: "):
        broken.first()


def test_torchscript_is_not_compiled(tmp_path: Path) -> None:
    (tmp_path / "m.ts").write_bytes(b"")
    with pytest.raises(DefinitionError, match=r"m\.ts: compile: torch\.compile does nothing for TorchScript"):
        TorchDevice("cpu").load("a", definition(tmp_path, loader="m.ts"))
