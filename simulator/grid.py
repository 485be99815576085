"""The grid that a policy is judged on: ``python -m simulator.grid run FILE --out LINES``.

A grid file names axes; every combination is a cell, and in every cell each policy's goodput is found
by bisection, for each seed, on the same arrivals. One JSON line is written per cell, seed and policy
as soon as it is known; a run that was interrupted goes on where it stopped, and a line counts only
for the code that it was made with. ``python -m simulator.grid report FILE LINES`` prints what the lines
say: ratios to the best of the others and to the fluid ideal, the worst cells by name.

To keep it affordable, a cell lasts as many virtual seconds as give ``requests`` arrivals at the fluid
ideal (within ``seconds``), and a policy that stays 10 % behind the cell's best is found to 2 % only
(others at steps of 1 % around it).
"""

from __future__ import annotations

import functools
import hashlib
import json
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import click
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn

import scheduler.core
import simulator
from symphony.profile import Profile

from .engine import cluster_of
from .experiment import DEFAULT_MAX_BATCH, Experiment, ExperimentError, explain, parse_experiment, read_yaml
from .fluid import fluid_scale
from .grid_search import CLAIRVOYANT, search
from .runs import check_policy
from .system import Cluster
from .zoo import zoo_row

OWN = ("adaptive", "observing", "plans", "rules", "recording", "rehearsal")
"""Modules of the core that only ``adaptive`` uses."""
LEARNED = 1.645
"""Standard deviations from the mean to the 95th percentile, which is what a shard learns as its margin."""


class Axes(BaseModel):
    """What is combined. ``slo``: times l(1), the network's latencies come on top. ``profiles``: zoo rows
    that the models of a cell have in turn; ``max_batch`` caps them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: tuple[int, ...]
    gpus: tuple[int, ...]
    slo: dict[str, float]
    arrivals: tuple[str, ...]
    popularity: tuple[str, ...]
    profiles: dict[str, tuple[str, ...]]


class Grid(BaseModel):
    """A grid file. ``slow``: policies that are run only in cells of at most ``slow_gpus`` GPUs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: str = ""
    judged: str = "adaptive"
    policies: tuple[str, ...] = Field(min_length=1)
    slow: tuple[str, ...] = ()
    slow_gpus: int = 8
    axes: Axes
    network: dict[str, float] = {}
    noise: float = 0.0
    requests: int = 150_000
    seconds: tuple[float, float] = (4.0, 40.0)
    max_batch: int = DEFAULT_MAX_BATCH
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (1,)


@dataclass(frozen=True, slots=True)
class Cell:
    """One combination, by name, and the experiment that it stands for (rates at the fluid ideal)."""

    name: str
    axes: dict[str, Any]
    experiment: Experiment
    ideal: float

    @property
    def gpus(self) -> int:
        """GPUs."""
        return self.experiment.gpu_count


def load_grid(path: Path) -> Grid:
    """Read a grid file.

    Raises:
        ExperimentError: with the file, the key and what was expected.
    """
    try:
        return Grid.model_validate(read_yaml(path))
    except ValidationError as error:
        raise ExperimentError(f"{path}: {explain(error)}") from None


def cells(grid: Grid) -> Iterator[Cell]:
    """All cells; combinations that say the same (one model, unequal popularity) stand once.

    Raises:
        ExperimentError: a cell cannot be simulated; it is named.
    """
    axes = grid.axes
    for models, gpus, slo, arrivals, popularity, profile in product(
        axes.models, axes.gpus, axes.slo, axes.arrivals, axes.popularity, axes.profiles
    ):
        rows = axes.profiles[profile]
        if models < len(rows) or (models == 1 and popularity != axes.popularity[0]):
            continue
        at = {
            "models": models,
            "gpus": gpus,
            "slo": slo,
            "arrivals": arrivals,
            "popularity": popularity,
            "profile": profile,
        }
        name = " ".join(str(value) for value in at.values())
        content = {
            "gpus": gpus,
            "network": grid.network,
            "noise": grid.noise,
            "models": [_group(grid, row, i, at, len(rows)) for i, row in enumerate(rows)],
        }
        draft = parse_experiment(content, name)
        scale = fluid_scale(cluster_of(draft))
        if not scale:
            raise ExperimentError(f"{name}: the fluid ideal is 0")
        ideal = scale * sum(model.rate for model in cluster_of(draft).models)
        shortest, longest = grid.seconds
        seconds = min(longest, max(shortest, grid.requests / ideal))
        for group in content["models"]:  # type: ignore[attr-defined]
            group["rate"] *= scale
        margin_us = LEARNED * grid.noise * _longest(cluster_of(draft), scale) / 1e3
        content |= {"seconds": seconds, "warmup_s": seconds / 5, "margin_us": margin_us}
        yield Cell(name, at, parse_experiment(content, name), ideal)


