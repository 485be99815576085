"""``symphony status``: one snapshot of a cluster, for people or as one JSON object."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Final

import click
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from symphony.cli import options as shared
from symphony.config import load_config
from symphony.control import GpuInfo, Member, ModelSpec, Snapshot
from symphony.plans import ClusterPlan
from symphony.snapshot import fetch_snapshot
from symphony.topics import plain

MOST_MODELS: Final = 40
_SHOWN: Final = frozenset(("v", "at", "models", "gpus", "busy_share", "lateness_p99_us"))
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
        click.echo(json.dumps(plain(as_object(endpoint, snapshot))))
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    show(console, endpoint, snapshot)


def as_object(endpoint: str, snapshot: Snapshot) -> dict[str, Any]:
    """What ``--json`` prints.

    ``registry``, ``broker`` (its incarnation), ``members`` by id and ``models`` by name, each as in
    its control message, ``plan`` (null without one), and ``shards``: the statistics of each scheduler by id.
    """
    return {
        "registry": endpoint,
        "broker": snapshot.broker,
        "members": {member.id: member.model_dump() for member in _sorted(snapshot)},
        "models": {model.name: model.model_dump() for model in snapshot.models},
        "plan": None if snapshot.plan is None else snapshot.plan.model_dump(),
        "shards": {member.id: member.stats for member in _sorted(snapshot) if member.role == "scheduler"},
    }


def show(console: Console, endpoint: str, snapshot: Snapshot) -> None:
    """Print the tables."""
    members = Table("role", "id", "state", "what", "models", "process", title="members", box=box.SIMPLE)
    for member in _sorted(snapshot):
        process = f"{member.host}:{member.pid}"
        models = _some([_versioned(name, member.stats) for name in member.models if name], 12)
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
    told = {m.id: m.stats for m in _sorted(snapshot) if m.role == "scheduler" and m.stats}
    if snapshot.plan is not None:
        console.print(_plan(snapshot.plan))
    if any(isinstance(stats.get("models"), dict) for stats in told.values()):
        console.print(_shards(told))
        console.print(_load(told, snapshot.plan))
    for name, stats in told.items():
        rest = {key: value for key, value in stats.items() if key not in _SHOWN}
        table = Table("statistic", "value", title=escape(name), box=box.SIMPLE)
        for key, value in rest.items():
            _row(table, key, value if isinstance(value, str) else json.dumps(value))
        if rest:
            console.print(table)


def _plan(plan: ClusterPlan) -> Table:
    """Groups of GPUs, under the plan's stamp and note."""
    title = f"plan: {plan.stamp}" + (f"; {plan.note}" if plan.note else "")
    table = Table("shard", "GPUs", "count", "", "models", title=escape(title), box=box.SIMPLE)
    for group in plan.groups:
        firsts, lasts = group.gpus[::2], group.gpus[1::2]
        runs = [str(a) if a == b else f"{a}–{b}" for a, b in zip(firsts, lasts, strict=True)]
        count = sum(b - a + 1 for a, b in zip(firsts, lasts, strict=True))
        state = "in use" if group.active else "on their way"
        _row(table, group.shard, _some(runs, 8), str(count), state, _some(group.models, 12))
    return table


def _shards(shards: dict[str, dict[str, Any]]) -> Table:
    """One line per shard: GPUs, load, what became of it since the start, queue, timers."""
    table = Table(
        "shard", "GPUs", "busy", "requests/s", "offered", "bad", "queued", "oldest wait ms", "timers p99 µs",
        title="shards", box=box.SIMPLE,
    )  # fmt: skip
    for name, stats in shards.items():
        models = list(_models(stats).values())
        offered = sum(_number(m, "offered") for m in models)
        bad = sum(_number(m, "late") + _number(m, "dropped") for m in models)
        _row(
            table,
            name,
            f"{_number(stats, 'gpus'):.0f}",
            f"{_number(stats, 'busy_share'):.0%}",
            f"{sum(_number(m, 'rate') for m in models):,.1f}",
            f"{offered:,.0f}",
            f"{bad / offered:.2%}" if offered else "–",
            f"{sum(_number(m, 'queued') for m in models):,.0f}",
            f"{max((_number(m, 'oldest_wait_ms') for m in models), default=0.0):.1f}",
            f"{_number(stats, 'lateness_p99_us'):.0f}",
        )
    return table


