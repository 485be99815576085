"""Studies: one experiment at many points, under several policies, as one file with a ``study`` key.

``sweep`` gives keys (as ``--set`` takes them) lists of values; ``cases`` gives named sets of keys;
every combination is a point. The key ``load`` is special: all rates are scaled to that share of the
fluid ideal. A point is run once per policy, or, with ``goodput: true``, its goodput is found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .engine import Progress, check_policy, cluster_of
from .experiment import Experiment, ExperimentError, explain, parse_experiment, read_yaml, set_key
from .fluid import fluid_scale
from .goodput import Note, run_at_goodput, run_once

LOAD = "load"


class Study(BaseModel):
    """What is varied. ``metric``: the result's key that the table and the plot show."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    compare: tuple[str, ...] = Field(min_length=1)
    goodput: bool = False
    seeds: Annotated[int, Field(ge=1, le=100)] = 3
    metric: str = "goodput_rps"
    sweep: dict[str, tuple[Any, ...]] = {}
    cases: dict[str, dict[str, Any]] = {}
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
                if key not in ("case", LOAD):
                    set_key(copy, key, value)
            name = ", ".join(f"{key} {value}" for key, value in at.items())
            experiment = parse_experiment(copy, f"{path} ({name})" if name else str(path), path.parent)
            scale = 1.0
            if LOAD in at:
                ideal = fluid_scale(cluster_of(experiment))
                if ideal is None or not 0 < float(at[LOAD]) < 100:
                    raise ExperimentError(f"{path}: load {at[LOAD]}: expected a share of the fluid ideal")
                scale = float(at[LOAD]) * ideal
            yield Point(at, experiment, scale)


def run_point(study: Study, point: Point, policy: str, note: Note) -> dict[str, Any]:
    """The result of one policy at one point, with ``point`` added."""
    if study.goodput:
        result = run_at_goodput(point.experiment, policy, study.seeds, note)
    else:
        progress: Progress = lambda share: note("", share)  # noqa: E731
        result = run_once(point.experiment, policy, point.scale, progress)
    return {"point": point.at} | result


def lines(
    study: Study, results: list[dict[str, Any]]
) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """Plots by title: policy → (x, metric), x being the last key of the sweep with numbers.

    A study without such a key has its cases as x: 0, 1, 2, …
    """
    numeric = [key for key, values in study.sweep.items() if all(isinstance(v, int | float) for v in values)]
    x = numeric[-1] if numeric else None
    plots: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for result in results:
        point = result["point"]
        rest = {key: value for key, value in point.items() if key != x and not (x is None and key == "case")}
        title = ", ".join(f"{key} {value}" for key, value in rest.items()) or study.title
        xs, ys = plots.setdefault(title, {}).setdefault(result["policy"], ([], []))
        xs.append(float(point[x]) if x else float(list(study.cases).index(point["case"])))
        ys.append(float(result[study.metric] or 0.0))
    return plots
