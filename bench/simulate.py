"""How fast the simulator is: ``symphony bench simulate``.

Two figures: a large cluster (10,000 GPUs, 1,000 models, 7 million requests/s under Poisson arrivals, by
default) for two seconds of virtual time, with what each phase costs and the ratio of virtual to
processor time; and how long it takes to find the goodput of a cell of 8 GPUs. Processor time of one
core, so that other programs on the machine count as little as possible.

Arrivals and completions of the large run reach the scheduler in ticks (``--coalesce-us``), as a shard
reads them from its sockets; with 0 each comes at its own time.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scheduler.select import compiled_core
from simulator.arrivals import Arrivals, arrival_blocks
from simulator.engine import cluster_of, run_core
from simulator.experiment import Experiment, parse_experiment
from simulator.fluid import fluid_ideal
from simulator.goodput import goodput
from simulator.results import counter_of, summarize

QUICK = ["--seconds", "0.2"]
MODEL = {"name": "r50", "alpha_ms": 1.082, "beta_ms": 5.204, "slo_ms": 50}
NETWORK = {"control_us": 100, "data_us": 50, "result_us": 2000}


@dataclass(frozen=True, slots=True)
class Large:
    """Processor seconds of each phase: making arrivals, the core with its GPUs and the counting, the
    summary. ``real_time``: virtual seconds per processor second of the run alone; ``real_time_all``: of
    all three phases."""

    gpus: int
    models: int
    coalesce_us: float
    requests: int
    seconds: float
    bad_share: float
    arrivals_s: float
    run_s: float
    summary_s: float
    requests_per_s: float
    real_time: float
    real_time_all: float


def large(gpus: int, models: int, rate: float, seconds: float, coalesce_us: float, policy: str) -> Large:
    """Run the core on arrivals that are made as it goes, count, summarize."""
    model = MODEL | {"rate": rate / models, "count": models}
    content = {"gpus": gpus, "seconds": seconds, "coalesce_us": coalesce_us, "network": NETWORK}
    experiment = parse_experiment(content | {"models": [model]}, "bench")
    cluster = cluster_of(experiment)
    counter = counter_of(experiment, cluster)
    made = 0.0

    def pieces() -> Iterator[Arrivals]:
        nonlocal made
        source = arrival_blocks(experiment)
        while True:
            clock = time.process_time()
            piece = next(source, None)
            made += time.process_time() - clock
            if piece is None:
                return
            yield piece

    began = time.process_time()
    record = run_core(experiment, cluster, policy, pieces(), None, counter)
    ran = time.process_time()
    tally = counter.tally()
    result = summarize(experiment, cluster, policy, tally, record, None)
    done = time.process_time()
    return Large(
        gpus,
        models,
        coalesce_us,
        tally.requests,
        seconds,
        result["bad_share"],
        made,
        ran - began - made,
        done - ran,
        tally.requests / (ran - began - made),
        seconds / (ran - began - made),
        seconds / (done - began),
    )


def cell(policy: str, seconds: float, seeds: int) -> dict[str, Any]:
    """Goodput of eight equal models on 8 GPUs."""
    content = {
        "gpus": 8,
        "seconds": seconds,
        "network": NETWORK,
        "models": [MODEL | {"rate": 500, "count": 8}],
    }
    experiment: Experiment = parse_experiment(content, "bench")
    began = time.process_time()
    found = goodput(experiment, policy, seeds)
    ideal = fluid_ideal(cluster_of(experiment))
    return {
        "policy": policy,
        "goodput_rps": found.rps,
        "ideal_rps": ideal,
        "cpu_s": time.process_time() - began,
    }


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="symphony bench simulate", description=__doc__.split("\n\n")[0])
    parser.add_argument("--gpus", type=int, default=10_000)
    parser.add_argument("--models", type=int, default=1_000)
    parser.add_argument("--rate", type=float, default=7e6, help="requests per second over all models")
    parser.add_argument("--seconds", type=float, default=2.0, help="virtual seconds of the large run")
    parser.add_argument("--coalesce-us", type=float, default=500, help="length of a tick; 0: none")
    parser.add_argument("--policy", default="deferred", help="a policy of the core")
    parser.add_argument("--json", metavar="FILE", help="write JSON to a file, or - for standard output")
    args = parser.parse_args(arguments)
    run = large(args.gpus, args.models, args.rate, args.seconds, args.coalesce_us, args.policy)
    small = cell(args.policy, 10, 1)
    core = "compiled" if compiled_core() is not None else "pure Python"
    if args.json:
        text = json.dumps({"core": core, "large": asdict(run), "cell": small})
        if args.json == "-":
            print(text)
            return
        Path(args.json).write_text(text + "\n", encoding="utf-8")
    print(
        f"{run.gpus:,} GPUs, {run.models:,} models, {run.requests / run.seconds:,.0f} requests/s for "
        f"{run.seconds:g} s in ticks of {run.coalesce_us:g} us, {args.policy}, {core} core: "
        f"{run.bad_share:.2%} bad\n"
        f"  arrivals {run.arrivals_s:.2f} s, run {run.run_s:.2f} s, summary {run.summary_s:.2f} s "
        "of one core\n"
        f"  run alone {run.requests_per_s:,.0f} requests/s, {run.real_time:.2f} x real time; "
        f"all three {run.real_time_all:.2f} x\n"
        f"8 GPUs, 8 models, SLO 50 ms, 10 s: goodput {small['goodput_rps']:,.0f} requests/s "
        f"(ideal {small['ideal_rps']:,.0f}) found in {small['cpu_s']:.1f} s"
    )


if __name__ == "__main__":
    main()
