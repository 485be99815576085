"""``symphony load``: offer load to models and measure what comes back."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from symphony.cli import options as shared
from symphony.config import load_config
from symphony.urgency import keep_collector_out

if TYPE_CHECKING:
    from frontend.load import LoadPlan, ModelLoad
    from frontend.report import LoadReport, ModelReport

SWITCH_S: Final = 0.0005
"""Python's default lets one thread hold the interpreter for 5 ms; the load would be as late."""


@click.command()
@click.argument("loads", metavar="MODEL=RATE...", nargs=-1, required=True)
@click.option(
    "--seconds",
    type=float,
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="For how long to offer load.",
)
@click.option(
    "--arrivals",
    default="poisson",
    show_default=True,
    metavar="PROCESS",
    help="poisson, constant, or gamma:SHAPE (a shape below 1 makes bursts).",
)
@click.option(
    "--deadline-ms",
    "deadlines",
    multiple=True,
    metavar="[MODEL=]MS",
    help="Milliseconds from the intended time to the answer.  [default: each model's SLO]",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of arrivals and inputs.")
@click.option(
    "--inputs",
    "inputs",
    multiple=True,
    metavar="MODEL=module:function",
    help="function(i, rng) gives the inputs of item i by tensor name.  [default: random ones]",
)
@click.option(
    "--json",
    "target",
    metavar="FILE|-",
    help="Write the report as one JSON object to a file, or to standard output.",
)
@shared.config("Configuration file that says where the broker is.")
@shared.broker("registry")
@shared.broker("subscribe")
@shared.host("IP address to bind, where workers fetch inputs and deliver results.  [default: 127.0.0.1]")
@shared.insecure()
@click.option(
    "--grace-ms",
    type=click.FloatRange(0, 3_600_000),
    default=2_000.0,
    show_default=True,
    metavar="MS",
    help="A request without an answer so long after its deadline counts as unanswered.",
)
@click.option(
    "--wait",
    type=click.FloatRange(0.05, 3_600),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for the broker and the models.",
)
@click.pass_context
def command(
    ctx: click.Context,
    loads: tuple[str, ...],
    seconds: float,
    arrivals: str,
    deadlines: tuple[str, ...],
    seed: int,
    inputs: tuple[str, ...],
    target: str | None,
    path: Path | None,
    registry: str | None,
    subscribe: str | None,
    host: str | None,
    insecure: bool,
    grace_ms: float,
    wait: float,
) -> None:
    """Offer load to models, RATE requests per second each, and measure what comes back.

    The load is open: requests leave at times drawn in advance, whatever comes back, and latencies
    count from those times. Ctrl-C stops early and reports. Exit code 0 only if the load ran to its
    end and every request got exactly one outcome.

    \b
    symphony load resnet50=5000 --seconds 20
    symphony load minilm=50 crepe-tiny=20 --deadline-ms minilm=200 --json report.json
    """
    from frontend.load import LoadPlan

    config = load_config(path) if path is not None or registry is None or subscribe is None else None
    plan = LoadPlan(
        models=_models(loads, arrivals, deadlines, inputs),
        seconds=seconds,
        seed=seed,
        registry=registry or (config.registry if config is not None else ""),
        subscribe=subscribe or (config.subscribe if config is not None else ""),
        host=host or "127.0.0.1",
        insecure=insecure,
        grace_ms=grace_ms,
        wait_s=wait,
    )
    plan.check()
    _check_target(target)
    sys.setswitchinterval(SWITCH_S)
    report = _run(plan)
    if target == "-":
        click.echo(json.dumps(report.as_dict()))
    elif target is not None:
        Path(target).write_text(json.dumps(report.as_dict(), indent=1) + "\n", encoding="utf-8")
    show(report, Console(stderr=target == "-", highlight=False))
    ctx.exit(0 if report.ok else 1)


def _models(
    loads: tuple[str, ...], arrivals: str, deadlines: tuple[str, ...], inputs: tuple[str, ...]
) -> list[ModelLoad]:
    from frontend.arrivals import Arrivals
    from frontend.load import ModelLoad

    process = Arrivals.parse(arrivals)
    rates = {name: _number("MODEL=RATE", text, value) for text, name, value in map(_pair, loads)}
    if len(rates) < len(loads):
        raise click.UsageError("a model is there twice; name each model once")
    general: float | None = None
    own: dict[str, float] = {}
    for text in deadlines:
        if "=" in text:
            _, name, value = _pair(text)
            own[name] = _number("--deadline-ms", text, value)
        else:
            general = _number("--deadline-ms", text, text)
    providers = {name: value for _, name, value in map(_pair, inputs)}
    for option, names in (("--deadline-ms", own), ("--inputs", providers)):
        for name in names:
            if name not in rates:
                raise click.UsageError(f"{option} names {name!r}, which is offered no load")
    return [
        ModelLoad(
            model=name,
            rate=rate,
            deadline_ms=own.get(name, general),
            arrivals=process,
            inputs=providers.get(name, "random"),
        )
        for name, rate in rates.items()
    ]


def _pair(text: str) -> tuple[str, str, str]:
    """The text itself, and what stands before and after its last equals sign."""
    name, equals, value = text.rpartition("=")
    if not equals or not name or not value:
        raise click.UsageError(f"expected MODEL=VALUE, as in resnet50=1000, not {text!r}")
    return text, name, value


def _number(what: str, text: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise click.UsageError(f"{what}: expected a number above 0, not {value!r} in {text!r}")
    return number


def _check_target(target: str | None) -> None:
    """A report that cannot be written is to be known before the load and not after it."""
    if target is None or target == "-":
        return
    try:
        with Path(target).open("a", encoding="utf-8"):
            pass
    except OSError as error:
        raise click.UsageError(f"--json: cannot write {target!r}: {error.strerror}") from None


def _run(plan: LoadPlan) -> LoadReport:
    from frontend.load import Progress as Step
    from frontend.load import run_load

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:g} s"),
        TextColumn("[dim]{task.fields[seen]}[/]"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=4, transient=True) as bar:
        task = bar.add_task("load", total=plan.seconds, seen="")

        def show_step(step: Step) -> None:
            waiting = step.sent - step.answered
            seen = f"{step.sent:,} sent, {step.good:,} good, {waiting:,} in flight"
            bar.update(task, completed=step.elapsed_s, seen=seen)

        keep_collector_out()
        return run_load(plan, show_step)


def show(report: LoadReport, console: Console) -> None:
    """Print a report as a table, and what is to be known of it."""
    if not console.is_terminal:
        console = Console(stderr=console.stderr, width=160, highlight=False)
    table = Table(box=box.SIMPLE_HEAD, title=f"Load over {report.seconds:g} s", title_justify="left")
    table.add_column("model")
    heads = ("offered", "good", "late", "dropped", "rejected", "failed", "unanswered")
    for head in (*heads, "bad", "good/s", "p50 ms", "p99 ms", "mean batch", "GPUs", "busy"):
        table.add_column(head, justify="right")
    for name, model in report.models.items():
        table.add_row(escape(name), *_cells(model))
    if len(report.models) > 1:
        table.add_section()
        table.add_row("total", *_cells(report.total))
    console.print(table)
    for name, model in report.models.items():
        for reason, count in model.reasons.items():
            console.print(f"{name}: {count:,} x {reason}", markup=False)
    generator = report.generator
    if generator["behind"]:
        console.print(
            f"The generator fell behind: requests left up to {generator['lag_max_ms']:.1f} ms late "
            f"(p99 {generator['lag_p99_ms']:.1f} ms), which is part of the latencies. "
            "Offer less, or load from more processes or another machine.",
            style="yellow",
        )
    late = min(report.total.unanswered, report.duplicate_answers)
    if late:
        console.print(
            f"{late:,} answers came after deadline and grace, when their requests counted as unanswered: "
            "the machine is too busy, or --grace-ms too short.",
            style="yellow",
        )
    if report.interrupted:
        console.print("The load was interrupted before its end.", style="yellow")
    if not report.one_outcome_each:
        console.print("Not every request got exactly one outcome: this is a defect.", style="red")


def _cells(model: ModelReport) -> list[str]:
    counts = (
        model.offered,
        model.good,
        model.late,
        model.dropped,
        model.rejected,
        model.failed,
        model.unanswered,
    )
    return [
        *(f"{count:,}" for count in counts),
        f"{model.bad_share:.2%}",
        f"{model.goodput_rps:,.1f}",
        *(
            "-" if value is None else f"{value:.2f}"
            for value in (model.p50_ms, model.p99_ms, model.mean_batch)
        ),
        str(model.gpus),
        "-" if model.busy_share is None else f"{model.busy_share:.0%}",
    ]
