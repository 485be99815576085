"""``symphony bench NAME``: the benchmarks of :mod:`bench`, each with its own options."""

from __future__ import annotations

import importlib
from typing import Final

import click

BENCHMARKS: Final[dict[str, str]] = {
    "core": "Requests per second of the scheduling core, without a network.",
    "gpu": "Profiles and the whole system on one real device, beside a plain PyTorch loop.",
    "loading": "How much loading a model disturbs one that serves.",
    "engine": "What the client's engine costs per request.",
    "latency": "Round trip beyond the model's own time, and timer lateness.",
    "placement": "GPUs, balance and moves of the allocator beside round-robin and first fit.",
    "rate": "The highest rate with bad < 1 % through one live shard.",
    "simulate": "The simulator: 10,000 GPUs at 7 million requests/s, and the search of one goodput.",
    "wire": "Millions of requests per second through live shards over TCP.",
}


@click.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []}, add_help_option=False
)
@click.argument("name", required=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(name: str | None, arguments: tuple[str, ...]) -> None:
    """Run one benchmark; `symphony bench NAME --help` lists its options."""
    if name is None or name in ("-h", "--help"):
        click.echo(
            "Usage: symphony bench NAME [OPTIONS]\n\nBenchmarks, each well under a minute (gpu: under eight):"
        )
        for known, what in BENCHMARKS.items():
            click.echo(f"  {known:<10}{what}")
        return
    if name not in BENCHMARKS:
        raise click.UsageError(f"no benchmark {name!r}: there is {', '.join(BENCHMARKS)}")
    importlib.import_module(f"bench.{name}").main(list(arguments))
