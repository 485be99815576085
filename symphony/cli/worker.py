"""``symphony worker``: one worker process with its device and models."""

from __future__ import annotations

import os
import socket
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from pydantic import ValidationError

from symphony.config import Config, WorkerConfig, load_config
from symphony.status import SymphonyError

if TYPE_CHECKING:
    from worker.definition import Definition
    from worker.runners import Runner


@click.command()
@click.option(
    "--config",
    "-c",
    "config_file",
    type=click.Path(path_type=Path),
    envvar="SYMPHONY_CONFIG",
    show_envvar=True,
    help="YAML file of the cluster; without one, the built-in default.",
)
@click.option("--id", "worker_id", help="Its name in the cluster.  [default: the host's name and the pid]")
@click.option("--shard", envvar="SYMPHONY_SHARD", help="The shard it belongs to.  [default: shard-0]")
@click.option("--device", help="emulated, cpu or cuda:N.  [default: emulated]")
@click.option("--gpus", type=click.IntRange(1, 65_536), help="GPUs of an emulated device.  [default: 1]")
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
@click.option("--registry", envvar="SYMPHONY_REGISTRY", help="Broker, e.g. tcp://127.0.0.1:5550.")
@click.option("--publish", envvar="SYMPHONY_PUBLISH", help="Broker, publishers, e.g. tcp://127.0.0.1:5551.")
@click.option(
    "--subscribe", envvar="SYMPHONY_SUBSCRIBE", help="Broker, subscribers, e.g. tcp://127.0.0.1:5552."
)
@click.option("--host", help="Address of this machine to bind.  [default: the file's cluster.host]")
@click.option("--insecure", is_flag=True, help="Bind an address that other machines reach, unauthenticated.")
@click.option(
    "--drain",
    "drain_s",
    type=click.FloatRange(0, 3_600),
    default=4.0,
    show_default=True,
    help="Longest time to finish what is queued when told to stop, seconds.",
)
def command(config_file: Path | None, worker_id: str | None, models: tuple[str, ...], **options: Any) -> None:
    """Run one worker: load its models, join the cluster, execute batches until SIGTERM or Ctrl-C.

    \b
    symphony worker --device cpu --model minilm --model crepe-tiny
    symphony worker --device emulated --gpus 8 --model resnet50-emulated

    What is not given is taken from the configuration file's entry with the same --id, if there is one.
    Stopping drains: what is queued is finished, then the exit code is 0.
    """
    from worker.process import Settings, Worker, stop_on_signals

    config = load_config(config_file)
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
        gpus=entry.gpus,
        drain_s=options["drain_s"],
    )
    worker = Worker(settings, make_runner(entry, definitions), definitions)
    stop_on_signals(worker.stop)
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


def merged(config: Config, worker_id: str, models: list[str], options: dict[str, Any]) -> WorkerConfig:
    """The file's entry of that id with the options on top; without an entry, the options on defaults.

    Raises:
        SymphonyError: the result is no worker that could run.
    """
    entry = next((worker for worker in config.workers if worker.id == worker_id), None)
    values = {} if entry is None else entry.model_dump()
    device = options["device"]
    if device is not None and device != values.get("device"):
        values = {"shard": values.get("shard", "shard-0")}  # another device: its GPUs are others, too
    given = {key: options[key] for key in ("shard", "device", "gpus", "gpu_type", "threads")}
    values |= {key: value for key, value in given.items() if value is not None}
    values["id"] = worker_id
    if models:
        values["models"] = []
    try:
        worker = WorkerConfig.model_validate(values)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in problem["loc"])
        text = problem["msg"].removeprefix("Value error, ")
        if key == "device":
            text = f"expected emulated, cpu or cuda:N, got {device!r}"
        raise SymphonyError(f"worker {worker_id}: {key + ': ' if key else ''}{text}") from None
    return worker


def chosen(config: Config, entry: WorkerConfig, models: list[str]) -> list[Definition]:
    """The definitions that this worker holds: ``models`` if any are asked for, else its entry's.

    Each is the name of a definition of the file, else the name of a zoo entry, else a path. An entry
    without models stands for every definition of the file that its device can run.

    Raises:
        SymphonyError: a model is not there, cannot run on the device, or is named twice.
    """
    from worker.definition import load_definition

    base = None if config.source is None else config.source.parent
    emulated = entry.device == "emulated"
    of_file = [load_definition(model, base) for model in config.models]
    fitting = {definition.name: definition for definition in of_file if definition.emulated == emulated}
    others = {definition.name: definition for definition in of_file}

    def find(name: str) -> Definition:
        try:
            return fitting[name] if name in fitting else load_definition(name)
        except SymphonyError:
            if name in others:
                return others[name]
            raise

    wanted = [str(name) for name in models or entry.models]
    definitions = [find(name) for name in wanted] if wanted else list(fitting.values())
    if not definitions:
        raise SymphonyError(f"worker {entry.id}: no models for device {entry.device}; name some with --model")
    names = [definition.name for definition in definitions]
    for definition in definitions:
        if names.count(definition.name) > 1:
            raise SymphonyError(f"worker {entry.id}: two definitions have the name {definition.name!r}")
        if definition.emulated != emulated:
            needs = "--device emulated" if definition.emulated else "a real device: --device cpu or cuda:0"
            raise SymphonyError(f"worker {entry.id}: model {definition.name!r} needs {needs}")
    return definitions


def make_runner(entry: WorkerConfig, definitions: list[Definition]) -> Runner:
    """What executes batches on the entry's device; PyTorch is imported for real devices alone, later."""
    from worker.device import open_device
    from worker.executor import Executor
    from worker.runners import DeviceRunner, EmulatedRunner

    if entry.device == "emulated":
        profiles = {d.name: p for d in definitions if (p := d.given_profile()) is not None}
        return EmulatedRunner(profiles, entry.gpu_type or "emulated")
    return DeviceRunner(
        Executor(partial(open_device, entry.device, entry.threads, entry.gpu_type), definitions)
    )
