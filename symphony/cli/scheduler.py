"""``symphony scheduler``: one scheduler shard, in the foreground."""

from __future__ import annotations

import logging
from pathlib import Path

import click
from pydantic import TypeAdapter, ValidationError

from symphony.cli import options as shared
from symphony.config import POLICIES, load_config
from symphony.messages import Name
from symphony.urgency import be_prompt, keep_collector_out


def _name(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    try:
        return TypeAdapter(Name).validate_python(value)
    except ValidationError:
        raise click.BadParameter(f"expected up to 128 letters, digits and ._:@/-, not {value!r}") from None


@click.command()
@shared.config("YAML file of the cluster; its sections cluster, broker and scheduler count.")
@click.option(
    "--id", "shard_id", default="shard-0", show_default=True, callback=_name, help="The shard's name."
)
@shared.broker("registry")
@shared.broker("publish")
@shared.broker("subscribe")
@shared.host()
@click.option(
    "--policy",
    metavar="POLICY",
    help=f"When a batch is ready: {POLICIES}.  [default: the file's, else adaptive]",
)
@click.option(
    "--spin-us",
    type=click.IntRange(0),
    help="Busy-wait that long before each timer, µs.  [default: the file's, else 100]",
)
@click.option(
    "--rest-us",
    type=click.IntRange(0),
    help="Longest pause of a busy shard in which input gathers, µs; 0: none.  "
    "[default: the file's, else 2000]",
)
@shared.drain(5.0)
@shared.insecure()
def command(
    path: Path | None,
    shard_id: str,
    registry: str | None,
    publish: str | None,
    subscribe: str | None,
    host: str | None,
    policy: str | None,
    spin_us: int | None,
    rest_us: int | None,
    drain_s: float,
    insecure: bool,
) -> None:
    """Run one scheduler shard: queue requests, form batches, send them to this shard's workers.

    Runs until Ctrl-C or SIGTERM, then drains. Exit code 0 after an ordered stop.
    """
    from scheduler.core.policies import make_policy
    from scheduler.settings import Settings
    from scheduler.shard import Shard

    config = load_config(path)
    be_prompt()  # before there are sockets, whose threads inherit it
    s = config.scheduler
    chosen = config.policy(policy)
    try:
        make_policy(chosen)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--policy") from None
    shard = Shard(
        Settings(
            id=shard_id,
            registry=registry or config.registry,
            publish=publish or config.publish,
            subscribe=subscribe or config.subscribe,
            host=host or config.cluster.host,
            insecure=insecure or config.cluster.insecure,
            policy=chosen,
            control_ns=s.control_latency_us * 1000,
            data_ns=s.data_latency_us * 1000,
            result_ns=s.result_latency_us * 1000,
            margin_ns=s.timer_margin_us * 1000,
            spin_ns=1000 * (s.spin_us if spin_us is None else spin_us),
            rest_ns=1000 * (s.rest_us if rest_us is None else rest_us),
            max_queue=s.max_queue,
            drain_s=drain_s,
            epoch=config.epochs,
            autoscale=config.autoscale,
        )
    )
    try:
        with shard.stopping.on_signals():
            shard.start()
            logging.getLogger(__name__).info("%s is up", shard_id)
            keep_collector_out()
            shard.run()
    finally:
        shard.close()
