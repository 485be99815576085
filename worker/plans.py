"""From a PLAN message to batches, and which of them this worker can run."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Final

import numpy as np

from symphony.profile import Profile
from symphony.status import Status
from symphony.wire import Plan
from worker.batch import Batch

MAX_OUTSTANDING: Final = 65_536
"""Requests in batches that have not finished, per GPU; a scheduler plans one or two batches ahead."""


def batches(plan: Plan, received_ns: int) -> Iterator[Batch]:
    """The plan's batches in its order."""
    ends = np.cumsum(plan.size, dtype=np.int64).tolist()
    for i, end in enumerate(ends):
        rows = slice(end - int(plan.size[i]), end)
        yield Batch(
            id=int(plan.batch[i]),
            gpu=int(plan.gpu[i]),
            model=plan.models[int(plan.model[i])],
            key=plan.key[rows],
            deadline=plan.deadline[rows],
            exec_at=int(plan.exec_at[i]),
            received_ns=received_ns,
            shard=plan.shard,
        )


def refusal(
    batch: Batch, profiles: Mapping[str, Profile], gpus: Collection[int], outstanding: int
) -> tuple[Status, str] | None:
    """Why a batch cannot be run here, None if it can.

    Args:
        batch: as planned.
        profiles: of the models that are loaded.
        gpus: numbers of this worker's GPUs.
        outstanding: requests that have been accepted and not finished.
    """
    profile = profiles.get(batch.model)
    if profile is None:
        return Status.UNAVAILABLE, f"model {batch.model!r} is not loaded here"
    if batch.gpu not in gpus:
        return Status.UNAVAILABLE, f"GPU {batch.gpu} is not here"
    size = int(batch.key.size)
    if size > profile.max_batch:
        return (
            Status.UNAVAILABLE,
            f"a batch of {size} is more than {batch.model!r} takes: {profile.max_batch}",
        )
    if outstanding + size > MAX_OUTSTANDING * len(gpus):
        return Status.OVERLOADED, f"{outstanding} requests wait here already"
    return None
