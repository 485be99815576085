"""The highest load with bad < 1 %, by bisection, as benchmarks need it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

BAD: Final = 0.01


@dataclass(frozen=True, slots=True)
class Tried:
    """One run: how much of the unit load was offered, the share of bad requests, and what was seen."""

    scale: float
    bad: float
    result: Any


def highest(
    attempt: Callable[[float, int], Tried],
    steps: int,
    high: float = 1.0,
    enough: Callable[[], bool] = lambda: False,
) -> Tried:
    """The run with the highest scale below ``high`` that had bad < 1 %; without one, the one with least bad.

    Args:
        attempt: runs a scale with a seed.
        steps: how many runs.
        high: a scale that surely fails.
        enough: asked before every run but the first; True ends the search with what it has found.
    """
    low, best, least = 0.0, None, None
    for seed in range(steps):
        if seed and enough():
            break
        tried = attempt((low + high) / 2 if seed else 0.7 * high, seed)
        if least is None or tried.bad < least.bad:
            least = tried
        if tried.bad < BAD:
            low, best = tried.scale, tried
        else:
            high = tried.scale
    found = best or least
    if found is None:
        raise ValueError("steps must be at least 1")
    return found
