"""What Symphony is compared with on one device: a plain PyTorch loop with a fixed batch window.

A process of ``symphony bench gpu``, started as ``python -m bench.plain_loop`` with one JSON object on its
standard input. One loop serves all models: it takes the model whose oldest request is oldest, waits until
that request is ``window_ms`` old or ``max_batch`` have come, runs them as one batch and is done with them
when their outputs are in host memory. Inputs are made beforehand and there is no network, which flatters
it. Highest rate with bad < 1 %, by the same bisection as Symphony's.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any, Final

import numpy as np

from bench.budget import Budget
from bench.search import Tried, highest
from worker.definition import Definition, load_definition
from worker.loading import Inputs, sampler

POOL: Final = 32
"""Requests' inputs that take turns."""


class Loop:
    """The models, loaded once."""

    def __init__(self, device: str, threads: int, definitions: list[Definition]) -> None:
        import torch

        from worker.torch_model import by_name, load_model

        self._torch = torch
        self._by_name = by_name
        torch.set_num_threads(threads)
        self._device = torch.device(device)
        self.models = [load_model(definition, self._device) for definition in definitions]
        rng = np.random.default_rng(0)
        self._pool: list[list[Inputs]] = []
        for definition in definitions:
            sample = sampler(definition)
            if sample is None:
                raise ValueError(f"model {definition.name!r} has no samples")
            self._pool.append([sample(rng) for _ in range(POOL)])
        for number, definition in enumerate(definitions):
            for size in (1, 2, 4, definition.max_batch):
                self.run(number, size)

    def run(self, number: int, size: int) -> None:
        """One batch, until its outputs are there."""
        model = self.models[number]
        pool = self._pool[number]
        with self._torch.inference_mode():
            tensors = model.inputs([pool[i % POOL] for i in range(size)])
            outputs = model.run(**{name: tensor.to(self._device) for name, tensor in tensors.items()})
            named = self._by_name(model.definition, outputs)
            model.postprocess({name: tensor.cpu() for name, tensor in named.items()})

    def offer(
        self, rates: list[float], slo_ns: list[int], window_ns: list[int], seconds: float, seed: int
    ) -> tuple[list[int], list[int]]:
        """Poisson arrivals of every model → (offered, good) by model."""
        rng = np.random.default_rng(seed)
        arrivals = []
        for rate in rates:
            count = rng.poisson(rate * seconds)
            arrivals.append(np.sort(rng.uniform(0, seconds, count) * 1e9).astype(np.int64))
        good = [0] * len(rates)
        at = [0] * len(rates)
        began = time.perf_counter_ns()
        end = int((seconds + 2 * max(slo_ns) / 1e9) * 1e9)
        while (now := time.perf_counter_ns() - began) < end:
            waiting = [m for m in range(len(rates)) if at[m] < len(arrivals[m])]
            if not waiting:
                break
            m = min(waiting, key=lambda m: int(arrivals[m][at[m]]))
            first = int(arrivals[m][at[m]])
            most = self.models[m].definition.max_batch
            here = int(np.searchsorted(arrivals[m], now, "right"))
            if now < first or (now < first + window_ns[m] and here - at[m] < most):
                time.sleep(max(0, min(first + window_ns[m], end) - now) / 4e9 + 2e-5)
                continue
            size = min(here - at[m], most)
            self.run(m, size)
            done = time.perf_counter_ns() - began
            good[m] += int((arrivals[m][at[m] : at[m] + size] + slo_ns[m] >= done).sum())
            at[m] += size
        return [len(times) for times in arrivals], good


def main() -> None:
    """Reads the task, prints ``{"goodput": {slo factor: {model: requests/s}}, "left_out": [words]}``."""
    task: dict[str, Any] = json.load(sys.stdin)
    budget = Budget(task["limit_s"], {"loop": 1.0})
    budget.begin("loop")
    definitions = [load_definition(value) for value in task["definitions"]]
    loop = Loop(task["device"], task["threads"], definitions)
    found: dict[str, dict[str, float]] = {}
    for position, point in enumerate(task["points"]):
        if position and not budget.left_s():
            budget.left_out.append(f"plain loop at SLO {point['name']} l(1)")
            continue
        end = budget.clock() + budget.each_s(len(task["points"]) - position)
        slo = [round(ms * 1e6) for ms in point["slo_ms"]]
        window = [ns // 4 for ns in slo]

        def attempt(
            scale: float, seed: int, point: Any = point, slo: Any = slo, window: Any = window
        ) -> Tried:
            rates = [rate * scale for rate in point["rates"]]
            offered, good = loop.offer(rates, slo, window, task["seconds"], seed)
            bad = 1 - sum(good) / max(1, sum(offered))
            return Tried(scale, bad, [count / task["seconds"] for count in good])

        last = task["seconds"] + 2 * max(slo) / 1e9  # what one more would take at most

        def enough(last: float = last, end: float = end) -> bool:
            return budget.clock() + last > end

        best = highest(attempt, task["steps"], enough=enough)
        found[point["name"]] = dict(zip((d.name for d in definitions), best.result, strict=True))
    print(json.dumps({"goodput": found, "left_out": budget.left_out}))


if __name__ == "__main__":
    main()
