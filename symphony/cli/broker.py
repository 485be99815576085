"""``symphony broker``: the control plane of one cluster, in the foreground."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import click

from symphony.cli import options as shared
from symphony.config import load_config

_log = logging.getLogger(__name__)
_PORT = click.IntRange(1, 65_535)


@click.command()
@shared.config("Configuration file; its sections cluster and broker count.")
@shared.host()
@click.option(
    "--registry-port", type=_PORT, help="Port that members and tools ask.  [default: the file's, else 5550]"
)
@click.option(
    "--publish-port", type=_PORT, help="Port that publishers connect to.  [default: the file's, else 5551]"
)
@click.option(
    "--subscribe-port", type=_PORT, help="Port that subscribers connect to.  [default: the file's, else 5552]"
)
@click.option(
    "--fresh",
    is_flag=True,
    help="No member of an earlier broker is still alive: number new GPUs at once instead of waiting "
    "one lease for those that may come back.",
)
@shared.insecure()
def command(
    path: Path | None,
    host: str | None,
    registry_port: int | None,
    publish_port: int | None,
    subscribe_port: int | None,
    fresh: bool,
    insecure: bool,
) -> None:
    """Run the broker: membership, cluster clock, control channel.

    Runs until Ctrl-C or SIGTERM. The rest of a cluster goes on while its broker is away, and comes
    back to it by itself. Exit code 0 after an ordered stop, 1 if a port is in use or the configuration
    cannot be used.
    """
    options = {
        "CLUSTER_HOST": host,
        "CLUSTER_INSECURE": "true" if insecure else None,
        "BROKER_REGISTRY_PORT": registry_port,
        "BROKER_PUBLISH_PORT": publish_port,
        "BROKER_SUBSCRIBE_PORT": subscribe_port,
    }
    # An option outweighs the environment, and is checked like it.
    given = {f"SYMPHONY_{key}": str(value) for key, value in options.items() if value is not None}
    config = load_config(path, {**os.environ, **given})

    from broker.server import Broker, run_broker

    def say_ready(broker: Broker) -> None:
        ends = (broker.registry, broker.publish, broker.subscribe)
        _log.info("ready: registry %s, publishers %s, subscribers %s", *ends)

    run_broker(
        config.registry,
        config.publish,
        config.subscribe,
        heartbeat_ms=config.broker.heartbeat_ms,
        lease_ms=config.broker.lease_ms,
        fresh=fresh,
        insecure=config.cluster.insecure,
        ready=say_ready,
    )
