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

It keeps to a time (``--limit``, 450 s), of which the profiles of the precision that is served get 30 %,
those of the other precisions 20 %, the live runs 35 % and the plain loop 15 %; what a phase saves goes to the
next ones. Within a phase every profile, SLO and search gets the same share of what is left: sizes are
measured more briefly, searches end sooner, and what does not fit is left out. ``left_out`` names it, and
``phases_s`` says what each phase took.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from bench.budget import Budget
from bench.cluster import machine
from bench.gpu_live import PRECISIONS, How, live
from bench.output import add_json, tell
from symphony.profile import ProfileError
from symphony.profile_file import ProfileFile
from symphony.status import SymphonyError
from worker import zoo
from worker.definition import load_definition
from worker.sweep import ROUNDS

QUICK: Final = [
    *("--models", "minilm", "--max-batch", "4", "--slo-factors", "10"),
    *("--seconds", "3", "--steps", "2", "--limit", "60"),
]
TRIES: Final = 3
FACTORS: Final = "2.5,5,10"
GPU_MODELS: Final = "resnet50,vit-b16,bert-base,efficientnet-b0"
CPU_MODELS: Final = "minilm,crepe-full"
LIMIT_S: Final = 450.0
SHARES: Final = {"profiles": 0.30, "other profiles": 0.20, "live": 0.35, "plain loop": 0.15}
START_S: Final = 15.0
"""What a profile takes besides its measuring: imports, weights, warm-up. A guess, then what was seen."""
SIZES: Final = 20
"""Batch sizes that a profile up to 128 measures, about: 8 powers of two, and 12 where the curve may bend."""
LEAST_BUDGET_S: Final = 0.03
GRACE_S: Final = 20.0
"""How far a process may go beyond the time it was told to keep to."""


class Profiles:
    """Measures one model after the other, each in a process of its own and in the time that there is."""

    def __init__(self, options: argparse.Namespace, budget: Budget, folder: Path) -> None:
        self._options = options
        self._budget = budget
        self._folder = folder
        self._start_s = START_S
        self.made: dict[str, dict[str, ProfileFile]] = {}
        """By model and precision."""

    def file(self, name: str, precision: str) -> Path:
        """Where it is written."""
        return self._folder / f"{name}-{precision}.json"

    def measure(self, names: list[str], precision: str) -> None:
        """Those that there is time for; the others are left out.

        Raises:
            SymphonyError: the first one cannot be measured.
        """
        for position, name in enumerate(names):
            seconds = self._budget.each_s(len(names) - position)
            if position and seconds < 0.5 * self._start_s:
                self._budget.left_out.append(f"profile of {name} in {precision}")
                continue
            per_size = (seconds - self._start_s) / (ROUNDS * SIZES)
            per_size = max(LEAST_BUDGET_S, min(self._options.budget, per_size))
            print(
                f"  profile of {name} in {precision}, {per_size:.2f} s a size and round "
                f"({self._budget.spent_s():.0f} of {self._budget.limit_s:.0f} s)",
                file=sys.stderr,
            )
            began = self._budget.clock()
            try:
                self.made.setdefault(name, {})[precision] = self._one(name, precision, per_size)
            except SymphonyError as error:
                if not position and precision == self._options.precision:
                    raise
                self._budget.left_out.append(f"profile of {name} in {precision}: {error}")
            took = self._budget.clock() - began
            self._start_s = max(5.0, took - ROUNDS * SIZES * per_size)

    def _one(self, name: str, precision: str, per_size: float) -> ProfileFile:
        """``symphony profile``; again, if what it found makes no sense.

        Raises:
            SymphonyError: it cannot be measured, not in time, or makes no sense a third time.
        """
        options, file = self._options, self.file(name, precision)
        command = [sys.executable, "-m", "symphony", "--log-level", "warning", "profile", name]
        command += ["--device", options.device, "--max-batch", str(options.max_batch)]
        command += ["--precision", precision, "--threads", str(options.threads)]
        command += ["--budget", f"{per_size:.3f}", "--output", str(file)]
        command += ["--cuda-graphs"] if options.cuda_graphs else []
        for attempt in range(TRIES):
            wait = self._budget.total_left_s() + GRACE_S
            _run(command, f"profile of {name}", wait)
            made = ProfileFile.load(file)
            try:
                made.profile(options.max_batch)
                break
            except ProfileError as error:
                if attempt == TRIES - 1 or self._budget.left_s() < self._start_s:
                    raise
                print(f"  {name}: {error}", file=sys.stderr)
        return made


