"""``symphony simulate``: run an experiment under a virtual clock."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from symphony.status import SymphonyError

Note = Callable[[str, float], None]
MOST_ROWS = 40
STDOUT = "-"

COLUMNS = (
    ("offered_rps", "offered/s", ".0f"),
    ("goodput_rps", "goodput/s", ".0f"),
    ("bad_share", "bad", ".2%"),
    ("p50_ms", "p50 ms", ".1f"),
    ("p99_ms", "p99 ms", ".1f"),
    ("mean_batch", "batch", ".1f"),
    ("busy_share", "busy", ".0%"),
    ("gpus_used_mean", "GPUs used", ".1f"),
)
"""Key, heading and format of what the table shows."""


@click.command()
@click.argument("experiment", type=click.Path(path_type=Path))
@click.option("--policy", help="Policy or baseline, instead of the file's.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Replace a key of the file: seconds=10, models.0.slo_ms=25, network.result_us=500; "
    "models.rate=100 sets it for every model. Repeatable.",
)
@click.option(
    "--goodput", "find", is_flag=True, help="Find the highest rate with bad < 1 % by scaling all rates."
)
@click.option(
    "--seeds", type=click.IntRange(1, 100), default=3, show_default=True, help="Seeds behind --goodput."
)
@click.option(
    "--compare", metavar="P1,P2,…", help="Run these policies and baselines side by side on the same arrivals."
)
@click.option("--json", "json_to", metavar="FILE", help="Write results as JSON; - for standard output.")
@click.option(
    "--csv",
    "csv_to",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write results as CSV, - for standard output: a line per run and model, and one per run for the "
    "whole (model `total`).",
)
@click.option("--plots", type=click.Path(path_type=Path), metavar="DIR", help="Write plots there (PNG).")
@click.option(
    "--trace-out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the schedule as a Chrome trace for ui.perfetto.dev: one track per GPU, one slice per batch.",
)
def command(
    experiment: Path,
    policy: str | None,
    settings: tuple[str, ...],
    find: bool,
    seeds: int,
    compare: str | None,
    json_to: str | None,
    csv_to: Path | None,
    plots: Path | None,
    trace_out: Path | None,
) -> None:
    """Simulate EXPERIMENT (a YAML file): offered load, GPUs and network under a virtual clock.

    A file with a `study` key is a whole series: every point under every policy in one table; its
    JSON and CSV files are written anew after every run, so that nothing is lost if it is stopped.

    The scheduling core is the one that serves live. Prints a table; --json writes everything, one
    object, or with --compare a list of them. Rates are in requests/s, times in ms.
    """
    from simulator.arrivals import check_arrivals
    from simulator.engine import cluster_of
    from simulator.experiment import load_experiment
    from simulator.plots import check_plots, result_plots
    from simulator.runs import check_policy
    from simulator.study import is_study
    from simulator.tables import csv_text

    if json_to == STDOUT and str(csv_to) == STDOUT:
        raise click.UsageError("--json - and --csv -: only one of them can go to standard output")
    for file in (json_to, csv_to, trace_out):
        if file is not None and str(file) != STDOUT:
            _check_writable(Path(file))
    if is_study(experiment):
        if policy or find or compare is not None or trace_out:
            raise click.UsageError(
                "a study says itself what is run: use --set study.compare=[…] and the like"
            )
        _study(experiment, dict(_setting(text) for text in settings), json_to, csv_to, plots)
        return
    what = load_experiment(experiment, dict(_setting(text) for text in settings))
    names = [policy or what.policy] if compare is None else [name.strip() for name in compare.split(",")]
    if trace_out is not None and (len(names) > 1 or find):
        raise click.UsageError("--trace-out goes with one policy and without --goodput")
    cluster = cluster_of(what)
    for name in names:
        check_policy(name, cluster)
    check_arrivals(what)
    if plots is not None:
        check_plots(plots)
    with _progress() as note:
        results = [_one(what, name, find, seeds, trace_out, note(name)) for name in names]
    if plots is not None:
        result_plots(plots, results)
    shown = csv_to is not None and _wrote_text(csv_to, csv_text(results))
    if _wrote(json_to, results[0] if compare is None else results) or shown:
        return
    _print(results, find)


def _one(what: Any, name: str, find: bool, seeds: int, trace_out: Path | None, note: Note) -> dict[str, Any]:
    from simulator.goodput import run_at_goodput, run_once

    if find:
        return run_at_goodput(what, name, seeds, note)
    return run_once(what, name, progress=lambda share: note("", share), trace_out=trace_out)


def _study(
    path: Path, settings: dict[str, str], json_to: str | None, csv_to: Path | None, plots: Path | None
) -> None:
    """Run all points of a study under all its policies; one table, one plot per group of points."""
    from simulator.plots import check_plots, line_plot, ratio_plot, share_plot
    from simulator.scaling_report import scaling_plot
    from simulator.study import lines, load_study, run_point, swept
    from simulator.tables import csv_text

    study, points = load_study(path, settings)
    if plots is not None:
        check_plots(plots)
    results: list[dict[str, Any]] = []
    with _progress() as note:
        told = note(path.stem)
        runs = [(point, policy) for point in points for policy in study.compare]
        for i, (point, policy) in enumerate(runs):

            def within(text: str, share: float, i: int = i) -> None:
                told(text, (i + share) / len(runs))

            results.append(run_point(study, point, policy, within))
            if json_to not in (None, STDOUT):
                _wrote(json_to, results)
            if csv_to is not None and str(csv_to) != STDOUT:
                _write(csv_to, csv_text(results))
    scaled = all("scaling" in result for result in results)
    if plots is not None and scaled:
        scaling_plot(plots / f"{path.stem}.png", results, study.title)
    elif plots is not None and study.ratios:
        ratio_plot(plots / f"{path.stem}.png", results, study.compare[0], study.metric, study.title)
    elif plots is not None:
        for i, (title, drawn) in enumerate(lines(study, results).items()):
            line_plot(plots / f"{path.stem}-{i}.png", drawn, swept(study) or "case", study.metric, title)
        if study.goodput and all(result["fluid_ideal_rps"] for result in results):
            share_plot(plots / f"{path.stem}.png", results, study.metric, study.title)
    if json_to == STDOUT:
        _wrote(json_to, results)
        return
    if str(csv_to) == STDOUT:
        click.echo(csv_text(results), nl=False)
        return
    if scaled:
        _print_scaling(results, study.title or path.stem)
        return
    keys = list(points[0].at)
    table = Table(*keys, box=box.SIMPLE_HEAD, title=study.title or path.stem)
    for policy in study.compare:
        table.add_column(policy, justify="right")
    if study.goodput:
        table.add_column("fluid ideal", justify="right")
    for i, point in enumerate(points):
        mine = results[i * len(study.compare) : (i + 1) * len(study.compare)]
        cells = [_number(result[study.metric]) for result in mine]
        if study.goodput:
            cells.append(_number(mine[0]["fluid_ideal_rps"]))
        table.add_row(*(escape(str(point.at[key])) for key in keys), *cells)
    _console().print(table)
    if study.ratios:
        _print_ratios(results, study.compare[0], study.metric)


def _print_scaling(results: list[dict[str, Any]], title: str) -> None:
    """What each autoscaler cost and how it served."""
    from simulator.scaling_report import HEADS, scaling_rows

    table = Table(box=box.SIMPLE_HEAD, title=title)
    for i, head in enumerate(HEADS):
        table.add_column(head, justify="left" if i < 2 else "right")
    for row in scaling_rows(results):
        table.add_row(*map(escape, row))
    _console().print(table)


def _print_ratios(results: list[dict[str, Any]], ours: str, metric: str) -> None:
    """How the first policy compares with each of the others over all points."""
    from simulator.tables import ratios

    heads = ("over", "points", "above", "least", "10 %", "median", "90 %", "most", "least at")
    table = Table(*heads, box=box.SIMPLE_HEAD, title=f"{metric}: {ours} as a share of the others")
    for row in ratios(results, ours, metric):
        numbers = (row.least, row.low, row.median, row.high, row.most)
        cells = (row.other, str(row.points), str(row.wins), *(f"{x:.3f}" for x in numbers), row.worst)
        table.add_row(*map(escape, cells))
    _console().print(table)


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _wrote(json_to: str | None, content: Any) -> bool:
    """Write JSON if that is wanted; True if it went to standard output, where nothing else may go then."""
    if json_to is None:
        return False
    return _wrote_text(Path(json_to), json.dumps(content, indent=None if json_to == STDOUT else 1) + "\n")


def _wrote_text(path: Path, text: str) -> bool:
    if str(path) == STDOUT:
        click.echo(text, nl=False)
        return True
    _write(path, text)
    return False


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=140)


def _setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise click.UsageError(f"--set {text}: expected KEY=VALUE")
    return key, value


@contextmanager
def _progress() -> Iterator[Callable[[str], Note]]:
    """A bar per policy on standard error, if that is a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:

        def add(name: str) -> Note:
            task = bars.add_task(name, total=1.0)

            def note(text: str, share: float) -> None:
                bars.update(task, completed=share, description=text or name)

            return note

        yield add


