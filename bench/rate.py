"""What one live shard carries: ``python -m bench.rate``.

Real processes on this machine: a broker, one shard, one worker that emulates 8 GPUs with the profile of
the Symphony paper's own scheduler benchmark, l(b) = 1.082 b + 5.204 ms, SLO 100 ms, and ``symphony load``
with Poisson arrivals. First the fixed rate (5,000 requests/s for 20 s), beside what the algorithm could do
with perfect timing and no network; then a bisection for the highest rate at which less than 1 % is bad,
and what each process used of a core at that rate and above it, which tells what stops it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any, Final

import psutil

from bench.cluster import Running, machine, running
from bench.output import add_json, tell

ALPHA_MS: Final = 1.082
BETA_MS: Final = 5.204
GPUS: Final = 8
SLO_MS: Final = 100.0
MAX_BATCH: Final = 128
RATE: Final = 5_000.0
BAD: Final = 0.01
"""Most of the offered requests that may be bad."""
STEP: Final = 0.03
"""The bisection ends when it knows the rate this well."""
QUICK: Final = ["--seconds", "10", "--no-search"]

_CONFIG: Final = f"""
models:
  - name: resnet50
    slo_ms: {SLO_MS}
    max_batch: {MAX_BATCH}
    loader: emulated
    profile: {{alpha_ms: {ALPHA_MS}, beta_ms: {BETA_MS}}}
workers: [{{device: emulated, gpus: {GPUS}, models: [resnet50]}}]
"""


def staggered_bound() -> dict[str, float]:
    """N GPUs in turn, no network: the largest b with l(b)(1 + 1/N) ≤ SLO, and the rate that it carries."""
    fitting = [b for b in range(1, MAX_BATCH + 1) if _latency_ms(b) * (1 + 1 / GPUS) <= SLO_MS]
    batch = max(fitting)
    return {"batch": batch, "rate_rps": round(1e3 * GPUS * batch / _latency_ms(batch), 1)}


def busy_share_at(rate: float, batch: float) -> float:
    """The share of the GPUs' time that batches of that size take at that rate."""
    return rate / batch * (ALPHA_MS * batch + BETA_MS) / 1e3 / GPUS


def _latency_ms(batch: float) -> float:
    return ALPHA_MS * batch + BETA_MS


def offer(cluster: Running, rate: float, seconds: float, seed: int = 0) -> dict[str, Any]:
    """One load through ``symphony load``: its figures, and each process's share of a core."""
    command = [sys.executable, "-m", "symphony", "load", f"resnet50={rate:g}", "--seconds", f"{seconds:g}"]
    command += ["--seed", str(seed), "--json", "-", "--wait", "20"]
    command += ["--registry", cluster.config.registry, "--subscribe", cluster.config.subscribe]
    before, began, all_before = cluster.cpu_seconds(), time.monotonic(), psutil.cpu_times()
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as load:
        children_before = os.times()
        out, err = load.communicate(timeout=seconds + 120)
    own = os.times()
    if not out:
        raise RuntimeError(f"symphony load gave no report:\n{err}")
    wall = time.monotonic() - began
    report = json.loads(out)
    cpu = {name: (used - before[name]) / wall for name, used in cluster.cpu_seconds().items()}
    spent = own.children_user + own.children_system
    cpu["load"] = (spent - children_before.children_user - children_before.children_system) / wall
    idle = psutil.cpu_times().idle - all_before.idle
    everything = (os.cpu_count() or 1) - idle / wall
    cpu["everything else"] = max(0.0, everything - sum(cpu.values()))
    stats = cluster.shard_stats()
    total = report["total"]
    return {
        "rate_rps": rate,
        "seconds": seconds,
        **{key: total[key] for key in ("offered", "good", "late", "dropped", "rejected", "unanswered")},
        "bad_share": 1 - total["good"] / max(1, total["offered"]),
        "mean_batch": _rounded(total["mean_batch"], 1),
        "busy_share": _rounded(total["busy_share"], 4),
        "p50_ms": _rounded(total["p50_ms"], 2),
        "p99_ms": _rounded(total["p99_ms"], 2),
        "one_outcome_each": report["one_outcome_each"],
        "generator_lag_p99_ms": _rounded(report["generator"].get("lag_p99_ms"), 2),
        "cpu_share": {name: round(share, 3) for name, share in cpu.items()},
        "shard_lateness_p99_us": stats["lateness_p99_us"],
        "shard_margin_us": stats["margin_us"],
    }


def _rounded(value: float | None, digits: int) -> float:
    return float("nan") if value is None else round(value, digits)


