"""``symphony profile``: how long batches of one model take on one device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from symphony.profile_file import ProfileFile
from symphony.status import SymphonyError

_PRECISIONS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def _sizes(ctx: click.Context, param: click.Parameter, value: str | None) -> list[int] | None:
    if value is None:
        return None
    try:
        sizes = sorted({int(text) for text in value.split(",")})
    except ValueError:
        raise click.BadParameter(f"{value!r}: expected batch sizes such as 1,2,4,8") from None
    if sizes[0] < 1 or sizes[-1] > 4096:
        raise click.BadParameter(f"{value!r}: batch sizes go from 1 to 4096")
    return sizes


@click.command()
@click.argument("model")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda:N.")
@click.option(
    "--batches",
    metavar="SIZES",
    callback=_sizes,
    help="Batch sizes to measure, such as 1,2,4,8.  [default: chosen up to the model's max_batch]",
)
@click.option(
    "--max-batch", type=click.IntRange(1, 4096), help="Measure up to there.  [default: the model's]"
)
@click.option("--precision", type=click.Choice(list(_PRECISIONS)), help="[default: the definition's]")
@click.option("--compile", "compiled", is_flag=True, help="Run the model through torch.compile.")
@click.option("--cuda-graphs", is_flag=True, help="Capture CUDA graphs, and use them where they are faster.")
@click.option("--threads", type=click.IntRange(1, 1024), default=1, show_default=True, help="CPU threads.")
@click.option(
    "--gpu-type", default="", help="What the profile is kept by.  [default: cpu or the product name]"
)
@click.option(
    "--runs", type=click.IntRange(5, 10_000), default=15, show_default=True, help="Per size and round."
)
@click.option(
    "--budget",
    type=click.FloatRange(0.01, 600),
    default=0.5,
    show_default=True,
    metavar="SECONDS",
    help="Longest time for one size in one round, beyond 5 runs.",
)
@click.option(
    "--output", "-o", type=click.Path(path_type=Path, dir_okay=False), help="Write the profile file there."
)
@click.option("--json", "json_to", metavar="FILE", help="Write the same as JSON; - for standard output.")
@click.option(
    "--plot", type=click.Path(path_type=Path, dir_okay=False), help="Draw l(b), its fit and the throughput."
)
@click.option(
    "--compare",
    type=click.Path(path_type=Path, dir_okay=False),
    help="An earlier profile file: exit code 1 if they differ by more than both spreads.",
)
def command(
    model: str,
    device: str,
    batches: list[int] | None,
    max_batch: int | None,
    precision: str | None,
    compiled: bool,
    cuda_graphs: bool,
    threads: int,
    gpu_type: str,
    runs: int,
    budget: float,
    output: Path | None,
    json_to: str | None,
    plot: Path | None,
    compare: Path | None,
) -> None:
    """Measure how long batches of MODEL take on a device (times in ms, memory in MB).

    \b
    symphony profile minilm --device cpu --max-batch 8
    symphony profile resnet50 --device cuda:0 --precision fp16 --output resnet50.json --plot resnet50.png

    MODEL is one of the zoo or a definition file. Nothing else should run on the device; if it does not keep
    still, the result says so.
    """
    from worker.definition import load_definition
    from worker.device import open_device
    from worker.profiler import measure_profile
    from worker.sweep import Plan
    from worker.telemetry import Telemetry

    earlier = None if compare is None else ProfileFile.load(compare)
    if device != "cpu" and not device.startswith("cuda"):
        raise SymphonyError(f"device {device!r}: expected cpu or cuda:N")
    definition = load_definition(model)
    if definition.emulated:
        raise SymphonyError(f"model {definition.name!r} is emulated: there is nothing to measure")
    most = max(batches) if batches else max_batch or definition.max_batch
    change: dict[str, Any] = {"max_batch": most, "profile": None}
    change |= {"precision": _PRECISIONS[precision]} if precision else {}
    change |= {"compile": True} if compiled else {}
    change |= {"cuda_graphs": True} if cuda_graphs else {}
    definition = definition.model_copy(update=change)
    opened = open_device(device, threads, gpu_type)
    telemetry = Telemetry(device, uuid=opened.describe().get("uuid"))
    console = Console(stderr=True)
    if not console.is_terminal:
        console = Console(stderr=True, width=140)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(f"{definition.name}: loading", total=None)

            def progress(done: int, total: int, size: int) -> None:
                text = f"{definition.name}: batch {size}" if size else definition.name
                bar.update(task, completed=done, total=total, description=text)

            made = measure_profile(
                opened,
                definition,
                Plan(most, batches, runs, budget_s=budget),
                threads=threads,
                clocks=telemetry.clocks,
                progress=progress,
            )
        driver = telemetry.driver()
    finally:
        telemetry.close()
    if driver is not None:
        made = made.model_copy(update={"driver": driver})
    out = Console(stderr=json_to == "-")
    show(out if out.is_terminal else Console(stderr=json_to == "-", width=140), made, telemetry.absent)
    if output is not None:
        made.save(output)
    if json_to == "-":
        click.echo(json.dumps(made.as_map()))
    elif json_to is not None:
        made.save(json_to)
    if plot is not None:
        from symphony.cli.profile_plot import draw

        draw(made, plot)
    if earlier is not None:
        different = made.differences(earlier)
        if different:
            raise SymphonyError(f"the profile differs from {compare}: {'; '.join(different[:4])}")
        click.echo(f"agrees with {compare} within both stated spreads", err=True)


def show(console: Console, made: ProfileFile, no_telemetry: str | None) -> None:
    """Print the table."""
    how = [made.precision, f"torch {made.torch}"]
    how += [f"driver {made.driver}"] if made.driver else []
    how += ["torch.compile"] if made.compile else []
    how += ["CUDA graphs"] if made.cuda_graphs else []
    how += [f"{made.threads} thread(s)"] if made.threads else []
    console.print(f"{made.model} on {made.device} ({', '.join(how)})", highlight=False, markup=False)
    weights = f"{made.weights_mb:.1f} MB of weights, loaded in {made.load_ms:.0f} ms"
    console.print(f"{weights}, warm after {made.warm_up_ms or 0:.0f} ms more", highlight=False)
    table = Table(box=box.SIMPLE)
    headings = ["batch", "p50", "p90", "p95", "p99", "max", "per s", "spread", "MB"]
    headings += ["prepare", "copy in", "copy out", "post"] + (["graph"] if made.cuda_graphs else [])
    for heading in headings:
        table.add_column(heading, justify="right")
    for batch in made.batches:
        times = (batch.p50_ms, batch.p90_ms, batch.p95_ms, batch.p99_ms, batch.max_ms)
        parts = (batch.pre_ms, batch.copy_in_ms, batch.copy_out_ms, batch.post_ms)
        cells = [str(batch.b), *(f"{value or 0:.3f}" for value in times)]
        cells += [
            f"{1e3 * batch.b / batch.p95_ms:.0f}",
            f"±{batch.spread or 0:.1%}",
            f"{batch.memory_mb:.0f}",
        ]
        cells += [f"{value or 0:.3f}" for value in parts]
        cells += [str(batch.runs_with or "–")] if made.cuda_graphs else []
        table.add_row(*cells)
    console.print(table)
    fit = made.fit
    if fit:
        line = f"p95 is about {fit['alpha_ms']:.4g} ms · b + {fit['beta_ms']:.4g} ms (r² {fit['r2']:.4f})"
        console.print(line, highlight=False)
    if made.clocks_mhz:
        seen = ", ".join(f"{name} {low}–{high} MHz" for name, (low, high) in made.clocks_mhz.items())
        console.print(f"clocks seen: {seen}", highlight=False)
    elif no_telemetry:
        console.print(f"no clocks: {no_telemetry}", highlight=False, markup=False)
    for note in made.notes:
        console.print(f"note: {note}", highlight=False, markup=False, style="yellow")
