"""``symphony plan``: place models on sub-clusters and count their GPUs, without a running cluster."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from symphony.status import SymphonyError

if TYPE_CHECKING:
    from scheduler.allocation import Cluster, Plan

MOST_SHARDS = 64
"""Rows that the table shows."""
MOST_UNSERVED = 8
"""Models of which it is said why they are not served, without --explain."""


@click.command()
@click.argument("cluster", type=click.Path(path_type=Path))
@click.option(
    "--explain", is_flag=True, help="Say why, for every decision: places, GPUs, moves, what is unserved."
)
@click.option("--json", "json_to", metavar="FILE", help="Write the plan as JSON; - for standard output.")
@click.option(
    "--time-limit",
    type=click.FloatRange(0.1, 3600),
    default=10.0,
    show_default=True,
    metavar="S",
    help="Seconds for the solver; when they are over, the best plan found and its gap are printed.",
)
def command(cluster: Path, explain: bool, json_to: str | None, time_limit: float) -> None:
    """Plan CLUSTER (a YAML file): which model goes to which shard, and how many GPUs each shard gets.

    Serves all the load if it can, then takes the fewest GPUs, then balances them, then moves least from
    the plan under `current`. Rates are in requests/s, memory in MB, times in ms. The exit code is 0 also
    where the load cannot be served: then `status` is infeasible and `unserved` says what is left.
    """
    from scheduler.allocation import allocate
    from scheduler.allocation.file import load_cluster

    described = load_cluster(cluster)
    if sys.stderr.isatty():
        click.echo(f"planning, about {time_limit:g} s at most; Ctrl-C stops", err=True)
    with _stoppable():
        plan = allocate(described, time_limit_s=time_limit)
    if json_to is not None:
        text = json.dumps(plan.as_dict(), indent=None if json_to == "-" else 1, allow_nan=False)
        if json_to == "-":
            click.echo(text)
            return
        try:
            Path(json_to).write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise SymphonyError(f"cannot write {json_to}: {error.strerror}") from None
    _print(described, plan, explain)


@contextmanager
def _stoppable() -> Iterator[None]:
    """Ctrl-C ends the process at once: Python's own handler would wait until the solver returns."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _print(cluster: Cluster, plan: Plan, explain: bool) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("shard")
    table.add_column("GPUs")
    table.add_column("models", justify="right")
    table.add_column("utilization", justify="right")
    table.add_column("memory MB per GPU", justify="right")
    for shard in cluster.shards[:MOST_SHARDS]:
        models = sum(1 for where in plan.placements.values() if shard in where)
        gpus = " + ".join(f"{count} {kind}" for kind, count in plan.gpus[shard].items()) or "none"
        busy, memory = plan.utilization[shard], plan.memory_mb[shard]
        table.add_row(escape(shard), escape(gpus), str(models), f"{busy:.1%}", f"{memory:.0f}")
    console.print(table)
    if len(cluster.shards) > MOST_SHARDS:
        console.print(f"… and {len(cluster.shards) - MOST_SHARDS} more shards")
    console.print(
        f"{plan.status}, gap {plan.gap:.3%}, {plan.solve_s:.2f} s: {plan.gpus_needed} GPUs needed of "
        f"{sum(group.count for group in cluster.gpus)}, {plan.moved} placements moved"
    )
    if plan.unserved:
        lost = sum(plan.unserved.values())
        console.print(f"unserved: {lost:.4g} requests/s of {len(plan.unserved)} models")
    if explain or plan.unserved:
        short = plan.reasons[: 1 + min(len(plan.unserved), MOST_UNSERVED)]
        for reason in plan.reasons if explain else short:
            console.print(f"- {escape(reason)}", soft_wrap=True)
        more = len(plan.unserved) - MOST_UNSERVED
        if more > 0 and not explain:
            console.print(f"… and {more} more models; --explain lists all")
