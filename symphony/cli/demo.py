"""``symphony demo``: real models on a small cluster on this machine, loaded for a while, and explained."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import yaml
from rich.console import Console

from symphony import local
from symphony.cli import demo_screen as screen
from symphony.config import Config, load_config
from symphony.control import Member, ModelSpec, Snapshot
from symphony.snapshot import fetch_snapshot
from symphony.status import Dropped, RequestTimeout, SymphonyError, Unavailable
from symphony.supervisor import PARENT_VARIABLE

if TYPE_CHECKING:
    from frontend.report import LoadReport
    from symphony.client import Client

AT_ONCE: Final = 16
DEADLINES_MS: Final = (500.0, 700.0, 1_000.0, 1_000.0, 1_500.0, 1_500.0, 2_000.0, 2_000.0, 3_000.0, 5_000.0)
GRACE_MS: Final = 2_000.0
LEASE_MS: Final = 10_000
"""On a machine that is busy otherwise, real models keep a worker silent for seconds; if it is taken for dead,
its batches would be run a second time."""
"""How much later than its deadline an answer may be before it counts as none: generous, since this
machine does everything at once."""
QUERY: Final = "The musicians got ready for the concert."
NOTE: Final = "A4"
EMULATED_RPS: Final = 2_000.0
DEVICE_SHARE: Final = 0.1
"""How busy each of the two real models is to keep their device: it also runs everything else here."""
LEAST_RPS: Final = 4.0
MOST_RPS: Final = 500.0
CPU_DEADLINE_MS: Final = 500.0
"""On a CPU two models share one slow device, and a batch of one delays the other's."""
READY_S: Final = 300.0


class DemoError(SymphonyError):
    """The demo could not run, or did not show what it promises."""


@click.command()
@click.option("--seconds", type=click.FloatRange(1, 3_600), default=20.0, show_default=True, help="How long.")
@click.option(
    "--device",
    metavar="DEVICE",
    help="cpu or cuda:N for the real models.  [default: cuda:0 if PyTorch sees a GPU, else cpu]",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("out/demo"),
    show_default=True,
    help="Folder for the configuration, the cluster's log and the report.",
)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Of arrivals and inputs.")
def command(seconds: float, device: str | None, out: Path, seed: int) -> None:
    """Serve real models on a small cluster for a while and explain what happened.

    Starts a cluster on free ports of this machine: shard-0 with all-MiniLM-L6-v2 (text) and CREPE
    (pitch) on a real device, shard-1 with ResNet-50 on eight emulated GPUs. Offers Poisson load,
    reports per model, and stops the cluster. Exit code 0 only if every request got exactly one answer
    and the pitch of a known note was found within 10 cents.
    """
    console = Console(highlight=False)
    console.rule("[bold]Symphony demo")
    device = device or find_device()
    try:
        out.mkdir(parents=True, exist_ok=True)
        config = write_config(out / "cluster.yaml", device)
    except OSError as error:
        raise DemoError(f"cannot write to {out}: {error.strerror}; --out names another folder") from None
    screen.introduce(console, config, device, out)
    with cluster(config, out / "cluster.log", console) as snapshot:
        from symphony.client import Client

        with Client(config.registry, config.subscribe) as client:
            answers = real_answers(client)
        screen.show_answers(console, answers)
        report = offer_load(console, config, snapshot, device, seconds, seed)
    screen.show_report(console, report)
    file = out / "report.json"
    content = {"device": device, "answers": answers, **report.as_dict()}
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    console.print(f"Full report: {file}")
    problems = screen.problems(report, answers)
    if problems:
        raise DemoError("; ".join(problems))
    console.print(f"[green]All {report.total.offered:,} requests got exactly one answer each.[/]")


