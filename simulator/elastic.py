"""Runs an experiment whose number of GPUs moves: decided once a second; GPUs take time to come."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from .actuation import carry_out
from .arrivals import START_NS, Arrivals
from .autoscaling import Scaling
from .engine import DRAWS, Disturbance, Progress, Record, network_ns
from .experiment import Experiment
from .scalers import make_scaler
from .subcluster import SECOND, SubCluster
from .system import Cluster


def run_elastic(
    experiment: Experiment,
    cluster: Cluster,
    policy: str,
    arrivals: Arrivals,
    progress: Progress | None = None,
) -> Record:
    """Run the core with the experiment's autoscaler.

    Raises:
        ExperimentError: the policy is not one of the core's.
    """
    settings = experiment.autoscale
    assert settings is not None
    clock = time.perf_counter()
    first = len(cluster.gpu_type)
    # GPUs that drain still have their numbers while their successors start.
    capacity = 2 * max(settings.max, first) + 8
    shard = SubCluster(experiment, cluster, policy, arrivals, capacity, range(first), START_NS)
    scaler = make_scaler(settings)
    scaling = Scaling()

    def free() -> int:
        return next(n for n in range(capacity) if n not in shard.gpus)

    edges = START_NS + SECOND * np.arange(int(np.ceil(experiment.seconds)) + 1)
    places = np.searchsorted(arrivals.at, edges)
    for i, now in enumerate(edges.tolist()):
        shard.change(now)
        if i:
            sample = shard.sample(now, 1.0)
            wish = scaler.step(sample, shard.ongoing)
            if wish is not None:
                ready = now + round(settings.startup_s * SECOND)
                carry_out(shard, wish, now, ready, free, scaling)
            scaling.samples.append(sample)
            scaling.paid.append(len(shard.gpus))
        if i + 1 < len(edges):
            shard.run(np.arange(places[i], places[i + 1]))
            if progress is not None:
                progress(i / len(edges))
    shard.finish()
    columns = [np.concatenate(column) for column in zip(*shard.columns, strict=True)]
    return _record(experiment, columns, shard.replay.events, time.perf_counter() - clock, scaling)


def _record(
    experiment: Experiment, columns: list[Any], events: int, wall_s: float, scaling: Scaling
) -> Record:
    model, gpu, size, decided, start, end, request, dropped = columns
    back = Disturbance.of(experiment).back[np.arange(len(end)) % DRAWS]
    answered = end + network_ns(experiment.network)[2] + back
    return Record(model, gpu, size, decided, start, end, answered, request, dropped, events, wall_s, scaling)
