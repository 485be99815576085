"""What a request costs beyond its model, and how late the shard's timers fire: ``python -m bench.latency``.

Round trip: one request at a time through real processes (this client, a shard with policy ``eager``, a
worker with an emulated model that takes no time), so that all of what is measured is Symphony's: client →
shard → worker → client, three messages. Timer lateness is the shard's own statistic, under a light load
with policy ``deferred``, where every batch leaves by timer; with ``spin`` the shard wakes early and
busy-waits for the rest.
"""

from __future__ import annotations

import argparse
import time
from typing import Any, Final

import numpy as np

from bench.cluster import Running, machine, running
from bench.output import add_json, tell
from symphony.client import Client

WARM_UP: Final = 200
SPIN_US: Final = 200
RATE: Final = 200.0
"""Requests per second while timers are observed; their batches are small and leave one by one."""

_NOTHING: Final = """
scheduler: {policy: eager}
models: [{name: nothing, slo_ms: 1000, max_batch: 1, loader: emulated, profile: {points: {1: 0.000001}}}]
workers: [{device: emulated, gpus: 1, models: [nothing]}]
"""

_TIMED: Final = """
scheduler: {policy: deferred, spin_us: %d}
models: [{name: timed, slo_ms: 50, max_batch: 64, loader: emulated, profile: {alpha_ms: 1, beta_ms: 5}}]
workers: [{device: emulated, gpus: 8, models: [timed]}]
"""


def round_trip(seconds: float) -> dict[str, Any]:
    """Microseconds from the call of ``infer`` to its return, one call after the other."""
    with running(_NOTHING) as cluster, Client(cluster.config.registry, cluster.config.subscribe) as client:
        client.engine.wait_for_model("nothing", 20)
        taken: list[int] = []
        inside: list[int] = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(taken) < 2 * WARM_UP:
            before = time.perf_counter_ns()
            result = client.submit("nothing").result()
            taken.append(time.perf_counter_ns() - before)
            inside.append(result.latency_ns - (result.finished - result.started))
    p50, p99 = np.percentile(taken[WARM_UP:], (50, 99)) / 1e3
    engine_p50, engine_p99 = np.percentile(inside[WARM_UP:], (50, 99)) / 1e3
    return {
        "requests": len(taken) - WARM_UP,
        "p50_us": round(float(p50), 1),
        "p99_us": round(float(p99), 1),
        "engine_p50_us": round(float(engine_p50), 1),
        "engine_p99_us": round(float(engine_p99), 1),
    }


def timer_lateness(seconds: float, spin_us: int) -> dict[str, Any]:
    """Microseconds by which the shard's timers fire late, and the share of a core that it uses."""
    with (
        running(_TIMED % spin_us) as cluster,
        Client(cluster.config.registry, cluster.config.subscribe) as client,
    ):
        client.engine.wait_for_model("timed", 20)
        _ask(client, 1.0)
        cpu, began = cluster.cpu_seconds()["shard-0"], time.monotonic()
        _ask(client, seconds)
        share = (cluster.cpu_seconds()["shard-0"] - cpu) / (time.monotonic() - began)
        stats = _latest(cluster)
    return {
        "spin_us": spin_us,
        "p50_us": stats["lateness_p50_us"],
        "p99_us": stats["lateness_p99_us"],
        "shard_cpu_share": round(share, 3),
    }


def _ask(client: Client, seconds: float) -> None:
    """A constant rate; whatever comes back."""
    start = time.monotonic()
    futures = []
    for number in range(int(seconds * RATE)):
        time.sleep(max(0.0, start + number / RATE - time.monotonic()))
        futures.append(client.submit("timed"))
    for future in futures:
        future.exception()


def _latest(cluster: Running) -> dict[str, Any]:
    """Statistics that the shard has published from now on."""
    before = cluster.shard_stats().get("at", 0)
    end = time.monotonic() + 10
    while (stats := cluster.shard_stats()).get("at", 0) <= before:
        if time.monotonic() > end:
            raise RuntimeError("the shard has published no statistics for 10 s")
        time.sleep(0.1)
    return stats


def measure(seconds: float) -> dict[str, Any]:
    """Everything; each of the three parts takes ``seconds`` and a few more for its cluster."""
    before = machine()
    found = round_trip(seconds)
    lateness = [timer_lateness(seconds, spin) for spin in (0, SPIN_US)]
    return {"machine": before, **found, "timers": lateness}


def show(found: dict[str, Any]) -> str:
    """The table."""
    rows = [
        f"{found['machine']}",
        "",
        f"{'':44}{'p50 µs':>10}{'p99 µs':>10}",
        f"{'round trip beyond the model, caller':44}{found['p50_us']:>10,.0f}{found['p99_us']:>10,.0f}",
        f"{'  of it from the client engine on':44}"
        f"{found['engine_p50_us']:>10,.0f}{found['engine_p99_us']:>10,.0f}",
    ]
    for timer in found["timers"]:
        how = f"spin {timer['spin_us']} µs, shard {timer['shard_cpu_share']:.0%} of a core"
        rows.append(f"{'timer lateness, ' + how:44}{timer['p50_us']:>10,.0f}{timer['p99_us']:>10,.0f}")
    return "\n".join(rows)


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each of the three parts")
    add_json(parser)
    options = parser.parse_args(arguments)
    found = measure(options.seconds)
    tell(show(found), found, options.json)


if __name__ == "__main__":
    main()
