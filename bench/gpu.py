"""Does a real device keep what its profiles promise? ``symphony bench gpu --device cuda:0 --json gpu.json``.

First ``symphony profile`` measures every model. Then, for each SLO (a multiple of each model's l(1)), the
whole system serves all models at once on that device (frontend, shard, worker as processes; Poisson), and
the highest load with bad < 1 % is searched for; rates are such that every model needs the same share of the
device. Last, a plain PyTorch loop with a fixed batch window gets the same load (``bench.plain_loop``).

Per model and SLO: ``goodput_rps``; ``fluid_ideal_rps``, what the measured profile could carry of that mix
without any randomness or network; ``share``, the one over the other; ``busy_share`` of the device;
``predicted_vs_measured_p99``, the 99th percentile over batches of |measured / l(size) - 1|; ``gap_p50_us``,
the median time from one batch's end to the next one's start, over batches whose plan was there before that
end (they start once their inputs are there, too, whatever was predicted); ``plain_loop_goodput_rps``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml
import zmq

from bench.cluster import Running, machine, running
from bench.search import Tried, highest
from simulator.fluid import fluid_scale
from simulator.system import Cluster, ModelSpec
from symphony import wire
from symphony.profile import Profile, ProfileError
from symphony.profile_file import ProfileFile
from symphony.status import SymphonyError
from worker import zoo
from worker.definition import load_definition

QUICK: Final = [
    *("--models", "minilm", "--max-batch", "4", "--slo-factors", "10"),
    *("--seconds", "3", "--steps", "2"),
]
TRIES: Final = 3
START_S: Final = 240.0
"""Several large models may take that long to be loaded and warmed up."""
FACTORS: Final = "2.5,5,10"
GPU_MODELS: Final = "resnet50,vit-b16,bert-base,efficientnet-b0"
CPU_MODELS: Final = "minilm,crepe-full"
PRECISIONS: Final = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@dataclass
class Followed:
    """What the worker published of its batches."""

    rows: list[tuple[str, int, int, int, int, int]] = field(default_factory=list)
    """(model, size, received, exec_at, started, finished), cluster ns."""


class Follower:
    """Reads completion timings off the control channel in a thread."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self._stop = threading.Event()
        self.connected = threading.Event()
        self.followed = Followed()
        self._thread = threading.Thread(target=self._run, name="follow", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        context = zmq.Context()
        sock = context.socket(zmq.SUB)
        sock.connect(self._endpoint)
        sock.subscribe(b"done.")
        while not self._stop.is_set():
            if not sock.poll(100):
                continue
            done = wire.decode_done(sock.recv_multipart()[-1])
            self.connected.set()
            columns = (done.model, done.size, done.received, done.exec_at, done.started, done.finished)
            for model, *times in zip(*(column.tolist() for column in columns), strict=True):
                self.followed.rows.append((done.models[model], *times))
        sock.close(0)
        context.term()

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        self._thread.join()


def profile(name: str, options: argparse.Namespace, precision: str, file: Path) -> ProfileFile:
    """``symphony profile`` in a process of its own; again, if what it found makes no sense.

    Raises:
        SymphonyError: nor did it a third time.
    """
    command = [sys.executable, "-m", "symphony", "--log-level", "warning", "profile", name]
    command += ["--device", options.device, "--max-batch", str(options.max_batch), "--precision", precision]
    command += ["--threads", str(options.threads), "--budget", str(options.budget), "--output", str(file)]
    command += ["--cuda-graphs"] if options.cuda_graphs else []
    for attempt in range(TRIES):
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        made = ProfileFile.load(file)
        try:
            made.profile(options.max_batch)
            break
        except ProfileError as error:
            if attempt == TRIES - 1:
                raise
            print(f"  {name}: {error}", file=sys.stderr)
    return made


def unit_rates(tables: list[Profile], slo_ns: list[int]) -> list[float]:
    """Rates that together are the fluid ideal of one device, each model needing the same share of it."""
    rates = []
    for table, slo in zip(tables, slo_ns, strict=True):
        b = max(1, table.largest_within(slo // 2))
        rates.append(b / table.latency(b) * 1e9 / len(tables))
    models = [
        ModelSpec(str(i), slo, (table.latency_ns,), rate)
        for i, (table, slo, rate) in enumerate(zip(tables, slo_ns, rates, strict=True))
    ]
    scale = fluid_scale(Cluster(models, [0])) or 0.0
    return [rate * scale for rate in rates]


def config(options: argparse.Namespace, names: list[str], files: dict[str, Path], slo_ms: list[float]) -> str:
    """The cluster: one worker on the device with all models, profiles and objectives as measured."""
    models = []
    for name, slo in zip(names, slo_ms, strict=True):
        value = yaml.safe_load(zoo.path(name).read_text(encoding="utf-8"))
        value |= {
            "slo_ms": round(slo, 3),
            "max_batch": options.max_batch,
            "profile": {"file": str(files[name])},
        }
        value |= {"precision": PRECISIONS[options.precision]}
        value |= {"cuda_graphs": True} if options.cuda_graphs else {}
        models.append(value)
    worker = {"device": options.device, "models": names, "threads": options.threads}
    return yaml.safe_dump({"models": models, "workers": [worker]})


def offer(
    cluster: Running, names: list[str], rates: list[float], seconds: float, seed: int, follower: Follower
) -> dict[str, Any]:
    """One load; the report of ``symphony load``, and the batches that ran meanwhile under ``batches``."""
    command = [sys.executable, "-m", "symphony", "--log-level", "warning", "load"]
    command += [f"{name}={max(rate, 0.1):.3f}" for name, rate in zip(names, rates, strict=True)]
    command += ["--seconds", f"{seconds:g}", "--seed", str(seed), "--json", "-", "--wait", "60"]
    for name in names:
        samples = load_definition(name).samples
        command += ["--inputs", f"{name}=bench.gpu:{samples.rpartition(':')[2]}"] if samples else []
    command += ["--registry", cluster.config.registry, "--subscribe", cluster.config.subscribe]
    before = len(follower.followed.rows)
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if not done.stdout:
        raise RuntimeError(f"symphony load gave no report:\n{done.stderr[-2000:]}")
    return {**json.loads(done.stdout), "batches": follower.followed.rows[before:]}


def sentence(i: int, rng: np.random.Generator) -> Any:
    """As :mod:`worker.zoo.samples` makes them, for ``symphony load --inputs``."""
    return _samples().sentence(rng)


def note(i: int, rng: np.random.Generator) -> Any:
    """A tone."""
    return _samples().note(rng)


def image(i: int, rng: np.random.Generator) -> Any:
    """Noise."""
    return _samples().image(rng)


def tokens(i: int, rng: np.random.Generator) -> Any:
    """Token ids."""
    return _samples().tokens(rng)


def _samples() -> Any:
    from worker.zoo import samples

    return samples


def judge(batches: list[Any], tables: dict[str, Profile], seconds: float) -> dict[str, Any]:
    """Of the batches of one run: busy share, gaps, and by model how far l(b) was off."""
    ran = sorted((row for row in batches if row[1] > 0), key=lambda row: row[4])
    busy = sum(row[5] - row[4] for row in ran) / (seconds * 1e9)
    gaps = [(after[4] - before[5]) / 1e3 for before, after in pairwise(ran) if after[2] <= before[5]]
    off: dict[str, list[float]] = {}
    for name, size, _, _, started, finished in ran:
        off.setdefault(name, []).append(abs((finished - started) / tables[name].latency(size) - 1))
    return {
        "busy_share": round(busy, 4),
        "gap_p50_us": round(float(np.median(gaps)), 1) if gaps else None,
        "off_p99": {name: round(float(np.percentile(values, 99)), 4) for name, values in off.items()},
        "batches": len(ran),
    }


def live(
    options: argparse.Namespace,
    names: list[str],
    files: dict[str, Path],
    tables: dict[str, Profile],
    factor: float,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One SLO: figures by model, and the point for the plain loop."""
    slo_ns = [round(factor * tables[name].latency(1)) for name in names]
    rates = unit_rates([tables[name] for name in names], slo_ns)
    slo_ms = [ns / 1e6 for ns in slo_ns]
    with running(config(options, names, files, slo_ms), START_S) as cluster:
        follower = Follower(cluster.config.subscribe)
        try:
            offer(cluster, names, [0.2 * rate for rate in rates], 1.0, 99, follower)  # warm

            def attempt(scale: float, seed: int) -> Tried:
                report = offer(
                    cluster, names, [scale * rate for rate in rates], options.seconds, seed, follower
                )
                total = report["total"]
                bad = 1 - total["good"] / max(1, total["offered"])
                print(f"  SLO {factor:g} l(1), {scale:.2f} of the ideal: bad {bad:.2%}", file=sys.stderr)
                return Tried(scale, bad, report)

            best = highest(attempt, options.steps)
        finally:
            follower.close()
    judged = judge(best.result["batches"], tables, options.seconds)
    rows = []
    for name, rate, slo in zip(names, rates, slo_ms, strict=True):
        good = best.result["models"][name]["goodput_rps"]
        rows.append(
            {
                "model": name,
                "slo_factor": factor,
                "slo_ms": round(slo, 3),
                "goodput_rps": round(good, 2),
                "fluid_ideal_rps": round(rate, 2),
                "share": round(good / rate, 4) if rate else None,
                "busy_share": judged["busy_share"],
                "predicted_vs_measured_p99": judged["off_p99"].get(name),
                "gap_p50_us": judged["gap_p50_us"],
                "bad_share": round(best.bad, 4),
                "mean_batch": best.result["models"][name]["mean_batch"],
            }
        )
    return rows, {"name": f"{factor:g}", "rates": rates, "slo_ms": slo_ms}


def plain(options: argparse.Namespace, names: list[str], points: list[dict[str, Any]]) -> dict[str, Any]:
    """The plain loop's goodput by SLO and model."""
    definitions = []
    for name in names:
        value = yaml.safe_load(zoo.path(name).read_text(encoding="utf-8"))
        value |= {"max_batch": options.max_batch, "precision": PRECISIONS[options.precision]}
        definitions.append(value)
    task = {"device": options.device, "threads": options.threads, "definitions": definitions}
    task |= {"points": points, "seconds": options.seconds, "steps": options.steps}
    done = subprocess.run(
        [sys.executable, "-m", "bench.plain_loop"], input=json.dumps(task), text=True, check=True, stdout=-1
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything."""
    began, before = time.monotonic(), machine()
    names = options.models.split(",")
    with tempfile.TemporaryDirectory(prefix="symphony-bench-gpu-") as folder:
        profiles: dict[str, dict[str, ProfileFile]] = {}
        for precision in dict.fromkeys([options.precision, *options.also_profile.split(",")]):
            for name in names if precision else ():
                print(f"  profile of {name} in {precision}", file=sys.stderr)
                made = profile(name, options, precision, Path(folder) / f"{name}-{precision}.json")
                profiles.setdefault(name, {})[precision] = made
        files = {name: Path(folder) / f"{name}-{options.precision}.json" for name in names}
        tables = {name: profiles[name][options.precision].profile(options.max_batch) for name in names}
        rows, points = [], []
        for factor in map(float, options.slo_factors.split(",")):
            found, point = live(options, names, files, tables, factor)
            rows += found
            points.append(point)
        loop = plain(options, names, points)
    for row in rows:
        row["plain_loop_goodput_rps"] = round(loop[f"{row['slo_factor']:g}"][row["model"]], 2)
    return {
        "machine": before,
        "device": next(iter(profiles[names[0]].values())).device,
        "precision": options.precision,
        "seconds": round(time.monotonic() - began, 1),
        "profiles": {name: {p: made.as_map() for p, made in by.items()} for name, by in profiles.items()},
        "results": rows,
    }


def show(found: dict[str, Any]) -> str:
    """The table."""
    head = f"{'model':<18}{'SLO ms':>9}{'goodput':>10}{'ideal':>10}{'share':>8}{'busy':>7}{'off p99':>9}"
    lines = [found["machine"], f"{found['device']}, {found['precision']}, {found['seconds']:.0f} s", ""]
    lines.append(f"{head}{'gap µs':>9}{'bad':>8}{'plain loop':>12}")
    for row in found["results"]:
        off, gap = row["predicted_vs_measured_p99"], row["gap_p50_us"]
        lines.append(
            f"{row['model']:<18}{row['slo_ms']:>9.1f}{row['goodput_rps']:>10.1f}{row['fluid_ideal_rps']:>10.1f}"
            f"{row['share'] or 0:>8.1%}{row['busy_share']:>7.0%}{'–' if off is None else f'{off:.1%}':>9}"
            f"{'–' if gap is None else f'{gap:.0f}':>9}{row['bad_share']:>8.2%}"
            f"{row['plain_loop_goodput_rps']:>12.1f}"
        )
    notes = {note for by in found["profiles"].values() for made in by.values() for note in made["notes"]}
    return "\n".join([*lines, *(f"note: {note}" for note in sorted(notes))])


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N")
    parser.add_argument("--models", help=f"of the zoo [default: {GPU_MODELS}; on the CPU {CPU_MODELS}]")
    parser.add_argument("--max-batch", type=int, help="[default: 128; on the CPU 8]")
    parser.add_argument("--precision", choices=list(PRECISIONS), help="[default: fp16; on the CPU fp32]")
    parser.add_argument("--also-profile", metavar="PRECISIONS", help="[default: fp32 on a GPU]")
    parser.add_argument("--slo-factors", default=FACTORS, help=f"multiples of l(1) [default: {FACTORS}]")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each load")
    parser.add_argument("--steps", type=int, default=4, help="loads per SLO, live and plain loop each")
    parser.add_argument("--budget", type=float, default=0.25, help="seconds per batch size and round")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads per operator")
    parser.add_argument("--cuda-graphs", action="store_true", help="profile and serve with CUDA graphs")
    parser.add_argument("--json", metavar="FILE", help="write JSON to a file, or - for standard output")
    options = parser.parse_args(arguments)
    on_cpu = options.device == "cpu"
    options.models = options.models or (CPU_MODELS if on_cpu else GPU_MODELS)
    options.max_batch = options.max_batch or (8 if on_cpu else 128)
    options.precision = options.precision or ("fp32" if on_cpu else "fp16")
    if options.also_profile is None:
        options.also_profile = "" if on_cpu else "fp32"
    try:
        found = measure(options)
    except (SymphonyError, subprocess.CalledProcessError) as error:
        sys.exit(f"bench gpu: {error}")
    print(show(found), file=sys.stderr if options.json == "-" else sys.stdout)
    if options.json == "-":
        print(json.dumps(found))
    elif options.json:
        Path(options.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
