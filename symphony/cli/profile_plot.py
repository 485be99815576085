"""The plot of a profile: l(b) with its least-squares line, and the throughput that follows from it."""

from __future__ import annotations

from pathlib import Path

from symphony.profile_file import ProfileFile
from symphony.status import SymphonyError


def draw(made: ProfileFile, path: Path) -> None:
    """Write a picture; its kind follows from the name's ending.

    Raises:
        SymphonyError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise SymphonyError("plots need matplotlib: pip install 'symphony-serving[plots]'") from None
    sizes = [batch.b for batch in made.batches]
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in ("p50_ms", "p95_ms", "p99_ms"):
        left.plot(sizes, [getattr(batch, name) for batch in made.batches], marker=".", label=name[:3])
    fit = made.fit
    if fit:
        line = [fit["alpha_ms"] * b + fit["beta_ms"] for b in sizes]
        left.plot(sizes, line, "--", color="grey", label=f"{fit['alpha_ms']:.3g} b + {fit['beta_ms']:.3g}")
    left.set(xlabel="batch size b", ylabel="l(b), ms", ylim=(0, None), title=f"{made.model} on {made.device}")
    left.legend()
    right.plot(sizes, [1e3 * batch.b / batch.p95_ms for batch in made.batches], marker=".")
    right.set(xlabel="batch size b", ylabel="requests/s at p95", ylim=(0, None), title=made.precision)
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise SymphonyError(f"cannot write the plot {path}: {error}") from None