def _group(grid: Grid, name: str, number: int, at: dict[str, Any], groups: int) -> dict[str, Any]:
    """The copies of one profile: every ``groups``-th model is one of them."""
    row = zoo_row(name)
    most = min(row.batch_max or grid.max_batch, grid.max_batch)
    alone = Profile.linear(row.alpha_ms, row.beta_ms, most).latency(1) / 1e6
    net = grid.network
    around = (net.get("control_us", 0) + net.get("data_us", 0) + net.get("result_us", 0)) / 1e3
    return {
        "name": f"m{number}",
        "profile": name,
        "max_batch": most,
        "slo_ms": grid.axes.slo[at["slo"]] * alone + around,
        "rate": 1.0,
        "count": (at["models"] - number + groups - 1) // groups,
        "arrivals": at["arrivals"],
        "popularity": at["popularity"],
    }


def _longest(cluster: Cluster, scale: float) -> float:
    """l(b) in ns of the longest of the models' fluid batches."""
    longest = 0
    for model in cluster.models:
        gap = 1e9 / (model.rate * scale)
        budget = model.slo - cluster.control - cluster.result
        fits = [length for b, length in enumerate(model.latency[0], 1) if b * gap + length <= budget]
        longest = max([longest, *fits[-1:]])
    return float(longest)


@functools.cache
def version(policy: str) -> str:
    """Hash of the sources that a result of the policy depends on."""
    core = Path(scheduler.core.__path__[0])
    here = Path(simulator.__path__[0])
    sources = [*core.glob("*.py")]
    sources += [here / f"{name}.py" for name in ("engine", "arrivals", "results", "grid_search")]
    if policy.partition(":")[0] != "adaptive":
        sources = [path for path in sources if path.stem not in OWN]
    sources += (here / "baselines").glob("*.py")
    if policy == CLAIRVOYANT:
        sources = [here / "clairvoyant.py", here / "arrivals.py"]
    digest = hashlib.sha256()
    for path in sorted(sources):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """What is there; a last line that was cut off is left out."""
    found = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
    return found


def summarize_lines(lines: list[dict[str, Any]], judged: str) -> list[dict[str, Any]]:
    """Per cell: mean goodput per policy over the seeds that all of them have, and the ratios."""
    by_cell: dict[str, dict[str, dict[int, float]]] = {}
    about: dict[str, dict[str, Any]] = {}
    for line in lines:
        by_cell.setdefault(line["cell"], {}).setdefault(line["policy"], {})[line["seed"]] = line["rps"]
        about[line["cell"]] = line
    rows = []
    for cell, policies in by_cell.items():
        if judged not in policies or len(policies) < 2:
            continue
        seeds = set.intersection(*(set(found) for found in policies.values()))
        if not seeds:
            continue
        mean = {policy: float(np.mean([found[s] for s in seeds])) for policy, found in policies.items()}
        own = mean.pop(judged)
        bound = mean.pop(CLAIRVOYANT, None)
        if not mean:
            continue
        ideal = about[cell]["ideal"]
        rival = max(mean, key=lambda policy: mean[policy])
        pairs = [policies[judged][s] / max(1e-9, policies[rival][s]) for s in sorted(seeds)]
        rows.append(
            {
                "cell": cell,
                "axes": about[cell]["axes"],
                "seeds": len(seeds),
                "rps": own,
                "ideal": own / ideal,
                "to_bound": None if bound is None else own / min(bound, ideal),
                "best": rival,
                "to_best": own / mean[rival] if mean[rival] else float("inf"),
                "spread": float(np.ptp(pairs)),
                "others": mean,
            }
        )
    return sorted(rows, key=lambda row: row["to_best"])


@click.group(help=__doc__)
def main() -> None:
    """Command line."""


