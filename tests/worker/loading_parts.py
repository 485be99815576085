"""Batches for an executor on the fake device, and waiting for what becomes of its models."""

from __future__ import annotations

import numpy as np
from helpers import wait_until

from symphony import tensors
from worker.batch import Batch, Payload
from worker.executor import Executor
from worker.lifecycle import Change, State


def batch(value: float, model: str = "double") -> Batch:
    made = Batch(0, 0, model, np.zeros(1, dtype=np.uint64), np.zeros(1, dtype=np.int64), 0, 0)
    dtype, shape, frame = tensors.encode(np.array([value, 0], dtype=np.float32))
    made.inputs[0] = Payload(["x"], [[dtype, shape]], [frame])
    return made


def run(made: Executor, *batches: Batch) -> None:
    for one in batches:
        made.submit(one)
    left = set(map(id, batches))

    def over() -> bool:
        left.difference_update(map(id, made.finished()))
        return not left

    wait_until(over)


def until_held(made: Executor, *names: str) -> None:
    wait_until(lambda: (made.finished(), set(made.held().profiles) == set(names))[1])


def failure(made: Executor) -> Change:
    seen: list[Change] = []

    def failed() -> list[Change]:
        made.finished()
        seen.extend(change for change in made.changes() if change.state == State.FAILED)
        return seen

    return wait_until(failed)[0]
