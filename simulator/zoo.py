"""The published zoo: latency lines of models that others measured, by name.

``zoo.csv`` beside this file holds one row per model and GPU: l(b) = alpha·b + beta in ms, fitted to
published measurements, with the range of batch sizes that the fit covers and the source of each row:
the model zoos of Clockwork (OSDI 2020) and Nexus (SOSP 2019), NVIDIA's DeepLearningExamples, and the
constant of the Symphony paper's scheduler benchmark. Nexus' four rows are least-squares lines through
its measurements at batch sizes up to 32 (24 for yolo9000); at b = 1 the line is up to 28 % above what
was measured, since small batches are faster than a line allows.
"""

from __future__ import annotations

import csv
import functools
from dataclasses import dataclass
from importlib.resources import files

from symphony.status import SymphonyError


@dataclass(frozen=True, slots=True)
class ZooRow:
    """One fit; ``batch_max`` is 0 where the source does not say."""

    name: str
    gpu: str
    precision: str
    alpha_ms: float
    beta_ms: float
    batch_max: int
    source: str


@functools.cache
def zoo() -> dict[str, ZooRow]:
    """All rows by name.

    A model that stands there on several GPUs has its GPU, then its precision, behind the name as far
    as that is needed to tell the rows apart: ``resnet50``, ``Classification/RN50v1.5@A10@FP16``.
    """
    text = files("simulator").joinpath("zoo.csv").read_text(encoding="utf-8")
    lines = list(csv.DictReader(text.splitlines()))
    rows: dict[str, ZooRow] = {}
    for line in lines:
        parts = [line["model"], line["gpu"], line["precision"]]
        same = lines
        for used in range(1, 4):
            same = [other for other in same if _column(other, used) == parts[used - 1]]
            if len(same) == 1:
                break
        name = "@".join(parts[:used])
        rows[name] = ZooRow(
            name,
            line["gpu"],
            line["precision"],
            float(line["alpha_ms"]),
            float(line["beta_ms"]),
            int(line["batch_max"] or 0),
            line["source"],
        )
    return rows


def _column(line: dict[str, str], number: int) -> str:
    return line[("model", "gpu", "precision")[number - 1]]


def zoo_row(name: str) -> ZooRow:
    """The row of that name.

    Raises:
        SymphonyError: there is none; rows whose names contain it are listed.
    """
    rows = zoo()
    if name in rows:
        return rows[name]
    near = [known for known in rows if name.lower() in known.lower()] or list(rows)
    raise SymphonyError(f"no row {name!r} in the zoo: there are {', '.join(near[:8])}")
