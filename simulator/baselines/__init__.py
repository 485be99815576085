"""Schedulers of other publications, each from its own text.

``eager`` and ``timeout`` need no module here: they are policies of the scheduling core.
"""

from __future__ import annotations

from collections.abc import Callable

from simulator.system import Cluster, System

BASELINES: dict[str, Callable[[Cluster], System]] = {}
"""Name → how to make it."""


def make_baseline(name: str, cluster: Cluster) -> System | None:
    """A fresh baseline, or None if the name is none of a baseline."""
    make = BASELINES.get(name)
    return None if make is None else make(cluster)
