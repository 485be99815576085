"""A whole cluster on this machine: which processes it has, whether its ports are free, who is missing."""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Mapping
from typing import Final

from symphony.bus import BusError
from symphony.config import SECTIONS, Config, WorkerConfig
from symphony.control import Member
from symphony.snapshot import fetch_snapshot
from symphony.status import Unavailable
from symphony.supervisor import ChildSpec

BROKER: Final = "broker"
_ROLE_VARIABLES: Final = frozenset(
    f"SYMPHONY_{name}" for name in ("CONFIG", "REGISTRY", "PUBLISH", "SUBSCRIBE", "SHARD", "DEVICE")
)


def children(config: Config) -> list[ChildSpec]:
    """The processes of the cluster in the order in which they start.

    Stopped first are the shards, which hand back what they hold, then the workers, which finish what
    they run, and the broker last. Only the very first broker is told that no member of before can
    still be there.
    """
    file = () if config.source is None else ("--config", str(config.source))
    run = (sys.executable, "-m", "symphony")
    broker = (*run, "broker", *file)
    specs = [ChildSpec(BROKER, broker, first_argv=(*broker, "--fresh"), stop_stage=2)]
    specs += [ChildSpec(s, (*run, "scheduler", "--id", s, *file), stop_stage=0) for s in config.shard_ids]
    return specs + [worker_child(config, worker) for worker in config.workers]


def worker_child(config: Config, worker: WorkerConfig) -> ChildSpec:
    """One worker's process."""
    file = () if config.source is None else ("--config", str(config.source))
    argv = (sys.executable, "-m", "symphony", "worker", *_worker_options(worker), *file)
    return ChildSpec(str(worker.id), argv, stop_stage=1)


def _worker_options(worker: WorkerConfig) -> list[str]:
    options = ["--id", str(worker.id), "--shard", worker.shard, "--device", worker.device]
    if worker.device == "emulated":
        options += ["--gpus", str(worker.gpus), "--memory-mb", str(worker.memory_mb)]
    if worker.gpu_type:
        options += ["--gpu-type", worker.gpu_type]
    for model in worker.models:
        options += ["--model", model]
    return [*options, "--threads", str(worker.threads)]


def child_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without what would send a role elsewhere than its configuration file says."""
    return {k: v for k, v in environ.items() if k not in _ROLE_VARIABLES}


def file_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """As :func:`child_environment`, and without what would replace a key of the file."""
    prefixes = tuple(f"SYMPHONY_{section.upper()}_" for section in SECTIONS)
    return {k: v for k, v in child_environment(environ).items() if not k.startswith(prefixes)}


def check_ports(config: Config) -> None:
    """Whether the broker will be able to bind its ports.

    Raises:
        BusError: a port is in use, or the host is no address of this machine.
    """
    host = config.cluster.host
    for key in ("registry_port", "publish_port", "subscribe_port"):
        port = getattr(config.broker, key)
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind((host, port))
            except OSError as error:
                raise BusError(_why_not(config, key, port, error)) from None


def _why_not(config: Config, key: str, port: int, error: OSError) -> str:
    host = config.cluster.host
    if error.errno == errno.EADDRNOTAVAIL:
        return f"cluster.host is {host}, which is no address of this machine"
    if error.errno != errno.EADDRINUSE:
        return f"cannot bind port {port} (broker.{key}) on {host}: {error.strerror}"
    try:
        members = len(fetch_snapshot(config.registry, 0.5).members)
        who = f"a Symphony broker with {members} member(s) already answers at {config.registry}"
    except Unavailable:
        who = "another program has it"
    return (
        f"port {port} (broker.{key}) on {host} is in use: {who}; stop it, or choose other ports "
        "with --port or in the configuration file"
    )


def is_ready(member: Member, members: Mapping[str, Member]) -> bool:
    """Whether a member does its work; a worker only once its shard's model table has its models.

    Once there is a plan, it may be working for other shards, too.
    """
    if member.state != "ready":
        return False
    if member.role != "worker":
        return True
    shard = members.get(member.shard or "")
    if shard is not None and shard.adopted is not None:
        return True
    return shard is not None and set(member.models) <= set(shard.models)


def waiting_for(config: Config, members: Mapping[str, Member]) -> list[str]:
    """What is still missing before the cluster can serve, as short phrases; empty when it is ready."""
    missing = []
    for name in [*config.shard_ids, *(str(worker.id) for worker in config.workers)]:
        member = members.get(name)
        if member is None:
            missing.append(f"{name} to join")
        elif member.state != "ready":
            missing.append(f"{name} ({member.state})")
        elif not is_ready(member, members):
            missing.append(f"{name} to be linked to {member.shard}")
    return missing


def describe(member: Member) -> str:
    """What a member has, for the line that says that it is ready."""
    if member.role == "worker":
        types: dict[str, int] = {}
        for gpu in member.gpus:
            types[gpu.type] = types.get(gpu.type, 0) + 1
        gpus = " + ".join(f"{count} × {name}" for name, count in types.items()) or "no GPU"
        return f"{gpus} for {member.shard}: {', '.join(member.models) or 'no model'}"
    return ", ".join(member.endpoints.values())