def _load(shards: dict[str, dict[str, Any]], plan: ClusterPlan | None) -> Table:
    """The busiest models over all shards."""
    table = Table(
        "model", "requests/s", "± per s", "offered", "good", "late", "dropped", "queued", "mean batch",
        "routes", title="load, since the shards' start", box=box.SIMPLE,
    )  # fmt: skip
    together: dict[str, list[dict[str, Any]]] = {}
    for stats in shards.values():
        for name, entry in _models(stats).items():
            together.setdefault(name, []).append(entry)
    rates = {name: sum(_number(e, "rate") for e in entries) for name, entries in together.items()}
    for name in sorted(together, key=lambda name: (-rates[name], name))[:MOST_MODELS]:
        entries = together[name]
        total = {
            key: sum(_number(e, key) for e in entries)
            for key in ("offered", "good", "late", "dropped", "queued", "batches")
        }
        served = total["good"] + total["late"]
        spread = math.hypot(*(_number(e, "rate_cv") * _number(e, "rate") for e in entries))
        route = {} if plan is None else plan.routes.get(name, {})
        _row(
            table,
            name,
            f"{rates[name]:,.1f}",
            f"{spread:,.1f}",
            *(f"{total[key]:,.0f}" for key in ("offered", "good", "late", "dropped", "queued")),
            f"{served / total['batches']:.2f}" if total["batches"] else "–",
            ", ".join(f"{shard} {weight:.0%}" for shard, weight in route.items()) or "–",
        )
    if len(together) > MOST_MODELS:
        table.caption = f"{len(together) - MOST_MODELS} more"
    return table


def _models(stats: dict[str, Any]) -> dict[str, dict[str, Any]]:
    models = stats.get("models")
    if not isinstance(models, dict):
        return {}
    return {str(name): entry for name, entry in models.items() if isinstance(entry, dict)}


def _number(entry: dict[str, Any], key: str) -> float:
    return _told(entry, key) or 0.0


def _told(entry: dict[str, Any], key: str) -> float | None:
    """The number under ``key``; None where it is none: members may put anything into their statistics."""
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _some(names: list[str], most: int) -> str:
    return ", ".join(names[:most]) + (f" … ({len(names)})" if len(names) > most else "")


def _row(table: Table, *cells: str) -> None:
    table.add_row(*(escape(cell) for cell in cells))


def _sorted(snapshot: Snapshot) -> list[Member]:
    return sorted(snapshot.members, key=lambda member: (_ORDER[member.role], member.id))


def _what(member: Member) -> str:
    if member.role == "frontend":
        return f"slot {member.slot}"
    if member.role == "worker":
        telemetry = _telemetry(member.stats.get("gpu"))
        failed = "".join(f"; {model}: {why}" for model, why in sorted(member.failed.items())[:4])
        return f"{_gpus(member.gpus)} for {member.shard or 'no shard'}{telemetry}{failed}"
    return ", ".join(f"{link} {endpoint}" for link, endpoint in member.endpoints.items())


def _versioned(model: str, stats: dict[str, Any]) -> str:
    """``minilm 1f0c#2`` on a worker that tells which version it serves: its files' fingerprint, the copy."""
    versions = stats.get("versions")
    version = versions.get(model) if isinstance(versions, dict) else None
    if not isinstance(version, str):
        return model
    mark, _, copy = version.partition("#")
    return f"{model} {mark[:4]}#{copy}"


def _telemetry(read: Any) -> str:
    """`` (87 % busy, 3072 of 81920 MB, 61 °C …)`` or why there is none; empty for emulated devices."""
    if not isinstance(read, dict):
        return ""
    if read.get("absent"):
        return f" (no telemetry: {read['absent']})"
    share = _told(read, "utilization")
    said = [] if share is None else [f"{share:.0%} busy"]
    if _number(read, "memory_total_mb"):
        said.append(f"{_number(read, 'memory_used_mb'):.0f} of {_number(read, 'memory_total_mb'):.0f} MB")
    units = {"temperature_c": "°C", "power_w": "W", "sm_mhz": "MHz"}
    found = [(_told(read, key), unit) for key, unit in units.items()]
    said += [f"{value:.0f} {unit}" for value, unit in found if value is not None]
    throttle = read.get("throttle")
    slowed = [str(reason) for reason in throttle if reason != "idle"] if isinstance(throttle, list) else []
    said += [f"throttled: {', '.join(slowed)}"] if slowed else []
    errors = _number(read, "ecc_uncorrected")
    said += [f"{errors:.0f} uncorrected ECC errors"] if errors else []
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
