"""What a cluster on one machine consists of, and when it is ready."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from helpers import free_ports

from symphony import local
from symphony.bus import BusError
from symphony.config import Config, load_config
from symphony.control import GpuInfo, Member


def _config(**broker: int) -> Config:
    return Config.model_validate({**load_config(None, {}).model_dump(), "broker": broker})


def _member(name: str, role: str, **fields: Any) -> Member:
    return Member.model_validate({"id": name, "role": role, "incarnation": 1, "state": "ready", **fields})


def test_what_of_the_environment_reaches_the_processes() -> None:
    kept = {"PATH": "/bin", "SYMPHONY_PURE": "1", "SYMPHONY_LOG_LEVEL": "info"}
    keys = {"SYMPHONY_BROKER_REGISTRY_PORT": "1", "SYMPHONY_EPOCH_SECONDS": "1"}
    roles = {"SYMPHONY_REGISTRY": "tcp://10.0.0.1:5550", "SYMPHONY_CONFIG": "x.yaml"}
    assert local.child_environment(kept | keys | roles) == kept | keys
    assert local.file_environment(kept | keys | roles) == kept


def test_processes_and_the_order_of_stopping() -> None:
    specs = local.children(load_config(None, {}))
    assert [(spec.name, spec.stop_stage) for spec in specs] == [
        ("broker", 2),
        ("shard-0", 0),
        ("worker-0", 1),
    ]
    assert specs[0].first_argv == (*specs[0].argv, "--fresh")
    assert specs[1].argv[2:] == ("symphony", "scheduler", "--id", "shard-0")
    text = " ".join(specs[2].argv)
    assert "--id worker-0 --shard shard-0 --device emulated --gpus 8" in text
    assert "--model resnet50" in text


def test_ready_only_when_everybody_is_and_the_models_are_served() -> None:
    config = load_config(None, {})
    members: dict[str, Member] = {}
    assert local.waiting_for(config, members) == ["shard-0 to join", "worker-0 to join"]
    members["shard-0"] = _member("shard-0", "scheduler")
    members["worker-0"] = _member("worker-0", "worker", state="loading", shard="shard-0", models=["resnet50"])
    assert local.waiting_for(config, members) == ["worker-0 (loading)"]
    members["worker-0"] = members["worker-0"].model_copy(update={"state": "ready"})
    assert local.waiting_for(config, members) == ["worker-0 to be linked to shard-0"]
    members["shard-0"] = _member("shard-0", "scheduler", models=["", "resnet50"])
    assert local.waiting_for(config, members) == []


def test_what_a_worker_has_in_words() -> None:
    gpus = [GpuInfo(number=n, type="emulated") for n in range(8)]
    member = _member("w", "worker", shard="shard-0", gpus=gpus, models=["resnet50"])
    assert local.describe(member) == "8 × emulated for shard-0: resnet50"


def test_free_ports_pass() -> None:
    registry, publish, subscribe = free_ports(3)
    local.check_ports(_config(registry_port=registry, publish_port=publish, subscribe_port=subscribe))


def test_a_port_that_another_program_has_is_named() -> None:
    registry, publish = free_ports(2)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            BusError, match=rf"port {port} \(broker\.subscribe_port\) .* in use: another program"
        ):
            local.check_ports(_config(registry_port=registry, publish_port=publish, subscribe_port=port))


def test_a_host_of_another_machine_is_named() -> None:
    config = Config.model_validate({"cluster": {"host": "192.0.2.1", "insecure": True}})
    with pytest.raises(BusError, match=r"192\.0\.2\.1, which is no address of this machine"):
        local.check_ports(config)