def _check_writable(path: Path) -> None:
    """Fail before the long work, and leave what is there as it is."""
    there = path.exists()
    if path.is_dir() or not os.access(path if there else path.parent, os.W_OK):
        reason = "it is a directory" if path.is_dir() else "no permission"
        raise SymphonyError(f"cannot write {path}: {reason if path.parent.is_dir() else 'no such directory'}")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SymphonyError(f"cannot write {path}: {error.strerror}") from None


def _print(results: list[dict[str, Any]], find: bool) -> None:
    """A row per policy, or for a single one a row per model and the total."""
    console = _console()
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("policy" if len(results) > 1 else "model")
    for _, heading, _ in COLUMNS:
        table.add_column(heading, justify="right")
    for result in results:
        if len(results) == 1 and 1 < len(result["models"]) <= MOST_ROWS:
            for name, part in result["models"].items():
                table.add_row(escape(name), *_cells(part))
            table.add_section()
        table.add_row(escape(result["policy"]) if len(results) > 1 else "total", *_cells(result))
    console.print(table)
    ideal = results[0]["fluid_ideal_rps"]
    if ideal is not None:
        console.print(f"fluid ideal {ideal:.0f} requests/s")
    for result in results if find else []:
        found = result["goodput"]
        console.print(
            f"{escape(result['policy'])}: goodput {found['rps']:.0f} requests/s, "
            f"{found['low']:.0f} … {found['high']:.0f} over {len(found['by_seed'])} seeds"
            + (f", {found['rps'] / ideal:.1%} of the ideal" if ideal else "")
        )


def _cells(part: dict[str, Any]) -> list[str]:
    return ["–" if part[key] is None else format(part[key], form) for key, _, form in COLUMNS]
