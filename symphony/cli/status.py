"""``symphony status``: one snapshot of a cluster, for people or as one JSON object."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from symphony.cli import options as shared
from symphony.config import load_config
from symphony.control import GpuInfo, Member, ModelSpec, Snapshot
from symphony.snapshot import fetch_snapshot

_ORDER = {"scheduler": 0, "worker": 1, "frontend": 2, "ops": 3}


@click.command()
@shared.config("Configuration file that says where the broker is.")
@shared.broker("registry")
@click.option(
    "--timeout",
    type=click.FloatRange(0.01, 600),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for the broker's answer.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def command(path: Path | None, registry: str | None, timeout: float, as_json: bool) -> None:
    """Show who is in the cluster: members, models, and what each shard counts.

    Exit code 1 if no broker answers.
    """
    endpoint = registry or load_config(path).registry
    snapshot = fetch_snapshot(endpoint, timeout)
    if as_json:
        click.echo(json.dumps(as_object(endpoint, snapshot)))
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    show(console, endpoint, snapshot)


def as_object(endpoint: str, snapshot: Snapshot) -> dict[str, Any]:
    """What ``--json`` prints.

    ``registry``, ``broker`` (its incarnation), ``members`` by id and ``models`` by name, each as in
    its control message, and ``shards``: the statistics of each scheduler by id.
    """
    return {
        "registry": endpoint,
        "broker": snapshot.broker,
        "members": {member.id: member.model_dump() for member in _sorted(snapshot)},
        "models": {model.name: model.model_dump() for model in snapshot.models},
        "shards": {member.id: member.stats for member in _sorted(snapshot) if member.role == "scheduler"},
    }


def show(console: Console, endpoint: str, snapshot: Snapshot) -> None:
    """Print the tables."""
    members = Table("role", "id", "state", "what", "models", "process", title="members", box=box.SIMPLE)
    for member in _sorted(snapshot):
        process = f"{member.host}:{member.pid}"
        models = ", ".join(name for name in member.models if name)
        _row(members, member.role, member.id, member.state, _what(member), models, process)
    models_table = Table(
        "model", "SLO ms", "max batch", "inputs", "GPU types", "shards", title="models", box=box.SIMPLE
    )
    for model in snapshot.models:
        shards = [m.id for m in _sorted(snapshot) if m.role == "scheduler" and model.name in m.models]
        _row(
            models_table,
            model.name,
            f"{model.slo_ms:g}",
            str(model.max_batch),
            ", ".join(f"{t.name} {t.dtype}{t.shape}" for t in model.inputs) or "–",
            _latencies(model),
            ", ".join(shards) or "none",
        )
    headline = f"broker at {endpoint}: {len(snapshot.members)} members, {len(snapshot.models)} models"
    console.print(headline, highlight=False, markup=False)
    console.print(members)
    console.print(models_table)
    for member in _sorted(snapshot):
        if member.role == "scheduler" and member.stats:
            stats = Table("statistic", "value", title=escape(member.id), box=box.SIMPLE)
            for key, value in member.stats.items():
                _row(stats, key, value if isinstance(value, str) else json.dumps(value))
            console.print(stats)


def _row(table: Table, *cells: str) -> None:
    table.add_row(*(escape(cell) for cell in cells))


def _sorted(snapshot: Snapshot) -> list[Member]:
    return sorted(snapshot.members, key=lambda member: (_ORDER[member.role], member.id))


def _what(member: Member) -> str:
    if member.role == "frontend":
        return f"slot {member.slot}"
    if member.role == "worker":
        telemetry = _telemetry(member.stats.get("gpu"))
        return f"{_gpus(member.gpus)} for {member.shard or 'no shard'}{telemetry}"
    return ", ".join(f"{link} {endpoint}" for link, endpoint in member.endpoints.items())


def _telemetry(read: Any) -> str:
    """`` (87 % busy, 3072 of 81920 MB, 61 °C …)`` or why there is none; empty for emulated devices."""
    if not isinstance(read, dict):
        return ""
    if read.get("absent"):
        return f" (no telemetry: {read['absent']})"
    share = read.get("utilization")
    said = [] if share is None else [f"{share:.0%} busy"]
    if read.get("memory_total_mb"):
        said.append(f"{read.get('memory_used_mb')} of {read['memory_total_mb']} MB")
    units = {"temperature_c": "°C", "power_w": "W", "sm_mhz": "MHz"}
    said += [f"{read[key]:.0f} {unit}" for key, unit in units.items() if read.get(key) is not None]
    slowed = [reason for reason in read.get("throttle") or [] if reason != "idle"]
    said += [f"throttled: {', '.join(slowed)}"] if slowed else []
    errors = read.get("ecc_uncorrected")
    said += [f"{errors} uncorrected ECC errors"] if errors else []
    return f" ({', '.join(said)})" if said else ""


def _gpus(gpus: list[GpuInfo]) -> str:
    """``GPU 0–7 (a100)``: numbers that follow each other and share a type are drawn together."""
    runs: list[tuple[int, int, str]] = []
    for gpu in sorted(gpus, key=lambda gpu: gpu.number):
        if runs and runs[-1][1] + 1 == gpu.number and runs[-1][2] == gpu.type:
            runs[-1] = (runs[-1][0], gpu.number, gpu.type)
        else:
            runs.append((gpu.number, gpu.number, gpu.type))
    texts = [f"GPU {a}{f'–{b}' if b > a else ''} ({kind or 'unknown type'})" for a, b, kind in runs]
    return ", ".join(texts) or "no GPU"


def _latencies(model: ModelSpec) -> str:
    texts = [
        f"{kind} ({table[0] / 1e6:.3g}–{table[-1] / 1e6:.3g} ms)"
        for kind, table in model.profiles.items()
        if table
    ]
    return ", ".join(texts) or "none"
