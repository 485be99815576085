"""``symphony worker``: one worker process with its device and models."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Any, Final

import click

from symphony.cli import options as shared
from symphony.config import load_config
from symphony.status import SymphonyError
from symphony.urgency import be_prompt, keep_collector_out

SWITCH_S: Final = 0.0005
"""Python's default lets the thread that loads a model keep those that execute batches waiting for 5 ms."""


@click.command()
@shared.config("YAML file of the cluster; without one, the built-in default.")
@click.option("--id", "worker_id", help="Its name in the cluster.  [default: the host's name and the pid]")
@click.option("--shard", envvar="SYMPHONY_SHARD", help="The shard it belongs to.  [default: shard-0]")
@click.option("--device", help="emulated, cpu or cuda:N.  [default: emulated]")
@click.option("--gpus", type=click.IntRange(1, 65_536), help="GPUs of an emulated device.  [default: 1]")
@click.option(
    "--memory-mb",
    type=click.IntRange(0, 100_000_000),
    help="Memory of each emulated GPU, 10^6 bytes; 0: no limit.  [default: 0]",
)
@click.option(
    "--gpu-type", help="What profiles are filed under.  [default: the device's kind or product name]"
)
@click.option(
    "--model",
    "models",
    multiple=True,
    help="A model of the file, one of the zoo, or a definition file; may be repeated.",
)
@click.option(
    "--threads", type=click.IntRange(1, 1_024), help="CPU threads per operator, real devices.  [default: 1]"
)
@shared.broker("registry")
@shared.broker("publish")
@shared.broker("subscribe")
@shared.host()
@shared.insecure()
@shared.drain(4.0)
def command(path: Path | None, worker_id: str | None, models: tuple[str, ...], **options: Any) -> None:
    """Run one worker: load its models, join the cluster, execute batches until SIGTERM or Ctrl-C.

    \b
    symphony worker --device cpu --model minilm --model crepe-tiny
    symphony worker --device emulated --gpus 8 --model resnet50-emulated

    What is not given is taken from the configuration file's entry with the same --id, if there is one.
    Stopping drains: what is queued is finished, then the exit code is 0.
    """
    from worker.choice import chosen, could_hold, make_runner, merged
    from worker.process import Settings, Worker, stop_on_signals

    config = load_config(path)
    name = worker_id or f"{socket.gethostname().split('.')[0]}-{os.getpid()}"
    entry = merged(config, name, list(models), options)
    definitions = chosen(config, entry, list(models))
    settings = Settings(
        id=name,
        shard=entry.shard,
        registry=options["registry"] or config.registry,
        publish=options["publish"] or config.publish,
        subscribe=options["subscribe"] or config.subscribe,
        host=options["host"] or config.cluster.host,
        insecure=options["insecure"] or config.cluster.insecure,
        device=entry.device,
        gpus=entry.gpus,
        drain_s=options["drain_s"],
    )
    if entry.device == "emulated":
        be_prompt()  # it stands for GPUs, which wait for no other process
    else:
        sys.setswitchinterval(SWITCH_S)
    worker = Worker(settings, make_runner(entry, definitions), could_hold(config, entry, definitions))
    stop_on_signals(worker.stop)
    keep_collector_out()
    try:
        worker.run()
    except SymphonyError as error:
        if worker.stopped_cleanly:
            raise
        click.echo(f"symphony: {error}", err=True)
        os._exit(1)
    if not worker.stopped_cleanly:
        # A thread still executes a model: the interpreter must not be taken apart below it.
        os._exit(0)
