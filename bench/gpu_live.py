"""The live part of ``symphony bench gpu``: the whole system on one device, under Poisson load."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml
import zmq

from bench.budget import Budget
from bench.cluster import Running, running
from bench.search import Tried, highest
from simulator.fluid import fluid_scale
from simulator.system import Cluster, ModelSpec
from symphony import wire
from symphony.profile import Profile
from worker import zoo
from worker.definition import load_definition

START_S: Final = 240.0
"""Several large models may take that long to be loaded and warmed up."""
PRECISIONS: Final = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True)
class How:
    """What the options say: where, in which precision, and how long each load is."""

    device: str
    precision: str
    max_batch: int
    threads: int
    cuda_graphs: bool
    seconds: float
    steps: int

    def definition(self, name: str, change: Mapping[str, Any]) -> dict[str, Any]:
        """A model of the zoo as it is served here."""
        value: dict[str, Any] = yaml.safe_load(zoo.path(name).read_text(encoding="utf-8"))
        value |= {"max_batch": self.max_batch, "precision": PRECISIONS[self.precision], **change}
        return value | ({"cuda_graphs": True} if self.cuda_graphs else {})


@dataclass
class Followed:
    """What the worker published of its batches."""

    rows: list[tuple[str, int, int, int, int, int]] = field(default_factory=list)
    """(model, size, received, exec_at, started, finished), cluster ns."""


class Follower:
    """Reads completion timings off the control channel in a thread."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._stop = threading.Event()
        self.connected = threading.Event()
        self.followed = Followed()
        self._thread = threading.Thread(target=self._run, name="follow", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        context = zmq.Context()
        sock = context.socket(zmq.SUB)
        sock.connect(self._endpoint)
        sock.subscribe(b"done.")
        while not self._stop.is_set():
            if not sock.poll(100):
                continue
            done = wire.decode_done(sock.recv_multipart()[-1])
            self.connected.set()
            columns = (done.model, done.size, done.received, done.exec_at, done.started, done.finished)
            for model, *times in zip(*(column.tolist() for column in columns), strict=True):
                self.followed.rows.append((done.models[model], *times))
        sock.close(0)
        context.term()

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join()


def unit_rates(tables: list[Profile], slo_ns: list[int]) -> list[float]:
    """Rates that together are the fluid ideal of one device, each model needing the same share of it."""
    rates = []
    for table, slo in zip(tables, slo_ns, strict=True):
        b = max(1, table.largest_within(slo // 2))
        rates.append(b / table.latency(b) * 1e9 / len(tables))
    models = [
        ModelSpec(str(i), slo, (table.latency_ns,), rate)
        for i, (table, slo, rate) in enumerate(zip(tables, slo_ns, rates, strict=True))
    ]
    scale = fluid_scale(Cluster(models, [0])) or 0.0
    return [rate * scale for rate in rates]


def config(how: How, names: list[str], files: dict[str, Path], slo_ms: list[float]) -> str:
    """The cluster: one worker on the device with all models, profiles and objectives as measured."""
    models = [
        how.definition(name, {"slo_ms": round(slo, 3), "profile": {"file": str(files[name])}})
        for name, slo in zip(names, slo_ms, strict=True)
    ]
    worker = {"device": how.device, "models": names, "threads": how.threads}
    return yaml.safe_dump({"models": models, "workers": [worker]})


def offer(
    cluster: Running, names: list[str], rates: list[float], seconds: float, seed: int, follower: Follower
) -> dict[str, Any]:
    """One load; the report of ``symphony load``, and the batches that ran meanwhile under ``batches``."""
    command = [sys.executable, "-m", "symphony", "--log-level", "warning", "load"]
    command += [f"{name}={max(rate, 0.1):.3f}" for name, rate in zip(names, rates, strict=True)]
    command += ["--seconds", f"{seconds:g}", "--seed", str(seed), "--json", "-", "--wait", "60"]
    for name in names:
        samples = load_definition(name).samples
        command += ["--inputs", f"{name}=bench.gpu_live:{samples.rpartition(':')[2]}"] if samples else []
    command += ["--registry", cluster.config.registry, "--subscribe", cluster.config.subscribe]
    before = len(follower.followed.rows)
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if not done.stdout:
        raise RuntimeError(f"symphony load gave no report:\n{done.stderr[-2000:]}")
    return {**json.loads(done.stdout), "batches": follower.followed.rows[before:]}


def sentence(i: int, rng: np.random.Generator) -> Any:
    """As :mod:`worker.zoo.samples` makes them, for ``symphony load --inputs``."""
    return _samples().sentence(rng)


def note(i: int, rng: np.random.Generator) -> Any:
    """A tone."""
    return _samples().note(rng)


def image(i: int, rng: np.random.Generator) -> Any:
    """Noise."""
    return _samples().image(rng)


def tokens(i: int, rng: np.random.Generator) -> Any:
    """Token ids."""
    return _samples().tokens(rng)


def _samples() -> Any:
    from worker.zoo import samples

    return samples


def judge(batches: list[Any], tables: dict[str, Profile], seconds: float) -> dict[str, Any]:
    """Of the batches of one run: busy share, gaps, and by model how far l(b) was off."""
    ran = sorted((row for row in batches if row[1] > 0), key=lambda row: row[4])
    busy = sum(row[5] - row[4] for row in ran) / (seconds * 1e9)
    gaps = [(after[4] - before[5]) / 1e3 for before, after in pairwise(ran) if after[2] <= before[5]]
    off: dict[str, list[float]] = {}
    for name, size, _, _, started, finished in ran:
        off.setdefault(name, []).append(abs((finished - started) / tables[name].latency(size) - 1))
    return {
        "busy_share": round(busy, 4),
        "gap_p50_us": round(float(np.median(gaps)), 1) if gaps else None,
        "off_p99": {name: round(float(np.percentile(values, 99)), 4) for name, values in off.items()},
        "batches": len(ran),
    }


def live(
    how: How,
    names: list[str],
    files: dict[str, Path],
    tables: dict[str, Profile],
    factor: float,
    budget: Budget,
    seconds: float,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One SLO: figures by model, and the point for the plain loop; its ``least_s`` is how long the start and
    one load took.

    Args:
        factor: the SLO is so many times l(1).
        budget: of the benchmark.
        seconds: what this SLO has of it; at least one load is offered, however long the start took.

    Raises:
        RuntimeError: the cluster did not start, or nothing was measured.
    """
    slo_ns = [round(factor * tables[name].latency(1)) for name in names]
    rates = unit_rates([tables[name] for name in names], slo_ns)
    slo_ms = [ns / 1e6 for ns in slo_ns]
    first = budget.clock()
    end = first + seconds
    tried, least = 0, 0.0
    with running(config(how, names, files, slo_ms), min(START_S, budget.total_left_s() + 10)) as cluster:
        follower = Follower(cluster.config.subscribe)
        try:
            offer(cluster, names, [0.2 * rate for rate in rates], 1.0, 99, follower)  # warm
            longest = 0.0

            def attempt(scale: float, seed: int) -> Tried:
                nonlocal tried, longest, least
                tried += 1
                began = budget.clock()
                report = offer(cluster, names, [scale * rate for rate in rates], how.seconds, seed, follower)
                longest = max(longest, budget.clock() - began)
                least = least or budget.clock() - first
                total = report["total"]
                bad = 1 - total["good"] / max(1, total["offered"])
                print(f"  SLO {factor:g} l(1), {scale:.2f} of the ideal: bad {bad:.2%}", file=sys.stderr)
                return Tried(scale, bad, report)

            best = highest(attempt, how.steps, enough=lambda: budget.clock() + longest > end)
        finally:
            follower.close()
    if tried < how.steps:
        budget.left_out.append(f"SLO {factor:g} l(1): {how.steps - tried} of {how.steps} loads")
    judged = judge(best.result["batches"], tables, how.seconds)
    rows = []
    for name, rate, slo in zip(names, rates, slo_ms, strict=True):
        good = best.result["models"][name]["goodput_rps"]
        rows.append(
            {
                "model": name,
                "slo_factor": factor,
                "slo_ms": round(slo, 3),
                "goodput_rps": round(good, 2),
                "fluid_ideal_rps": round(rate, 2),
                "share": round(good / rate, 4) if rate else None,
                "busy_share": judged["busy_share"],
                "predicted_vs_measured_p99": judged["off_p99"].get(name),
                "gap_p50_us": judged["gap_p50_us"],
                "bad_share": round(best.bad, 4),
                "mean_batch": best.result["models"][name]["mean_batch"],
            }
        )
    return rows, {"name": f"{factor:g}", "rates": rates, "slo_ms": slo_ms, "least_s": least}
