"""Runs with an autoscaler as table rows and as plots over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .plots import pyplot

HEADS = (
    "case",
    "autoscaler",
    "bad outside",
    "bad",
    "GPU-s",
    "÷ need",
    "ups",
    "downs",
    "reversals",
    "of the need",
    "after settling",
)
SMOOTH_S = 5


def scaling_rows(results: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """One row per run, in the order of :data:`HEADS`."""
    rows: list[tuple[str, ...]] = []
    for result in results:
        s = result["scaling"]
        ratio = s["gpu_seconds_ratio"]
        rows.append(
            (
                _case(result),
                s["policy"],
                f"{s['bad_share_outside']:.2%}",
                f"{s['bad_share']:.2%}",
                f"{s['gpu_seconds']:.0f}",
                "–" if ratio is None else f"{ratio:.3f}",
                str(s["ups"]),
                str(s["downs"]),
                str(s["reversals"]),
                str(s["reversals_need"]),
                str(s["decisions_settled"]),
            )
        )
    return rows


def scaling_plot(path: Path, results: Sequence[Mapping[str, Any]], title: str) -> None:
    """GPUs over time: the fluid need, and what each autoscaler paid for; a panel per case."""
    plt = pyplot()
    cases = list(dict.fromkeys(_case(result) for result in results))
    columns = 2 if len(cases) > 1 else 1
    rows = -(-len(cases) // columns)
    figure, panels = plt.subplots(rows, columns, figsize=(5.5 * columns, 2.7 * rows), squeeze=False)
    for axes, case in zip(panels.flat, cases, strict=False):
        mine = [result["scaling"] for result in results if _case(result) == case]
        over = mine[0]["over_time"]
        axes.plot(*_smooth(over["seconds"], over["need"]), color="0.6", label="fluid need", linewidth=1)
        for scaling in mine:
            over = scaling["over_time"]
            axes.step(over["seconds"], over["gpus_paid"], where="post", label=scaling["policy"], linewidth=1)
        axes.set(title=case, xlabel="seconds", ylabel="GPUs")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    for axes in list(panels.flat)[len(cases) :]:
        axes.set_visible(False)
    panels.flat[0].legend(fontsize=7)
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _case(result: Mapping[str, Any]) -> str:
    at = {key: value for key, value in result.get("point", {}).items() if key != "autoscale.policy"}
    return ", ".join(str(value) for value in at.values()) or "–"


def _smooth(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """Means of :data:`SMOOTH_S` values: single seconds of Poisson arrivals hide the line."""
    n = len(y) // SMOOTH_S
    means = [sum(y[i * SMOOTH_S : (i + 1) * SMOOTH_S]) / SMOOTH_S for i in range(n)]
    return [x[i * SMOOTH_S] for i in range(n)], means
