"""Where the time of a loop goes: nanoseconds by phase, and turns, since they were last asked for."""

from __future__ import annotations

import time
from typing import Any


class Phases:
    """Call :meth:`lap` with a phase's index when it ends; the next one has begun then.

    Args:
        names: of the phases, in the order of their indexes.
    """

    def __init__(self, *names: str) -> None:
        self._names = names
        self._ns = [0] * len(names)
        self._turns = 0
        self._last = time.monotonic_ns()

    def lap(self, phase: int) -> int:
        """Everything since the last call was this phase; returns monotonic ns."""
        now = time.monotonic_ns()
        self._ns[phase] += now - self._last
        self._last = now
        return now

    def turn(self) -> None:
        """One turn of the loop is over."""
        self._turns += 1

    def report(self) -> dict[str, Any]:
        """``turns_per_s``, and ``share``: of the time since the last report, by phase."""
        total = sum(self._ns)
        found = {
            "turns_per_s": round(1e9 * self._turns / total, 1) if total else 0.0,
            "share": {
                name: round(ns / total, 4) if total else 0.0
                for name, ns in zip(self._names, self._ns, strict=True)
            },
        }
        self._ns = [0] * len(self._names)
        self._turns = 0
        return found