def find_device() -> str:
    """``cuda:0`` if PyTorch can use a GPU, else ``cpu``.

    Raises:
        DemoError: PyTorch is not installed.
    """
    try:
        import torch
    except ImportError:
        raise DemoError(
            "the demo's real models need PyTorch: run `make demo`, or pip install '.[zoo]'"
        ) from None
    return "cuda:0" if torch.cuda.is_available() else "cpu"


def write_config(path: Path, device: str) -> Config:
    """The demo's configuration on ports that are free now."""
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        registry, publish, subscribe = (sock.getsockname()[1] for sock in held)
    content = {
        "cluster": {"name": "demo"},
        "broker": {
            "registry_port": registry,
            "publish_port": publish,
            "subscribe_port": subscribe,
            "lease_ms": LEASE_MS,
        },
        "scheduler": {"shards": 2},
        "workers": [
            {"id": "device", "device": device, "shard": "shard-0", "models": ["minilm", "crepe-tiny"]},
            {"id": "emulated", "device": "emulated", "gpus": 8, "shard": "shard-1", "models": ["resnet50"]},
        ],
        "models": ["minilm", "crepe-tiny", emulated_resnet50()],
    }
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return load_config(path, {})


def emulated_resnet50() -> dict[str, Any]:
    """The zoo's emulated ResNet-50 with the input of the real one.

    Requests carry images, which are checked and held for whoever fetches them; emulated GPUs do not.
    """
    from worker.zoo import path

    definition = yaml.safe_load(path("resnet50-emulated").read_text(encoding="utf-8"))
    return {**definition, "inputs": [{"name": "image", "dtype": "FP32", "shape": [3, 224, 224]}]}


@contextlib.contextmanager
def cluster(config: Config, log: Path, console: Console) -> Iterator[Snapshot]:
    """A cluster by ``symphony up`` in a process of its own; gives what its registry knew when ready.

    Raises:
        DemoError: it did not become ready, or did not stop in order.
    """
    # The file says all; what the shell says of another cluster is not meant for this one.
    environment = local.file_environment(os.environ)
    environment[PARENT_VARIABLE] = str(os.getpid())
    argv = [sys.executable, "-m", "symphony", "up", "--config", str(config.source)]
    with log.open("wb") as output:
        up = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,  # Ctrl-C is ours; we stop it in order
        )
        try:
            yield _wait_ready(config, up, log, console)
        finally:
            up.send_signal(signal.SIGTERM)
            try:
                code = up.wait(30)
            except subprocess.TimeoutExpired:
                up.kill()
                code = up.wait()
    if code != 0:
        raise DemoError(f"the cluster did not stop in order (exit code {code}): see {log}")


def _wait_ready(config: Config, up: subprocess.Popen[bytes], log: Path, console: Console) -> Snapshot:
    began = time.monotonic()
    with console.status("Starting the cluster …") as status:
        while time.monotonic() - began < READY_S:
            if up.poll() is not None:
                lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
                words = next((line for line in reversed(lines) if line.strip()), "it said nothing")
                raise DemoError(f"the cluster did not start: {words} (whole log: {log})")
            with contextlib.suppress(Unavailable):
                snapshot = fetch_snapshot(config.registry, 1.0)
                members: dict[str, Member] = {member.id: member for member in snapshot.members}
                missing = local.waiting_for(config, members)
                if not missing:
                    console.print(f"The cluster was ready after {time.monotonic() - began:.1f} s.")
                    return snapshot
                status.update(
                    f"Waiting for {', '.join(missing)}: models are loaded and their latencies measured …"
                )
            with contextlib.suppress(subprocess.TimeoutExpired):
                up.wait(0.1)
    raise DemoError(f"the cluster was not ready within {READY_S:g} s: see {log}")