@main.command()
@click.argument("path", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="JSON lines; added to if there.")
@click.option("--only", multiple=True, help="Cells with this value on an axis, like gpus=8; repeatable.")
@click.option("--seed", "seeds", type=int, multiple=True, help="These seeds instead of the file's.")
@click.option("--policy", "policies", multiple=True, help="These policies instead of the file's.")
@click.option("--sample", type=click.IntRange(1), help="So many of the cells, drawn with the seed 1.")
@click.option("--trust", multiple=True, help="Keep lines of this policy though the code has changed since.")
def run(
    path: Path,
    out: Path,
    only: tuple[str, ...],
    seeds: tuple[int, ...],
    policies: tuple[str, ...],
    sample: int | None,
    trust: tuple[str, ...],
) -> None:
    """Find all goodputs that are not in the output file yet."""
    try:
        grid = load_grid(path)
        wanted = [word.partition("=") for word in only]
        todo = [cell for cell in cells(grid) if all(str(cell.axes.get(key)) == v for key, _, v in wanted)]
        if sample is not None and sample < len(todo):
            todo = random.Random(1).sample(todo, sample)
        for policy in set(policies or grid.policies) - {CLAIRVOYANT}:
            check_policy(
                policy, cluster_of(todo[0].experiment) if todo else cluster_of(next(cells(grid)).experiment)
            )
    except ExperimentError as error:
        raise click.ClickException(str(error)) from None
    lines = [
        line
        for line in read_lines(out)
        if line["policy"] in trust or line["version"] == version(line["policy"])
    ]
    known = {(line["cell"], line["seed"], line["policy"]): line["rps"] for line in lines}
    console = Console(file=sys.stderr)
    with (
        Progress(*Progress.get_default_columns(), TimeElapsedColumn(), console=console) as bar,
        out.open("a") as file,
    ):
        if file.tell() and not out.read_bytes().endswith(b"\n"):
            file.write("\n")  # behind a line that was cut off
        names = policies or grid.policies
        task = bar.add_task("", total=len(todo) * len(seeds or grid.seeds))
        for cell, seed in product(todo, seeds or grid.seeds):
            bar.update(task, description=f"{cell.name}, seed {seed}")
            experiment = cell.experiment.model_copy(update={"seed": seed})
            reached = [
                rps / cell.ideal
                for (name, at, policy), rps in known.items()
                if (name, at) == (cell.name, seed)
            ]
            best = max(reached, default=0.0)
            for policy in names:
                if (cell.name, seed, policy) in known or (policy in grid.slow and cell.gpus > grid.slow_gpus):
                    continue
                scale = search(experiment, policy, best)
                best = max(best, scale)
                line = {
                    "cell": cell.name,
                    "axes": cell.axes,
                    "seed": seed,
                    "policy": policy,
                    "rps": scale * cell.ideal,
                    "ideal": cell.ideal,
                    "seconds": cell.experiment.seconds,
                    "version": version(policy),
                }
                file.write(json.dumps(line) + "\n")
                file.flush()
            bar.advance(task)


@main.command()
@click.argument("path", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("lines", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--worst", default=15, help="So many cells are listed, the worst first.", show_default=True)
@click.option("--trust", multiple=True, help="Count lines of this policy though the code has changed since.")
@click.option("--json", "as_json", is_flag=True, help="All cells as JSON instead.")
def report(path: Path, lines: Path, worst: int, trust: tuple[str, ...], as_json: bool) -> None:
    """The distribution of the judged policy's ratios, and its worst cells."""
    grid = load_grid(path)
    kept = [
        line
        for line in read_lines(lines)
        if line["policy"] in trust or line["version"] == version(line["policy"])
    ]
    rows = summarize_lines(kept, grid.judged)
    if as_json:
        click.echo(json.dumps(rows))
        return
    if not rows:
        raise click.ClickException(f"{lines}: no cell has {grid.judged} and another policy")
    for key, text in (
        ("to_best", "of the best other"),
        ("ideal", "of the fluid ideal"),
        ("to_bound", "of the lesser of fluid ideal and clairvoyant bound"),
    ):
        values = np.array([row[key] for row in rows if row[key] is not None])
        if not len(values):
            continue
        marks = ", ".join(f"{q} % {np.percentile(values, q):.3f}" for q in (0, 5, 25, 50, 75, 100))
        click.echo(f"{len(values)} cells, {grid.judged} as a share {text}: {marks}")
    values = np.array([row["to_best"] for row in rows])
    click.echo(
        f"below 0.99 of the best other: {(values < 0.99).sum()}; at or above it: {(values >= 1).sum()}"
    )
    for row in rows[:worst]:
        others = ", ".join(
            f"{name} {rps / row['rps'] * row['ideal']:.3f}" for name, rps in row["others"].items()
        )
        click.echo(
            f"{row['to_best']:.3f} (±{row['spread'] / 2:.3f})  {row['cell']}: "
            f"{grid.judged} {row['ideal']:.3f}; {others}"
        )


if __name__ == "__main__":
    main()
