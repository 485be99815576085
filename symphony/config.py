"""The one configuration file of a cluster: what it may hold, its defaults, and clear refusals.

Every role reads the same file and takes from it what concerns it. Precedence: a command's option,
then the environment, then the file, then the default. The environment overrides one key per
variable, ``SYMPHONY_<SECTION>_<KEY>``: ``SYMPHONY_BROKER_REGISTRY_PORT=6000`` stands for
``broker: {registry_port: 6000}``. ``docs/configuration.md`` lists every key.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from symphony.bus import tcp
from symphony.messages import Name
from symphony.scaling import AutoscaleConfig, EpochConfig
from symphony.status import SymphonyError

Port = Annotated[int, Field(ge=1, le=65_535)]
Micros = Annotated[int, Field(ge=0, le=10_000_000)]
PolicyName = Annotated[
    str,
    Field(
        pattern=r"^(deferred|eager|target|latest|timeout:\d+(\.\d+)?(:[1-9]\d{0,3})?|"
        r"adaptive(:(0(\.\d+)?|1(\.0+)?))?)$"
    ),
]
"""``timeout:MS`` or ``timeout:MS:SIZE``: after a fixed wait, or at a preferred batch size. ``adaptive:DIAL``:
from 0, lowest latency, to 1, fewest GPUs; if it is left out, 1 under an autoscaler and else 0."""
POLICIES: Final = "deferred, eager, target, latest, timeout:MS[:SIZE] or adaptive[:DIAL]"

SECTIONS: Final = ("cluster", "broker", "scheduler", "autoscale", "epoch")
"""Those whose keys the environment can set."""


class ConfigError(SymphonyError, ValueError):
    """The configuration cannot be used; the text names the file, the key and what was expected."""


def own_address(value: str) -> str:
    """An address of this machine as sockets take it; ``localhost`` is 127.0.0.1.

    Raises:
        ValueError: it is no IP address, or a wildcard, which nobody could connect to.
    """
    if value == "localhost":
        return "127.0.0.1"
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        raise ValueError("expected an IP address such as 127.0.0.1") from None
    if address.is_unspecified:
        raise ValueError("expected the address that other processes connect to, not a wildcard")
    return value


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ClusterConfig(_Section):
    """``host``: the address that the broker and everybody started by `up` bind and connect to."""

    name: Name = "symphony"
    host: str = "127.0.0.1"
    insecure: bool = False

    @field_validator("host")
    @classmethod
    def _address(cls, value: str) -> str:
        return own_address(value)


class BrokerConfig(_Section):
    """Ports of the three sockets, and how long a silent member stays a member."""

    registry_port: Port = 5550
    publish_port: Port = 5551
    subscribe_port: Port = 5552
    heartbeat_ms: Annotated[int, Field(ge=10, le=60_000)] = 500
    lease_ms: Annotated[int, Field(ge=30, le=600_000)] = 2_000

    @model_validator(mode="after")
    def _consistent(self) -> BrokerConfig:
        if len({self.registry_port, self.publish_port, self.subscribe_port}) < 3:
            raise ValueError("registry_port, publish_port and subscribe_port must differ")
        if self.lease_ms < 2 * self.heartbeat_ms:
            raise ValueError(
                f"lease_ms ({self.lease_ms}) must be at least twice heartbeat_ms ({self.heartbeat_ms})"
            )
        return self


class SchedulerConfig(_Section):
    """Shards and what each assumes of the network; times in microseconds."""

    shards: Annotated[int, Field(ge=1, le=1_000)] = 1
    policy: PolicyName = "adaptive"
    control_latency_us: Micros = 300
    data_latency_us: Micros = 20
    result_latency_us: Micros = 2_000
    timer_margin_us: Micros = 1_000
    spin_us: Micros = 100
    rest_us: Micros = 2_000
    max_queue: Annotated[int, Field(ge=1, le=100_000_000)] = 100_000


class WorkerConfig(_Section):
    """One worker process: ``device`` is ``emulated``, ``cpu`` or ``cuda:N``.

    ``gpus`` counts emulated GPUs, each with ``memory_mb`` (0: no limit); a real device is one.
    ``models`` are names of definitions in ``models`` of the file that it holds at first; none means all.
    """

    id: Name | None = None
    device: Annotated[str, Field(pattern=r"^(emulated|cpu|cuda:\d{1,3})$")] = "emulated"
    gpus: Annotated[int, Field(ge=1, le=65_536)] = 1
    gpu_type: Annotated[str, Field(max_length=128)] = ""
    shard: Name = "shard-0"
    memory_mb: Annotated[int, Field(ge=0, le=100_000_000)] = 0
    models: list[Name] = []
    threads: Annotated[int, Field(ge=1, le=1_024)] = 1

    @model_validator(mode="after")
    def _one_real_device(self) -> WorkerConfig:
        if self.device != "emulated" and self.gpus != 1:
            raise ValueError(f"device {self.device} is one device: gpus must be 1, or left out")
        return self


class Config(_Section):
    """A whole cluster. ``source`` is the file that it came from, None for the built-in default.

    ``models``: names of zoo definitions, paths of definition files (made absolute, relative to the
    configuration file) or inline definitions.
    """

    cluster: ClusterConfig = ClusterConfig()
    broker: BrokerConfig = BrokerConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    workers: list[WorkerConfig] = []
    models: list[str | dict[str, Any]] = []
    autoscale: AutoscaleConfig = AutoscaleConfig()
    epoch: EpochConfig | None = None
    source: Annotated[Path | None, Field(exclude=True)] = None

    @field_validator("workers")
    @classmethod
    def _named(cls, workers: list[WorkerConfig]) -> list[WorkerConfig]:
        named = [w if w.id else w.model_copy(update={"id": f"worker-{i}"}) for i, w in enumerate(workers)]
        ids = [worker.id for worker in named]
        for name in ids:
            if ids.count(name) > 1:
                raise ValueError(f"two workers have the id {name!r}")
        return named

    @model_validator(mode="after")
    def _known_shards(self) -> Config:
        for worker in self.workers:
            if worker.shard not in self.shard_ids:
                known = ", ".join(self.shard_ids[:8])
                raise ValueError(
                    f"worker {worker.id!r} belongs to {worker.shard!r}, but scheduler.shards is "
                    f"{self.scheduler.shards}: there is {known}"
                )
        return self

    @property
    def epochs(self) -> EpochConfig | None:
        """How the cluster is planned; None: it is not, which is the default for one shard."""
        given = self.epoch or (EpochConfig() if self.scheduler.shards > 1 else None)
        return given if given is not None and given.seconds > 0 else None

    def policy(self, asked: str | None = None) -> str:
        """The shards' policy, or ``asked`` instead; ``adaptive`` gets its dial if an autoscaler is at work.

        An autoscaler gives up the GPUs that are idle, and on the way to the lowest latency none is.
        """
        chosen = asked or self.scheduler.policy
        return "adaptive:1" if chosen == "adaptive" and self.autoscale.actuator != "none" else chosen

    @property
    def shard_ids(self) -> list[str]:
        """``shard-0`` … in order."""
        return [f"shard-{i}" for i in range(self.scheduler.shards)]

    def endpoint(self, port: int) -> str:
        """``tcp://host:port`` on the cluster's host; port 0 stands for any free port."""
        return tcp(self.cluster.host, port)

    @property
    def registry(self) -> str:
        """Endpoint of the broker's registry."""
        return self.endpoint(self.broker.registry_port)

    @property
    def publish(self) -> str:
        """Endpoint that publishers connect to."""
        return self.endpoint(self.broker.publish_port)

    @property
    def subscribe(self) -> str:
        """Endpoint that subscribers connect to."""
        return self.endpoint(self.broker.subscribe_port)

    def dump(self) -> str:
        """The effective configuration as YAML; :func:`load_config` reads it back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


DEFAULT: Final[dict[str, Any]] = {
    "workers": [
        {
            "device": "emulated",
            "gpus": 8,
            "gpu_type": "emulated",
            "shard": "shard-0",
            "models": ["resnet50"],
        }
    ],
    "models": ["resnet50-emulated"],
}
"""What a cluster is without a configuration file: one shard, eight emulated GPUs, one model."""


def load_config(path: str | Path | None = None, environ: Mapping[str, str] | None = None) -> Config:
    """The configuration of ``path`` (None: the built-in default) with the environment applied.

    Args:
        path: a YAML file.
        environ: the environment; None stands for that of the process.

    Raises:
        ConfigError: the file is missing, not YAML, has an unknown key, a wrong type or a value out
            of range; or a variable of the environment has.
    """
    values = dict(DEFAULT) if path is None else _read(Path(path))
    where = "the built-in configuration" if path is None else str(path)
    overridden = _override(values, os.environ if environ is None else environ)
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(where, overridden, error)) from None
    if path is None:
        return config
    source = Path(path).resolve()
    models = [_absolute(model, source.parent) for model in config.models]
    return config.model_copy(update={"source": source, "models": models})


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such configuration file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not YAML: not UTF-8 text") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # 2026-02-31 is a ValueError
        mark = getattr(error, "problem_mark", None)
        at = f" at line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
        raise ConfigError(f"{path}: not YAML{at}: {getattr(error, 'problem', None) or 'malformed'}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a map with the keys {', '.join(_keys(Config))}")
    if "source" in values:
        raise ConfigError(f"{path}: source: unknown key")
    return values


def _override(values: dict[str, Any], environ: Mapping[str, str]) -> dict[tuple[str, ...], str]:
    """Put the environment's values in; where each came from, for messages."""
    overridden: dict[tuple[str, ...], str] = {}
    for variable in sorted(environ):
        for section in SECTIONS:
            prefix = f"SYMPHONY_{section.upper()}_"
            if not variable.startswith(prefix):
                continue
            key = variable.removeprefix(prefix).lower()
            try:
                value = yaml.safe_load(environ[variable])
            except (yaml.YAMLError, ValueError, RecursionError):
                value = environ[variable]
            held = values.get(section)
            if held is None or isinstance(held, dict):
                values[section] = {**(held or {}), key: value}
                overridden[(section, key)] = variable
    return overridden


