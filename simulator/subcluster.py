"""One shard in virtual time, with GPUs that come, drain and go: what an epoch or an autoscaler changes.

Between two changes the core runs as in :mod:`simulator.engine`; changes happen at whole seconds, when the
shard is also asked what it has seen, as the leader is told by its statistics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from scheduler.evidence import ModelLoad, Sample, fluid_need
from scheduler.select import replay_class

from .arrivals import Arrivals
from .engine import Disturbance, Ints, make_core, network_ns, take_columns
from .experiment import Experiment
from .system import Cluster

SECOND = 1_000_000_000


@dataclass(slots=True)
class Gpu:
    """A GPU that is paid for: since when, and when it is ready; draining or not."""

    kind: int
    since: int
    ready: int
    models: tuple[int, ...] | None = None
    joined: bool = False
    draining: bool = False


class SubCluster:
    """A core and its GPUs.

    Args:
        cluster: models and latencies; its GPUs are there at the start.
        numbers: of these GPUs. capacity: one more than the largest number that a GPU may have.
        types: names of the GPU types.
    """

    def __init__(
        self,
        experiment: Experiment,
        cluster: Cluster,
        policy: str,
        arrivals: Arrivals,
        capacity: int,
        numbers: Sequence[int],
        now: int,
    ) -> None:
        self.cluster = cluster
        self.arrivals = arrivals
        self.types = experiment.gpu_types
        control, data, self.result = network_ns(experiment.network)
        disturbance = Disturbance.of(experiment)
        self.core = make_core(replace(cluster, gpu_type=[]), policy)
        self.replay = replay_class()(
            self.core,
            capacity,
            control,
            data,
            control,
            round(experiment.coalesce_us * 1e3),
            disturbance.out,
            disturbance.length_ppm,
        )
        self.gpus: dict[int, Gpu] = {}
        for number, kind in zip(numbers, cluster.gpu_type, strict=True):
            self.gpus[number] = Gpu(kind, now, now)
        self.columns: list[tuple[Ints, ...]] = []
        self.paid_ns = 0
        self._out = np.zeros((5, 0), np.int64)  # gpu, start, end, size, good of batches not wholly seen
        self._offered = np.zeros(len(cluster.models), np.int64)
        self._dropped = 0
        self.ongoing = 0

    # --- GPUs --------------------------------------------------------------------------------

    def ask(self, gpu: int, kind: int, now: int, ready: int, models: tuple[int, ...] | None = None) -> None:
        """A new GPU starts: paid from ``now``, ready at the first change from ``ready`` on."""
        self.gpus[gpu] = Gpu(kind, now, ready, models)

    def drain(self, gpu: int, now: int) -> None:
        """It gets nothing more; one that has not joined yet goes at once."""
        state = self.gpus[gpu]
        if state.joined:
            state.draining = True
            self.replay.until(now)
            self.core.drain_gpu(now, gpu)
            self.replay.until(now)
        else:
            self._leave(gpu, now)

    def change(self, now: int) -> None:
        """GPUs whose time has come join; drained ones that have nothing left go."""
        self.replay.until(now)
        for number, gpu in sorted(self.gpus.items()):
            if not gpu.joined and gpu.ready <= now:
                gpu.joined = True
                self.core.add_gpu(now, number, gpu.kind, gpu.models)
                self.replay.until(now)
            elif gpu.draining and not self.core.outstanding(number):
                self.core.remove_gpu(now, number)
                self._leave(number, now)

    def _leave(self, gpu: int, now: int) -> None:
        self.paid_ns += now - self.gpus.pop(gpu).since

    # --- running -----------------------------------------------------------------------------

    def run(self, which: npt.NDArray[np.int64]) -> None:
        """Submit these arrivals, by position, and do what is due before the last of them."""
        if len(which):
            at, model = self.arrivals.at[which], self.arrivals.model[which]
            self.replay.run(at, model, self.arrivals.deadline[which], which.astype(np.uint64) + 1)
            self._offered += np.bincount(model, minlength=len(self._offered))
            self.ongoing += len(which)

    def finish(self) -> None:
        """No more arrivals: until nothing is queued."""
        self.replay.finish()
        self._take()

    def _take(self) -> None:
        """Fetch what was decided since the last look."""
        columns = take_columns(self.replay)
        self.replay.clear()
        _, gpu, size, _, start, end, request, dropped = columns
        self.columns.append(columns)
        self._dropped += len(dropped)
        self.ongoing -= len(dropped)
        if len(gpu):
            first = np.cumsum(size) - size
            in_time = np.repeat(end + self.result, size) <= self.arrivals.deadline[request]
            good = np.add.reduceat(in_time.astype(np.int64), first)
            self._out = np.concatenate([self._out, [gpu, start, end, size, good]], axis=1)

    def sample(self, now: int, seconds: float) -> Sample:
        """What the shard saw in the last ``seconds``."""
        self._take()
        begin = now - round(seconds * SECOND)
        gpu, start, end, size, good = self._out
        inside = np.clip(end, begin, now) - np.clip(start, begin, now)
        ready = [number for number, state in self.gpus.items() if state.joined and not state.draining]
        total = np.bincount(gpu, inside, minlength=max(ready, default=0) + 1)
        done = end <= now
        served, in_time = int(size[done].sum()), int(good[done].sum())
        self._out = self._out[:, ~done]
        self.ongoing -= served
        sample = Sample(
            at=now,
            seconds=seconds,
            offered=int(self._offered.sum()),
            good=in_time,
            late=served - in_time,
            dropped=self._dropped,
            need=self.need(self._offered / seconds),
            busy={number: float(total[number]) / (seconds * SECOND) for number in sorted(ready)},
            types={number: self.types[state.kind] for number, state in self.gpus.items()},
            starting=frozenset(n for n, state in self.gpus.items() if not state.joined),
            draining=frozenset(n for n, state in self.gpus.items() if state.draining),
        )
        self._offered[:] = 0
        self._dropped = 0
        return sample

    def need(self, rates: npt.NDArray[np.float64]) -> dict[str, float]:
        """The fluid need of these requests/s, by type."""
        cluster = self.cluster
        around = cluster.control + cluster.result + cluster.margin
        return fluid_need(
            (
                ModelLoad(
                    float(rate),
                    model.slo - around,
                    dict(zip(self.types, model.latency, strict=True)),
                    cluster.data,
                )
                for model, rate in zip(cluster.models, rates, strict=True)
            ),
            self.types,
        )
