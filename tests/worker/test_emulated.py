"""Emulated GPUs keep their time by the profile, under a clock that only the test moves."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from symphony.profile import Profile
from symphony.status import Status
from worker.batch import Batch
from worker.emulated import EmulatedGpus

PROFILE = Profile.linear(1.082, 5.204, 128)


def make(size: int, gpu: int, at: int) -> Batch:
    keys = np.arange(size, dtype=np.uint64)
    return Batch(0, gpu, "m", keys, np.zeros(size, dtype=np.int64), 0, at)


def test_a_batch_takes_as_long_as_its_profile_says() -> None:
    gpus = EmulatedGpus({"m": PROFILE})
    batch = make(77, 3, at=1_000)
    gpus.start(batch)
    end = 1_000 + PROFILE.latency(77)
    assert gpus.next_wakeup() == end
    assert list(gpus.finish(end - 1)) == []
    assert list(gpus.finish(end)) == [batch]
    assert (batch.started_ns, batch.finished_ns, batch.ran) == (1_000, end, 77)
    assert (batch.status == Status.OK).all()
    assert gpus.next_wakeup() is None


def test_a_late_look_does_not_make_the_gpu_slower() -> None:
    gpus = EmulatedGpus({"m": PROFILE})
    batch = make(1, 0, at=0)
    gpus.start(batch)
    list(gpus.finish(10**12))
    assert batch.finished_ns == PROFILE.latency(1)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 128), st.integers(0, 200_000_000)), max_size=60))
def test_each_gpu_is_a_queue_and_ends_come_in_order(plan: list[tuple[int, int, int]]) -> None:
    gpus = EmulatedGpus({"m": PROFILE})
    now, finished = 0, []
    free: dict[int, int] = {}
    for gpu, size, gap in plan:
        now += gap
        finished += gpus.finish(now)
        batch = make(size, gpu, now)
        gpus.start(batch)
        assert batch.started_ns == max(now, free.get(gpu, 0))
        assert batch.finished_ns - batch.started_ns == PROFILE.latency(size)
        free[gpu] = batch.finished_ns
    while (end := gpus.next_wakeup()) is not None:
        finished += gpus.finish(end)
    assert len(finished) == len(plan)
    ends = [batch.finished_ns for batch in finished]
    assert ends == sorted(ends)