def real_answers(client: Client) -> dict[str, Any]:
    """Ask the two real models something whose answer a person can judge."""
    import numpy as np

    from worker.zoo.samples import NOTES, SENTENCES, cents_apart, tone

    texts = (QUERY, *SENTENCES)
    embedded: list[Any] = []
    for begin in range(0, len(texts), AT_ONCE):
        embedded += ask(client, "minilm", [{"text": text} for text in texts[begin : begin + AT_ONCE]])
    query, *corpus = [outputs["embedding"] for outputs in embedded]
    similarity = np.stack(corpus) @ query
    best = int(similarity.argmax())
    phases = np.linspace(0, 2 * np.pi, AT_ONCE, endpoint=False)
    heard = ask(client, "crepe-tiny", [{"audio": tone(NOTES[NOTE], float(phase))} for phase in phases])
    pitch = float(np.median([outputs["pitch_hz"] for outputs in heard]))
    return {
        "nearest": {
            "query": QUERY,
            "of": len(SENTENCES),
            "sentence": SENTENCES[best],
            "similarity": float(similarity[best]),
        },
        "pitch": {
            "note": NOTE,
            "frames": AT_ONCE,
            "true_hz": NOTES[NOTE],
            "heard_hz": pitch,
            "cents": cents_apart(pitch, NOTES[NOTE]),
        },
    }


def ask(client: Client, model: str, items: list[dict[str, Any]]) -> list[Any]:
    """The outputs for each item.

    The scheduler uses all the time that it is given to let batches grow, so the deadline is short at
    first, and longer for what this machine could not do in it.

    Raises:
        SymphonyError: no answer even with the longest deadline.
    """
    outputs: dict[int, Any] = {}
    problem: SymphonyError | None = None
    for deadline_ms in DEADLINES_MS:
        left = [i for i in range(len(items)) if i not in outputs]
        futures = {i: client.submit(model, items[i], deadline_ms) for i in left}
        for i, future in futures.items():
            try:
                outputs[i] = future.result().outputs
            except (Dropped, RequestTimeout) as error:
                problem = error
        if len(outputs) == len(items):
            return [outputs[i] for i in range(len(items))]
    raise DemoError(f"{model} did not answer within {DEADLINES_MS[-1]:g} ms: {problem}")


def offer_load(
    console: Console, config: Config, snapshot: Snapshot, device: str, seconds: float, seed: int
) -> LoadReport:
    """Poisson load on all three models at once, with a progress bar."""
    from frontend.load import LoadPlan, ModelLoad, Progress, run_load
    from worker.zoo import samples

    rates = {model.name: _rate(model) for model in snapshot.models}
    deadlines = {model.name: model.slo_ms for model in snapshot.models}
    if device == "cpu":
        deadlines |= {"minilm": CPU_DEADLINE_MS, "crepe-tiny": CPU_DEADLINE_MS}
    inputs: dict[str, Any] = {
        "minilm": lambda i, _: samples.text(samples.SENTENCES[i % len(samples.SENTENCES)]),
        "crepe-tiny": lambda _, rng: samples.note(rng),
        "resnet50": lambda _, rng: samples.image(rng),
    }
    loads = [
        ModelLoad(model=name, rate=rates[name], deadline_ms=deadlines[name], inputs=source)
        for name, source in inputs.items()
    ]
    plan = LoadPlan(
        models=loads,
        seconds=seconds,
        seed=seed,
        registry=config.registry,
        subscribe=config.subscribe,
        grace_ms=GRACE_MS,
        wait_s=30.0,
    )
    screen.announce_load(console, rates, deadlines, seconds)
    with screen.progress_bar(console, seconds) as show:

        def told(progress: Progress) -> None:
            show(progress.elapsed_s, progress.sent, progress.answered, progress.good)

        return run_load(plan, told)


def _rate(model: ModelSpec) -> float:
    """Requests per second: fixed for the emulated GPUs, a share of what a real device can do else."""
    if model.name == "resnet50":
        return EMULATED_RPS
    table = next(iter(model.profiles.values()))
    size = min(8, len(table))
    rate = DEVICE_SHARE * size / (table[size - 1] / 1e9)
    return float(min(MOST_RPS, max(LEAST_RPS, round(rate))))
