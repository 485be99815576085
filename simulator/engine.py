"""The virtual clock: drives a scheduler through all arrivals, with the network and the GPUs behind it.

Two ways that give the same for the same scheduler: :func:`run_core` for the scheduling core, whose
inner loop is compiled with it, and :func:`run_system` for everything else. In both, a batch that is
decided at t reaches its GPU, inputs included, at t + control + size·data + jitter, starts when the
batch before it has ended, and runs for its profile's time, times 1 + noise. The scheduler hears of the
end one control latency later; the results are at the frontend one result latency after the end.
"""

from __future__ import annotations

import functools
import heapq
import time
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from scheduler.core.machine import Core
from scheduler.core.replay import Replay
from scheduler.select import core_class, replay_class

from .arrivals import START_NS, Arrivals, copy_rates, group_rate
from .autoscaling import Scaling
from .experiment import Experiment, ExperimentError, Network
from .system import NEVER, Cluster, ModelSpec, Sent, System
from .tally import Counter

Ints = npt.NDArray[np.int64]
Progress = Callable[[float], None]
"""Told the simulated share of the experiment, 0 … 1."""

DRAWS = 1 << 16
"""Jitter and noise are drawn this many times and then repeat, by batch number."""


@dataclass(frozen=True, slots=True)
class Record:
    """What happened, as columns.

    Over batches: ``model``, ``gpu``, ``size``, ``decided``, ``start``, ``end``, ``answered`` (when the
    results are at the frontend; NEVER for a batch that was killed or discarded). ``request``: position
    in the arrivals of every request of every batch, in turn. ``dropped``: positions of the requests
    that the scheduler gave up. ``events``: of the clock. ``wall_s``: it took.
    ``scaling``: with an autoscaler, what it did. ``epochs``: with
    several shards, every plan.
    """

    model: Ints
    gpu: Ints
    size: Ints
    decided: Ints
    start: Ints
    end: Ints
    answered: Ints
    request: Ints
    dropped: Ints
    events: int
    wall_s: float
    scaling: Scaling | None = None
    epochs: list[dict[str, Any]] | None = None


@dataclass(frozen=True, slots=True)
class Disturbance:
    """Random deviations per batch number, from the experiment's seed: jitter out and back, and length."""

    out: Ints
    back: Ints
    length_ppm: Ints

    @classmethod
    def of(cls, experiment: Experiment) -> Disturbance:
        """Exponential jitter; lengths normal around the profile's, never below half of it."""
        return _draw(experiment.seed, experiment.network.jitter_us * 1e3, experiment.noise)


@functools.lru_cache(maxsize=4)  # a search for the goodput asks for the same ones again
def _draw(seed: int, jitter: float, noise: float) -> Disturbance:
    rng = np.random.default_rng([seed, 1 << 40])
    out = (rng.exponential(1.0, DRAWS) * jitter).astype(np.int64)
    back = (rng.exponential(1.0, DRAWS) * jitter).astype(np.int64)
    factor = np.maximum(0.5, 1 + noise * rng.standard_normal(DRAWS))
    return Disturbance(out, back, np.rint(factor * 1e6).astype(np.int64))


def cluster_of(experiment: Experiment, scale: float = 1.0) -> Cluster:
    """What the scheduler is told: every copy of every model, every GPU, the latencies it believes in."""
    types = experiment.gpu_types
    models: list[ModelSpec] = []
    for group in experiment.models:
        tables = tuple(experiment.profile(group, kind).latency_ns for kind in types)
        if len({len(table) for table in tables}) > 1:
            raise ExperimentError(
                f"model {group.name}: its profiles end at different batch sizes; say max_batch"
            )
        for number, rate in enumerate(copy_rates(group, group_rate(experiment, group) * scale)):
            name = group.name if group.count == 1 else f"{group.name}-{number}"
            models.append(ModelSpec(name, round(group.slo_ms * 1e6), tables, rate))
    gpu_type = [types.index(group.type) for group in experiment.gpus for _ in range(group.count)]
    net = experiment.believed
    return Cluster(
        models,
        gpu_type,
        _ns(net.control_us),
        _ns(net.data_us),
        _ns(net.result_us),
        _ns(experiment.margin_us),
    )


def make_core(cluster: Cluster, policy: str) -> Core:
    """The scheduling core with the cluster's models and GPUs."""
    try:
        core = core_class()(
            policy, cluster.control, cluster.data, cluster.result, cluster.margin, max_queue=1 << 30
        )
    except ValueError as error:
        raise ExperimentError(str(error)) from None
    for number, model in enumerate(cluster.models):
        core.add_model(number, model.slo, model.max_batch)
        for kind, table in enumerate(model.latency):
            core.set_profile(0, number, kind, table)
    for gpu, kind in enumerate(cluster.gpu_type):
        core.add_gpu(0, gpu, kind)
    return core


