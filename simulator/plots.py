"""Plots of results, as PNG files; needs matplotlib (``pip install 'symphony-serving[plots]'``)."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from symphony.status import SymphonyError

from .tables import ratios_by_point


def pyplot() -> Any:
    """matplotlib.pyplot without a display.

    Raises:
        SymphonyError: matplotlib is not installed.
    """
    try:
        matplotlib = importlib.import_module("matplotlib")
    except ImportError:
        raise SymphonyError("plots need matplotlib: pip install 'symphony-serving[plots]'") from None
    matplotlib.use("Agg")
    return importlib.import_module("matplotlib.pyplot")


def check_plots(directory: Path) -> None:
    """Fail before the long work if plots could not be written in the end.

    Raises:
        SymphonyError: no matplotlib, or no such directory and it cannot be made.
    """
    pyplot()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SymphonyError(f"cannot make the directory {directory}: {error.strerror}") from None


def line_plot(
    path: Path, lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], x: str, y: str, title: str
) -> None:
    """One line per name over (x values, y values)."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(7, 4.2))
    for name, (xs, ys) in lines.items():
        axes.plot(xs, ys, marker="o", markersize=3, label=name)
    axes.set(xlabel=x, ylabel=y)
    axes.set_title(title, fontsize=9)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def share_plot(path: Path, results: Sequence[Mapping[str, Any]], metric: str, title: str) -> None:
    """Bars of every policy's share of the fluid ideal, a group per point in the order of the results."""
    plt = pyplot()
    shares: dict[str, dict[str, float]] = {}
    for result in results:
        point = ", ".join(str(value) for value in result["point"].values())
        shares.setdefault(result["policy"], {})[point] = (result[metric] or 0.0) / result["fluid_ideal_rps"]
    points = list(dict.fromkeys(point for values in shares.values() for point in values))
    figure, axes = plt.subplots(figsize=(max(7.0, 0.9 * len(points)), 4.2))
    width = 0.8 / len(shares)
    for i, (policy, values) in enumerate(shares.items()):
        places = [points.index(point) + (i + 0.5) * width - 0.4 for point in values]
        axes.bar(places, values.values(), width, label=policy)
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(points)), points, rotation=20, ha="right", fontsize=7)
    axes.set_ylabel("share of the fluid ideal")
    axes.set_title(title, fontsize=9)
    axes.legend(fontsize=7, bbox_to_anchor=(1.0, 1.0), loc="upper left")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def ratio_plot(path: Path, results: Sequence[Mapping[str, Any]], ours: str, metric: str, title: str) -> None:
    """Per other policy the ratio of ``ours`` to it at every point, in rising order."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(7, 4.2))
    for other, values in ratios_by_point(results, ours, metric).items():
        ordered = sorted(values.values())
        places = [(i + 0.5) / len(ordered) for i in range(len(ordered))]
        axes.plot(places, ordered, marker="o", markersize=3, label=other)
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set(xlabel="share of the points", ylabel=f"{ours} / other, {metric}", yscale="log")
    axes.yaxis.set_major_formatter("{x:.2f}")
    axes.yaxis.set_minor_formatter("{x:.2f}")
    axes.set_title(title, fontsize=9)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def result_plots(directory: Path, results: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Goodput by policy, latency percentiles, batch sizes, and GPUs over time; returns the files."""
    plt = pyplot()
    names = [result["policy"] for result in results]
    made = []

    def bars(file: str, values: Mapping[str, Sequence[float]], y: str) -> None:
        figure, axes = plt.subplots(figsize=(7, 4.2))
        width = 0.8 / len(values)
        for i, (label, heights) in enumerate(values.items()):
            axes.bar([j + i * width for j in range(len(names))], heights, width, label=label)
        axes.set_xticks([j + 0.4 - width / 2 for j in range(len(names))], names)
        axes.set_ylabel(y)
        axes.legend(fontsize=8)
        figure.tight_layout()
        figure.savefig(directory / file, dpi=120)
        plt.close(figure)
        made.append(directory / file)

    bars("goodput.png", {"goodput": [r["goodput_rps"] for r in results]}, "requests/s")
    bars(
        "latency.png",
        {key: [r[key] or 0.0 for r in results] for key in ("p50_ms", "p99_ms")},
        "latency (ms)",
    )
    sizes = {
        r["policy"]: (
            [int(b) for b in r["batch_histogram"]],
            [n / r["batches"] for n in r["batch_histogram"].values()],
        )
        for r in results
    }
    line_plot(directory / "batches.png", sizes, "batch size", "share of batches", "Batch sizes")
    over = {}
    for r in results:
        busy = r["over_time"]["gpus_busy"]
        over[r["policy"]] = (list(range(len(busy))), busy)
    line_plot(directory / "gpus.png", over, "seconds", "GPUs busy", "GPUs busy over time")
    return [*made, directory / "batches.png", directory / "gpus.png"]
