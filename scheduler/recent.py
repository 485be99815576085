"""The last values of many series, in columns: what margins and corrections are percentiles of."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
Values = npt.NDArray[Any]


class Recent:
    """Rings of ``length`` values per series; a series is any small integer, and costs nothing before use.

    Memory: ``length`` values and some 20 bytes per series that has values, 4 bytes per possible number up
    to the largest that was seen.

    Args:
        length: values that are remembered of each series.
        dtype: of a value.
    """

    def __init__(self, length: int, dtype: npt.DTypeLike) -> None:
        self._length = length
        self._place = np.zeros(0, np.int32)  # by series: its row plus one
        self._series = np.zeros(0, np.int64)  # by row
        self._values = np.zeros((0, length), dtype)
        self._count = np.zeros(0, np.int64)
        self._fresh = np.zeros(0, np.bool_)
        self._used = 0
        self._free: list[int] = []
        self._cursor = 0

    def add(self, series: Ids, values: Values) -> None:
        """Append a value to each of these series; one that is there twice gets both, in order."""
        if not series.size:
            return
        rows = self._rows(series)
        position = self._count[rows]
        if rows.size > 1:
            order = rows.argsort(kind="stable")
            ordered = rows[order]
            new = (ordered[1:] != ordered[:-1]).nonzero()[0] + 1
            if new.size + 1 < rows.size:  # some are there more than once: their n-th goes n places on
                starts = np.concatenate(([0], new))
                runs = np.diff(np.concatenate((starts, [rows.size])))
                position[order] += np.arange(rows.size) - np.repeat(starts, runs)
        self._values[rows, position % self._length] = values
        self._count[rows] = position + 1  # of equal rows the last, which is the highest, stays
        self._fresh[rows] = True

    def _rows(self, series: Ids) -> Ids:
        largest = int(series.max())
        if largest >= self._place.size:
            more = max(largest + 1, 2 * self._place.size) - self._place.size
            self._place = np.concatenate((self._place, np.zeros(more, np.int32)))
        rows = self._place[series].astype(np.int64) - 1
        if rows.min() < 0:
            for number in np.unique(series[rows < 0]).tolist():
                self._open(number)
            rows = self._place[series].astype(np.int64) - 1
        return rows

    def _open(self, series: int) -> None:
        if not self._free and self._used == self._count.size:
            more = max(16, self._count.size)
            self._series = np.concatenate((self._series, np.zeros(more, np.int64)))
            wider = np.zeros((more, self._length), self._values.dtype)
            self._values = np.concatenate((self._values, wider))
            self._count = np.concatenate((self._count, np.zeros(more, np.int64)))
            self._fresh = np.concatenate((self._fresh, np.zeros(more, np.bool_)))
        if self._free:
            row = self._free.pop()
        else:
            row = self._used
            self._used += 1
        self._place[series] = row + 1
        self._series[row] = series
        self._count[row] = 0

    def sweep(self, limit: int) -> Ids:
        """The series with new values since they were last returned, among the next ``limit`` rows in turn."""
        if not self._used:
            return np.zeros(0, np.int64)
        start = self._cursor if self._cursor < self._used else 0
        end = min(start + limit, self._used)
        self._cursor = end
        rows = np.flatnonzero(self._fresh[start:end]) + start
        self._fresh[rows] = False
        return np.sort(self._series[rows])

    def sweeps(self, limit: int) -> int:
        """How many calls of :meth:`sweep` go over all rows once; at least 1."""
        return max(1, -(-self._used // limit))

    def percentile(self, series: Ids, percent: int) -> tuple[Values, Ids]:
        """For each series: the value that ``percent`` of its last values are below, and how many there are.

        All of ``series`` must have values.
        """
        rows = self._place[series].astype(np.int64) - 1
        count = np.minimum(self._count[rows], self._length)
        values = self._values[rows]
        unused = np.arange(self._length) >= count[:, None]
        values[unused] = np.inf if values.dtype.kind == "f" else np.iinfo(values.dtype).max
        values.sort(axis=1)
        found: Values = values[np.arange(rows.size), count * percent // 100]
        return found, count

    def forget(self, series: int) -> None:
        """Drop what is remembered of one series."""
        if series < self._place.size and self._place[series]:
            row = int(self._place[series]) - 1
            self._place[series] = 0
            self._fresh[row] = False
            self._free.append(row)
