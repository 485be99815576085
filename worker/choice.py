"""Which worker to be: the configuration file's entry, the command's options on top, and the models."""

from __future__ import annotations

from functools import partial
from typing import Any

from pydantic import ValidationError

from symphony.config import Config, WorkerConfig
from symphony.status import SymphonyError
from worker.definition import Definition, load_definition
from worker.device import open_device
from worker.executor import Executor
from worker.runners import DeviceRunner, EmulatedRunner, Runner


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
    given = {key: options.get(key) for key in ("shard", "device", "gpus", "gpu_type", "threads", "memory_mb")}
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


def could_hold(config: Config, entry: WorkerConfig, chosen_ones: list[Definition]) -> list[Definition]:
    """What a plan may ask the worker to hold: what it holds at first, and all of the file that fits it."""
    base = None if config.source is None else config.source.parent
    known = {definition.name for definition in chosen_ones}
    others = [load_definition(model, base) for model in config.models]
    emulated = entry.device == "emulated"
    return chosen_ones + [d for d in others if d.emulated == emulated and d.name not in known]


def make_runner(entry: WorkerConfig, definitions: list[Definition]) -> Runner:
    """What executes batches on the entry's device; PyTorch is imported for real devices alone, later."""
    if entry.device == "emulated":
        return EmulatedRunner(definitions, entry.gpu_type or "emulated", entry.memory_mb)
    return DeviceRunner(
        Executor(partial(open_device, entry.device, entry.threads, entry.gpu_type), definitions)
    )
