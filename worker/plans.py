"""From a PLAN message to batches, and which of them this worker can run."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final

import numpy as np

from symphony.profile import Profile
from symphony.status import Status
from symphony.wire import Plan
from worker.batch import Batch
from worker.emulated import EmulatedGpus

MAX_OUTSTANDING: Final = 65_536
"""Requests in batches that have not finished, per GPU; a scheduler plans one or two batches ahead."""


def batches(plan: Plan, received_ns: int, only: Iterable[int] | None = None) -> Iterator[Batch]:
    """The plan's batches in its order; those at the positions in ``only`` if that is given."""
    ends = np.cumsum(plan.size, dtype=np.int64).tolist()
    for i in range(len(ends)) if only is None else only:
        end = ends[i]
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


def take_columns(plan: Plan, device: EmulatedGpus, gpus: frozenset[int], received_ns: int) -> list[int]:
    """Start what can be run of a plan; returns the positions of the other batches.

    What :func:`refusal` has nothing against is taken, as long as the requests that wait are within the
    limit; from the first batch that is not, the rest is left.
    """
    room = MAX_OUTSTANDING * len(gpus) - device.requests
    if plan.key.size <= room and device.start_whole(plan, gpus, received_ns):
        return []
    model = device.models(plan)
    lengths = device.lengths(model, plan.size)
    good = lengths > 0
    good &= device.here(plan.gpu, gpus)
    if plan.key.size > room:
        good &= np.where(good, plan.size, 0).cumsum(dtype=np.int64) <= room
    if np.count_nonzero(good) == good.size:
        device.start(plan, None, model, lengths, received_ns)
        return []
    rows = good.nonzero()[0]
    device.start(plan, rows, model[rows], lengths[rows], received_ns)
    return (~good).nonzero()[0].tolist()


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
