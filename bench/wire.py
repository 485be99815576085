"""Requests per second through live shards over TCP: ``symphony bench wire``.

Real processes on this machine, with a real broker and real membership: load generators that speak the wire
in columns, one or several shards, and for each shard one worker process that emulates all of its GPUs. The
models have the profile of the Symphony paper's own scheduler benchmark, ResNet-50 with
l(b) = 1.082 b + 5.204 ms, and an objective of 100 ms; with several shards each has its share of the models.
Every key is accounted for exactly once. After a warm-up the books, the processor time of every process and
the shards' own statistics are taken over the measured seconds: offered and good requests, what was bad and
why, how late the shards' timers fired, and where each shard's loop spends its time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from typing import Any, Final

import psutil
import yaml

from bench.cluster import Running, machine, running

ALPHA_MS: Final = 1.082
BETA_MS: Final = 5.204
SLO_MS: Final = 100.0
MAX_BATCH: Final = 128
MODELS: Final = 100
WARM_S: Final = 3.0
LOOP_US: Final = {"spin_us": 0, "rest_us": 2_000}
"""How the shards' loops wait."""
LATENCIES_US: Final = {
    "control_latency_us": 3_000,
    "data_latency_us": 0,
    "result_latency_us": 20_000,
    "timer_margin_us": 3_000,
}
"""What the shards assume. Everything shares a few cores, every process works in turns of a millisecond or
more, and a virtual machine loses a core for 10 to 20 ms now and then; plans carry no inputs, so a request
more costs nothing on the way."""
QUICK: Final = ["--rate", "500000", "--gpus", "750", "--seconds", "5"]


def config(
    gpus: int,
    shards: int,
    models: int = MODELS,
    loop: dict[str, int] | None = None,
    latencies: dict[str, int] | None = None,
    policy: str = "deferred",
) -> str:
    """The cluster: model i belongs to shard i modulo ``shards``, each shard has its part of the GPUs.

    ``loop`` and ``latencies``: of the section ``scheduler``, by name. ``policy``: the shards'.
    """
    profile = {"alpha_ms": ALPHA_MS, "beta_ms": BETA_MS}
    common = {"slo_ms": SLO_MS, "max_batch": MAX_BATCH, "loader": "emulated", "profile": profile}
    names = [f"m{i}" for i in range(models)]
    workers = [
        {
            "id": f"worker-{i}",
            "device": "emulated",
            "shard": f"shard-{i}",
            "gpus": gpus // shards + (i < gpus % shards),
            "models": names[i::shards],
        }
        for i in range(shards)
    ]
    return yaml.safe_dump(
        {
            "scheduler": {
                "shards": shards,
                "max_queue": 1_000_000,
                "policy": policy,
                **(LOOP_US if loop is None else loop),
                **(LATENCIES_US if latencies is None else latencies),
            },
            "models": [{"name": name, **common} for name in names],
            "workers": workers,
        }
    )


class Load:
    """The generator processes; :meth:`await_line` follows the first, :meth:`books` adds all up."""

    def __init__(self, cluster: Running, options: argparse.Namespace) -> None:
        self._processes = []
        for i in range(options.generators):
            command = [sys.executable, "-m", "bench.wire_load", "--id", f"load-{i}"]
            values = {
                "registry": cluster.config.registry,
                "subscribe": cluster.config.subscribe,
                "rate": options.rate / options.generators,
                "seconds": options.seconds,
                "warm": WARM_S,
                "models": options.models,
                "shards": options.shards,
                "slo-ms": SLO_MS,
                "submit-size": options.submit_size,
                "seed": options.seed + i,
            }
            for name, value in values.items():
                command += [f"--{name}", str(value)]
            pipe = subprocess.PIPE
            # A session of its own, as the cluster's processes have: its priority counts only then.
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=pipe,
                stderr=pipe,
                text=True,
                start_new_session=True,
            )
            self._processes.append(process)
        self._said = ""

    def processes(self) -> dict[str, psutil.Process]:
        """By name, as the cluster's are."""
        return {f"load-{i}": psutil.Process(p.pid) for i, p in enumerate(self._processes)}

    def await_line(self, line: str) -> None:
        """Until the first generator says so.

        Raises:
            RuntimeError: it ended before.
        """
        stderr = self._processes[0].stderr
        assert stderr is not None
        for said in stderr:
            self._said += said
            if said.strip() == line:
                return
        raise RuntimeError(f"the load generator has ended:\n{self._said}")

    def books(self) -> dict[str, Any]:
        """The sums over all generators."""
        total: dict[str, Any] = {}
        for process in self._processes:
            out, err = process.communicate(timeout=60)
            if not out:
                raise RuntimeError(f"a load generator gave no books:\n{self._said}{err}")
            for name, value in json.loads(out).items():
                alike = name in ("seconds", "longest_tick_ms")
                total[name] = max(total.get(name, 0), value) if alike else total.get(name, 0) + value
        return total

    def stop(self) -> None:
        """End what still runs."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.communicate()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One run; the fields of the result are those of ``--json``."""
    found: dict[str, Any] = {"machine": machine()}
    began = time.monotonic()
    latencies = {name: getattr(options, name) for name in LATENCIES_US}
    loop = {name: getattr(options, name) for name in LOOP_US}
    cluster_file = config(options.gpus, options.shards, options.models, loop, latencies, options.policy)
    with running(cluster_file) as cluster:
        found["start_s"] = round(time.monotonic() - began, 1)
        load = Load(cluster, options)
        try:
            load.await_line("measuring")
            processes = {**cluster.processes, **load.processes()}
            before, busy = _cpu(processes), psutil.cpu_times()
            load.await_line("measured")
            after, busy_after = _cpu(processes), psutil.cpu_times()
            stats = {name: cluster.shard_stats(name) for name in cluster.config.shard_ids}
            books = load.books()
        finally:
            load.stop()
        faults = {
            name: member.stats.get("faults")
            for name, member in cluster.members().items()
            if member.stats.get("faults")
        }
    cpu = {name: after[name] - before[name] for name in before}
    offered, seconds = books["offered"], books["seconds"]
    steal = getattr(busy_after, "steal", 0.0) - getattr(busy, "steal", 0.0)
    return {
        **found,
        "rate": options.rate,
        "gpus": options.gpus,
        "shards": options.shards,
        "submit_size": options.submit_size,
        "seconds": round(seconds, 3),
        "offered_per_s": round(offered / seconds, 1),
        "good_per_s": round(books["good"] / seconds, 1),
        "bad_share": round(1 - books["good"] / max(1, offered), 6),
        "unanswered": books["unanswered"],
        "lateness_p50_us": max(s["lateness_p50_us"] for s in stats.values()),
        "lateness_p99_us": max(s["lateness_p99_us"] for s in stats.values()),
        "cpu_us_per_request": {name: round(1e6 * used / max(1, offered), 4) for name, used in cpu.items()},
        "cores_used": {name: round(used / seconds, 3) for name, used in cpu.items()},
        "steal_share": round(steal / seconds, 4),
        "mean_batch": _mean_batch(stats),
        "busy_share": {name: s["busy_share"] for name, s in stats.items()},
        "loop": {name: s.get("loop", {}) for name, s in stats.items()},
        "books": {name: value for name, value in books.items() if name != "seconds"},
        "faults": faults,
    }