def search(cluster: Running, seconds: float, low: float, high: float) -> tuple[float, list[dict[str, Any]]]:
    """The highest rate found with less than 1 % bad, by bisection between ``low`` and ``high``, and its runs.

    Neighbours on a shared machine spoil single runs, so a rate that fails is tried twice.
    """
    runs: list[dict[str, Any]] = []
    best = 0.0
    while high - low > STEP * high:
        middle = (low + high) / 2
        for attempt in range(2):
            runs.append(offer(cluster, round(middle, -1), seconds, seed=attempt + 1))
            print(_line(runs[-1]), file=sys.stderr, flush=True)
            if runs[-1]["bad_share"] < BAD:
                break
        if runs[-1]["bad_share"] < BAD:
            low = best = middle
        else:
            high = middle
    return round(best, -1), runs


def _line(run: dict[str, Any]) -> str:
    return (
        f"  {run['rate_rps']:>7,.0f} requests/s: bad {run['bad_share']:.2%}, mean batch {run['mean_batch']}, "
        f"p99 {run['p99_ms']} ms, generator lag p99 {run['generator_lag_p99_ms']} ms"
    )


def why(run: dict[str, Any]) -> str:
    """What stops a rate that fails, as far as processor time tells."""
    cores = os.cpu_count() or 1
    shares = dict(run["cpu_share"])
    others = shares.pop("everything else")
    if others > 0.5:
        return f"other programs, which took {others:.0%} of a core: measure again on a quiet machine"
    full = [f"{name} ({share:.0%} of a core)" for name, share in shares.items() if share > 0.85]
    used = sum(shares.values())
    if full:
        return "these have no time left: " + ", ".join(full)
    if used > 0.9 * cores:
        return f"the machine's {cores} cores are used up ({used / cores:.0%})"
    if run["rate_rps"] > 0.95 * staggered_bound()["rate_rps"]:
        return "the GPUs: the rate is at the staggered bound"
    return (
        f"no process is out of processor time ({used / cores:.0%} of the machine is used); timers fire "
        f"{run['shard_lateness_p99_us'] / 1e3:.1f} ms late at p99, and margins for that shrink the batches"
    )


def measure(rate: float, seconds: float, find: bool, search_seconds: float) -> dict[str, Any]:
    """Everything, as JSON has it."""
    bound = staggered_bound()
    found: dict[str, Any] = {"machine": machine(), "staggered_bound": bound}
    with running(_CONFIG) as cluster:
        offer(cluster, 500, 2)  # so that nothing is touched for the first time
        found["fixed"] = offer(cluster, rate, seconds)
        if find:
            print("searching the highest rate with bad < 1 %:", file=sys.stderr)
            best, runs = search(cluster, search_seconds, 0.3 * bound["rate_rps"], 1.1 * bound["rate_rps"])
            found["highest_rps"], found["runs"] = best, runs
            failed = [run for run in runs if run["bad_share"] >= BAD and run["rate_rps"] > best]
            if failed:
                lowest = min(failed, key=lambda run: float(run["rate_rps"]))
                found["stopped_at_rps"], found["stopped_by"] = lowest["rate_rps"], why(lowest)
    return found


def show(found: dict[str, Any]) -> str:
    """The table."""
    run, bound = found["fixed"], found["staggered_bound"]
    ideal = busy_share_at(run["rate_rps"], bound["batch"])
    rows = [
        found["machine"],
        "",
        f"{run['offered']:,} requests, {run['rate_rps']:,.0f}/s for {run['seconds']:g} s, "
        f"{GPUS} emulated GPUs, l(b) = {ALPHA_MS} b + {BETA_MS} ms, SLO {SLO_MS:g} ms",
        f"  bad            {run['bad_share']:.3%}  (late {run['late']}, dropped {run['dropped']}, "
        f"rejected {run['rejected']}, unanswered {run['unanswered']})",
        f"  mean batch     {run['mean_batch']}  (staggered bound: {bound['batch']:.0f})",
        f"  GPUs busy      {run['busy_share']:.1%}  ({ideal:.1%} with batches of the bound)",
        f"  latency        p50 {run['p50_ms']} ms, p99 {run['p99_ms']} ms",
        "  of one core    " + ", ".join(f"{name} {share:.0%}" for name, share in run["cpu_share"].items()),
    ]
    if "highest_rps" in found:
        share = found["highest_rps"] / bound["rate_rps"]
        rows.append(
            f"highest rate with bad < 1 %: {found['highest_rps']:,.0f} requests/s, "
            f"{share:.0%} of the staggered bound ({bound['rate_rps']:,.0f})"
        )
        if "stopped_by" in found:
            rows.append(f"stopped at {found['stopped_at_rps']:,.0f} requests/s by: {found['stopped_by']}")
    return "\n".join(rows)


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rate", type=float, default=RATE, help="requests per second of the fixed load")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of the fixed load")
    parser.add_argument("--no-search", action="store_true", help="leave out the search for the highest rate")
    parser.add_argument("--search-seconds", type=float, default=8.0, help="length of each load of the search")
    add_json(parser)
    options = parser.parse_args(arguments)
    found = measure(options.rate, options.seconds, not options.no_search, options.search_seconds)
    tell(show(found), found, options.json)


if __name__ == "__main__":
    main()
