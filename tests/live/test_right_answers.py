"""Answers through the bus equal those of the model called directly, for every batch size from 1 to 32.

A real cluster with a CPU worker holds two real models. Rounds of b requests for each model, interleaved,
gather into one batch of b per model, because the policy waits a fixed time after the first of them.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from commands import ROOT
from helpers import Cluster, cluster, wait_until

from symphony import AsyncClient, Client
from symphony.membership import fetch_snapshot
from symphony.result import InferResult
from worker.definition import Definition, load_definition
from worker.loading import call
from worker.zoo import samples

torch = pytest.importorskip("torch", reason="the zoo's models need PyTorch")
pytestmark = [pytest.mark.zoo, pytest.mark.live, pytest.mark.timeout(240)]

MODELS = ("crepe-tiny", "minilm")
SIZES = range(1, 33)
# An objective of a minute, so that the machine's speed decides nothing; a profile, so that nothing is
# measured before the start.
DIFFERENT = {"slo_ms": 60_000, "profile": {"alpha_ms": 20, "beta_ms": 50}}

Outputs = dict[str, Any]


def _definition(name: str) -> Definition:
    return Definition(**(load_definition(name).model_dump(exclude={"profile"}) | DIFFERENT))


def _items(name: str) -> list[dict[str, Any]]:
    if name == "minilm":
        return [samples.text(sentence) for sentence in samples.SENTENCES[:48]]
    rng = np.random.default_rng(5)
    return [{"audio": samples.tone(float(hz), float(rng.uniform(0, 6)))} for hz in np.geomspace(90, 700, 48)]


class Direct:
    """One model called by hand, and by how much its own batching changes its answers."""

    def __init__(self, name: str) -> None:
        definition = _definition(name)
        self.items = _items(name)
        self._names = [spec.name for spec in definition.outputs]
        self._module = call(
            definition, "loader", definition.loader, torch.device("cpu"), **definition.options
        )
        self.alone = [self._run([item])[0] for item in self.items]
        self.tolerance = dict.fromkeys(self._names, 0.0)
        for size in SIZES:
            for one, many in zip(self.alone, self._run(self.items[:size]), strict=False):
                for output, value in many.items():
                    off = float(np.max(np.abs(value - one[output]) / np.maximum(1, np.abs(one[output]))))
                    self.tolerance[output] = max(self.tolerance[output], off)

    def _run(self, items: list[dict[str, Any]]) -> list[Outputs]:
        with torch.inference_mode():
            if hasattr(self._module, "preprocess"):
                values = self._module(**self._module.preprocess(items))
            else:
                values = self._module(torch.from_numpy(np.stack([item["audio"] for item in items])))
        values = values if isinstance(values, tuple) else (values,)
        return [
            {name: value[i].numpy() for name, value in zip(self._names, values, strict=True)}
            for i in range(len(items))
        ]

    def check(self, index: int, outputs: Outputs) -> None:
        """Compare with the answer to item ``index`` alone."""
        expected = self.alone[index]
        assert outputs.keys() == expected.keys()
        for name, value in outputs.items():
            assert value.shape == expected[name].shape
            assert value.dtype == expected[name].dtype
            bound = 4 * self.tolerance[name] + 1e-6
            np.testing.assert_allclose(value, expected[name], rtol=bound, atol=bound)


@pytest.fixture(scope="module")
def direct() -> dict[str, Direct]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {name: Direct(name) for name in MODELS}
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    models = "\n".join(f"  - {_inline(name)}" for name in MODELS)
    config = f"""
