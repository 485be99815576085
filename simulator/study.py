"""Studies: one experiment at many points, under several policies, as one file with a ``study`` key.

``sweep`` gives keys (as ``--set`` takes them) lists of values; ``cases`` gives named sets of keys;
every combination is a point. Two keys are special: ``load`` scales all rates to that share of the
fluid ideal, ``slo_factor`` sets every model's objective to so many times what a single request takes
(on the fastest GPU type, network included). A point is run once per policy and seed, or, with
``goodput: true``, its goodput is found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .arrivals import check_arrivals
from .engine import cluster_of
from .experiment import Experiment, ExperimentError, explain, parse_experiment, read_yaml, set_key
from .fluid import fluid_scale
from .goodput import Note, run_at_goodput, run_once
from .runs import check_policy

LOAD = "load"
SLO_FACTOR = "slo_factor"
SPECIAL = ("case", LOAD, SLO_FACTOR)
LEAST_SLOS = 40
"""A point lasts at least so many times its longest objective."""


class Study(BaseModel):
    """What is varied.

    metric: the result's key that the table and the plot show, a mean over the seeds. requests: if
    given, every point lasts as long as so many requests take to arrive at its fluid ideal (at least
    40 objectives), instead of ``seconds``: so that fast and slow models cost the same. ratios: show how
    the first policy compares with the others over all points.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    compare: tuple[str, ...] = Field(min_length=1)
    goodput: bool = False
    seeds: Annotated[int, Field(ge=1, le=100)] = 3
    metric: str = "goodput_rps"
    sweep: dict[str, tuple[Any, ...]] = {}
    cases: dict[str, dict[str, Any]] = {}
    requests: Annotated[int | None, Field(ge=1000)] = None
    ratios: bool = False
    title: str = ""


@dataclass(frozen=True, slots=True)
class Point:
    """One combination: ``at`` names it by key → value (the case stands under ``case``)."""

    at: dict[str, Any]
    experiment: Experiment
    scale: float


def is_study(path: Path) -> bool:
    """Whether the file has a ``study`` key."""
    content = read_yaml(path)
    return isinstance(content, dict) and "study" in content


def load_study(path: Path, settings: Mapping[str, str] | None = None) -> tuple[Study, list[Point]]:
    """All points of a study, each validated, with every policy looked up, before anything runs.

    Raises:
        ExperimentError: see :func:`~simulator.experiment.load_experiment`; the point is named.
    """
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ExperimentError(f"{path}: expected a map")
    part = content.pop("study", {})
    for key, text in (settings or {}).items():
        value = yaml.safe_load(text)
        if key.startswith("study."):
            part[key.removeprefix("study.")] = value
        else:
            set_key(content, key, value)
    try:
        study = Study.model_validate(part)
    except ValidationError as error:
        raise ExperimentError(f"{path}: study: {explain(error)}") from None
    points = list(_points(path, content, study))
    for point in points:
        check_arrivals(point.experiment)
        for policy in study.compare:
            check_policy(policy, cluster_of(point.experiment))
    return study, points


def _points(path: Path, content: dict[str, Any], study: Study) -> Iterator[Point]:
    for case, changes in (study.cases or {"": {}}).items():
        for values in product(*study.sweep.values()):
            copy = yaml.safe_load(yaml.safe_dump(content))
            at: dict[str, Any] = {"case": case} if case else {}
            at |= zip(study.sweep, values, strict=True)
            for key, value in (changes | at).items():
                if key not in SPECIAL:
                    set_key(copy, key, value)
            name = ", ".join(f"{key} {value}" for key, value in at.items())
            where = f"{path} ({name})" if name else str(path)
            if SLO_FACTOR in at:
                _set_objectives(copy, float(at[SLO_FACTOR]), where, path.parent)
            experiment = parse_experiment(copy, where, path.parent)
            ideal = fluid_scale(cluster_of(experiment)) if study.requests or LOAD in at else None
            if study.requests and ideal:
                experiment = _lasting(experiment, study.requests, ideal)
            scale = 1.0
            if LOAD in at:
                if ideal is None or not 0 < float(at[LOAD]) < 100:
                    raise ExperimentError(f"{path}: load {at[LOAD]}: expected a share of the fluid ideal")
                scale = float(at[LOAD]) * ideal
            yield Point(at, experiment, scale)


def _set_objectives(content: dict[str, Any], factor: float, where: str, base: Path) -> None:
    """Give every model an objective of ``factor`` times what one request takes."""
    if not 1 <= factor < 1e6:
        raise ExperimentError(f"{where}: slo_factor {factor:g}: expected 1 or more")
    for group in content.get("models") or []:
        if isinstance(group, dict):
            group["slo_ms"] = 3.6e6
    experiment = parse_experiment(content, where, base)
    net = experiment.network
    around = (net.control_us + net.data_us + net.result_us) / 1e3
    for group, model in zip(content["models"], experiment.models, strict=True):
        alone = min(experiment.profile(model, kind).latency(1) for kind in experiment.gpu_types)
        group["slo_ms"] = round(factor * (alone / 1e6 + around), 6)


def _lasting(experiment: Experiment, requests: int, ideal: float) -> Experiment:
    """The same for as long as so many requests take to arrive at the fluid ideal."""
    rate = ideal * sum(model.rate for model in cluster_of(experiment).models)
    longest = max(group.slo_ms for group in experiment.models) / 1e3
    seconds = max(requests / rate, LEAST_SLOS * longest)
    return experiment.model_copy(update={"seconds": seconds, "warmup_s": None})


def run_point(study: Study, point: Point, policy: str, note: Note) -> dict[str, Any]:
    """The result of one policy at one point, with ``point`` added.

    Without ``goodput`` it is the first seed's, but with the mean over the seeds as ``metric``, and all
    their values under ``by_seed``.
    """
    if study.goodput:
        return {"point": point.at} | run_at_goodput(point.experiment, policy, study.seeds, note)
    results = []
    for i in range(study.seeds):
        seed = point.experiment.seed + i

        def within(share: float, i: int = i) -> None:
            note("", (i + share) / study.seeds)

        experiment = point.experiment.model_copy(update={"seed": seed})
        results.append(run_once(experiment, policy, point.scale, within))
    values = [float(result[study.metric] or 0.0) for result in results]
    by_seed = {str(result["seed"]): value for result, value in zip(results, values, strict=True)}
    return {"point": point.at} | results[0] | {study.metric: mean(values), "by_seed": by_seed}


def swept(study: Study) -> str | None:
    """The last key of the sweep whose values are all numbers: the x axis of the plots."""
    numeric = [key for key, values in study.sweep.items() if all(isinstance(v, int | float) for v in values)]
    return numeric[-1] if numeric else None


def lines(
    study: Study, results: list[dict[str, Any]]
) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """Plots by title: policy → (x, metric), x being :func:`swept`, else the number of the case."""
    x = swept(study)
    plots: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for result in results:
        point = result["point"]
        rest = {key: value for key, value in point.items() if key != x and not (x is None and key == "case")}
        title = ", ".join(f"{key} {value}" for key, value in rest.items()) or study.title
        xs, ys = plots.setdefault(title, {}).setdefault(result["policy"], ([], []))
        case = float(list(study.cases).index(point["case"])) if "case" in point else 0.0
        xs.append(float(point[x]) if x else case)
        ys.append(float(result[study.metric] or 0.0))
    return plots
