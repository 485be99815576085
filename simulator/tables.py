"""Results as tables: CSV for other programs, rows for the terminal and for Markdown, ratios."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

import numpy as np

TOTAL = "total"


def csv_text(results: Sequence[Mapping[str, Any]]) -> str:
    """One line per run and model, and one for the run as a whole (model ``total``).

    Columns: the keys of the study's points, policy, seed, model, then every number of the results
    that is neither a list nor a map, under its name in the JSON; empty where it does not apply.
    """
    points = list(dict.fromkeys(key for result in results for key in result.get("point", {})))
    head = [*points, "policy", "seed", "model"]
    rows: list[dict[str, Any]] = []
    for result in results:
        where = {**result.get("point", {}), "policy": result["policy"], "seed": result["seed"]}
        parts: dict[str, Mapping[str, Any]] = {TOTAL: result, **result["models"]}
        for name, part in parts.items():
            values = {key: value for key, value in part.items() if _plain(value) and key not in where}
            rows.append(where | {"model": name} | values)
    columns = list(dict.fromkeys([*head, *(key for row in rows for key in row)]))
    out = StringIO()
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _plain(value: object) -> bool:
    return value is None or isinstance(value, int | float | str)


@dataclass(frozen=True, slots=True)
class Ratio:
    """How one policy's metric compares with another's over the points of a study.

    least … most: of the ratios. worst: the point with the least, as ``key value, …``. wins: points in
    which it is above.
    """

    other: str
    points: int
    least: float
    low: float
    median: float
    high: float
    most: float
    wins: int
    worst: str


IDEAL = "fluid ideal"


def ratios_by_point(
    results: Sequence[Mapping[str, Any]], ours: str, metric: str
) -> dict[str, dict[str, float]]:
    """Other policy → point → ratio of ``ours`` to it; the fluid ideal is among them if that is goodput.

    Points at which the other one's value is 0 or missing are left out.
    """
    found: dict[str, dict[str, float]] = {}
    ideal: dict[str, float] = {}
    for result in results:
        at = ", ".join(f"{key} {value}" for key, value in result["point"].items())
        found.setdefault(result["policy"], {})[at] = float(result[metric] or 0.0)
        if metric == "goodput_rps" and result["fluid_ideal_rps"]:
            ideal[at] = float(result["fluid_ideal_rps"])
    mine = found.pop(ours, {})
    found[IDEAL] = ideal
    both = {
        other: {at: mine[at] / value for at, value in values.items() if at in mine and value > 0}
        for other, values in found.items()
    }
    return {other: values for other, values in both.items() if values}


def ratios(results: Sequence[Mapping[str, Any]], ours: str, metric: str) -> list[Ratio]:
    """The distribution of :func:`ratios_by_point`, per other policy."""
    out = []
    for other, values in ratios_by_point(results, ours, metric).items():
        found = np.array(list(values.values()))
        least, low, median, high, most = np.percentile(found, [0, 10, 50, 90, 100])
        worst = min(values, key=values.__getitem__)
        wins = int((found > 1).sum())
        out.append(Ratio(other, len(found), least, low, median, high, most, wins, worst))
    return out
