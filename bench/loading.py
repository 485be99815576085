"""How much loading a model disturbs one that serves: ``python -m bench.loading [--device cuda:0]``.

One worker's executor serves batches of 1 of a small model, one after the other with a pause as long as the
batch. Before, while, and after a larger model is loaded and warmed up beside it: how long each batch took
from being handed in until its results were there. ``longest_wait_ms``: the longest that a batch waited for a
run of the model that was loaded, which is what the design promises to bound (one run of its largest batch).
"""

from __future__ import annotations

import argparse
import select
import time
from functools import partial
from typing import Any, Final

import numpy as np

from bench.cluster import machine
from bench.output import add_json, tell
from symphony import tensors
from worker.batch import Batch, Payload
from worker.definition import Definition, load_definition
from worker.device import open_device
from worker.executor import Executor
from worker.loading import sampler

QUICK: Final = ["--seconds", "2"]
START_S: Final = 240.0


class Server:
    """One executor and its requests."""

    def __init__(self, device: str, threads: int, model: Definition) -> None:
        self.model = model
        self.executor = Executor(partial(open_device, device, threads, ""), [model])
        sample = sampler(model)
        if sample is None:
            raise ValueError(f"model {model.name!r} has no samples")
        item = sample(np.random.default_rng(0))
        encoded = [tensors.encode(array) for array in item.values()]
        specs: list[list[Any]] = [[dtype, shape] for dtype, shape, _ in encoded]
        self._payload = Payload(list(item), specs, [frame for *_, frame in encoded])

    def wait(self, names: set[str]) -> None:
        """Until these models serve."""
        end = time.monotonic() + START_S
        while self.executor.ready() is None or set(self.executor.held().profiles) != names:
            if time.monotonic() > end:
                raise RuntimeError(f"not loaded after {START_S:g} s: {names}")
            self.executor.finished()
            select.select([self.executor.fd], [], [], 0.05)

    def one(self) -> float:
        """One batch of one, ms until it is back."""
        batch = Batch(
            0, 0, self.model.name, np.zeros(1, np.uint64), np.zeros(1, np.int64), 0, time.monotonic_ns()
        )
        batch.inputs[0] = self._payload
        began = time.perf_counter_ns()
        self.executor.submit(batch)
        while batch not in self.executor.finished():
            select.select([self.executor.fd], [], [], 1.0)
        return (time.perf_counter_ns() - began) / 1e6

    def serve(self, until: Any) -> dict[str, Any]:
        """Batches until ``until()``; their times."""
        taken: list[float] = []
        while not until() or len(taken) < 10:
            taken.append(self.one())
            time.sleep(taken[-1] / 1e3)
        p50, p99 = np.percentile(taken, (50, 99))
        return {"batches": len(taken), "p50_ms": round(float(p50), 2), "p99_ms": round(float(p99), 2)}


def measure(
    device: str, threads: int, seconds: float, small: str, large: str, max_batch: int, compiled: bool = False
) -> dict[str, Any]:
    """The three phases."""
    profile = {"profile": {"alpha_ms": 1.0, "beta_ms": 1.0}}
    served, added = (
        Definition(**(load_definition(name).model_dump(exclude={"profile"}) | profile | change))
        for name, change in (
            (small, {"max_batch": 1}),
            (large, {"max_batch": max_batch, "compile": compiled}),
        )
    )
    before = machine()
    server = Server(device, threads, served)
    server.executor.start()
    try:
        server.wait({served.name})

        def phase() -> dict[str, Any]:
            end = time.monotonic() + seconds
            return server.serve(lambda: time.monotonic() > end)

        alone = phase()
        server.executor.want([served, added])
        while_loading = server.serve(lambda: added.name in server.executor.held().profiles)
        loaded_ms = server.executor.held().load_ms[added.name]
        after = phase()
        waited = server.executor.longest_wait_ns / 1e6
    finally:
        server.executor.close()
    return {
        "machine": before,
        "device": device,
        "serving": served.name,
        "loading": added.name,
        "loaded_in_ms": round(loaded_ms, 1),
        "longest_wait_ms": round(waited, 2),
        "before": alone,
        "while_loading": while_loading,
        "after": after,
    }


def show(found: dict[str, Any]) -> str:
    """The report for people."""
    lines = [
        found["machine"],
        f"{found['serving']} serves on {found['device']} while {found['loading']} loads",
    ]
    for name in ("before", "while_loading", "after"):
        row = found[name]
        times = f"p50 {row['p50_ms']:>8} ms  p99 {row['p99_ms']:>8} ms"
        lines.append(f"{name:<15}{times}  {row['batches']} batches")
    loaded = f"loaded and warm in {found['loaded_in_ms']:.0f} ms"
    return "\n".join([*lines, f"{loaded}; a batch waited at most {found['longest_wait_ms']} ms for it"])


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="symphony bench loading", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads per operator")
    parser.add_argument("--seconds", type=float, default=5.0, help="of the phases before and after")
    parser.add_argument("--serving", default="crepe-tiny", help="the model that serves")
    parser.add_argument("--loading", default="resnet50", help="the model that is loaded")
    parser.add_argument("--max-batch", type=int, default=4, help="of the model that is loaded")
    parser.add_argument("--compile", action="store_true", help="of the model that is loaded")
    add_json(parser)
    options = parser.parse_args(arguments)
    found = measure(
        options.device,
        options.threads,
        options.seconds,
        options.serving,
        options.loading,
        options.max_batch,
        options.compile,
    )
    tell(show(found), found, options.json)


if __name__ == "__main__":
    main()