def _absolute(model: str | dict[str, Any], base: Path) -> str | dict[str, Any]:
    if isinstance(model, str) and is_path(model):
        return str((base / Path(model).expanduser()).resolve())
    return model


def is_path(model: str) -> bool:
    """Whether a model reference names a definition file (and not a definition of the zoo)."""
    return model.endswith((".yaml", ".yml")) or "/" in model


def _keys(section: type[BaseModel]) -> list[str]:
    return [name for name in section.model_fields if name != "source"]


_MODELS: Final[dict[str, type[BaseModel]]] = {
    "cluster": ClusterConfig,
    "broker": BrokerConfig,
    "scheduler": SchedulerConfig,
    "workers": WorkerConfig,
    "autoscale": AutoscaleConfig,
    "epoch": EpochConfig,
}


def _explain(where: str, overridden: Mapping[tuple[str, ...], str], error: ValidationError) -> str:
    problems = []
    for item in error.errors(include_url=False):
        # The union of a model reference adds its branch ("str", "dict[...]") to the place.
        location = tuple(part for part in item["loc"] if part != "str" and not str(part).startswith("dict["))
        key = ".".join(str(part) for part in location)
        variable = overridden.get(tuple(str(part) for part in location[:2]))
        origin = f"environment variable {variable}" if variable else (f"{where}: {key}" if key else where)
        problems.append(f"{origin}: {_what(location, item['type'], item['msg'], item['input'])}")
    unique = list(dict.fromkeys(problems))
    more = f" (and {len(unique) - 4} more)" if len(unique) > 4 else ""
    return "; ".join(unique[:4]) + more


def _what(location: tuple[int | str, ...], kind: str, message: str, value: Any) -> str:
    if kind == "extra_forbidden":
        section = _MODELS.get(str(location[0]), Config) if len(location) > 1 else Config
        known = _keys(section)
        close = difflib.get_close_matches(str(location[-1]), known, 1)
        return (
            f"unknown key; did you mean {close[0]}?" if close else f"unknown key; known: {', '.join(known)}"
        )
    if kind == "value_error":
        return message.removeprefix("Value error, ")
    if kind in ("model_type", "model_attributes_type"):
        return f"expected a map of keys, got {value!r:.60}"
    if kind == "string_pattern_mismatch" and location[-1] == "device":
        return f"expected emulated, cpu or cuda:N, got {value!r:.60}"
    if kind == "string_pattern_mismatch" and location[-1] == "policy":
        return f"expected {POLICIES}, got {value!r:.60}"
    if location[0] == "models":
        return f"expected a zoo definition's name, a path or a definition, got {value!r:.60}"
    text = message.replace("Input should be", "expected")
    return f"{text[:1].lower()}{text[1:]}, got {value!r:.60}"
