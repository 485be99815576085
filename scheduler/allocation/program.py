"""A small mixed-integer program on HiGHS: columns and rows are gathered, then minimized in stages.

One thread, a fixed seed and no output: the same program gives the same answer, unless the time limit
cuts it short.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import highspy
import numpy as np

INFINITY: Final = float(highspy.kHighsInf)


@dataclass(frozen=True, slots=True)
class Answer:
    """``values`` of the columns, or None if none were found; no solution is below ``bound``."""

    values: list[float] | None
    value: float
    bound: float
    solved: bool


class Program:
    """Minimize a linear objective over columns within bounds and rows."""

    def __init__(self) -> None:
        self._low: list[float] = []
        self._high: list[float] = []
        self._integer: list[bool] = []
        self._row_low: list[float] = []
        self._row_high: list[float] = []
        self._starts: list[int] = [0]
        self._index: list[int] = []
        self._value: list[float] = []

    @property
    def columns(self) -> int:
        """How many there are."""
        return len(self._low)

    def column(self, low: float = 0.0, high: float = INFINITY, integer: bool = False) -> int:
        """A new variable; its number."""
        self._low.append(low)
        self._high.append(high)
        self._integer.append(integer)
        return len(self._low) - 1

    def row(self, terms: Iterable[tuple[int, float]], low: float = -INFINITY, high: float = INFINITY) -> None:
        """low ≤ Σ value·column ≤ high; a column stands in ``terms`` once."""
        for column, value in terms:
            if value:
                self._index.append(column)
                self._value.append(value)
        self._starts.append(len(self._index))
        self._row_low.append(low)
        self._row_high.append(high)

    def fix(self, column: int, value: float) -> None:
        """Leave that variable no choice."""
        self._low[column] = self._high[column] = value

    def minimize(
        self,
        objective: Mapping[int, float],
        time_limit_s: float,
        start: Sequence[float] | None = None,
        gap: float = 0.0,
    ) -> Answer:
        """Solve; ``start`` is a solution to begin from, ``gap`` the relative distance that suffices."""
        columns, rows = len(self._low), len(self._row_low)
        if not columns:
            return Answer([], 0.0, 0.0, True)
        cost = np.zeros(columns)
        for column, value in objective.items():
            cost[column] = value
        solver = highspy.Highs()  # type: ignore[no-untyped-call]
        solver.setOptionValue("output_flag", False)
        solver.setOptionValue("threads", 1)
        solver.setOptionValue("random_seed", 1)
        solver.setOptionValue("time_limit", max(0.01, time_limit_s))
        solver.setOptionValue("mip_rel_gap", gap)
        model = highspy.HighsLp()
        model.num_col_, model.num_row_ = columns, rows
        model.col_cost_ = cost
        model.col_lower_, model.col_upper_ = np.array(self._low), np.array(self._high)
        model.row_lower_, model.row_upper_ = np.array(self._row_low), np.array(self._row_high)
        model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        model.a_matrix_.start_ = np.array(self._starts, dtype=np.int32)
        model.a_matrix_.index_ = np.array(self._index, dtype=np.int32)
        model.a_matrix_.value_ = np.array(self._value)
        whole = any(self._integer)
        if whole:
            kinds = (highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger)
            model.integrality_ = [kinds[integer] for integer in self._integer]
        if solver.passModel(model) == highspy.HighsStatus.kError:
            return Answer(None, math.inf, -math.inf, False)
        if start is not None:
            solver.setSolution(columns, np.arange(columns, dtype=np.int32), np.array(start, dtype=np.float64))
        solver.run()
        status, info = solver.getModelStatus(), solver.getInfo()
        solved = status == highspy.HighsModelStatus.kOptimal
        found = info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
        value = float(info.objective_function_value)
        bound = float(info.mip_dual_bound) if whole else (value if solved else -math.inf)
        values = [float(x) for x in solver.getSolution().col_value] if found else None
        return Answer(values, value if found else math.inf, bound, solved and found)


class Clock:
    """What is left of a time limit, in seconds of the monotonic clock."""

    def __init__(self, limit_s: float) -> None:
        self._began = time.monotonic()
        self._limit = limit_s

    @property
    def spent(self) -> float:
        """Since it was made."""
        return time.monotonic() - self._began

    @property
    def left(self) -> float:
        """Until the limit; 0 when it is over."""
        return max(0.0, self._limit - self.spent)
