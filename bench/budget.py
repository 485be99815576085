"""A fixed time for work in phases: each may take its share of what is left, and passes on what it saves."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass
class Budget:
    """``limit_s`` for all phases together, in the order and the proportions of ``shares``.

    Attributes:
        took_s: seconds by phase, of those that have ended.
        left_out: what there was no time for, or what went wrong, in words.
    """

    limit_s: float
    shares: Mapping[str, float]
    clock: Callable[[], float] = time.monotonic
    took_s: dict[str, float] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.began = self._phase_began = self.clock()
        self._phase, self.until = "", self.began + self.limit_s

    def spent_s(self) -> float:
        """Since the beginning."""
        return self.clock() - self.began

    def total_left_s(self) -> float:
        """Of all phases; never less than 0."""
        return max(0.0, self.limit_s - self.spent_s())

    def begin(self, phase: str) -> float:
        """End the phase before; returns how many seconds this one has."""
        self.end()
        later = list(self.shares)[list(self.shares).index(phase) :]
        share = self.shares[phase] / sum(self.shares[name] for name in later)
        self._phase, self._phase_began = phase, self.clock()
        seconds = share * self.total_left_s()
        self.until = self._phase_began + seconds
        return seconds

    def end(self) -> None:
        """The phase is over."""
        if self._phase:
            self.took_s[self._phase] = round(self.clock() - self._phase_began, 1)
        self._phase = ""

    def left_s(self) -> float:
        """Of this phase; never less than 0."""
        return max(0.0, self.until - self.clock())

    def each_s(self, items: int) -> float:
        """For each of so many items that this phase still has to do."""
        return self.left_s() / max(1, items)