def _cpu(processes: dict[str, psutil.Process]) -> dict[str, float]:
    return {name: float(sum(process.cpu_times()[:2])) for name, process in processes.items()}


def _mean_batch(stats: dict[str, dict[str, Any]]) -> float:
    """Over everything that the shards have served."""
    models = [m for s in stats.values() for m in s["models"].values()]
    served = sum(m["good"] + m["late"] for m in models)
    batches: int = sum(m["batches"] for m in models)
    return float(round(served / max(1, batches), 1))


def show(found: dict[str, Any]) -> str:
    """The table."""
    books = found["books"]
    rows = [
        found["machine"],
        "",
        f"{found['rate']:,.0f} requests/s for {found['seconds']:g} s, {found['submit_size']} a message, "
        f"{found['gpus']:,} emulated GPUs, {found['shards']} shard(s)",
        f"  offered        {found['offered_per_s']:,.0f}/s",
        f"  good           {found['good_per_s']:,.0f}/s",
        f"  bad            {found['bad_share']:.3%}  (late {books['late']:,}, dropped {books['dropped']:,}, "
        f"other {books['failed']:,}, unanswered {books['unanswered']:,}, duplicates {books['duplicates']:,})",
        f"  mean batch     {found['mean_batch']}, GPUs busy "
        + ", ".join(f"{share:.1%}" for share in found["busy_share"].values() if share is not None),
        f"  timers late    p50 {found['lateness_p50_us']:,.0f} µs, p99 {found['lateness_p99_us']:,.0f} µs",
        "",
        f"  {'process':<16}{'of one core':>12}{'µs a request':>14}",
    ]
    for name, share in found["cores_used"].items():
        rows.append(f"  {name:<16}{share:>12.0%}{found['cpu_us_per_request'][name]:>14.3f}")
    for name, loop in found["loop"].items():
        phases = ", ".join(f"{phase} {share:.0%}" for phase, share in loop.get("share", {}).items())
        if phases:
            rows.append(f"  {name}: {loop['turns_per_s']:,.0f} turns/s; {phases}")
    if found["faults"]:
        rows.append(f"  faults         {found['faults']}")
    return "\n".join(rows)


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="symphony bench wire", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rate", type=float, default=500_000, help="requests per second, all generators")
    parser.add_argument("--gpus", type=int, default=750, help="emulated GPUs, all shards")
    parser.add_argument("--shards", type=int, default=1, help="scheduler processes")
    parser.add_argument("--seconds", type=float, default=10.0, help="measured time, after a warm-up of 3 s")
    parser.add_argument(
        "--submit-size", type=int, default=256, help="requests in a submit message; clients send 256 at most"
    )
    parser.add_argument("--models", type=int, default=MODELS, help="models, all of the same profile")
    parser.add_argument("--policy", default="deferred", help="the shards' policy")
    parser.add_argument("--generators", type=int, default=1, help="load generator processes")
    parser.add_argument(
        "--spin-us", type=int, default=LOOP_US["spin_us"], help="the shards' spin setting, µs"
    )
    parser.add_argument(
        "--rest-us", type=int, default=LOOP_US["rest_us"], help="the shards' longest pause while busy, µs"
    )
    for name, value in LATENCIES_US.items():
        words = name.removesuffix("_us").replace("_", " ")
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=int, default=value, help=f"{words} that shards assume, µs"
        )
    parser.add_argument("--seed", type=int, default=0, help="of the arrivals")
    parser.add_argument("--json", metavar="FILE", help="write JSON to a file, or - for standard output")
    options = parser.parse_args(arguments)
    whole = (options.shards, options.generators, options.submit_size)
    if min(whole) < 1 or not (options.rate > 0 and options.seconds > 0):
        parser.error("rate and seconds must be above 0, shards, generators and submit size at least 1")
    if min(options.gpus, options.models) < options.shards:
        parser.error("every shard needs a GPU and a model at least")
    found = measure(options)
    print(show(found), file=sys.stderr if options.json == "-" else sys.stdout)
    if options.json == "-":
        print(json.dumps(found))
    elif options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=2)


if __name__ == "__main__":
    main()
