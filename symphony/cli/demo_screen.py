"""What the demo shows: every line is meant for somebody who sees Symphony for the first time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from symphony.config import Config

if TYPE_CHECKING:
    from frontend.report import LoadReport, ModelReport

WITHIN_CENTS: Final = 10.0
"""A tenth of a semitone."""

Shower = Callable[[float, int, int, int], None]


def introduce(console: Console, config: Config, device: str, out: Path) -> None:
    """What is about to be started."""
    console.print(
        "Starting a cluster on this machine: real processes that talk over ZeroMQ.\n"
        f"  [bold]broker[/]   knows who is there: {config.registry}\n"
        f"  [bold]shard-0[/]  schedules one real device ({device}) with two models:\n"
        "           minilm (text → embedding) and crepe-tiny (sound → pitch)\n"
        "  [bold]shard-1[/]  schedules eight emulated GPUs with resnet50 (random images):\n"
        "           they keep a GPU's time, and neither fetch nor compute anything\n"
        f"Configuration: {out / 'cluster.yaml'}\n"
        f"Log of the processes: {out / 'cluster.log'}",
        soft_wrap=True,
    )


def show_answers(console: Console, answers: Mapping[str, Any]) -> None:
    """The two lines that a person can judge."""
    near, pitch = answers["nearest"], answers["pitch"]
    console.print(
        "\nReal answers through the cluster:\n"
        f"  minilm      of {near['of']} sentences the nearest to “{near['query']}”\n"
        f"              is “{near['sentence']}” (similarity {near['similarity']:.2f})\n"
        f"  crepe-tiny  heard {pitch['heard_hz']:.2f} Hz in {pitch['frames']} frames of the note "
        f"{pitch['note']}, {pitch['true_hz']:.2f} Hz: {pitch['cents']:.1f} cents off",
        soft_wrap=True,
    )


def announce_load(
    console: Console, rates: Mapping[str, float], deadlines: Mapping[str, float], seconds: float
) -> None:
    """What is offered."""
    console.print(f"\nOffering random (Poisson) load for {seconds:g} s; each request has a deadline:")
    for name, rate in sorted(rates.items(), key=lambda entry: entry[1]):
        console.print(f"  {name:<11} {rate:>6,.0f} requests/s, answer wanted within {deadlines[name]:g} ms")


@contextlib.contextmanager
def progress_bar(console: Console, seconds: float) -> Iterator[Shower]:
    """A bar where there is a terminal, a line every few seconds where there is none."""
    if not console.is_terminal:
        said = [5.0]

        def line(elapsed: float, sent: int, answered: int, good: int) -> None:
            if elapsed >= said[0]:
                said[0] += 5.0
                console.print(f"  {elapsed:4.0f} s: {sent:,} sent, {answered:,} answered, {good:,} in time")

        yield line
        return
    columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=seconds)

        def advance(elapsed: float, sent: int, answered: int, good: int) -> None:
            text = f"{sent:,} sent, {answered:,} answered, {good:,} in time"
            bar.update(task, completed=elapsed, description=text)

        yield advance


def show_report(console: Console, report: LoadReport) -> None:
    """The table, and how to read it."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("model", no_wrap=True)
    for column in ("offered", "good", "late", "dropped", "other", "p50", "p99", "batch", "busy"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, model in report.models.items():
        table.add_row(name, *_cells(model))
    console.print()
    console.print(table)
    for line in _legend(report):
        console.print(line, soft_wrap=True)


def _legend(report: LoadReport) -> Iterator[str]:
    yield "good      answered by its deadline"
    yield "late      answered after its deadline"
    yield "dropped   given up by the scheduler: the deadline could not be met any more"
    yield f"other     {_others(report)}"
    yield "p50, p99  latency in ms, counted from when it was meant to be sent"
    yield "batch     mean batch size"
    gpus = ", ".join(f"{name} {model.gpus}" for name, model in report.models.items())
    yield f"busy      share of the time in which its GPUs ran it ({gpus})"
    yield "While GPUs have time, batches leave early and are small; under more load they wait,"
    yield "so that they are large, and leave when waiting longer could not let them grow."
    if report.generator.get("behind"):
        yield (
            "[yellow]The load generator could not keep up on this machine (p99 "
            f"{report.generator['lag_p99_ms']:.1f} ms behind): latencies include that.[/]"
        )


def _cells(model: ModelReport) -> list[str]:
    other = model.rejected + model.failed + model.unanswered
    counts = [f"{count:,}" for count in (model.offered, model.good, model.late, model.dropped, other)]
    share = "–" if model.busy_share is None else f"{model.busy_share:.0%}"
    return [*counts, _number(model.p50_ms), _number(model.p99_ms), _number(model.mean_batch), share]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _others(report: LoadReport) -> str:
    total = report.total
    if not total.rejected + total.failed + total.unanswered:
        return "rejected, failed or not answered: none"
    said = "; ".join(f"{count} × {escape(text)}" for text, count in total.reasons.items())
    return said or "rejected, failed or not answered"


def problems(report: LoadReport, answers: Mapping[str, Any]) -> list[str]:
    """Why the demo did not show what it promises; empty if it did."""
    found = []
    if report.interrupted:
        found.append("the load was interrupted")
    if not report.one_outcome_each or report.total.unanswered:
        found.append(f"{report.total.unanswered} of {report.total.offered} requests got no answer")
    if report.duplicate_answers:
        found.append(f"{report.duplicate_answers} requests got a second answer")
    cents = answers["pitch"]["cents"]
    if not cents <= WITHIN_CENTS:
        found.append(f"the pitch is {cents:.1f} cents off, more than {WITHIN_CENTS:g}")
    return found