def _run(command: list[str], what: str, seconds: float, text: str | None = None) -> str:
    """Standard output. Raises SymphonyError: the command's own last words, or that it took too long."""
    try:
        done = subprocess.run(
            command, input=text or "", capture_output=True, text=True, check=False, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        raise SymphonyError(f"{what}: not done after {seconds:.0f} s") from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise SymphonyError(said[-1].removeprefix("symphony: "))
    return done.stdout


def plain(how: How, names: list[str], points: list[dict[str, Any]], budget: Budget) -> dict[str, Any]:
    """The plain loop's goodput by SLO and model; an SLO that there was no time for is missing."""
    task: dict[str, Any] = {"device": how.device, "threads": how.threads}
    task |= {"definitions": [how.definition(name, {"cuda_graphs": False}) for name in names]}
    task |= {"points": points, "seconds": how.seconds, "steps": how.steps, "limit_s": budget.left_s()}
    command = [sys.executable, "-m", "bench.plain_loop"]
    try:
        found = json.loads(_run(command, "plain loop", budget.left_s() + 3 * GRACE_S, json.dumps(task)))
    except SymphonyError as error:
        budget.left_out.append(f"plain loop: {error}")
        return {}
    budget.left_out.extend(found["left_out"])
    goodput: dict[str, Any] = found["goodput"]
    return goodput


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that there is time for."""
    budget = Budget(options.limit, SHARES)
    before, wanted = machine(), options.models.split(",")
    fields = ("device", "precision", "max_batch", "threads", "cuda_graphs", "seconds", "steps")
    how = How(**{name: getattr(options, name) for name in fields})
    others = [p for p in dict.fromkeys(options.also_profile.split(",")) if p and p != how.precision]
    print(
        f"  {budget.limit_s:.0f} s: {', '.join(f'{n} {s:.0%}' for n, s in SHARES.items())}", file=sys.stderr
    )
    with tempfile.TemporaryDirectory(prefix="symphony-bench-gpu-") as folder:
        profiles = Profiles(options, budget, Path(folder))
        budget.begin("profiles")
        profiles.measure(wanted, how.precision)
        names = [name for name in wanted if how.precision in profiles.made.get(name, {})]
        budget.begin("other profiles")
        for position, precision in enumerate(others):
            if budget.each_s(len(others) - position) > 0:
                profiles.measure(names, precision)
        files = {name: profiles.file(name, how.precision) for name in names}
        tables = {name: profiles.made[name][how.precision].profile(how.max_batch) for name in names}
        budget.begin("live")
        rows, points = [], []
        factors, least_s = list(map(float, options.slo_factors.split(","))), 0.0
        for position, factor in enumerate(factors):
            if position and budget.left_s() < max(least_s, 1.0):
                budget.left_out.append(f"SLO {factor:g} l(1)")
                continue
            try:
                seconds = budget.each_s(len(factors) - position)
                found, point = live(how, names, files, tables, factor, budget, seconds)
            except RuntimeError as error:
                budget.left_out.append(f"SLO {factor:g} l(1): {str(error).strip().splitlines()[-1]}")
                continue
            rows += found
            points.append(point)
            least_s = point["least_s"]
        budget.begin("plain loop")
        loop = plain(how, names, points, budget) if points else {}
        budget.end()
    for row in rows:
        of_loop = loop.get(f"{row['slo_factor']:g}", {}).get(row["model"])
        row["plain_loop_goodput_rps"] = None if of_loop is None else round(of_loop, 2)
    return {
        "machine": before,
        "device": profiles.made[names[0]][how.precision].device,
        "precision": how.precision,
        "seconds": round(budget.spent_s(), 1),
        "phases_s": budget.took_s,
        "left_out": budget.left_out,
        "profiles": {n: {p: made.as_map() for p, made in by.items()} for n, by in profiles.made.items()},
        "results": rows,
    }


def show(found: dict[str, Any]) -> str:
    """The table."""
    head = f"{'model':<18}{'SLO ms':>9}{'goodput':>10}{'ideal':>10}{'share':>8}{'busy':>7}{'off p99':>9}"
    lines = [found["machine"], f"{found['device']}, {found['precision']}, {found['seconds']:.0f} s", ""]
    lines.append(f"{head}{'gap µs':>9}{'bad':>8}{'plain loop':>12}")
    for row in found["results"]:
        off, gap = row["predicted_vs_measured_p99"], row["gap_p50_us"]
        loop = row["plain_loop_goodput_rps"]
        lines.append(
            f"{row['model']:<18}{row['slo_ms']:>9.1f}{row['goodput_rps']:>10.1f}{row['fluid_ideal_rps']:>10.1f}"
            f"{row['share'] or 0:>8.1%}{row['busy_share']:>7.0%}{'–' if off is None else f'{off:.1%}':>9}"
            f"{'–' if gap is None else f'{gap:.0f}':>9}{row['bad_share']:>8.2%}"
            f"{'–' if loop is None else f'{loop:.1f}':>12}"
        )
    notes = {note for by in found["profiles"].values() for made in by.values() for note in made["notes"]}
    lines += [f"left out: {what}" for what in found["left_out"]]
    return "\n".join([*lines, *(f"note: {note}" for note in sorted(notes))])


def _known(names: list[str]) -> list[str]:
    """Raises SymphonyError: a model that the zoo has not, or none that could run on a real device."""
    for name in names:
        if name not in zoo.names():
            raise SymphonyError(f"no model {name!r} in the zoo: there is {', '.join(zoo.names())}")
        if load_definition(name).emulated:
            raise SymphonyError(f"model {name!r} is emulated: there is nothing to measure")
    return names


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="symphony bench gpu", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N")
    parser.add_argument("--models", help=f"of the zoo [default: {GPU_MODELS}; on the CPU {CPU_MODELS}]")
    parser.add_argument("--max-batch", type=int, help="[default: 128; on the CPU 8]")
    parser.add_argument("--precision", choices=list(PRECISIONS), help="[default: fp16; on the CPU fp32]")
    parser.add_argument("--also-profile", metavar="PRECISIONS", help="[default: fp32 on a GPU]")
    parser.add_argument("--slo-factors", default=FACTORS, help=f"multiples of l(1) [default: {FACTORS}]")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each load")
    parser.add_argument("--steps", type=int, default=4, help="loads per SLO, live and plain loop each")
    parser.add_argument("--budget", type=float, default=0.15, help="most seconds per batch size and round")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds for everything [default: 450]")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads per operator")
    parser.add_argument("--cuda-graphs", action="store_true", help="profile and serve with CUDA graphs")
    add_json(parser)
    options = parser.parse_args(arguments)
    on_cpu = options.device == "cpu"
    options.models = options.models or (CPU_MODELS if on_cpu else GPU_MODELS)
    options.max_batch = options.max_batch or (8 if on_cpu else 128)
    options.precision = options.precision or ("fp32" if on_cpu else "fp16")
    if options.also_profile is None:
        options.also_profile = "" if on_cpu else "fp32"
    try:
        options.models = ",".join(_known(options.models.split(",")))
        found = measure(options)
    except SymphonyError as error:
        sys.exit(f"bench gpu: {error}")
    tell(show(found), found, options.json)


if __name__ == "__main__":
    main()
