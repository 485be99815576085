"""How many requests per second one core schedules, without any network.

The core is driven in virtual time: every tick the time is advanced, then the completions that are due
and a column of Poisson arrivals over all models go in, as in one turn of the shard's loop, and what
comes out is read. Only the time inside these calls counts (processor time of one thread), not what stands
for frontends and workers: arrivals are drawn for some ticks ahead, so that drawing them does not push the
core's queues out of the caches at every tick. The load is given as a share of the fluid ideal.

A tick stands for one turn of a shard's loop. The fixed cost of an event, some 10 us with the reading, is
shared by the requests of a tick: at the 8 million requests/s that 10,000 GPUs serve, 250 us are 2,000
requests or 16 messages of 128, which a busy shard finds in its socket at each turn; --tick 50 shows
shorter turns.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from bench.output import add_json, tell
from scheduler.core.machine import Core
from scheduler.core.memory import memory
from scheduler.select import compiled_core

TICK_US = 250
AHEAD = 64
"""Ticks whose arrivals are drawn at once."""
ALPHA_MS = 1.082
BETA_MS = 5.204
"""ResNet-50 in the Symphony paper's own scheduler benchmark: l(b) = 1.082 b + 5.204 ms."""
CURVE = [
    (models, gpus)
    for models in (1, 10, 100, 1_000, 5_000)
    for gpus in (8, 100, 1_000, 10_000, 20_000)
    if gpus >= 2 * models
]
"""Models and GPUs of the points of ``--curve``."""


