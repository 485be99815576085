"""``symphony profile`` on the CPU: its file, table and plot, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from symphony.cli.profile import command
from symphony.profile_file import ProfileFile
from symphony.status import SymphonyError

torch = pytest.importorskip("torch", reason="measuring needs PyTorch")
pytestmark = pytest.mark.zoo

SQUARE = """
import torch

class Square(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(64, 64)

    def forward(self, x):
        return self.layer(x)

def load(device):
    return Square()
"""
DEFINITION = """
name: square
slo_ms: 50
max_batch: 6
loader: square_net:load
inputs: [{name: x, dtype: FP32, shape: [64]}]
outputs: [{name: y, dtype: FP32, shape: [64]}]
"""


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "square_net.py").write_text(SQUARE)
    (tmp_path / "square.yaml").write_text(DEFINITION)
    return str(tmp_path / "square.yaml")


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(command, [*arguments, "--runs", "5"], catch_exceptions=False)


def test_it_measures_writes_and_draws(model: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file, plot = tmp_path / "p.json", tmp_path / "p.png"
    result = invoke(model, "--output", str(file), "--json", "-", "--plot", str(plot))
    assert result.exit_code == 0, result.output
    made = ProfileFile.load(file)
    assert ProfileFile.parse(json.loads(result.stdout)) == made
    assert plot.read_bytes()[:4] == b"\x89PNG"
    assert (made.model, made.device, made.precision, made.threads) == ("square", "cpu", "fp32", 1)
    assert made.weights_mb == pytest.approx((64 * 64 + 64) * 4 / 2**20, abs=1e-3)
    assert {1, 2, 4, 6} <= {batch.b for batch in made.batches}
    for batch in made.batches:
        assert batch.p90_ms is not None
        assert batch.max_ms is not None
        assert 0 < batch.p50_ms <= batch.p90_ms <= batch.p95_ms <= batch.p99_ms <= batch.max_ms
        assert batch.runs == 20, "four rounds"
    assert "square on cpu (fp32" in result.stderr
    assert "no clocks: device cpu is no NVIDIA GPU" in result.stderr


def test_given_sizes_and_another_precision(model: str, tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    assert invoke(model, "--batches", "1,3", "--precision", "bf16", "-o", str(file)).exit_code == 0
    made = ProfileFile.load(file)
    assert [batch.b for batch in made.batches] == [1, 3]
    assert made.precision == "bf16"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "tpu"], "device 'tpu': expected cpu or cuda:N"),
        (["--device", "cuda:99"], r"device cuda:99: PyTorch sees \d+ CUDA device"),
        (["--cuda-graphs"], "model 'square': cuda_graphs needs a CUDA device, not cpu"),
        (["--compare", "absent.json"], "cannot read the profile absent.json"),
    ],
)
def test_what_is_refused(model: str, arguments: list[str], message: str) -> None:
    with pytest.raises(SymphonyError, match=message):
        invoke(model, *arguments)


def test_an_emulated_model_has_nothing_to_measure() -> None:
    with pytest.raises(SymphonyError, match="is emulated: there is nothing to measure"):
        invoke("resnet50-emulated")


def test_sizes_that_are_none() -> None:
    assert "expected batch sizes such as 1,2,4,8" in invoke("minilm", "--batches", "a").output
    assert "batch sizes go from 1 to 4096" in invoke("minilm", "--batches", "0").output


def test_it_compares_with_an_earlier_file(model: str, tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    assert invoke(model, "--batches", "1,2", "-o", str(file)).exit_code == 0
    held = json.loads(file.read_text())
    for batch in held["batches"]:
        batch["spread"] = 1000.0
    file.write_text(json.dumps(held))
    assert invoke(model, "--batches", "1,2", "--compare", str(file)).exit_code == 0
    for batch in held["batches"]:
        batch["p50_ms"] *= 1e6
        batch["spread"] = 0.01
    file.write_text(json.dumps(held))
    with pytest.raises(SymphonyError, match=r"the profile differs from .*: batch 1: "):
        invoke(model, "--batches", "1,2", "--compare", str(file))
