"""Schedulers of other publications, each by its rules as far as they could be looked up.

``eager`` and ``timeout`` need no module here: they are policies of the scheduling core.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from simulator.experiment import ExperimentError
from simulator.system import Cluster, System

from .clockwork import PUBLISHED_LARGEST, Clockwork
from .nexus import EPOCH_S, Nexus
from .shepherd import LAMBDA, Shepherd


def _clockwork(cluster: Cluster, text: str) -> System:
    return Clockwork(cluster, int(text) if text else PUBLISHED_LARGEST)


def _nexus(cluster: Cluster, text: str) -> System:
    if text:
        raise ValueError(text)
    return Nexus(cluster)


def _replanned(cluster: Cluster, text: str) -> System:
    epoch = float(text) if text else EPOCH_S
    if epoch <= 0:
        raise ValueError(text)
    return Nexus(cluster, epoch)


def _shepherd(cluster: Cluster, text: str, from_head: bool = False) -> System:
    threshold = float(text) if text else LAMBDA
    if threshold <= 1:
        raise ValueError(text)
    return Shepherd(cluster, threshold, from_head)


_MAKERS: Final[dict[str, Callable[[Cluster, str], System]]] = {
    "clockwork": _clockwork,
    "nexus": _nexus,
    "nexus-replanned": _replanned,
    "shepherd": _shepherd,
    "shepherd-head": partial(_shepherd, from_head=True),
}

BASELINES: Final = (
    "clockwork[:LARGEST_BATCH]",
    "nexus",
    "nexus-replanned[:EPOCH_S]",
    "shepherd[:LAMBDA]",
    "shepherd-head[:LAMBDA]",
)
"""How their names are written; what stands in brackets is optional."""


def make_baseline(name: str, cluster: Cluster) -> System | None:
    """A fresh baseline, or None if the name is none of a baseline.

    Raises:
        ExperimentError: what stands behind the name is not understood.
    """
    kind, _, rest = name.partition(":")
    if kind not in _MAKERS:
        return None
    try:
        return _MAKERS[kind](cluster, rest)
    except ValueError:
        raise ExperimentError(f"unknown policy {name!r}: expected {', '.join(BASELINES)}") from None
