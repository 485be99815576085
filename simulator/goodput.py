"""Goodput: the highest offered rate at which fewer than 1 % of the requests are bad.

Found by bisection on one factor for all rates, once per seed. The arrivals of a seed are the same
pattern at every factor, so a run differs from the next only by its rate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from .engine import Progress, cluster_of
from .experiment import Experiment
from .fluid import fluid_scale
from .results import summarize
from .runs import run
from .trace_export import write_trace

LIMIT = 0.01
"""Largest tolerated share of bad requests, exclusive."""
STEPS = 8
"""Halvings of the first bracket (± 50 % at worst): the rate is found to 0.2 %."""

Note = Callable[[str, float], None]
"""Told what is going on and the share that is done."""


@dataclass(frozen=True, slots=True)
class Goodput:
    """``rps`` over all models: mean over the seeds; ``low`` … ``high`` the range, ``error`` the standard
    error of the mean (0 for one seed). ``scale``: the mean factor on the experiment's rates."""

    rps: float
    low: float
    high: float
    error: float
    scale: float
    by_seed: dict[int, float]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "rps": self.rps,
            "low": self.low,
            "high": self.high,
            "standard_error": self.error,
            "by_seed": {str(seed): rps for seed, rps in self.by_seed.items()},
        }


def bad_share(experiment: Experiment, policy: str, scale: float, enough: float | None = None) -> float:
    """Share of bad requests with all rates times ``scale``.

    ``enough``: a run may end as soon as its share is sure to be above that; what is returned is, too.
    """
    return run(experiment, policy, scale, enough=enough).tally.bad_share


def find_scale(experiment: Experiment, policy: str, note: Note | None = None) -> float:
    """The largest factor on all rates with bad < 1 %, for the experiment's own seed; 0 if there is none.

    The search begins at the fluid ideal (at the written rates where there is none). Where the bad
    share does not rise steadily, it ends at one of its crossings of 1 %.
    """
    guess = fluid_scale(cluster_of(experiment)) or 1.0
    low, high = 0.0, 1.02 * guess
    done = 0

    def good(scale: float) -> bool:
        nonlocal done
        if note is not None:
            note(
                f"{policy}, seed {experiment.seed}: {scale / guess:.3f} of the ideal",
                min(1.0, done / (STEPS + 2)),
            )
        done += 1
        return bad_share(experiment, policy, scale, LIMIT) < LIMIT

    while good(high):
        low, high = high, 1.25 * high
    if low == 0.0:
        low = 0.5 * high
        while not good(low):
            low, high = low / 2, low
            if low < 1e-4 * guess:
                return 0.0
    while high - low > 0.002 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if good(middle) else (low, middle)
    return low


def goodput(experiment: Experiment, policy: str, seeds: int = 3, note: Note | None = None) -> Goodput:
    """Bisection for ``seeds`` seeds, counted up from the experiment's own."""
    written = sum(model.rate for model in cluster_of(experiment).models)
    found: dict[int, float] = {}
    for i in range(seeds):
        seed = experiment.seed + i

        def within(text: str, share: float, i: int = i) -> None:
            if note is not None:
                note(text, (i + share) / seeds)

        found[seed] = find_scale(experiment.model_copy(update={"seed": seed}), policy, within)
    rates = [scale * written for scale in found.values()]
    error = stdev(rates) / len(rates) ** 0.5 if len(rates) > 1 else 0.0
    by_seed = dict(zip(found, rates, strict=True))
    return Goodput(mean(rates), min(rates), max(rates), error, mean(found.values()), by_seed)


def run_once(
    experiment: Experiment,
    policy: str,
    scale: float = 1.0,
    progress: Progress | None = None,
    trace_out: Path | None = None,
) -> dict[str, Any]:
    """Simulate and summarize at one factor on the rates; ``trace_out``: write the schedule there."""
    found = run(experiment, policy, scale, progress)
    if trace_out is not None:
        write_trace(trace_out, found.cluster, found.record)
    written = cluster_of(experiment)
    factor = fluid_scale(written)
    fluid = None if factor is None else factor * sum(model.rate for model in written.models)
    return summarize(experiment, written, policy, found.tally, found.record, fluid, found.scaling)


def run_at_goodput(
    experiment: Experiment, policy: str, seeds: int = 3, note: Note | None = None
) -> dict[str, Any]:
    """Find the goodput, then summarize one run at it; ``goodput_rps`` is then the highest offered rate."""
    found = goodput(experiment, policy, seeds, note)
    # The run that is shown is the first seed's, at what was found for that seed.
    scale = found.by_seed[experiment.seed] / found.rps * found.scale if found.rps else 1.0
    result = run_once(experiment, policy, scale)
    result["goodput_rps"] = found.rps
    result["goodput"] = found.as_dict()
    return result
