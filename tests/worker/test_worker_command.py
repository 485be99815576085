"""``symphony worker`` as a process of its own: starting, being told to stop, and refusing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from fake_peers import FakePeers, fake_peers

from symphony.cli.worker import command
from symphony.config import Config, load_config
from symphony.status import Status, SymphonyError
from worker.choice import chosen, merged

NOTHING = dict.fromkeys(("shard", "device", "gpus", "gpu_type", "threads"))


@contextmanager
def process(peers: FakePeers, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    argv = [sys.executable, "-m", "symphony", "worker", "--id", "worker-0"]
    argv += ["--registry", peers.registry_at, "--publish", peers.publish_at]
    argv += ["--subscribe", peers.subscribe_at, *options]
    root = Path(__file__).parents[2]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, cwd=root, env=os.environ) as child:
        try:
            yield child
        finally:
            child.kill()


def ended(peers: FakePeers, child: subprocess.Popen[bytes]) -> int:
    peers.until(lambda: child.poll() is not None, 20, "the process's end")
    assert child.returncode is not None
    return child.returncode


@pytest.mark.live
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_ends_with_0(number: signal.Signals) -> None:
    with fake_peers() as peers, process(peers, "--gpus", "4", "--model", "resnet50-emulated") as child:
        member = peers.ready()
        assert (member.pid, len(member.gpus), member.gpus[0].type) == (child.pid, 4, "emulated")
        frontend = peers.frontend()
        # Six full batches in a row on one GPU: 0.86 s, which the end must wait for.
        keys = [frontend.request(None) for _ in range(6 * 128)]
        for at in range(0, len(keys), 128):
            peers.plan("resnet50", keys[at : at + 128], gpu=1)
        child.send_signal(number)
        assert ended(peers, child) == 0
        peers.until(lambda: len(frontend.answers) == len(keys))
        assert {answers[0][0] for answers in frontend.answers.values()} == {Status.OK}
        assert peers.member("worker-0") is None
        assert child.stderr is not None
        assert b"draining" in child.stderr.read()


@pytest.mark.live
def test_killed_in_mid_batch_it_is_gone_and_a_new_one_serves() -> None:
    with fake_peers() as peers:
        with process(peers, "--model", "resnet50-emulated") as child:
            first = peers.ready()
            child.kill()
            ended(peers, child)
        peers.registry.dead("worker-0", first.incarnation)
        with process(peers, "--model", "resnet50-emulated") as child:
            second = peers.ready()
            assert second.incarnation != first.incarnation
            frontend = peers.frontend()
            key = frontend.request(None)
            peers.plan("resnet50", [key], gpu=second.gpus[0].number)
            peers.until(lambda: key in frontend.answers)


@pytest.mark.live
def test_a_model_file_whose_module_is_absent_ends_it_with_1_and_one_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    tensor = [{"name": "x", "dtype": "FP32", "shape": [1]}]
    value = {"name": "mine", "slo_ms": 9, "max_batch": 1, "loader": "absent_one:load"}
    file.write_text(yaml.safe_dump(value | {"inputs": tensor, "outputs": tensor}))
    with fake_peers() as peers, process(peers, "--device", "cpu", "--model", str(file)) as child:
        assert ended(peers, child) == 1
        assert child.stderr is not None
        last = child.stderr.read().decode().strip().splitlines()[-1]
    assert last.startswith(
        "symphony: model 'mine': loader: 'absent_one:load': there is no module 'absent_one'"
    )


def test_help_gives_units_and_defaults() -> None:
    result = CliRunner().invoke(command, ["--help"])
    assert result.exit_code == 0
    assert "seconds" in result.output
    assert "cuda:N" in result.output


# -- what is taken from the file and what from the options ----------------------------------------


@pytest.fixture
def config(tmp_path: Path) -> Config:
    inline = {"name": "own", "slo_ms": 9, "max_batch": 2, "loader": "emulated"}
    value = {
        "models": ["resnet50-emulated", "minilm", inline | {"profile": {"alpha_ms": 1, "beta_ms": 1}}],
        "workers": [
            {"id": "a", "gpus": 8, "models": ["resnet50"]},
            {"id": "b", "device": "cpu", "threads": 2},
        ],
    }
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(value))
    return load_config(file, {})


def names(config: Config, worker: str, models: list[str], **options: object) -> list[str]:
    entry = merged(config, worker, models, NOTHING | options)
    return [definition.name for definition in chosen(config, entry, models)]


def test_a_worker_of_the_file_is_as_the_file_says(config: Config) -> None:
    entry = merged(config, "a", [], NOTHING)
    assert (entry.device, entry.gpus, entry.shard) == ("emulated", 8, "shard-0")
    assert names(config, "a", []) == ["resnet50"]
    assert names(config, "b", []) == ["minilm"]  # all that its device can run


def test_options_go_before_the_file(config: Config) -> None:
    entry = merged(config, "a", [], NOTHING | {"gpus": 3, "shard": "shard-9"})
    assert (entry.gpus, entry.shard) == (3, "shard-9")
    assert merged(config, "a", [], NOTHING | {"device": "cpu"}).gpus == 1
    assert names(config, "a", ["own", "resnet50"]) == ["own", "resnet50"]


def test_a_name_stands_for_what_the_device_can_run(config: Config) -> None:
    entry = merged(config, "new", ["resnet50"], NOTHING | {"device": "cpu"})
    (definition,) = chosen(config, entry, ["resnet50"])
    assert not definition.emulated
    entry = merged(config, "new", ["resnet50"], NOTHING)
    (definition,) = chosen(config, entry, ["resnet50"])
    assert definition.emulated


@pytest.mark.parametrize(
    ("models", "options", "message"),
    [
        (["minilm"], {}, "model 'minilm' needs a real device: --device cpu or cuda:0"),
        (["own"], {"device": "cpu"}, "model 'own' needs --device emulated"),
        (["nothing"], {}, r"no model definition 'nothing': neither a file nor one of the zoo's \(bert-base"),
        (["own", "own"], {}, "two definitions have the name 'own'"),
        ([], {"device": "gpu"}, "device: expected emulated, cpu or cuda:N, got 'gpu'"),
        ([], {"device": "cpu", "gpus": 2}, "device cpu is one device: gpus must be 1"),
    ],
)
def test_what_cannot_be_run_is_refused(
    config: Config, models: list[str], options: dict[str, object], message: str
) -> None:
    with pytest.raises(SymphonyError, match=message):
        names(config, "new", models, **options)


def test_no_models_at_all() -> None:
    with pytest.raises(SymphonyError, match="no models for device cpu; name some with --model"):
        names(load_config(None, {}), "new", [], device="cpu")