def run_core(
    experiment: Experiment,
    cluster: Cluster,
    policy: str,
    arrivals: Iterable[Arrivals],
    progress: Progress | None = None,
    counter: Counter | None = None,
) -> Record:
    """Run the scheduling core under a policy that it knows by name.

    Args:
        arrivals: in consecutive pieces.
        counter: told of all requests as they come and go; the record then says nothing of single requests,
            and memory grows with the batches only.
    """
    net = experiment.network
    disturbance = Disturbance.of(experiment)
    core = make_core(cluster, policy)
    clock = time.perf_counter()
    replay = replay_class()(
        core,
        len(cluster.gpu_type),
        _ns(net.control_us),
        _ns(net.data_us),
        _ns(net.control_us),
        _ns(experiment.coalesce_us),
        disturbance.out,
        disturbance.length_ppm,
    )
    # Arrays grow where they are: memory that is touched for the first time costs more than what is put there.
    kept = [array("q") for _ in range(9)]

    def take() -> None:
        """Fetch what was decided since the last look."""
        out = replay.core.actions.dispatches()
        columns = [memoryview(column) for column in (out.model, out.gpu, out.size)]
        columns += [
            memoryview(column)[: replay.batches] for column in (replay.decided, replay.start, replay.end)
        ]
        model, size, end = (np.frombuffer(columns[i], np.int64) for i in (0, 2, 5))
        number = np.arange(len(kept[0]), len(kept[0]) + len(end))
        answered = end + _ns(net.result_us) + disturbance.back[number % DRAWS]
        columns.append(answered.data)
        if counter is None:
            columns += [memoryview(column) for column in (out.key, replay.core.actions.drops().key)]
        else:
            counter.answer(model, size, answered, np.frombuffer(out.deadline, np.int64))
        for into, column in zip(kept, columns, strict=False):
            into.frombytes(column.cast("B"))
        replay.clear()

    key = 1
    for piece in arrivals:
        keys = np.arange(key, key + len(piece.at), dtype=np.uint64)
        key += len(keys)
        if counter is not None:
            counter.arrive(piece)
        replay.run(piece.at, piece.model, piece.deadline, keys)
        take()
        if progress is not None:
            progress(float(piece.at[-1] - START_NS) / 1e9 / experiment.seconds)
    replay.finish()
    take()
    done = [np.frombuffer(column, np.int64) for column in kept]
    for keys_of in done[7:]:
        keys_of -= 1  # keys are positions in the arrivals, from 1 on
    wall = time.perf_counter() - clock
    model, gpu, size, decided, start, end, answered, request, dropped = done
    return Record(model, gpu, size, decided, start, end, answered, request, dropped, replay.events, wall)


def take_columns(replay: Replay) -> tuple[Ints, ...]:
    """Copies of what has come out since the last look; the caller then calls ``replay.clear``.

    model, gpu, size, decided, start, end of every batch; then the positions of the batches' requests and
    of the dropped ones.
    """
    out = replay.core.actions.dispatches()
    lost = replay.core.actions.drops()
    n = replay.batches
    columns = [np.frombuffer(view, np.int64).copy() for view in (out.model, out.gpu, out.size)]
    columns += [
        np.frombuffer(memoryview(view)[:n], np.int64).copy()
        for view in (replay.decided, replay.start, replay.end)
    ]
    columns += [np.frombuffer(view, np.int64) - 1 for view in (out.key, lost.key)]
    return tuple(columns)


class _Worker:
    """One GPU of :func:`run_system`: its batches in order, each with number, start and end."""

    __slots__ = ("free", "queue")

    def __init__(self) -> None:
        self.free = 0
        self.queue: list[tuple[int, int, int]] = []


