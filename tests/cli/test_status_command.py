"""``symphony status`` against a broker: tables, JSON, nobody there."""

from __future__ import annotations

import json
import math
from typing import Any

import click.testing
import pytest
from cluster_parts import nodes_of, running_broker
from commands import run
from helpers import free_ports

from symphony.cli.main import main
from symphony.cli.status import command
from symphony.control import ModelSpec, TensorSpec
from symphony.membership import fetch_snapshot


def status(*arguments: str) -> str:
    result = click.testing.CliRunner().invoke(command, list(arguments))
    assert result.exit_code == 0, result.output
    return result.stdout


SPEC = ModelSpec(
    name="net",
    slo_ms=100.0,
    max_batch=2,
    inputs=[TensorSpec(name="x", dtype="FP32", shape=[3])],
    profiles={"a100": [1_000_000, 2_500_000]},
)


def test_tables_and_json_show_the_same_cluster() -> None:
    with running_broker() as broker, nodes_of(broker) as nodes:
        shard = nodes.add("shard-0", "scheduler", models=["net"], endpoints={"submit": "tcp://127.0.0.1:9"})
        nodes.add("front", "frontend")
        gpus: list[dict[str, Any]] = [{"number": n, "type": "a100"} for n in (0, 1, 5)]
        nodes.add("w", gpus=gpus, shard="shard-0")
        shard.membership.update(models=[SPEC])
        shard.membership.set_stats({"queued": 12, "rates": {"net": 1.5}})
        nodes.until(lambda: shard.known == {"shard-0", "front", "w"})
        nodes.until(lambda: any(m.stats for m in fetch_snapshot(broker.registry).members))
        shown = json.loads(status("--json", "--registry", broker.registry))
        text = status("--registry", broker.registry)
    assert shown["registry"] == broker.registry
    assert shown["broker"] == broker.incarnation
    assert shown["members"].keys() == {"shard-0", "front", "w"}
    assert shown["members"]["front"]["slot"] is not None
    assert shown["members"]["w"]["gpus"][2] == {"number": 5, "type": "a100", "memory_mb": 0}
    assert shown["models"]["net"]["profiles"] == {"a100": [1_000_000, 2_500_000]}
    assert shown["shards"] == {"shard-0": {"queued": 12, "rates": {"net": 1.5}}}
    for piece in ("3 members, 1 models", "GPU 0–1 (a100), GPU 5 (a100) for shard-0", "x FP32[3]", "queued"):
        assert piece in text
    assert "a100 (1–2.5 ms)" in text


ODD: dict[str, Any] = {
    "gpu": {
        "utilization": "87 %",
        "memory_total_mb": [1],
        "temperature_c": True,
        "power_w": math.inf,
        "throttle": 5,
        "ecc_uncorrected": "none",
    },
    "versions": 5,
    "models": {"net": {"rate": 1e300, "rate_cv": 1e300, "offered": math.nan, "batches": "x"}, "other": 3},
    "gpus": "eight",
    "busy_share": None,
    "lateness_p99_us": -math.inf,
    "loop": [math.nan],
}


def test_whatever_members_say_of_themselves_can_be_shown() -> None:
    with running_broker() as broker, nodes_of(broker) as nodes:
        shard = nodes.add("shard-0", "scheduler", models=["net"])
        worker = nodes.add("w", gpus=[{"number": 0, "type": "a100"}], shard="shard-0", models=["net"])
        for node in (shard, worker):
            node.membership.set_stats(ODD)
        nodes.until(lambda: sum(bool(m.stats) for m in fetch_snapshot(broker.registry).members) == 2)
        shown = json.loads(status("--json", "--registry", broker.registry), parse_constant=pytest.fail)
        text = status("--registry", broker.registry)
    assert shown["shards"]["shard-0"]["models"]["net"]["offered"] is None
    assert "GPU 0 (a100) for shard-0" in text


def test_an_empty_cluster_is_no_error() -> None:
    with running_broker() as broker:
        assert "0 members, 0 models" in status("--registry", broker.registry)


def test_without_a_broker_it_says_so_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    endpoint = f"tcp://127.0.0.1:{free_ports(1)[0]}"
    with pytest.raises(SystemExit) as caught:
        main(["status", "--registry", endpoint, "--timeout", "0.1", "--json"])
    assert caught.value.code == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"no broker answered at {endpoint} within 0.1 s" in captured.err


@pytest.mark.live
def test_it_is_a_command() -> None:
    with running_broker() as broker:
        code, out, err = run("status", "--json", SYMPHONY_REGISTRY=broker.registry)
    assert code == 0, err
    assert json.loads(out)["members"] == {}