broker: {{heartbeat_ms: 200, lease_ms: 2000}}
scheduler: {{policy: "timeout:150"}}
workers: [{{device: cpu, models: [{", ".join(MODELS)}]}}]
models:
{models}
"""
    with cluster(tmp_path_factory.mktemp("zoo"), config, ready=False) as running:
        running.wait_ready(120)
        yield running


def _inline(name: str) -> str:
    return _definition(name).model_dump_json(exclude={"base"}, exclude_none=True)


def test_batching_by_itself_changes_little(direct: dict[str, Direct]) -> None:
    assert direct["minilm"].tolerance["embedding"] < 1e-4
    assert direct["crepe-tiny"].tolerance["pitch_hz"] < 1e-3
    different = [a.tobytes() for a in (one["embedding"] for one in direct["minilm"].alone)]
    assert len(set(different)) == len(different), "the items' answers can be told apart"


def _round(size: int) -> list[tuple[str, int]]:
    """``size`` items of each model, in turn; other items in every round."""
    return [(name, (size * 7 + i) % 48) for i in range(size) for name in MODELS]


def _covered(seen: dict[str, list[int]]) -> None:
    """Most rounds were one batch; a slow machine may have split a few."""
    for name in MODELS:
        sizes = set(seen[name])
        assert {1, 32} <= sizes, f"{name}: {sorted(sizes)}"
        assert len(sizes) >= 24, f"{name}: {sorted(sizes)}"


def test_the_blocking_client_gets_the_right_answers(served: Cluster, direct: dict[str, Direct]) -> None:
    seen: dict[str, list[int]] = {name: [] for name in MODELS}
    with Client(served.registry, served.subscribe, connect_timeout_s=20) as client:
        for size in SIZES:
            wanted = _round(size)
            futures = [client.submit(name, direct[name].items[i]) for name, i in wanted]
            for (name, i), future in zip(wanted, futures, strict=True):
                result = future.result(60)
                direct[name].check(i, result.outputs)
                seen[name].append(result.batch_size)
        one = client.infer("minilm", {"text": samples.SENTENCES[3]})
        direct["minilm"].check(3, one)
        assert client.engine.faults.counts["duplicate-answer"] == 0
    _covered(seen)


def test_the_asyncio_client_gets_the_right_answers(served: Cluster, direct: dict[str, Direct]) -> None:
    seen: dict[str, list[int]] = {name: [] for name in MODELS}

    async def ask(client: AsyncClient, name: str, i: int) -> InferResult:
        return await client.submit(name, direct[name].items[i])

    async def run() -> None:
        async with AsyncClient(served.registry, served.subscribe, connect_timeout_s=20) as client:
            for size in SIZES:
                wanted = _round(size)
                results = await asyncio.gather(*(ask(client, name, i) for name, i in wanted))
                for (name, i), result in zip(wanted, results, strict=True):
                    direct[name].check(i, result.outputs)
                    seen[name].append(result.batch_size)

    asyncio.run(run())
    _covered(seen)


CLIENT_THAT_DIES = """
import os, signal, sys
import numpy as np
sys.path.insert(0, "tests")
from helpers import wait_until
from symphony import Client
client = Client(sys.argv[1], sys.argv[2], connect_timeout_s=30)
client.infer("crepe-tiny", {"audio": np.zeros(1024, np.float32)})
for _ in range(10):
    client.submit("crepe-tiny", {"audio": np.zeros(1024, np.float32)})
wait_until(lambda: client.engine.in_flight == 10, 30, "ten requests in flight")
print("submitted", flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
"""


def test_a_client_that_dies_before_its_inputs_are_fetched_harms_nobody(
    served: Cluster, direct: dict[str, Direct]
) -> None:
    with Client(served.registry, served.subscribe, connect_timeout_s=20) as client:
        client.engine.wait_for_model("crepe-tiny", 20)
        with subprocess.Popen(
            [sys.executable, "-c", CLIENT_THAT_DIES, served.registry, served.subscribe],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        ) as dying:
            try:
                assert dying.stdout is not None
                assert dying.stdout.readline() == "submitted\n"
                futures = [client.submit("crepe-tiny", direct["crepe-tiny"].items[i]) for i in range(6)]
            finally:
                dying.send_signal(signal.SIGKILL)
        for i, future in enumerate(futures):
            direct["crepe-tiny"].check(i, future.result(60).outputs)
        members = {m.id: m for m in fetch_snapshot(served.registry, 10).members}
        assert members["worker-0"].state == "ready"
        wait_until(
            lambda: (
                {m.id: m for m in fetch_snapshot(served.registry, 10).members}["worker-0"].stats.get(
                    "outstanding"
                )
                == 0
            ),
            20,
            "the worker to have nothing left",
        )
        direct["crepe-tiny"].check(9, client.infer("crepe-tiny", direct["crepe-tiny"].items[9]))