@dataclass(slots=True)
class CoreResult:
    """One run of one flavour of the core."""

    models: int
    gpus: int
    load: float
    requests: int
    core_s: float
    requests_per_s: float
    ns_per_request: float
    mean_batch: float
    bad_share: float
    requests_per_tick: float = 0.0
    bytes_held: dict[str, float] = field(default_factory=dict)
    ns_by_phase: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON knows them."""
        return asdict(self)


def fluid_batch(slo_ms: float, gpus_per_model: float, max_batch: int) -> int:
    """Largest b with l(b)·(1 + 1/n) ≤ SLO for n GPUs per model; below one GPU, shared in turn."""
    best = 1
    for b in range(1, max_batch + 1):
        length = ALPHA_MS * b + BETA_MS
        if length + length / gpus_per_model <= slo_ms:
            best = b
    return best


def run_core(
    core: type[Core],
    models: int,
    gpus: int,
    load: float,
    requests: int,
    slo_ms: float = 100.0,
    max_batch: int = 128,
    tick_us: int = TICK_US,
    policy: str = "deferred",
    seed: int = 1,
) -> CoreResult:
    """Schedule about ``requests`` requests and measure the time spent in the core."""
    batch = fluid_batch(slo_ms, gpus / models, max_batch)
    rate = load * gpus * batch / (ALPHA_MS * batch + BETA_MS) * 1e3
    tick = tick_us * 1000
    slo = int(slo_ms * 1e6)
    machine = core(policy, margin_ns=2 * tick)
    table = [int((ALPHA_MS * b + BETA_MS) * 1e6) for b in range(1, max_batch + 1)]
    for m in range(models):
        machine.add_model(m, slo, max_batch)
        machine.set_profile(0, m, 0, table)
    for g in range(gpus):
        machine.add_gpu(0, g)
    rng = np.random.default_rng(seed)
    warm = int(1.5 * slo / tick)
    ticks = warm + max(1, int(requests / (rate * tick / 1e9)))
    counts = rng.poisson(rate * tick / 1e9, ticks)
    due: dict[int, list[tuple[np.ndarray[Any, Any], ...]]] = {}
    columns: list[tuple[np.ndarray[Any, Any], ...]] = []
    key = 1
    phases = {"advance": 0, "complete": 0, "submit": 0, "actions": 0}
    measured = batches = bad = scheduled = 0
    clock = time.thread_time_ns  # other processes on the machine do not count
    for number in range(ticks):
        now = (number + 1) * tick
        if number % AHEAD == 0:
            columns = []
            for i, n in enumerate(counts[number : number + AHEAD], number + 1):
                deadline = i * tick + slo - rng.integers(0, tick, n)
                deadline.sort()
                model = rng.integers(0, models, n, dtype=np.uint32)
                columns.append((model, deadline, np.arange(key, key + n, dtype=np.uint64)))
                key += n
        model, deadline, keys = columns[number % AHEAD]
        n = len(keys)
        back = due.pop(number, None)
        if back is not None:
            gpu, done, finished = (np.concatenate(c) for c in zip(*back, strict=True))
        begin = clock()
        machine.advance(now)
        t0 = clock()
        if back is not None:
            machine.complete(now, gpu, done, finished)
        t1 = clock()
        machine.submit(now, model, deadline, keys)
        t2 = clock()
        out = machine.actions.dispatches()
        sizes = np.frombuffer(out.size, np.int64)
        to = np.frombuffer(out.gpu, np.int64).astype(np.uint32)
        ids = np.frombuffer(out.batch, np.int64).astype(np.uint64)
        ends = np.frombuffer(out.finish_at, np.int64).copy()
        dropped = machine.actions.dropped
        t3 = clock()
        late = int((np.repeat(ends, sizes) > np.frombuffer(out.deadline, np.int64)).sum())
        if number >= warm:
            measured += n
            bad += dropped + late
            batches += len(sizes)
            scheduled += int(sizes.sum())
            phases["advance"] += t0 - begin
            phases["complete"] += t1 - t0
            phases["submit"] += t2 - t1
            phases["actions"] += t3 - t2
        del out
        machine.clear_actions()
        when = np.maximum(-(-ends // tick) - 1, number + 1)
        order = np.argsort(when, kind="stable")
        edges = np.flatnonzero(np.diff(when[order])) + 1
        for part in np.split(order, edges):
            if part.size:
                due.setdefault(int(when[part[0]]), []).append((to[part], ids[part], ends[part]))
    spent = sum(phases.values())
    held = memory(machine)
    queued = sum(machine.queued_by_model(models))
    per = {"queued": max(1, queued), "models": models, "gpus": gpus}
    return CoreResult(
        models=models,
        gpus=gpus,
        load=load,
        requests=measured,
        core_s=spent / 1e9,
        requests_per_s=measured / (spent / 1e9),
        ns_per_request=spent / measured,
        mean_batch=scheduled / max(1, batches),
        bad_share=bad / measured,
        requests_per_tick=rate * tick / 1e9,
        bytes_held={name: size / per.get(name, 1) for name, size in held.items()},
        ns_by_phase={name: ns / measured for name, ns in phases.items()},
    )


def measure(
    models: int, gpus: int, load: float, requests: int, tick_us: int = TICK_US, repeats: int = 3
) -> dict[str, Any]:
    """Compiled and Python side by side; of the compiled core the median run by time.

    The Python core gets one run of a tenth of the requests, or it would take minutes.
    """
    compiled = compiled_core()
    pure = run_core(Core, models, gpus, load, max(1, requests // 10), tick_us=tick_us)
    best = pure
    if compiled is not None:
        runs = [
            run_core(compiled, models, gpus, load, requests, tick_us=tick_us, seed=seed)
            for seed in range(1, repeats + 1)
        ]
        best = sorted(runs, key=lambda run: run.ns_per_request)[len(runs) // 2]
    return {
        **best.as_dict(),
        "tick_us": tick_us,
        "compiled": compiled is not None,
        "pure_requests_per_s": pure.requests_per_s,
    }


def show(found: dict[str, Any]) -> str:
    """The table."""
    phases = ", ".join(f"{name} {ns:.0f}" for name, ns in found["ns_by_phase"].items())
    held = found["bytes_held"]
    flavour = "compiled to C" if found["compiled"] else "Python"
    return (
        f"{found['models']:,} models, {found['gpus']:,} GPUs, {found['load']:.0%} of the fluid ideal, "
        f"ticks of {found['tick_us']} us ({found['requests_per_tick']:,.0f} requests): "
        f"mean batch {found['mean_batch']:.1f}, bad {found['bad_share']:.4%}\n"
        f"{flavour:<14}{found['requests_per_s']:>14,.0f} requests/s of one core's time, "
        f"{found['ns_per_request']:.1f} ns each ({phases})\n"
        f"{'Python':<14}{found['pure_requests_per_s']:>14,.0f} requests/s\n"
        f"memory, bytes: {held['queued']:.0f} per queued request (slots that are free among them), "
        f"{held['models']:.0f} per model, {held['gpus']:.0f} per GPU, "
        f"{held['once'] + held['actions']:,.0f} once"
    )


def curve(core: type[Core], load: float, requests: int) -> list[CoreResult]:
    """Clusters with at least two GPUs per model; ticks that hold 2,000 requests, of 5 ms at most."""
    found = []
    for models, gpus in CURVE:
        rate = gpus * 870 * load
        tick = int(min(5_000, max(50, 2_000 / rate * 1e6)))
        found.append(run_core(core, models, gpus, load, requests, tick_us=tick))
    return found


def show_curve(results: list[CoreResult]) -> str:
    """Time per tick and per request over models and GPUs, and the latter over log2(models) + log2(GPUs)."""
    lines = [
        f"{'models':>7}{'GPUs':>8}{'requests/tick':>15}{'mean batch':>12}{'us/tick':>9}{'ns/request':>12}"
        f"{'per log':>9}"
    ]
    for r in results:
        logs = math.log2(r.models) + math.log2(r.gpus)
        lines.append(
            f"{r.models:>7,}{r.gpus:>8,}{r.requests_per_tick:>15,.0f}{r.mean_batch:>12.1f}"
            f"{r.ns_per_request * r.requests_per_tick / 1e3:>9.1f}"
            f"{r.ns_per_request:>12.1f}{r.ns_per_request / logs:>9.2f}"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="symphony bench core", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=int, default=1_000, help="models  [default: 1000]")
    parser.add_argument("--gpus", type=int, default=10_000, help="emulated GPUs  [default: 10000]")
    parser.add_argument("--load", type=float, default=0.95, help="share of the fluid ideal  [default: 0.95]")
    parser.add_argument(
        "--requests", type=int, default=2_000_000, help="requests per run  [default: 2000000]"
    )
    parser.add_argument(
        "--tick", type=int, default=TICK_US, metavar="US", help=f"length of a tick, us  [default: {TICK_US}]"
    )
    parser.add_argument(
        "--curve", action="store_true", help="cost per request from 1 to 5,000 models and 8 to 20,000 GPUs"
    )
    add_json(parser)
    options = parser.parse_args(arguments)
    if min(options.models, options.gpus, options.requests, options.tick) < 1 or not options.load > 0:
        parser.error("models, GPUs, requests and tick must be at least 1, the load above 0")
    found: dict[str, Any]
    if options.curve:
        points = curve(compiled_core() or Core, options.load, min(options.requests, 400_000))
        found = {"compiled": compiled_core() is not None, "curve": [point.as_dict() for point in points]}
        text = show_curve(points)
    else:
        found = measure(options.models, options.gpus, options.load, options.requests, options.tick)
        text = show(found)
    tell(text, found, options.json)


if __name__ == "__main__":
    main()