def run_system(
    experiment: Experiment,
    cluster: Cluster,
    system: System,
    arrivals: Arrivals,
    progress: Progress | None = None,
    most_dropped: int | None = None,
) -> Record:
    """Run any scheduler; batches may be killed, or be discarded by the worker when they come too late.

    ``most_dropped``: end the run early when more of the requests that count have been dropped.
    """
    clock = time.perf_counter()
    run = _Run(experiment, cluster, system)
    tick = _ns(experiment.coalesce_us)
    at, model, deadline = arrivals.at.tolist(), arrivals.model.tolist(), arrivals.deadline.tolist()
    early = np.flatnonzero(arrivals.at < START_NS + int(experiment.warmup * 1e9))
    first = int(early[-1]) + 1 if len(early) else 0
    for i, arrived in enumerate(at):
        if most_dropped is not None and not i & 0xFF and run.lost_since(first) > most_dropped:
            break
        now = -(-arrived // tick) * tick if tick else arrived
        run.until(now)
        system.submit(now, model[i], deadline[i], i + 1)
        run.collect(now)
        if progress is not None and not i & 0xFFFF:
            progress((now - START_NS) / 1e9 / experiment.seconds)
    run.until(NEVER)
    return run.record(time.perf_counter() - clock)


class _Run:
    """State of :func:`run_system`."""

    def __init__(self, experiment: Experiment, cluster: Cluster, system: System) -> None:
        net = experiment.network
        disturbance = Disturbance.of(experiment)
        self.control = _ns(net.control_us)
        self.data = _ns(net.data_us)
        self.result = _ns(net.result_us)
        self.out = disturbance.out.tolist()
        self.back = disturbance.back.tolist()
        self.length_ppm = disturbance.length_ppm.tolist()
        self.cluster = cluster
        self.system = system
        self.workers = [_Worker() for _ in cluster.gpu_type]
        self.reports: list[tuple[int, int, int]] = []
        self.rows: dict[int, list[int]] = {}  # number → model, gpu, size, decided, start, end, answered
        self.killed: set[int] = set()
        self.requests: list[int] = []
        self.dropped: list[int] = []
        self.lost = self.looked = 0
        self.events = 0

    def lost_since(self, first: int) -> int:
        """Dropped requests from position ``first`` of the arrivals on."""
        self.lost += sum(key > first for key in self.dropped[self.looked :])
        self.looked = len(self.dropped)
        return self.lost

    def until(self, limit: int) -> None:
        """All completions up to and with ``limit``, all timers before it."""
        while True:
            timer = self.system.next_wakeup()
            if self.reports and self.reports[0][0] <= limit and self.reports[0][0] <= timer:
                now, number, gpu = heapq.heappop(self.reports)
                if number in self.killed:
                    continue
                self.system.complete(now, gpu, number, self.rows[number][5])
            elif timer < limit:
                now = timer
                self.system.advance(now)
            else:
                return
            self.collect(now)

    def collect(self, now: int) -> None:
        """Carry out what the system decided."""
        self.events += 1
        decisions = self.system.decisions
        if not (decisions.sent or decisions.dropped or decisions.preempted):
            return
        for number in decisions.preempted:
            self._kill(number, now + self.control)
        for sent in decisions.sent:
            self._send(sent, now)
        if decisions.dropped:
            self.dropped += decisions.dropped
        decisions.clear()

    def _send(self, sent: Sent, now: int) -> None:
        draw = sent.number % DRAWS
        size = len(sent.keys)
        worker = self.workers[sent.gpu]
        start = max(now + self.control + size * self.data + self.out[draw], worker.free)
        spec = self.cluster.models[sent.model]
        length = spec.latency[self.cluster.gpu_type[sent.gpu]][size - 1]
        length = (length // 1000) * self.length_ppm[draw] // 1000 + length % 1000
        end, answered = start + length, start + length + self.result + self.back[draw]
        if start > sent.latest:
            start = end = sent.latest if sent.latest > now else now
            answered = NEVER
            self.dropped += sent.keys
        else:
            worker.free = end
            worker.queue = [entry for entry in worker.queue if entry[2] > now]
            worker.queue.append((sent.number, start, end))
        self.rows[sent.number] = [sent.model, sent.gpu, size, now, start, end, answered]
        self.requests += sent.keys
        heapq.heappush(self.reports, (end + self.control, sent.number, sent.gpu))

    def _kill(self, number: int, at: int) -> None:
        """The batch ends at ``at`` without a result, unless it has ended by then; later ones move up."""
        row = self.rows[number]
        worker = self.workers[row[1]]
        if row[5] <= at:
            return
        self.killed.add(number)
        place = next(i for i, entry in enumerate(worker.queue) if entry[0] == number)
        if place + 1 < len(worker.queue):
            raise AssertionError("only the last batch that was sent to a GPU can be preempted")
        del worker.queue[place]
        row[5] = max(row[4], at)
        row[6] = NEVER
        worker.free = row[5] if row[4] < at else max((e[2] for e in worker.queue), default=at)
        row[4] = min(row[4], row[5])

    def record(self, wall_s: float) -> Record:
        """Everything as columns, batches in the order in which they were sent."""
        table = np.array(list(self.rows.values()), dtype=np.int64).reshape(-1, 7).T
        model, gpu, size, decided, start, end, answered = table
        request = np.array(self.requests, dtype=np.int64) - 1
        dropped = np.array(self.dropped, dtype=np.int64) - 1
        return Record(model, gpu, size, decided, start, end, answered, request, dropped, self.events, wall_s)


def _ns(us: float) -> int:
    return round(us * 1e3)


def network_ns(network: Network) -> tuple[int, int, int]:
    """Control, data and result latency in ns."""
    return _ns(network.control_us), _ns(network.data_us), _ns(network.result_us)
