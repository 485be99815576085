"""A model's files change under traffic, in a real cluster: every request is answered, by the old version or
the new one, and ``status`` tells which serves; a model that never comes leaves the others alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import run
from helpers import cluster, wait_until

from symphony import Client
from symphony.snapshot import fetch_snapshot

pytest.importorskip("torch", reason="a real model needs PyTorch")
pytestmark = [pytest.mark.zoo, pytest.mark.live, pytest.mark.timeout(300)]

NET = """
import threading
import torch

class Times(torch.nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor {more}

def load(device, factor, hang=False):
    if hang:
        threading.Event().wait()
    return Times(factor)
"""
DEFINITION = """
name: {name}
slo_ms: 5000
max_batch: 4
loader: times_net:load
load_limit_s: 3
options: {{factor: {factor}, hang: {hang}}}
profile: {{alpha_ms: 1, beta_ms: 1}}
inputs: [{{name: x, dtype: FP32, shape: [1]}}]
outputs: [{{name: y, dtype: FP32, shape: [1]}}]
"""
CLUSTER = """
scheduler: {policy: eager}
workers: [{device: cpu, models: [times, calm]}]
models: [./times.yaml, ./calm.yaml]
"""


def test_files_change_under_traffic_and_every_request_is_answered(tmp_path: Path) -> None:
    net = tmp_path / "times_net.py"

    def write(factor: int, name: str = "times", more: str = "", hang: str = "false") -> None:
        if not net.exists() or net.read_text() != NET.format(more=more):
            net.write_text(NET.format(more=more))
        (tmp_path / f"{name}.yaml").write_text(DEFINITION.format(name=name, factor=factor, hang=hang))

    write(1, "calm")
    write(2)
    with cluster(tmp_path, CLUSTER) as running, Client(running.registry, running.subscribe) as client:
        answers: list[float] = []

        def ask(model: str) -> float:
            outputs = client.infer(model, {"x": np.array([10], np.float32)}, deadline_ms=30_000)
            return float(outputs["y"][0])

        def until(value: float) -> None:
            """Traffic of both models, until the new version has answered; whatever fails raises."""
            with ThreadPoolExecutor(4) as pool:
                wait_until(
                    lambda: (
                        answers.extend(pool.map(ask, ["times"] * 4)),
                        list(pool.map(ask, ["calm"] * 2)),
                        answers[-1] == value,
                    )[-1],
                    60,
                    f"an answer of {value}",
                )

        def worker() -> Any:
            return next(m for m in fetch_snapshot(running.registry, 5).members if m.role == "worker")

        def version() -> str:
            return str(worker().stats.get("versions", {}).get("times", ""))

        until(20)
        first = wait_until(version, 20)
        write(3)  # the definition
        until(30)
        write(3, more="+ 1")  # the module
        until(31)
        wait_until(lambda: version() != first, 20)
        write(3, more="+ 1", hang="true")
        wait_until(lambda: "loading it has not ended after" in worker().failed.get("times", ""), 30)
        until(31)
        write(5, more="+ 1")
        until(51)
        wait_until(lambda: not worker().failed, 20)
        code, shown, _ = run("status", "--registry", running.registry)
        assert code == 0
        mark, _, copy = version().partition("#")
        assert f"times {mark[:4]}#{copy}" in shown
        assert sorted(set(answers), key=answers.index) == [20, 30, 31, 51], "never back"
