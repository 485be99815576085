"""What one request costs the client's engine: ``python -m bench.engine``.

An open-loop load at a rate (default 8,000 requests/s) from one thread against a peer in another
process that answers in batches, then as many requests as the engine carries. Printed is the
processor time of this process, generator included, as a share of one core and per request.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import time

import numpy as np

from bench.echo import MODEL, echo_cluster
from symphony.engine import Engine
from symphony.pending import Outcome, Request
from symphony.status import Status

TICK_S = 250e-6
"""Requests that are due within this time are handed over together."""


class Tally:
    """Counts outcomes and keeps latencies, on the engine's thread."""

    def __init__(self) -> None:
        self.ok = 0
        self.other = 0
        self.latency_ns: list[int] = []

    def done(self, request: Request, outcome: Outcome) -> None:
        """The callback of every request, whose tag is when it was meant to be sent, cluster ns."""
        if outcome.status is Status.OK:
            self.ok += 1
            self.latency_ns.append(outcome.at - request.tag)
        else:
            self.other += 1

    @property
    def all(self) -> int:
        """Requests that have their outcome."""
        return self.ok + self.other


def open_loop(engine: Engine, rate: float, seconds: float, seed: int = 1) -> str:
    """Poisson arrivals at ``rate``; returns the line to print."""
    rng = np.random.default_rng(seed)
    gaps = rng.exponential(1e9 / rate, int(rate * seconds))
    tally = Tally()
    cpu, own, began = time.process_time(), time.thread_time(), time.monotonic()
    due = (engine.clock.now() + 10_000_000 + np.cumsum(gaps).astype(np.int64)).tolist()
    sent, count = 0, len(due)
    while sent < count:
        now = engine.clock.now()
        requests = []
        while sent < count and due[sent] <= now:
            at = due[sent]
            requests.append(engine.make_request(MODEL, None, at + 1_000_000_000, 0, tally.done, at))
            sent += 1
        if requests:
            engine.submit_many(requests)
        else:
            time.sleep(max(TICK_S, (due[sent] - now) / 1e9))
    while engine.in_flight:
        time.sleep(0.005)
    cpu, own, wall = time.process_time() - cpu, time.thread_time() - own, time.monotonic() - began
    p50, p99 = np.percentile(tally.latency_ns, [50, 99]) / 1e6
    return (
        f"open loop {rate:,.0f}/s for {seconds:g} s: {tally.ok:,} OK, {tally.other} other, "
        f"{cpu / wall:.0%} of a core ({own / wall:.0%} the generator, the rest engine and I/O), "
        f"{cpu / count * 1e6:.1f} us/request, latency p50 {p50:.2f} ms, p99 {p99:.2f} ms"
    )


def closed_loop(engine: Engine, count: int, window: int = 2_000) -> str:
    """As fast as it goes with at most ``window`` in flight; returns the line to print."""
    tally = Tally()
    cpu, began = time.process_time(), time.monotonic()
    sent = 0
    while sent < count:
        room = window - (sent - tally.all)
        if room < window // 10:
            time.sleep(200e-6)
            continue
        room = min(room, count - sent)
        now = engine.clock.now()
        make = engine.make_request
        engine.submit_many([make(MODEL, None, now + 2_000_000_000, 0, tally.done, now) for _ in range(room)])
        sent += room
    while tally.all < count:
        time.sleep(0.001)
    cpu, wall = time.process_time() - cpu, time.monotonic() - began
    return (
        f"closed loop, {window:,} in flight: {count / wall:,.0f} requests/s, "
        f"{cpu / wall:.0%} of a core, {cpu / count * 1e6:.1f} us/request, {tally.other} not OK"
    )


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rate", type=float, default=8_000, help="requests per second of the open loop")
    parser.add_argument("--seconds", type=float, default=5, help="length of the open loop")
    parser.add_argument("--batch-ms", type=float, default=2, help="how long the peer gathers a batch")
    parser.add_argument("--profile", action="store_true", help="profile the engine's thread and print it")
    args = parser.parse_args(arguments)
    with echo_cluster(args.batch_ms) as (registry, subscribe):
        engine = Engine(registry, subscribe)
        profile = cProfile.Profile()
        if args.profile:
            run = engine._run
            engine._run = lambda: profile.runcall(run)  # type: ignore[method-assign]
        engine.start()
        try:
            engine.wait_for_model(MODEL)
            print(open_loop(engine, args.rate, args.seconds))
            if not args.profile:
                print(closed_loop(engine, 200_000))
        finally:
            engine.close()
        if args.profile:
            pstats.Stats(profile).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
