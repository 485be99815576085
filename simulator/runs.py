"""Runs of an experiment under a policy or a baseline by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scheduler.core.policies import make_policy

from .arrivals import Arrivals, arrival_blocks, make_arrivals
from .baselines import BASELINES, make_baseline
from .elastic import run_elastic
from .engine import Progress, Record, cluster_of, run_core, run_system
from .epochs import run_epochs
from .experiment import Experiment, ExperimentError
from .results import counter_of, outcomes, tally_of
from .scaling_results import summarize_scaling
from .system import Cluster
from .tally import Tally


def check_policy(policy: str, cluster: Cluster) -> None:
    """Refuse a name that is neither a baseline nor a policy of the core.

    Raises:
        ExperimentError: with the names that there are.
    """
    if make_baseline(policy, cluster) is not None:
        return
    try:
        make_policy(policy)
    except ValueError as error:
        raise ExperimentError(f"{error}; baselines: {', '.join(BASELINES)}") from None


def simulate(
    experiment: Experiment,
    policy: str,
    arrivals: Arrivals,
    scale: float = 1.0,
    progress: Progress | None = None,
    most_dropped: int | None = None,
) -> Record:
    """Run one policy or baseline, by name, on these arrivals.

    ``most_dropped``: a baseline's run may end early once more requests than that are lost for sure;
    those that had not arrived by then have no result.

    Raises:
        ExperimentError: there is no such policy.
    """
    cluster = cluster_of(experiment, scale)
    system = make_baseline(policy, cluster)
    if experiment.shards is not None:
        if system is not None:
            raise ExperimentError(f"shards need a policy of the core, not the baseline {policy}")
        return run_epochs(experiment, cluster, policy, arrivals, progress)
    if experiment.autoscale is not None:
        if system is not None:
            raise ExperimentError(f"autoscale needs a policy of the core, not the baseline {policy}")
        return run_elastic(experiment, cluster, policy, arrivals, progress)
    if system is not None:
        return run_system(experiment, cluster, system, arrivals, progress, most_dropped)
    return run_core(experiment, cluster, policy, arrivals.pieces(), progress)


@dataclass(frozen=True, slots=True)
class Run:
    """What happened, in batches and in counts; ``scaling``: what an autoscaler did, as JSON knows it."""

    cluster: Cluster
    record: Record
    tally: Tally
    scaling: dict[str, Any] | None = None


def run(
    experiment: Experiment,
    policy: str,
    scale: float = 1.0,
    progress: Progress | None = None,
    enough: float | None = None,
) -> Run:
    """Make the arrivals with all rates times ``scale``, run, and count.

    ``enough``: a baseline's run may end as soon as its bad share is sure to be above that.

    Raises:
        ExperimentError: there is no such policy, or nothing arrives.
    """
    cluster = cluster_of(experiment, scale)
    if experiment.autoscale is None and experiment.shards is None and make_baseline(policy, cluster) is None:
        counter = counter_of(experiment, cluster)
        record = run_core(experiment, cluster, policy, arrival_blocks(experiment, scale), progress, counter)
        return Run(cluster, record, counter.tally())
    arrivals = make_arrivals(experiment, scale)
    most = None if enough is None else int(enough * len(arrivals.at))
    record = simulate(experiment, policy, arrivals, scale, progress, most)
    scaling = None
    if record.scaling is not None:
        out = outcomes(experiment, arrivals, record)
        scaling = summarize_scaling(experiment, arrivals, out, record.scaling)
    return Run(cluster, record, tally_of(experiment, cluster, arrivals, record), scaling)
