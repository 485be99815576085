"""The configuration file: defaults, precedence, and refusals that name the file and the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from symphony.config import POLICIES, ConfigError, load_config


def _write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "cluster.yaml"
    file.write_text(text)
    return file


def test_built_in_default() -> None:
    config = load_config(None, {})
    assert config.registry == "tcp://127.0.0.1:5550"
    assert config.publish == "tcp://127.0.0.1:5551"
    assert config.subscribe == "tcp://127.0.0.1:5552"
    assert config.models == ["resnet50-emulated"]
    assert [(w.id, w.device, w.gpus, w.shard, w.models) for w in config.workers] == [
        ("worker-0", "emulated", 8, "shard-0", ["resnet50"])
    ]
    assert config.source is None


def test_a_whole_file(tmp_path: Path) -> None:
    config = load_config(
        _write(
            tmp_path,
            """
cluster: {name: demo, host: localhost}
broker: {registry_port: 6000, heartbeat_ms: 100, lease_ms: 400}
scheduler: {shards: 2, policy: eager, max_queue: 10}
workers:
  - {device: emulated, gpus: 8, shard: shard-1, models: [resnet50]}
  - {id: real, device: cpu, models: [minilm], threads: 2}
models: [resnet50-emulated, ./mine.yaml, {name: inline, slo_ms: 5}]
""",
        ),
        {},
    )
    assert config.registry == "tcp://127.0.0.1:6000"
    assert config.shard_ids == ["shard-0", "shard-1"]
    assert [worker.id for worker in config.workers] == ["worker-0", "real"]
    assert config.models == [
        "resnet50-emulated",
        str(tmp_path / "mine.yaml"),
        {"name": "inline", "slo_ms": 5},
    ]


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    config = load_config(_write(tmp_path, ""), {})
    assert (config.workers, config.models, config.broker.lease_ms) == ([], [], 2000)


def test_dump_reads_back(tmp_path: Path) -> None:
    config = load_config(None, {})
    again = load_config(_write(tmp_path, config.dump()), {})
    assert again.model_copy(update={"source": None}) == config


def test_environment_stands_above_the_file(tmp_path: Path) -> None:
    file = _write(tmp_path, "broker: {registry_port: 6000, publish_port: 6001}")
    environ = {"SYMPHONY_BROKER_REGISTRY_PORT": "7000", "SYMPHONY_PURE": "1", "PATH": "/bin"}
    config = load_config(file, environ)
    assert (config.broker.registry_port, config.broker.publish_port) == (7000, 6001)


@pytest.mark.parametrize(
    "policy",
    [
        "deferred",
        "eager",
        "target",
        "latest",
        "timeout:5",
        "timeout:2.5:16",
        "adaptive",
        "adaptive:0.7",
        "adaptive:1",
    ],
)
def test_policies(policy: str) -> None:
    assert load_config(None, {"SYMPHONY_SCHEDULER_POLICY": policy}).scheduler.policy == policy


def test_adaptive_keeps_to_few_gpus_where_an_autoscaler_gives_up_idle_ones(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text("autoscale: {actuator: local}")
    config = load_config(file, {})
    assert config.policy() == "adaptive:1"
    assert config.policy("adaptive:0") == "adaptive:0"
    assert config.policy("eager") == "eager"
    assert load_config(None, {}).policy() == "adaptive"
    assert load_config(None, {"SYMPHONY_SCHEDULER_POLICY": "deferred"}).policy() == "deferred"


def test_every_policy_of_the_core_can_be_configured_and_no_other() -> None:
    from scheduler.core.policies import make_policy

    for policy in ("deferred", "eager", "target", "latest", "timeout:5", "adaptive", "adaptive:0.25"):
        assert make_policy(load_config(None, {"SYMPHONY_SCHEDULER_POLICY": policy}).scheduler.policy)
    with pytest.raises(ValueError, match="unknown policy") as caught:
        make_policy("nonsense")
    for name in POLICIES.replace(" or", ",").split(", "):
        assert name.partition("[")[0].partition(":")[0] in str(caught.value)


def test_ipv6_endpoint(tmp_path: Path) -> None:
    assert load_config(_write(tmp_path, "cluster: {host: '::1'}"), {}).registry == "tcp://[::1]:5550"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not YAML at line 1"),
        ("- a", "expected a map with the keys cluster, broker, scheduler, workers, models"),
        ("brokr: {}", "brokr: unknown key; did you mean broker?"),
        ("broker: {registry_prt: 1}", "broker.registry_prt: unknown key; did you mean registry_port?"),
        ("broker: {registry_port: abc}", "broker.registry_port: expected a valid integer, got 'abc'"),
        ("broker: {registry_port: 70000}", "broker.registry_port: expected less than or equal to 65535"),
        ("broker: {registry_port: '5550'}", "broker.registry_port: expected a valid integer, got '5550'"),
        ("broker: 5", "broker: expected a map of keys, got 5"),
        ("broker: {registry_port: 5551}", "must differ"),
        ("broker: {lease_ms: 600}", "lease_ms (600) must be at least twice heartbeat_ms (500)"),
        ("scheduler: {policy: greedy}", "scheduler.policy: expected deferred, eager, target"),
        ("scheduler: {policy: timeout}", "or adaptive[:DIAL], got 'timeout'"),
        ("scheduler: {policy: 'adaptive:1.5'}", "or adaptive[:DIAL], got 'adaptive:1.5'"),
        ("cluster: {name: 2026-02-31}", "not YAML: malformed"),
        ("models: " + "[" * 2_000, "not YAML: malformed"),
        ("workers: [{device: gpu}]", "workers.0.device: expected emulated, cpu or cuda:N, got 'gpu'"),
        ("workers: [{device: cpu, gpus: 2}]", "device cpu is one device"),
        ("workers: [{shard: shard-1}]", "belongs to 'shard-1', but scheduler.shards is 1"),
        ("workers: [{id: a}, {id: a}]", "two workers have the id 'a'"),
        ("workers: [{device: cpu, gpu: 2}]", "workers.0.gpu: unknown key; did you mean gpus?"),
        ("models: [3]", "models.0: expected a zoo definition's name, a path or a definition, got 3"),
        ("cluster: {host: 0.0.0.0}", "not a wildcard"),
        ("cluster: {host: gpu-box}", "cluster.host: expected an IP address"),
        ("cluster: {insecure: 1}", "cluster.insecure: expected a valid boolean, got 1"),
        ("source: x", "source: unknown key"),
    ],
)
def test_refusals(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(_write(tmp_path, text), {})
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "cluster.yaml"))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml: there is no such configuration file"):
        load_config(tmp_path / "gone.yaml", {})


def test_binary_and_directory_are_no_configuration(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(tmp_path / "x.yaml", {})
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_config(tmp_path, {})


@pytest.mark.parametrize(("value", "message"), [("x", "expected a valid integer"), ("[", "valid integer")])
def test_a_wrong_variable_is_named(value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"environment variable SYMPHONY_BROKER_LEASE_MS: .*{message}"):
        load_config(None, {"SYMPHONY_BROKER_LEASE_MS": value})


def test_an_unknown_variable_is_named() -> None:
    with pytest.raises(ConfigError, match=r"SYMPHONY_SCHEDULER_SHARD: unknown key; did you mean shards\?"):
        load_config(None, {"SYMPHONY_SCHEDULER_SHARD": "2"})


def test_the_example_at_size_is_a_configuration() -> None:
    config = load_config(Path(__file__).parents[2] / "docs" / "examples" / "four-shards.yaml", {})
    assert config.epochs is not None
    assert config.epochs.seconds == 20
    assert sum(worker.gpus for worker in config.workers) == 2_000
    assert len(config.models) == 40


def test_one_shard_is_not_planned_by_epochs_unless_it_is_said(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("workers: [{device: emulated}]")
    assert load_config(file, {}).epochs is None
    file.write_text("scheduler: {shards: 2}\nworkers: [{device: emulated}]")
    several = load_config(file, {})
    assert several.epochs is not None
    assert several.epochs.seconds == 60
    assert load_config(file, {"SYMPHONY_EPOCH_SECONDS": "0"}).epochs is None
    assert load_config(file, {"SYMPHONY_EPOCH_SECONDS": "7.5"}).epochs is not None
